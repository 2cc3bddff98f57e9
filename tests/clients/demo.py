"""The demo, run as a user runs it: by ``demo/run.py``, which starts two servers and a worker."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests import environments, processes

DEMO = environments.REPOSITORY / "demo"


class Site:
    """The running demo: its supervisor, and ways in."""

    def __init__(
        self, prefix: str, logs: Path, stack: contextlib.ExitStack, restart_after: float
    ) -> None:
        self.ports = [processes.free_port(), processes.free_port()]
        self.processes: list[processes.Process] = []
        self._logs = logs
        self._stack = stack
        self._variables = environments.child_environment(
            CHAT_PREFIX=prefix, DJANGO_SETTINGS_MODULE="chat.settings"
        )
        self.supervisor = self.start(
            *("run.py", "--ports", *map(str, self.ports)), *("--restart-after", str(restart_after))
        )

    def start(self, program: str, *arguments: str) -> processes.Process:
        """A program of the demo, in a process of its own."""
        command = [sys.executable, DEMO / program, *arguments]
        log = self._logs / f"{len(self.processes)}.log"
        process = self._stack.enter_context(
            processes.running(command, log=log, environment=self._variables)
        )
        self.processes.append(process)
        return process

    def connect(self, server: int, name: str = "somebody") -> Any:
        """A browser in the room, on the first (0) or the second (1) server."""
        return self.open(server, f"/room/lobby/?name={name}")

    def open(self, server: int, path: str) -> Any:
        """A WebSocket, as a page of that server would open it."""
        import websockets

        address = f"127.0.0.1:{self.ports[server]}"
        return websockets.connect(f"ws://{address}{path}", origin=f"http://{address}", proxy=None)

    def page(self, server: int, path: str) -> str:
        """The address of a page of the first (0) or the second (1) server."""
        return f"http://127.0.0.1:{self.ports[server]}{path}"

    def pid(self, server: int) -> int:
        """The process of a server, as it is told to whoever started the demo."""
        line = rf":{self.ports[server]}/room/.*\(process (\d+)\)"
        found = re.search(line, self.supervisor.output())
        assert found is not None
        return int(found[1])


@contextlib.contextmanager
def running(prefix: str, logs: Path, restart_after: float = 3600) -> Iterator[Site]:
    """The demo, answering; nothing of it is left after the block. A process that ends is started
    again `restart_after` seconds later."""
    with contextlib.ExitStack() as stack:
        site = Site(prefix, logs, stack, restart_after)
        site.supervisor.wait_for_output("Ctrl-C")
        yield site
        for process in site.processes:
            print(process.describe())
            assert "Traceback" not in process.output()
            assert "Warning" not in process.output()
