"""The backend for Litestar's channels plugin, with the real plugin; and the example."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from tests import environments
from tests.forks import on_linux
from tests.waiting import LIVENESS

from .servers import notices_at_once, uvicorn

pytest.importorskip("litestar", reason="lacking: Litestar 2")
pytest.importorskip("uvicorn", reason="lacking: uvicorn")
websockets = pytest.importorskip("websockets", reason="lacking: websockets 15 or later")

from litestar import Litestar  # noqa: E402
from litestar.channels import ChannelsPlugin  # noqa: E402

from asgi_ipc import segment  # noqa: E402
from asgi_ipc.aio import IPCChannelLayer  # noqa: E402
from asgi_ipc.aio.membership import Membership  # noqa: E402
from asgi_ipc.errors import LimitReached  # noqa: E402
from asgi_ipc.litestar import IPCChannelsBackend  # noqa: E402

EXAMPLES = environments.REPOSITORY / "examples"
ANY_NAME = "a room: Küche / 厨房 " + "long " * 30


@asynccontextmanager
async def running(prefix: str, **options: Any) -> AsyncIterator[ChannelsPlugin]:
    """Start an application with the plugin; several of them stand for several processes."""
    plugin = ChannelsPlugin(
        backend=IPCChannelsBackend(prefix, **options), arbitrary_channels_allowed=True
    )
    # Its own logging would leave handlers and threads to the tests that fork later.
    async with Litestar(plugins=[plugin], logging_config=None).lifespan():
        yield plugin


async def first(subscriber: Any, count: int = 1) -> list[Any]:
    async def take() -> list[Any]:
        events = []
        async for event in subscriber.iter_events():
            events.append(json.loads(event))
            if len(events) == count:
                break
        return events

    return await asyncio.wait_for(take(), LIVENESS)


@pytest.mark.parametrize("channel", ["news", ANY_NAME])
async def test_an_event_reaches_the_subscribers_of_every_application(
    prefix: str, channel: str
) -> None:
    async with running(prefix) as one, running(prefix) as other:
        async with (
            one.start_subscription(channel) as here,
            one.start_subscription(channel) as also_here,
            other.start_subscription(channel) as there,
        ):
            await one.wait_published({"number": 1}, channel)
            other.publish({"number": 2}, channel)
            for subscriber in (here, also_here, there):
                assert await first(subscriber, 2) == [{"number": 1}, {"number": 2}]


@pytest.fixture
def another_prefix(prefix: str) -> Iterator[str]:
    yield f"{prefix}-2"
    segment.destroy(f"{prefix}-2")


async def test_nobody_else_hears_it(prefix: str, another_prefix: str) -> None:
    async with running(prefix) as one, running(another_prefix) as other:
        async with (
            one.start_subscription("news") as here,
            one.start_subscription("sports") as sports,
            other.start_subscription("news") as there,
        ):
            await one.wait_published({"of": "news"}, "news")
            await other.wait_published({"of": "the other"}, "news")
            await one.wait_published({"of": "sports"}, "sports")
            assert await first(here) == [{"of": "news"}]
            assert await first(sports) == [{"of": "sports"}]
            assert await first(there) == [{"of": "the other"}]


async def test_after_unsubscribing_nothing_comes(prefix: str) -> None:
    async with running(prefix) as one:
        async with one.start_subscription("news"):
            pass
        async with one.start_subscription("other") as other:
            await one.wait_published(1, ["news", "other"])
            assert await first(other) == [1]
        watching = IPCChannelLayer(prefix)
        assert await watching.group_channels("litestar.news") == []
        await watching.close()


async def test_a_shutdown_leaves_all_channels(prefix: str) -> None:
    async with running(prefix) as one:
        await one.subscribe("news")
    assert backend_of(one)._layer._core.session is None
    watching = IPCChannelLayer(prefix)
    assert await watching.group_channels("litestar.news") == []
    await watching.close()


async def test_a_subscription_outlives_the_expiry_of_groups(
    prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Membership, "half", 0.05)  # else a busy machine might be late
    async with running(prefix, group_expiry=1) as one:
        async with one.start_subscription("news") as here:
            await asyncio.sleep(1.3)
            await one.wait_published(1, "news")
            assert await first(here) == [1]


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the backend logs as an error. Litestar decides where log lines go."""
    lines: list[str] = []
    logger = logging.getLogger("asgi_ipc")
    monkeypatch.setattr(logger, "error", lambda text, *args: lines.append(text % args))
    return lines


async def test_an_event_that_is_too_large_ends_nothing(prefix: str, logged: list[str]) -> None:
    """The plugin publishes all events in one task, and waits for them when it shuts down."""
    async with running(prefix, max_message_size=2048) as one:
        async with one.start_subscription("news") as here:
            one.publish("x" * 5000, "news")
            await one.wait_published("x" * 5000, "news")
            one.publish("1", "news")
            assert await first(here) == [1]
            assert backend_of(one).lost == 2
            assert len(logged) == 2
            assert "an event of Litestar's channel 'news' was lost" in logged[0]
        one.publish("x" * 5000, "news")


