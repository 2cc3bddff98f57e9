"""The examples that push events to browsers, on several processes: what is published in any of them
reaches all, also after the memory was removed and for longer than ``group_expiry``."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from asgi_ipc import segment
from asgi_ipc.aio import IPCChannelLayer
from asgi_ipc.errors import SegmentVanished
from tests import environments, processes
from tests.forks import on_linux
from tests.waiting import LIVENESS, eventually

aiohttp = pytest.importorskip("aiohttp", reason="lacking: aiohttp")
websockets = pytest.importorskip("websockets", reason="lacking: websockets 15 or later")
for module in ("django", "fastapi", "litestar", "starlette", "uvicorn"):
    pytest.importorskip(module, reason=f"lacking: {module}")

EXAMPLES = environments.REPOSITORY / "examples"
WORKERS = 3


class Example(NamedTuple):
    app: str
    group: str
    path: str  # that events come from, and that they are posted to
    streams: bool  # as server-sent events, not by a WebSocket


CASES = {
    "FastAPI": Example("fastapi_chat:app", "lobby", "/rooms/lobby", False),
    "Litestar": Example("litestar_chat:app", "litestar.lobby", "/rooms/lobby", False),
    "Starlette": Example("starlette_sse:app", "news", "/news", True),
    "Django": Example("django_sse:application", "news", "/news", True),
}


class Site:
    """A running example, as its clients see it."""

    def __init__(self, example: Example, address: str, prefix: str) -> None:
        self.example = example
        self._address = address
        self.layer = IPCChannelLayer(prefix, expiry=1)
        self.session = aiohttp.ClientSession()

    async def __aenter__(self) -> Site:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.session.close()
        await self.layer.close()

    async def publish(self, text: str) -> None:
        """As the clients of the example do."""
        event, path = {"text": text}, self.example.path
        if self.example.app.startswith("fastapi"):
            async with websockets.connect(f"ws://{self._address}{path}", proxy=None) as socket:
                await socket.send(text)
            return
        async with self.session.post(f"http://{self._address}{path}", json=event) as answer:
            # 503: the memory was removed since the last call.
            assert answer.status in (202, 503), await answer.text()

    @asynccontextmanager
    async def listener(self) -> AsyncIterator[AsyncIterator[str]]:
        """The texts that one client gets. It is subscribed when the block begins."""
        path = self.example.path
        if self.example.streams:
            address = f"http://{self._address}{path}"
            endless = aiohttp.ClientTimeout(total=None)
            async with self.session.get(address, timeout=endless) as answer:
                assert answer.headers["Content-Type"].startswith("text/event-stream")
                lines = answer.content
                assert await lines.readline() == b": subscribed\n"
                texts = self._data(lines)
                yield texts
                await texts.aclose()
        else:
            async with websockets.connect(f"ws://{self._address}{path}", proxy=None) as socket:
                texts = self._messages(socket)
                yield texts
                await texts.aclose()

    async def _data(self, lines: Any) -> AsyncGenerator[str, None]:
        async for line in lines:
            if line.startswith(b"data: "):
                yield json.loads(line[len(b"data: ") :])["text"]

    async def _messages(self, socket: Any) -> AsyncGenerator[str, None]:
        async for text in socket:
            yield json.loads(text)["text"] if text.startswith("{") else text

    async def processes(self) -> int:
        """How many processes are subscribed."""
        try:
            channels = await self.layer.group_channels(self.example.group)
        except SegmentVanished:
            channels = await self.layer.group_channels(self.example.group)
        return len({channel.partition("!")[0] for channel in channels})

    async def reaches(self, listeners: list[Any]) -> None:
        """Publish until every listener has heard something that was said from now on."""
        self.said = getattr(self, "said", 0) + 1
        word = f"word {self.said}"

        async def hears(texts: AsyncIterator[str]) -> None:
            async for text in texts:
                if text == word:
                    return

        waiting = {asyncio.ensure_future(hears(each)) for each in listeners}

        async def heard() -> bool:
            await self.publish(word)
            done, left = await asyncio.wait(waiting, timeout=0.1)
            for task in done:
                task.result()
            return not left

        await eventually(heard, what="all listeners")


@contextmanager
def running(
    example: Example, prefix: str, folder: Path, workers: int = WORKERS, **options: Any
) -> Iterator[tuple[processes.Process, str]]:
    """The example on several processes, with other options of its layer."""
    name, _, _ = example.app.partition(":")
    source = (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")
    before = {"chat": '"CHAT_PREFIX", "chat")', "news": '"NEWS_PREFIX", "news")'}
    [found] = [text for text in before.values() if text in source]
    given = "".join(f", {key}={value!r}" for key, value in options.items())
    (folder / f"{name}.py").write_text(source.replace(found, found + given), encoding="utf-8")
    port = processes.free_port()
    command = ["-m", "uvicorn", example.app, "--workers", str(workers), "--port", str(port)]
    with processes.running(
        [sys.executable, *command, "--timeout-graceful-shutdown", "1"],
        log=folder / "log",
        environment=environments.child_environment(CHAT_PREFIX=prefix, NEWS_PREFIX=prefix),
        folder=folder,
    ) as server:
        server.wait_until(lambda: server.output().count("startup complete") == workers, "workers")
        yield server, f"127.0.0.1:{port}"


@asynccontextmanager
async def listening(site: Site) -> AsyncIterator[list[Any]]:
    """Listeners in several processes. Any process may accept a connection."""
    async with AsyncExitStack() as stack:
        listeners: list[Any] = []
        while len(listeners) < 4 or await site.processes() < 2:
            assert len(listeners) < 100, "one process has accepted all connections"
            listeners.append(await stack.enter_async_context(site.listener()))
        yield listeners


@on_linux
@pytest.mark.parametrize("name", CASES)
async def test_events_reach_all_processes(name: str, prefix: str, tmp_path: Path) -> None:
    """At first, after group_expiry, and after the memory was removed while events were sent."""
    with running(CASES[name], prefix, tmp_path, group_expiry=1) as (server, address):
        async with Site(CASES[name], address, prefix) as site:
            await go_on(name, site, prefix)
        assert "Traceback" not in server.output(), server.output()


async def go_on(name: str, site: Site, prefix: str) -> None:
    async with listening(site) as listeners:
        await site.reaches(listeners)
        await asyncio.sleep(2.5)  # nothing happens; each membership would end twice
        assert await site.processes() >= 2
        await site.reaches(listeners)

        event: dict[str, Any] = {"text": "load"}
        if name == "Litestar":
            event = {"channel": "lobby", "data": json.dumps(event).encode()}

        async def load() -> None:
            while True:
                with contextlib.suppress(SegmentVanished):
                    await site.layer.group_send(site.example.group, event)
                await asyncio.sleep(0.01)

        loading = asyncio.ensure_future(load())
        for _ in range(2):
            segment.destroy(prefix)
            await site.reaches(listeners)
        assert not loading.done()
        loading.cancel()
    # Litestar's plugin stays subscribed if a socket went while it was sending to it.
    if name != "Litestar":
        await eventually(lambda: gone(site), what="everybody to be gone")


async def gone(site: Site) -> bool:
    return await site.processes() == 0


@pytest.mark.parametrize("name", CASES)
async def test_sigterm_ends_it(name: str, prefix: str, tmp_path: Path) -> None:
    """While clients listen. The workers leave their groups; Django, whose view is not told in time,
    as a process that was killed."""
    with running(CASES[name], prefix, tmp_path, expiry=1) as (server, address):
        async with Site(CASES[name], address, prefix) as site, site.listener() as listener:
            await site.reaches([listener])
            server.signal(signal.SIGTERM)
            ended = asyncio.to_thread(server.wait_for_end, LIVENESS)
            assert await ended in (0, -signal.SIGTERM)
            if name == "Django":
                await eventually(lambda: gone(site))
            assert await site.processes() == 0
