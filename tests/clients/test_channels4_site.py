"""The demo as a user runs it: Channels 4 on two daphne processes, a worker, a management command.

Everything here goes through ``demo/run.py``, which starts the servers and the worker, and through
WebSockets, as browsers would.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from asgi_ipc import segment
from asgi_ipc.inspection.snapshot import Snapshot
from asgi_ipc.inspection.view import View
from asgi_ipc.segment.paths import Paths
from tests.clients import demo
from tests.clients.demo import Site
from tests.processes import status
from tests.waiting import LIVENESS

if sys.version_info >= (3, 11):
    from asyncio import timeout as asyncio_timeout
else:
    from async_timeout import timeout as asyncio_timeout

for module in ("channels", "daphne"):
    pytest.importorskip(module, reason=f"lacking: {module}, version 4 or later")
websockets = pytest.importorskip("websockets", reason="lacking: websockets 15 or later")


@pytest.fixture(scope="module")
def shared_site(module_prefix: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The running demo, for all tests that end none of its processes."""
    with demo.running(module_prefix, tmp_path_factory.mktemp("demo")) as site:
        yield site


ROUNDS = 100 if os.environ.get("ASGI_IPC_TEST_LENGTH") == "full" else 5

# What each client says in a round before it listens. A server's process-specific channel holds 100
# messages, and a broadcast beyond that is dropped, as it should be: four clients stay well below.
REMARKS = 10


async def say(socket: Any, text: str) -> None:
    await socket.send(json.dumps({"text": text}))


async def hear(socket: Any, count: int = 1) -> list[tuple[str, str]]:
    """The next remarks that come, as (name, text)."""
    heard = []
    while len(heard) < count:
        message = json.loads(await asyncio.wait_for(socket.recv(), LIVENESS))
        if "remark" in message:
            heard.append((message["remark"]["name"], message["remark"]["text"]))
    return heard


async def see(socket: Any, site: Site, *people: tuple[str, int]) -> None:
    """Waits until the list of who is here is this: names, and their servers."""
    wanted = sorted((name, str(site.ports[server])) for name, server in people)
    shown: list[tuple[str, str]] = []
    try:
        async with asyncio_timeout(LIVENESS):
            while shown != wanted:
                message = json.loads(await socket.recv())
                if "people" in message:
                    shown = [(one["name"], one["server"]) for one in message["people"]]
    except asyncio.TimeoutError:
        raise AssertionError(f"waited for {wanted}, and saw {shown}") from None


async def assert_nothing_else(sockets: list[Any]) -> None:
    """A message that came twice, or to the wrong place, would stand before this one."""
    await say(sockets[0], "the end")
    heard = [await hear(socket) for socket in sockets]
    assert [text for [(_, text)] in heard] == ["the end"] * len(sockets)


async def test_everybody_hears_everything_once_in_order(shared_site: Site) -> None:
    async with AsyncExitStack() as stack:
        sockets = [
            await stack.enter_async_context(shared_site.connect(n % 2, f"speaker{n}"))
            for n in range(4)
        ]

        async def speak(speaker: int, remarks: list[str]) -> None:
            for remark in remarks:
                await say(sockets[speaker], remark)

        for number in range(ROUNDS):
            remarks = [f"{number}.{n}" for n in range(REMARKS)]
            heard, _ = await asyncio.gather(
                asyncio.gather(*(hear(socket, len(sockets) * REMARKS) for socket in sockets)),
                asyncio.gather(*(speak(speaker, remarks) for speaker in range(len(sockets)))),
            )
            for messages in heard:
                for speaker in range(len(sockets)):
                    said = [text for name, text in messages if name == f"speaker{speaker}"]
                    assert said == remarks
        await assert_nothing_else(sockets)


async def test_a_third_process_speaks_to_both(shared_site: Site) -> None:
    async with shared_site.connect(0) as first, shared_site.connect(1) as second:
        command = shared_site.start(
            "manage.py", "say", "lobby", "good morning \N{SUN BEHIND CLOUD}"
        )
        await asyncio.to_thread(command.wait)
        for socket in (first, second):
            assert await hear(socket) == [("say", "good morning \N{SUN BEHIND CLOUD}")]
        await assert_nothing_else([first, second])


async def test_the_worker_answers_the_client_that_asked(shared_site: Site) -> None:
    """From a normal channel to the worker's process, and back to one socket on either server."""
    async with shared_site.connect(0) as first, shared_site.connect(1) as second:
        for number in range(1, 6):
            for socket, words in ((first, "one " * number), (second, "two " * 2 * number)):
                await say(socket, f"/count {words}")
            assert await hear(first) == [("word-count", str(number))]
            assert await hear(second) == [("word-count", str(2 * number))]
        await assert_nothing_else([first, second])


