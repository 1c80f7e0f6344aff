"""The XLA backend on the host, which pretends to be two devices: jax decides once in a process how many there are."""

from __future__ import annotations

import os
import sys

import pytest

if "jax" in sys.modules:
    raise pytest.UsageError("jax is imported already: the tests of the XLA backend want a process of their own.")
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # libtpu, where it is installed, only compiles here
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"

import jax

HOST_DEVICES = 2
jax.config.update("jax_num_cpu_devices", HOST_DEVICES)
assert len(jax.devices()) == HOST_DEVICES