async def test_what_is_no_event_of_litestar_ends_nothing(prefix: str) -> None:
    async with running(prefix) as one, one.start_subscription("news") as here:
        async with IPCChannelLayer(prefix) as layer:
            for event in ({}, {"channel": "news"}, {"channel": "news", "data": "text"}):
                await layer.group_send("litestar.news", event)
        await one.wait_published(1, "news")
        assert await first(here) == [1]


async def test_a_stream_that_fails_goes_on(
    prefix: str, logged: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asgi_ipc.litestar._PAUSE", 0.01)
    async with running(prefix) as one, one.start_subscription("news") as here:
        core = backend_of(one)._layer._core
        fails = iter([LimitReached("no room"), OSError("no memory")])
        receive = core.receive

        async def failing(*args: Any) -> Any:
            for error in fails:
                raise error
            return await receive(*args)

        monkeypatch.setattr(core, "receive", failing)
        await one.wait_published(1, "news")
        await one.wait_published(2, "news")
        assert await first(here, 2) == [1, 2]
    assert len(logged) == 2 and all("Litestar receives no events" in line for line in logged)


@on_linux
async def test_after_the_memory_was_removed_it_goes_on(prefix: str) -> None:
    async with running(prefix) as one, running(prefix) as other:
        async with (
            one.start_subscription("news") as here,
            other.start_subscription("news") as there,
        ):
            segment.destroy(prefix)
            waiting = {asyncio.ensure_future(first(each)) for each in (here, there)}
            while waiting:
                one.publish("1", "news")
                heard, waiting = await asyncio.wait(waiting, timeout=0.1)
                assert all(task.result() == [1] for task in heard)
            assert backend_of(one).gaps >= 1 and backend_of(other).gaps >= 1


@pytest.fixture
async def backend(prefix: str) -> AsyncIterator[IPCChannelsBackend]:
    made = IPCChannelsBackend(prefix)
    await made.on_startup()
    yield made
    await made.on_shutdown()


async def test_what_comes_after_unsubscribing_is_not_streamed(backend: IPCChannelsBackend) -> None:
    await backend.subscribe(["news", "other"])
    await backend.publish(b"1", ["news"])
    await backend.unsubscribe(["news"])
    await backend.publish(b"2", ["other"])
    stream = backend.stream_events()
    assert await asyncio.wait_for(stream.__anext__(), LIVENESS) == ("other", b"2")
    await stream.aclose()


@on_linux
async def test_an_event_is_not_lost_because_the_memory_was_removed(
    backend: IPCChannelsBackend, prefix: str
) -> None:
    await backend.subscribe(["news"])
    segment.destroy(prefix)
    core = backend._layer._core
    assert core.session is not None
    notices_at_once(core.session.attachment)
    await backend.publish(b"1", ["news"])
    assert backend.lost == 0


async def test_subscribers_that_end_after_the_shutdown(prefix: str) -> None:
    async with running(prefix) as one:
        subscription = one.start_subscription("news")
        await subscription.__aenter__()
    await subscription.__aexit__(None, None, None)
    watching = IPCChannelLayer(prefix)
    assert await watching.group_channels("litestar.news") == []
    await watching.close()


def backend_of(plugin: ChannelsPlugin) -> IPCChannelsBackend:
    backend = plugin._backend
    assert isinstance(backend, IPCChannelsBackend)
    return backend


async def test_there_is_no_history(prefix: str) -> None:
    with pytest.raises(NotImplementedError, match="no history"):
        await IPCChannelsBackend(prefix).get_history("news")


async def test_the_example_on_four_processes(prefix: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with uvicorn("litestar_chat:app", 4, folder=EXAMPLES, log=log, CHAT_PREFIX=prefix) as running:
        server, address = running
        await _chat(address, prefix)
        assert "Traceback" not in server.output()


async def _chat(server: str, prefix: str) -> None:
    watching = IPCChannelLayer(prefix)
    async with AsyncExitStack() as stack:
        sockets: list[Any] = []
        # Any process may accept a connection: connect until several processes have some.
        while len(await watching.group_channels("litestar.lobby")) < 2:
            assert len(sockets) < 200, "one process has accepted all connections"
            address = f"ws://{server}/rooms/lobby"
            socket = await stack.enter_async_context(websockets.connect(address, proxy=None))
            sockets.append(socket)
        request = Request(
            f"http://{server}/rooms/lobby",
            data=json.dumps({"text": "hello"}).encode(),
            headers={"Content-Type": "application/json"},
        )

        def say() -> None:
            with urlopen(request, timeout=LIVENESS) as answer:
                assert answer.status == 202

        # Litestar accepts a socket before it subscribes: repeat until every socket has heard it.
        waiting = {asyncio.ensure_future(socket.recv()) for socket in sockets}
        deadline = time.monotonic() + LIVENESS
        while waiting:
            assert time.monotonic() < deadline, f"{len(waiting)} sockets heard nothing"
            await asyncio.to_thread(say)
            heard, waiting = await asyncio.wait(waiting, timeout=0.1)
            assert {json.loads(task.result())["text"] for task in heard} <= {"hello"}
    await watching.close()
