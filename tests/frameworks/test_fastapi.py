"""The FastAPI example on four processes: everybody in a room hears what is said in any process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from asgi_ipc import IPCChannelLayer
from tests import environments
from tests.waiting import LIVENESS, until

from .servers import uvicorn

for module in ("fastapi", "uvicorn"):
    pytest.importorskip(module, reason=f"lacking: {module}")
websockets = pytest.importorskip("websockets", reason="lacking: websockets 15 or later")

EXAMPLES = environments.REPOSITORY / "examples"
WORKERS = 4


@pytest.fixture
def server(prefix: str, tmp_path: Path) -> Iterator[str]:
    """The address of the running example."""
    log = tmp_path / "log"
    with uvicorn("fastapi_chat:app", WORKERS, folder=EXAMPLES, log=log, CHAT_PREFIX=prefix) as (
        server,
        address,
    ):
        yield address
        assert "Traceback" not in server.output()


def who_is_there(server: str, room: str) -> list[str]:
    with urlopen(f"http://{server}/rooms/{room}", timeout=LIVENESS) as answer:
        return list(json.load(answer))


def processes_of(channels: list[str]) -> set[str]:
    """Return the part before the "!" of the channels: each process has its own."""
    return {channel.partition("!")[0] for channel in channels}


async def hears(socket: Any) -> Any:
    return await asyncio.wait_for(socket.recv(), LIVENESS)


async def test_a_room_spans_all_processes(server: str, prefix: str) -> None:
    async with AsyncExitStack() as stack:
        sockets: list[Any] = []

        async def enter(room: str) -> Any:
            address = f"ws://{server}/rooms/{room}"
            return await stack.enter_async_context(websockets.connect(address, proxy=None))

        # Any process may accept a connection: connect until several processes have some.
        while len(sockets) < 4 or len(processes_of(who_is_there(server, "lobby"))) < 2:
            assert len(sockets) < 200, "one process has accepted all connections"
            sockets.append(await enter("lobby"))
        elsewhere = await enter("kitchen")
        there = who_is_there(server, "lobby")
        assert len(there) == len(sockets) and len(processes_of(there)) <= WORKERS

        for number, socket in enumerate(sockets[:4]):
            await socket.send(f"hello {number}")
            assert {await hears(each) for each in sockets} == {f"hello {number}"}
        # A script, without any event loop.
        layer = IPCChannelLayer(prefix)
        layer.send_group("kitchen", {"text": "dinner"})
        assert await hears(elsewhere) == "dinner"
        layer.close()

    await asyncio.to_thread(until, lambda: not who_is_there(server, "lobby"), what="an empty room")
