"""The socket is had before anything slow happens, or a sentence says why not."""

from __future__ import annotations

import socket
import stat
from pathlib import Path

import pytest

from octavo.errors import ConfigError
from octavo_server.listen import bind, url
from octavo_server.settings import Settings


def test_a_port_in_use_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"Port {port} on 127\.0\.0\.1 is in use"):
            bind(Settings(port=port))


def test_a_bound_socket_refuses_clients_until_it_listens() -> None:
    with bind(Settings(port=0)) as listening:
        assert url(listening).startswith("http://127.0.0.1:")
        with socket.socket() as client, pytest.raises(ConnectionRefusedError):
            client.connect(listening.getsockname())


def test_an_unknown_host_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match=r"--host nowhere\.invalid"):
        bind(Settings(host="nowhere.invalid"))


def test_a_unix_socket_is_private_and_a_stale_one_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "octavo.sock"
    bind(Settings(uds=str(path))).close()
    with bind(Settings(uds=str(path))) as listening:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
        listening.listen()
        with pytest.raises(ConfigError, match="in use by another server"):
            bind(Settings(uds=str(path)))


def test_a_file_is_never_replaced_by_a_socket(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(ConfigError, match="exists and is no socket"):
        bind(Settings(uds=str(path)))
    assert path.read_text() == "data"