async def test_everybody_sees_who_is_here(shared_site: Site) -> None:
    async with shared_site.connect(0, "ada") as ada:
        await see(ada, shared_site, ("ada", 0))
        async with shared_site.connect(1, "gr%C3%A5ce") as grace:
            for socket in (ada, grace):
                await see(socket, shared_site, ("ada", 0), ("gr\u00e5ce", 1))
            async with shared_site.connect(1, "ada"):
                await see(grace, shared_site, ("ada", 0), ("ada", 1), ("gr\u00e5ce", 1))
        await see(ada, shared_site, ("ada", 0))
        async with shared_site.connect(1, "%C3%A5" * 40):
            await see(ada, shared_site, ("ada", 0), ("\u00e5" * 16, 1))


async def test_a_visitor_of_a_killed_server_is_not_here(site: Site) -> None:
    """And the other server goes on, and the worker, and whoever runs them."""
    async with site.connect(0, "ada") as ada, site.connect(1, "grace") as grace:
        await see(ada, site, ("ada", 0), ("grace", 1))
        await hear_of_the_board(site, lambda figures: len(alive(figures)) == 3)
        os.kill(site.pid(1), signal.SIGKILL)
        with pytest.raises(websockets.ConnectionClosed):
            await hear(grace)
        await see(ada, site, ("ada", 0))
        await hear_of_the_board(site, lambda figures: len(alive(figures)) == 2)
        await say(ada, "/count still here")
        assert await hear(ada) == [("word-count", "2")]
        assert site.supervisor.alive()


def alive(figures: dict[str, Any]) -> list[int]:
    return [process["pid"] for process in figures["processes"] if process["state"] == "alive"]


async def hear_of_the_board(site: Site, wanted: Callable[[dict[str, Any]], bool]) -> None:
    """Waits until the board of the first server shows what is wanted."""
    figures = None
    try:
        async with site.open(0, "/board/") as board, asyncio_timeout(LIVENESS):
            while figures is None or not wanted(figures):
                figures = json.loads(await board.recv())
    except asyncio.TimeoutError:
        raise AssertionError(f"the last that the board showed: {figures}") from None


async def test_the_board_counts_what_is_said(shared_site: Site) -> None:
    async with shared_site.connect(0) as first, shared_site.connect(1) as second:
        for number in range(REMARKS):
            await say(first, str(number))
        await hear(second, REMARKS)

        def counted(figures: dict[str, Any]) -> bool:
            """Each remark is a message to each server; and who is here has been told as well."""
            return figures["count"] >= 2 * REMARKS and figures["rooms"]["lobby"] == 2

        await hear_of_the_board(shared_site, counted)


def test_pages(shared_site: Site) -> None:
    for port in shared_site.ports:
        assert status(port, "/") == 200
        assert status(port, "/board/") == 200
        assert status(port, "/room/lobby/") == 200
        assert status(port, "/room/no.such.name/") == 404


async def test_a_page_of_another_site_is_refused(shared_site: Site) -> None:
    address = f"ws://127.0.0.1:{shared_site.ports[0]}/room/lobby/"
    with pytest.raises(websockets.InvalidStatus) as refusal:
        await websockets.connect(address, origin="http://elsewhere.example", proxy=None)
    assert refusal.value.response.status_code == 403


def test_it_offers_the_command(shared_site: Site, module_prefix: str) -> None:
    (line,) = re.findall(
        rf"^ +(.*) top --prefix {module_prefix}$", shared_site.supervisor.output(), re.M
    )
    asked = subprocess.run(
        [*shlex.split(line), "stats", "--prefix", module_prefix],
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.search(r"^processes +[1-3]$", asked.stdout, re.M)


async def test_a_worker_that_ends_is_started_again(prefix: str, tmp_path: Path) -> None:
    with demo.running(prefix, tmp_path, restart_after=0.1) as site:
        async with site.connect(0, "ada") as ada:
            (pid,) = (
                process.pid
                for process in Snapshot(View(prefix)).processes()
                if "runworker" in process.command
            )
            os.kill(pid, signal.SIGTERM)
            await asyncio.to_thread(site.supervisor.wait_for_output, "The worker is back")
            await say(ada, "/count still here")
            assert await hear(ada) == [("word-count", "2")]


async def test_a_second_start_leaves_the_first_alone(shared_site: Site) -> None:
    async with shared_site.connect(0) as first, shared_site.connect(1) as second:
        again = shared_site.start("run.py", "--ports", *map(str, shared_site.ports))
        with pytest.raises(AssertionError, match="ended with 1"):
            await asyncio.to_thread(again.wait)
        said = (
            f"Port {shared_site.ports[0]} is used by another program. Choose two others: make demo "
        )
        assert f'{said}PORTS="8003 8004"' in again.output()
        await assert_nothing_else([first, second])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
async def test_stopping_leaves_nothing(site: Site, prefix: str, number: signal.Signals) -> None:
    async with site.connect(0) as first, site.connect(1) as second:
        await assert_nothing_else([first, second])
        assert Path(Paths(prefix).directory).is_dir()
        os.kill(site.supervisor.pid, number)
        await asyncio.to_thread(site.supervisor.wait)
    assert not segment.destroy(prefix), "something was left to remove"
    for port in site.ports:
        with pytest.raises(OSError):
            await asyncio.open_connection("127.0.0.1", port)
