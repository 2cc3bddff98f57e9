"""The demo as a user runs it: Channels 4 on two daphne processes, a worker, a management command.

Everything here goes through ``demo/run.py``, which starts the servers and the worker, and through
WebSockets, as browsers would.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import pytest

from asgi_ipc import segment
from tests import environments
from tests.clients import processes

for module in ("channels", "daphne"):
    pytest.importorskip(module, reason=f"lacking: {module}, version 4 or later")
websockets = pytest.importorskip("websockets", reason="lacking: websockets 15 or later")

DEMO = environments.REPOSITORY / "demo"
ROUNDS = 100 if os.environ.get("ASGI_IPC_TEST_LENGTH") == "full" else 5

# What each client says in a round before it listens. A server's process-specific channel holds 100
# messages, and a broadcast beyond that is dropped, as it should be: four clients stay well below.
REMARKS = 10


class Site:
    """The running demo: its supervisor, and ways in."""

    def __init__(self, prefix: str, logs: Path, stack: ExitStack) -> None:
        self.ports = [processes.free_port(), processes.free_port()]
        self.processes: list[processes.Process] = []
        self._logs = logs
        self._stack = stack
        self._variables = environments.child_environment(
            CHAT_PREFIX=prefix, DJANGO_SETTINGS_MODULE="chat.settings"
        )
        self.supervisor = self.start("run.py", "--ports", *map(str, self.ports))

    def start(self, program: str, *arguments: str) -> processes.Process:
        """A program of the demo, in a process of its own."""
        command = [sys.executable, DEMO / program, *arguments]
        log = self._logs / f"{len(self.processes)}.log"
        process = self._stack.enter_context(
            processes.running(command, log=log, environment=self._variables)
        )
        self.processes.append(process)
        return process

    def connect(self, server: int) -> Any:
        """A browser in the room, on the first (0) or the second (1) server."""
        address = f"127.0.0.1:{self.ports[server]}/room/lobby/"
        return websockets.connect(f"ws://{address}", origin=f"http://{address}", proxy=None)


@pytest.fixture
def site(prefix: str, tmp_path: Path) -> Iterator[Site]:
    with ExitStack() as stack:
        site = Site(prefix, tmp_path, stack)
        site.supervisor.wait_for_output("Ctrl-C")
        yield site
        for process in site.processes:
            print(process.describe())
            assert "Traceback" not in process.output()


async def say(socket: Any, name: str, text: str) -> None:
    await socket.send(json.dumps({"name": name, "text": text}))


async def hear(socket: Any, count: int = 1) -> list[tuple[str, str]]:
    """The next messages that come, as (name, text)."""
    heard = []
    for _ in range(count):
        message = json.loads(await asyncio.wait_for(socket.recv(), processes.LIVENESS))
        heard.append((message["name"], message["text"]))
    return heard


async def assert_nothing_else(sockets: list[Any]) -> None:
    """A message that came twice, or to the wrong place, would stand before this one."""
    await say(sockets[0], "somebody", "the end")
    assert [await hear(socket) for socket in sockets] == [[("somebody", "the end")]] * len(sockets)


async def test_everybody_hears_everything_once_in_order(site: Site) -> None:
    async with AsyncExitStack() as stack:
        sockets = [await stack.enter_async_context(site.connect(n % 2)) for n in range(4)]

        async def speak(speaker: int, remarks: list[str]) -> None:
            for remark in remarks:
                await say(sockets[speaker], f"speaker {speaker}", remark)

        for number in range(ROUNDS):
            remarks = [f"{number}.{n}" for n in range(REMARKS)]
            heard, _ = await asyncio.gather(
                asyncio.gather(*(hear(socket, len(sockets) * REMARKS) for socket in sockets)),
                asyncio.gather(*(speak(speaker, remarks) for speaker in range(len(sockets)))),
            )
            for messages in heard:
                for speaker in range(len(sockets)):
                    said = [text for name, text in messages if name == f"speaker {speaker}"]
                    assert said == remarks
        await assert_nothing_else(sockets)


async def test_a_third_process_speaks_to_both(site: Site) -> None:
    async with site.connect(0) as first, site.connect(1) as second:
        command = site.start("manage.py", "say", "lobby", "good morning \N{SUN BEHIND CLOUD}")
        await asyncio.to_thread(command.wait)
        for socket in (first, second):
            assert await hear(socket) == [("say", "good morning \N{SUN BEHIND CLOUD}")]
        await assert_nothing_else([first, second])


async def test_the_worker_answers_who_asked(site: Site) -> None:
    """From a normal channel to the worker's process, and back to one socket on either server."""
    async with site.connect(0) as first, site.connect(1) as second:
        for number in range(1, 6):
            for socket, words in ((first, "one " * number), (second, "two " * 2 * number)):
                await say(socket, "somebody", f"/count {words}")
            assert await hear(first) == [("word-count", str(number))]
            assert await hear(second) == [("word-count", str(2 * number))]
        await assert_nothing_else([first, second])


def test_pages(site: Site) -> None:
    def status(port: int, path: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=processes.LIVENESS)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        finally:
            connection.close()

    for port in site.ports:
        assert status(port, "/") == 200
        assert status(port, "/room/lobby/") == 200
        assert status(port, "/room/no.such.name/") == 404


async def test_a_page_of_another_site_is_refused(site: Site) -> None:
    address = f"ws://127.0.0.1:{site.ports[0]}/room/lobby/"
    with pytest.raises(websockets.InvalidStatus) as refusal:
        await websockets.connect(address, origin="http://elsewhere.example", proxy=None)
    assert refusal.value.response.status_code == 403


async def test_a_second_start_leaves_the_first_alone(site: Site) -> None:
    async with site.connect(0) as first, site.connect(1) as second:
        again = site.start("run.py", "--ports", *map(str, site.ports))
        with pytest.raises(AssertionError, match="ended with 1"):
            await asyncio.to_thread(again.wait)
        assert str(site.ports[0]) in again.output()
        await assert_nothing_else([first, second])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
async def test_stopping_leaves_nothing(site: Site, prefix: str, number: signal.Signals) -> None:
    async with site.connect(0) as first, site.connect(1) as second:
        await assert_nothing_else([first, second])
        assert Path(segment.Paths(prefix).directory).is_dir()
        os.kill(site.supervisor.pid, number)
        await asyncio.to_thread(site.supervisor.wait)
    assert not segment.destroy(prefix), "something was left to remove"
    for port in site.ports:
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", port)
