"""A redis-server of our own, on a free port of the loopback interface, that keeps nothing on disk.

The layers in the child processes find it by an environment variable, which they inherit.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

VARIABLE = "BENCHMARK_REDIS_PORT"
PATIENCE = 30.0  # seconds


def port() -> int:
    """Where it listens; KeyError if it does not run."""
    return int(os.environ[VARIABLE])


@contextmanager
def running() -> Iterator[None]:
    """It runs inside the block, if it is installed at all."""
    program = shutil.which("redis-server")
    if program is None or VARIABLE in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="bench-redis-") as folder:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            os.environ[VARIABLE] = free = str(probe.getsockname()[1])
        options = ("--bind", "127.0.0.1", "--port", free, "--dir", folder)
        server = subprocess.Popen(
            [program, *options, "--save", "", "--appendonly", "no"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        try:
            _wait_for(server)
            yield
        finally:
            del os.environ[VARIABLE]
            server.terminate()
            server.wait()


def _wait_for(server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE
    while server.poll() is None and time.monotonic() < deadline:
        try:
            command("PING")
            return
        except OSError:
            time.sleep(0.02)
    raise RuntimeError("redis-server does not answer")


def command(line: str) -> str:
    """The server's raw answer to one simple command."""
    with socket.create_connection(("127.0.0.1", port()), timeout=PATIENCE) as connection:
        connection.sendall(line.encode() + b"\r\nQUIT\r\n")
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    return answer.decode()


def memory() -> int:
    """Bytes that it holds for keys and values."""
    return next(
        int(line.partition(":")[2])
        for line in command("INFO memory").splitlines()
        if line.startswith("used_memory:")
    )


def forget(prefix: str) -> None:
    """Remove everything: one layer is measured at a time, and nobody else uses this server."""
    command("FLUSHALL")
