"""Imports the contract suites for peers, as ``conformance``: asgi_ipc may be another package here.

Must not import the package under test. Its version 1.4 is one of the peers.
"""

from __future__ import annotations

import importlib.util
import math
import os
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


def _load() -> None:
    folder = Path(__file__).resolve().parents[3] / "asgi_ipc" / "conformance"
    pytest.register_assert_rewrite("conformance")
    spec = importlib.util.spec_from_file_location(
        "conformance", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    sys.modules["conformance"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


_load()

from conformance import Channels1Contract, Channels4Contract  # noqa: E402
from conformance.base import until  # noqa: E402

__all__ = ["Channels1Contract", "Channels4Contract", "new_prefix", "redis_port", "whole_seconds"]


def new_prefix() -> str:
    """Return a prefix that nothing else uses."""
    return f"t{os.getpid()}-{secrets.token_hex(4)}"


def whole_seconds(options: dict[str, Any]) -> dict[str, Any]:
    """Round the options up for a layer whose times are whole seconds."""
    times = ("expiry", "group_expiry")
    return {k: math.ceil(v) if k in times else v for k, v in options.items()}


@pytest.fixture(scope="session")
def redis_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a Redis server on the loopback interface, which saves nothing."""
    if shutil.which("redis-server") is None:
        pytest.skip("lacking: redis-server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("redis")
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
    with open(folder / "log", "wb") as log:
        server = subprocess.Popen(
            [*command, "--save", "", "--appendonly", "no"], stdout=log, stderr=log
        )
    try:
        until(lambda: _answers(port, server), 60)
        yield port
    finally:
        server.terminate()
        server.wait()


def _answers(port: int, server: subprocess.Popen[bytes]) -> bool:
    assert server.poll() is None, "redis-server ended"
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True
