"""The listening socket, bound before anything slow happens so that a taken port is known at once."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

from octavo.errors import ConfigError
from octavo_server.settings import Settings


def bind(settings: Settings) -> socket.socket:
    """A bound socket that does not listen yet, so that clients are refused until the model is loaded.

    Raises ConfigError, one sentence, when the address cannot be had.
    """
    return _bind_unix(settings.uds) if settings.uds else _bind_tcp(settings.host, settings.port)


def url(listening: socket.socket) -> str:
    """Where clients find the server."""
    if listening.family == socket.AF_UNIX:
        return f"unix:{listening.getsockname()}"
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _bind_tcp(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise ConfigError(f"--host {host} is no address of this machine: {error.strerror}.") from None
    listening = socket.socket(family, kind, protocol)
    # Lets a restart bind while connections of the last run linger; a port that somebody listens on stays
    # refused.
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(address)
    except OSError as error:
        listening.close()
        raise ConfigError(_refusal(error, host, port)) from None
    return listening


def _bind_unix(path: str) -> socket.socket:
    if Path(path).exists():
        _remove_stale(path)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    previous = os.umask(0o077)  # the socket is the owner's alone, from its first moment
    try:
        listening.bind(path)
    except OSError as error:
        listening.close()
        raise ConfigError(f"--uds {path} cannot be used: {error.strerror or error}.") from None
    finally:
        os.umask(previous)
    return listening


def _remove_stale(path: str) -> None:
    """Remove a socket that nobody answers; refuse to touch anything else."""
    if not stat.S_ISSOCK(os.stat(path).st_mode):
        raise ConfigError(f"--uds {path} exists and is no socket.")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
        try:
            caller.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise ConfigError(f"--uds {path} is in use by another server.")


def _refusal(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"Port {port} on {host} is in use; choose another with --port, or 0 for a free one."
    if error.errno == errno.EACCES:
        return f"Port {port} needs privileges that this user lacks; ports from 1024 on need none."
    return f"Cannot listen on {host}:{port}: {error.strerror}."
