"""Real servers for the tests of several machines, on free loopback ports, stopped by pid."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.processes import Process, free_port
from tests.waiting import LIVENESS, until


class Server:
    """A redis-server, or with `sentinel` lines a Sentinel. It keeps its port when restarted."""

    def __init__(self, folder: Path, *options: str, sentinel: tuple[str, ...] = ()) -> None:
        program = shutil.which("redis-server")
        if program is None:
            pytest.skip("lacking: redis-server (Debian's package of that name)")
        self.port = free_port()
        self.folder = folder / f"redis-{self.port}"
        self.folder.mkdir()
        settings = self.folder / "server.conf"
        lines = [f"port {self.port}", "bind 127.0.0.1", f"dir {self.folder}", *sentinel]
        if not sentinel:
            lines += ["save ''", "appendonly no", *options]
        settings.write_text("\n".join([*lines, ""]), encoding="utf-8")
        self._command = [program, str(settings), *(["--sentinel"] if sentinel else [])]
        self._process: Process | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        self._process = Process(self._command, log=self.folder / "server.log", folder=self.folder)
        self._process.wait_until(lambda: self._answers(), f"port {self.port} to answer PING")

    def kill(self) -> None:
        """Send SIGKILL: all data is lost, because the server saves nothing."""
        assert self._process is not None
        self._process.kill()

    def pause(self) -> None:
        """Stop the process: it still accepts connections, but answers nothing."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.go_on()
            self._process.stop()

    def ask(self, *words: str) -> str:
        """Return the raw answer to one command, without a client library."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=LIVENESS) as connection:
            connection.sendall((" ".join(words) + "\r\n").encode())
            connection.shutdown(socket.SHUT_WR)
            with connection.makefile("rb") as file:
                return file.read().decode("ascii", "replace")

    def calls(self) -> dict[str, int]:
        """Return how often each command was called since the start, or since CONFIG RESETSTAT."""
        found = {}
        for line in self.ask("INFO", "commandstats").splitlines():
            name, _, figures = line.partition(":")
            if name.startswith("cmdstat_"):
                found[name[8:]] = int(figures.partition("calls=")[2].partition(",")[0])
        return found

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.signal(number)

    def _answers(self) -> bool:
        try:
            return self.ask("PING").startswith("+PONG")
        except OSError:
            return False


@contextlib.contextmanager
def servers(folder: Path, count: int = 1) -> Iterator[list[Server]]:
    """Run `count` independent servers."""
    with contextlib.ExitStack() as stack:
        made = []
        for _ in range(count):
            made.append(Server(folder))
            stack.callback(made[-1].stop)
        yield made


@contextlib.contextmanager
def with_sentinel(folder: Path) -> Iterator[tuple[Server, Server, Server]]:
    """Run a master, its replica, and the Sentinel that watches them as the service "chat"."""
    with contextlib.ExitStack() as stack:
        master = Server(folder)
        stack.callback(master.stop)
        replica = Server(folder, f"replicaof 127.0.0.1 {master.port}", "repl-diskless-sync-delay 0")
        stack.callback(replica.stop)
        sentinel = Server(
            folder,
            sentinel=(
                f"sentinel monitor chat 127.0.0.1 {master.port} 1",
                "sentinel down-after-milliseconds chat 500",
                "sentinel failover-timeout chat 2000",
            ),
        )
        stack.callback(sentinel.stop)
        until(lambda: "state:up" in _replication(replica), what="the replica to be in step")
        until(
            lambda: (
                "num-slaves" in sentinel.ask("SENTINEL", "MASTER", "chat")
                and f":{replica.port}" in sentinel.ask("SENTINEL", "REPLICAS", "chat")
            ),
            what="the Sentinel to know the replica",
        )
        yield master, replica, sentinel


def _replication(server: Server) -> str:
    answer = server.ask("INFO", "replication")
    return answer.replace("master_link_status", "state")
