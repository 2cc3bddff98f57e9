"""A redis-server of our own, on a free port of the loopback interface, that keeps nothing on disk.

The layers in the child processes find it by an environment variable, which they inherit.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests import processes

VARIABLE, PROCESS = "BENCHMARK_REDIS_PORT", "BENCHMARK_REDIS_PID"


def missing() -> str:
    """Why there is no Redis here; "" if there can be one."""
    if shutil.which("redis-server") is None:
        return "redis-server is not installed (on Debian: apt-get install redis-server)"
    return ""


def pids() -> list[int]:
    """Its process, which works for layers over Redis alone; none if it does not run."""
    return [int(os.environ[PROCESS])] if PROCESS in os.environ else []


def port() -> int:
    """Where it listens; KeyError if it does not run."""
    return int(os.environ[VARIABLE])


@contextmanager
def running() -> Iterator[None]:
    """It runs inside the block, if it is installed at all."""
    if missing() or VARIABLE in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="bench-redis-") as name:
        free, folder = processes.free_port(), Path(name)
        options = ("--bind", "127.0.0.1", "--port", str(free), "--save", "", "--appendonly", "no")
        command = ["redis-server", *options]
        with processes.running(command, log=folder / "log", folder=folder) as server:
            server.wait_for_port(free)
            os.environ[VARIABLE], os.environ[PROCESS] = str(free), str(server.pid)
            try:
                yield
            finally:
                del os.environ[VARIABLE], os.environ[PROCESS]


def forget(prefix: str) -> None:
    """Remove everything: one layer is measured at a time, and nobody else uses this server."""
    with socket.create_connection(("127.0.0.1", port()), timeout=30) as connection:
        connection.sendall(b"FLUSHALL\r\nQUIT\r\n")
        while connection.recv(65536):
            pass
