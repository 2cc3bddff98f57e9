"""Subscriptions of all layers of the package. Each test is written once, and awaits what is
awaitable: blocking layers answer at once."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import asgi_ipc
import asgi_ipc.aio
from asgi_ipc import clock, segment
from asgi_ipc.aio.membership import Membership
from asgi_ipc.conformance.base import MESSAGE
from asgi_ipc.errors import InvalidName, LimitReached, LockBusy, NotSubscribed
from asgi_ipc.store.layout import Q_WAITING

from ..environments import child_environment
from ..forks import fork_in_c, in_child, on_linux
from ..waiting import LIVENESS, eventually, until
from .conftest import ASYNCIO, BLOCKING, Make, _maker

SHARED = ["asyncio", "blocking"]  # the layers whose memory can be removed by hand
LAYERS = {**ASYNCIO, **BLOCKING}


@pytest.fixture(params=LAYERS)
def make(prefix: str, request: pytest.FixtureRequest) -> Iterator[Make]:
    yield from _maker(prefix, LAYERS[request.param])


only_shared = pytest.mark.parametrize("make", SHARED, indirect=True)


async def call(answer: Any) -> Any:
    return await answer if inspect.isawaitable(answer) else answer


@contextlib.asynccontextmanager
async def within(block: Any) -> AsyncIterator[Any]:
    """`block`, which is entered by ``with`` or ``async with``."""
    if hasattr(block, "__aenter__"):
        async with block as entered:
            yield entered
    else:
        with block as entered:
            yield entered


async def publish(layer: Any, group: str, message: dict[str, Any] = MESSAGE) -> None:
    await call(layer.group_send(group, message))


async def members(layer: Any, group: str) -> int:
    return len(await call(layer.group_channels(group)))


async def nothing_comes(events: Any) -> None:
    with pytest.raises(TimeoutError):
        await call(events.get(timeout=0))


# -- the block ------------------------------------------------------------------------------------


async def test_a_subscription_gets_what_its_groups_get(make: Make) -> None:
    async with within(make()) as layer:
        async with within(layer.subscribe("news", "weather")) as events:
            assert events.groups == ["news", "weather"]
            assert await members(layer, "news") == await members(layer, "weather") == 1
            await publish(layer, "news", {"number": 1})
            await publish(layer, "sports", {"number": 2})
            await publish(layer, "weather", {"number": 3})
            assert await call(events.get(timeout=LIVENESS)) == {"number": 1}
            assert await call(events.get()) == {"number": 3}
            await nothing_comes(events)
            assert events.gaps == 0
        assert await members(layer, "news") == await members(layer, "weather") == 0


async def test_several_subscriptions_get_each_message(make: Make) -> None:
    async with within(make()) as layer, within(layer.subscribe("news")) as one:
        async with within(layer.subscribe("news")) as two:
            await publish(layer, "news")
            for events in (one, two):
                assert await call(events.get(timeout=LIVENESS)) == MESSAGE
        assert await members(layer, "news") == 1


async def test_it_is_iterated_over(make_asyncio: Make) -> None:
    async with make_asyncio() as layer:
        async with layer.subscribe("news") as events:
            for number in range(3):
                await layer.group_send("news", {"number": number})
            got = []
            async for event in events:
                got.append(event["number"])
                if len(got) == 2:
                    break
            # Leaving the loop leaves the subscription as it is.
            assert (got, await events.get(timeout=0)) == ([0, 1], {"number": 2})
        assert await members(layer, "news") == 0


def test_a_blocking_one_is_iterated_over(make_blocking: Make) -> None:
    with make_blocking() as layer:
        with layer.subscribe("news") as events:
            for number in range(3):
                layer.send_group("news", {"number": number})
            got = []
            for event in events:
                got.append(event["number"])
                if len(got) == 2:
                    break
            assert (got, events.get(timeout=0)) == ([0, 1], {"number": 2})
        assert layer.group_channels("news") == []


async def test_an_exception_leaves_the_groups(make: Make) -> None:
    async with within(make()) as layer:
        with pytest.raises(ZeroDivisionError):
            async with within(layer.subscribe("news")):
                raise ZeroDivisionError
        assert await members(layer, "news") == 0


async def test_a_cancellation_leaves_the_groups(make_asyncio: Make) -> None:
    async with make_asyncio() as layer:

        async def read() -> None:
            async with layer.subscribe("news") as events:
                async for _ in events:
                    pass

        reading = asyncio.ensure_future(read())
        await eventually(lambda: members(layer, "news"))
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert await members(layer, "news") == 0


async def test_closing_a_generator_leaves_the_groups(make_asyncio: Make) -> None:
    async with make_asyncio() as layer:

        async def stream() -> AsyncIterator[Any]:
            async with layer.subscribe("news") as events:
                async for event in events:
                    yield event

        streaming = stream()
        waiting = asyncio.ensure_future(streaming.__anext__())
        await eventually(lambda: members(layer, "news"))
        await layer.group_send("news", MESSAGE)
        assert await waiting == MESSAGE
        await streaming.aclose()  # type: ignore[attr-defined]
        assert await members(layer, "news") == 0


def test_a_blocking_generator_that_is_dropped_leaves_the_groups(make_blocking: Make) -> None:
    with make_blocking() as layer:

        def stream() -> Iterator[Any]:
            with layer.subscribe("news") as events:
                yield from events

        layer.group_add("news", "other")
        streaming = stream()
        sending = threading.Thread(
            target=lambda: (
                until(lambda: len(layer.group_channels("news")) == 2)
                and layer.send_group("news", MESSAGE)
            )
        )
        sending.start()
        assert next(streaming) == MESSAGE
        sending.join(LIVENESS)
        del streaming
        gc.collect()
        assert layer.group_channels("news") == ["other"]


@only_shared
async def test_what_was_not_read_is_dropped_when_the_block_ends(make: Make) -> None:
    async with within(make(capacity=200)) as layer:
        async with within(layer.subscribe("news")):
            for _ in range(150):  # more than one section takes
                await publish(layer, "news")
        inboxes = layer._core.session.attachment.inboxes.values()
        assert [len(inbox) for inbox in inboxes] == [0] * len(inboxes)
        assert (await call(layer.stats())).pending == 0


# -- wrong use ------------------------------------------------------------------------------------


async def test_one_bad_name_joins_nothing(make: Make) -> None:
    async with within(make()) as layer:
        for name in ("not a name", "a!b", "", None, ["news"]):
            with pytest.raises(InvalidName):
                layer.subscribe("news", name)
        async with within(layer.subscribe("weather")) as events:
            with pytest.raises(InvalidName):
                await call(events.join("news", "not a name"))
            with pytest.raises(InvalidName):
                await call(events.leave("weather", "not a name"))
            assert events.groups == ["weather"]
        assert await members(layer, "news") == 0


@only_shared
async def test_groups_that_do_not_fit_join_nothing(make: Make) -> None:
    async with within(make(group_memory=64 * 1024)) as layer:
        names = [f"group-{number}" for number in range(1000)]
        with pytest.raises(LimitReached):
            async with within(layer.subscribe(*names)):
                pass
        assert await members(layer, names[0]) == 0
        async with within(layer.subscribe("news")) as events:
            with pytest.raises(LimitReached):
                await call(events.join(*names))
            assert events.groups == ["news"]
            assert await members(layer, names[0]) == 0
            await publish(layer, "news")
            assert await call(events.get(timeout=LIVENESS)) == MESSAGE


async def test_outside_its_block_it_says_so(make: Make) -> None:
    async with within(make()) as layer:
        events = layer.subscribe("news")
        uses = (events.get, lambda: events.join("a"), lambda: events.leave("news"))
        for use in uses:
            with pytest.raises(NotSubscribed, match="inside its block"):
                await call(use())
        async with within(events):
            pass
        for use in uses:
            with pytest.raises(NotSubscribed, match="ended with its block"):
                await call(use())
        with pytest.raises(NotSubscribed, match="entered once"):
            async with within(events):
                pass
        assert await members(layer, "news") == await members(layer, "a") == 0


@pytest.mark.parametrize("timeout", ["1", True, [1]])
async def test_a_timeout_that_is_no_number_is_refused(make: Make, timeout: Any) -> None:
    async with within(make()) as layer, within(layer.subscribe("news")) as events:
        with pytest.raises(TypeError, match="timeout must be a number of seconds"):
            await call(events.get(timeout=timeout))


async def test_a_get_whose_time_runs_out_says_from_what(make: Make) -> None:
    async with within(make()) as layer, within(layer.subscribe("news", "b")) as events:
        for seconds in (0, 0.01, -1):
            with pytest.raises(TimeoutError, match="no message came from 'news', 'b' of") as caught:
                await call(events.get(timeout=seconds))
            assert type(caught.value) is TimeoutError


async def test_a_task_that_waits_learns_that_the_block_ended(make_asyncio: Make) -> None:
    async with make_asyncio() as layer:
        async with layer.subscribe("news") as events:
            waiting = [asyncio.ensure_future(events.get()) for _ in range(3)]
            await asyncio.sleep(0.01)
        for each in waiting:
            with pytest.raises(NotSubscribed, match="ended"):
                await asyncio.wait_for(each, LIVENESS)


async def test_a_task_that_waits_learns_that_although_the_lock_is_busy(
    prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = asgi_ipc.aio.IPCChannelLayer(prefix)
    send, tries = layer._core.send, iter([True, True])

    def busy_at_first(channel: str, message: dict[str, Any]) -> None:
        if next(tries, False):
            raise LockBusy(0)
        send(channel, message)

    async with layer.subscribe("news") as events:
        waiting = asyncio.ensure_future(events.get())
        await asyncio.sleep(0.01)
        monkeypatch.setattr(layer._core, "send", busy_at_first)
    with pytest.raises(NotSubscribed, match="ended"):
        await asyncio.wait_for(waiting, LIVENESS)
    await layer.close()


def test_a_thread_that_waits_learns_that_the_block_ended(make_blocking: Make) -> None:
    with make_blocking() as layer:
        ended = []

        def read(events: Any) -> None:
            try:
                for _ in events:
                    pass
            except NotSubscribed as error:
                ended.append(error)

        with layer.subscribe("news") as events:
            threads = [threading.Thread(target=read, args=(events,)) for _ in range(3)]
            for thread in threads:
                thread.start()
            until(lambda: len(events._membership._waiting) == 3)
        for thread in threads:
            thread.join(LIVENESS)
        assert len(ended) == 3


# -- other groups ---------------------------------------------------------------------------------


async def test_it_joins_and_leaves_groups(make: Make) -> None:
    async with within(make()) as layer:
        async with within(layer.subscribe()) as events:
            await nothing_comes(events)
            await call(events.join("news", "weather", "news"))
            await publish(layer, "news", {"number": 1})
            assert await call(events.get(timeout=LIVENESS)) == {"number": 1}
            await call(events.leave("news", "never"))
            assert events.groups == ["weather"]
            await publish(layer, "news", {"number": 2})
            await publish(layer, "weather", {"number": 3})
            assert await call(events.get(timeout=LIVENESS)) == {"number": 3}
        assert await members(layer, "weather") == 0


# -- renewal --------------------------------------------------------------------------------------


@pytest.fixture
def renews_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine has to be late by nearly a `group_expiry` for a membership to end."""
    monkeypatch.setattr(Membership, "half", 0.05)


async def test_it_is_renewed_while_it_waits(make: Make, renews_often: None) -> None:
    async with within(make(group_expiry=1)) as layer:
        async with within(layer.subscribe("news")) as events:
            with pytest.raises(TimeoutError):
                await call(events.get(timeout=2.5))
            await publish(layer, "news")
            assert await call(events.get(timeout=LIVENESS)) == MESSAGE
            assert events.gaps == 0


async def test_on_asyncio_it_is_renewed_while_nobody_reads(
    make_asyncio: Make, renews_often: None
) -> None:
    async with make_asyncio(group_expiry=1) as layer:
        async with layer.subscribe("news") as events:
            await asyncio.sleep(1.3)
            await layer.group_send("news", MESSAGE)
            assert await events.get(timeout=LIVENESS) == MESSAGE
            assert events.gaps == 0


def test_a_blocking_one_is_renewed_by_each_call(make_blocking: Make, renews_often: None) -> None:
    with make_blocking(group_expiry=1) as layer, layer.subscribe("news") as events:
        begun = clock.monotonic()
        while clock.monotonic() < begun + 1.3:
            with pytest.raises(TimeoutError):
                events.get(timeout=0)
            threading.Event().wait(0.01)
        layer.send_group("news", MESSAGE)
        assert events.get(timeout=LIVENESS) == MESSAGE
        assert events.gaps == 0


def test_a_renewal_that_comes_too_late_is_a_gap(
    make_blocking: Make, caplog: pytest.LogCaptureFixture
) -> None:
    with make_blocking(group_expiry=0.1) as layer, layer.subscribe("news") as events:
        threading.Event().wait(0.2)  # the program is busy
        layer.send_group("news", MESSAGE)
        # It does not end a second time. Over several machines, a layer in a thread adds it, too.
        for one in (layer, getattr(layer, "_asyncio", layer)):
            getattr(one, "_local", one)._core.group_expiry = 60.0
        with pytest.raises(TimeoutError):
            events.get(timeout=0)
        assert events.gaps == 1
        assert "was no longer in 'news', and has joined again" in caplog.text
        layer.send_group("news", MESSAGE)
        assert events.get(timeout=LIVENESS) == MESSAGE
        assert events.gaps == 1


def test_after_the_clock_was_set_back_it_is_renewed_at_once(make_blocking: Make) -> None:
    with make_blocking() as layer, layer.subscribe("news") as events:
        place = events._membership._place
        place.renew_at += 1e9
        with pytest.raises(TimeoutError):
            events.get(timeout=0)
        assert place.renew_at < clock.monotonic() + layer.group_expiry
        assert events.gaps == 0


@only_shared
async def test_one_that_was_taken_for_abandoned_joins_again(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    async with within(make(expiry=0.05)) as layer:
        async with within(layer.subscribe("news")) as events, within(layer.subscribe()) as other:
            await publish(layer, "news")

            async def abandoned() -> bool:
                await nothing_comes(other)
                return await members(layer, "news") == 0

            await eventually(abandoned)
            await nothing_comes(events)
            assert events.gaps == 1
            assert "was no longer in 'news'" in caplog.text
            async with within(type(layer)(layer.prefix)) as lasting:  # whose messages do not expire
                await publish(lasting, "news")
                assert await call(events.get(timeout=LIVENESS)) == MESSAGE


# -- gaps -----------------------------------------------------------------------------------------


def gap_lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage() for record in caplog.records if "join their groups" in record.message
    ]


async def test_after_a_flush_it_joins_again(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    async with within(make()) as layer:
        async with (
            within(layer.subscribe("news")) as events,
            within(layer.subscribe("news")) as others,
        ):
            await publish(layer, "news", {"number": 1})
            await call(layer.flush())
            for each in (events, others):
                await nothing_comes(each)
            await publish(layer, "news", {"number": 2})
            for each in (events, others):
                assert await call(each.get(timeout=LIVENESS)) == {"number": 2}
                assert each.gaps == 1
            assert len(gap_lines(caplog)) == 1
            assert "were flushed" in caplog.text


async def test_a_flush_reaches_a_subscription_that_waits(make_asyncio: Make) -> None:
    async with make_asyncio() as layer, layer.subscribe("news") as events:
        waiting = asyncio.ensure_future(events.get())
        await asyncio.sleep(0.01)
        await layer.flush()

        async def heard() -> bool:
            await layer.group_send("news", MESSAGE)
            await asyncio.wait({waiting}, timeout=0.05)
            return waiting.done()

        await eventually(heard)
        assert await waiting == MESSAGE
        assert events.gaps in (1, 2)  # over several machines, a flush comes back once more


def test_a_flush_reaches_a_thread_that_waits(make_blocking: Make) -> None:
    with make_blocking() as layer, layer.subscribe("news") as events:
        got: list[Any] = []
        thread = threading.Thread(target=lambda: got.append(events.get()))
        thread.start()
        until(lambda: events._membership._waiting)
        layer.flush()

        def heard() -> bool:
            layer.send_group("news", MESSAGE)
            thread.join(0.05)
            return not thread.is_alive()

        until(heard)
        assert got == [MESSAGE] and events.gaps in (1, 2)


def before_the_next(
    name: str, layer: Any, do: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Have `do` called when the method `name` of the layer is next called."""
    method = getattr(layer, name)

    def late(*args: Any) -> Any:
        monkeypatch.undo()
        done = do()
        if not inspect.isawaitable(done):
            return method(*args)

        async def both() -> Any:
            await done
            return await method(*args)

        return both()

    monkeypatch.setattr(layer, name, late)


@on_linux
@only_shared
@pytest.mark.parametrize("how", ["destroy", "rm"])
@pytest.mark.parametrize("step", ["new_channel", "group_add"])
async def test_it_joins_though_the_memory_is_removed_meanwhile(
    make: Make, step: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with within(make()) as layer:

        def remove_it() -> None:
            remove(layer.prefix, how)
            attachment = layer._core.session.attachment
            attachment.upkeep.check_at = attachment.due = 0.0  # the next call may notice

        await call(layer.new_channel())
        before_the_next(step, layer, remove_it, monkeypatch)
        async with within(layer.subscribe("news", "weather")) as events:

            async def heard() -> bool:  # the layer may not have noticed yet
                with contextlib.suppress(asgi_ipc.errors.SegmentVanished, TimeoutError):
                    await publish(layer, "weather")
                    return await call(events.get(timeout=0.05)) == MESSAGE
                return False

            await eventually(heard)


@only_shared
async def test_a_flush_while_it_joins_leaves_no_member_behind(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with within(make()) as layer, within(layer.subscribe()) as events:
        before_the_next("group_add", layer, layer.flush, monkeypatch)
        await call(events.join("news"))
        assert await members(layer, "news") == 1
        await publish(layer, "news")
        assert await call(events.get(timeout=LIVENESS)) == MESSAGE


@on_linux
@pytest.mark.parametrize("how", ["destroy", "rm"])
@pytest.mark.parametrize("waits", [False, True], ids=["reads later", "waits"])
@pytest.mark.parametrize("kind", ["asyncio", "asyncio, several machines"])
async def test_after_the_memory_was_removed_it_joins_again(
    prefix: str, kind: str, waits: bool, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    maker = _maker(prefix, ASYNCIO[kind])
    make = next(maker)
    async with make() as layer, layer.subscribe("news") as events:
        waiting = asyncio.ensure_future(events.get()) if waits else None
        await asyncio.sleep(0.01)
        remove(layer.prefix, how)
        waiting = waiting or asyncio.ensure_future(events.get())

        async def heard() -> bool:
            with contextlib.suppress(asgi_ipc.errors.SegmentVanished):
                await layer.group_send("news", MESSAGE)
            await asyncio.wait({waiting}, timeout=0.05)
            return waiting.done()

        await eventually(heard)
        assert await waiting == MESSAGE
        assert events.gaps >= 1
        assert "the shared memory was removed" in caplog.text
    next(maker, None)


@on_linux
@pytest.mark.parametrize("how", ["destroy", "rm"])
@pytest.mark.parametrize("kind", ["blocking", "blocking, several machines"])
def test_after_the_memory_was_removed_a_thread_joins_again(
    prefix: str, kind: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    maker = _maker(prefix, BLOCKING[kind])
    make = next(maker)
    with make() as layer, layer.subscribe("news") as events:
        got: list[Any] = []
        thread = threading.Thread(target=lambda: got.append(events.get()))
        thread.start()
        until(lambda: is_parked(events))
        remove(layer.prefix, how)

        def heard() -> bool:
            with contextlib.suppress(asgi_ipc.errors.SegmentVanished):
                layer.send_group("news", MESSAGE)
            thread.join(0.05)
            return not thread.is_alive()

        until(heard)
        assert got == [MESSAGE] and events.gaps >= 1
        assert "the shared memory was removed" in caplog.text
    next(maker, None)


def is_parked(events: Any) -> bool:
    """Whether a thread waits for a message of a subscription. Before that it would still take one
    that is sent after the memory was removed."""
    membership = events._membership
    if not membership._waiting:
        return False
    session = membership._core.session
    [source] = session.exact_sources[membership._place.channel]
    return bool(session.store.words[source.target.row + Q_WAITING])


def remove(prefix: str, how: str) -> None:
    if how == "destroy":
        segment.destroy(prefix)
    else:
        subprocess.run(f"rm -rf /dev/shm/asgi_ipc.{prefix}*", shell=True, check=True)


@only_shared
async def test_after_its_layer_was_closed_it_goes_on(make: Make) -> None:
    async with within(make()) as layer:
        async with within(layer.subscribe("news")) as events:
            await call(layer.close())
            gc.collect()
            await publish(layer, "news")
            assert await call(events.get(timeout=LIVENESS)) == MESSAGE
        assert await members(layer, "news") == 0


@on_linux
@only_shared
async def test_leaving_makes_no_memory(make: Make) -> None:
    layer = make()
    async with within(layer.subscribe("news")):
        await call(layer.close())
        gc.collect()
        segment.destroy(layer.prefix)
    assert not Path(f"/dev/shm/asgi_ipc.{layer.prefix}").exists()


# -- fork and exit --------------------------------------------------------------------------------


def run(coroutine: Any) -> Any:
    """Like `asyncio.run`, which takes the thread's loop away from pytest."""
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(coroutine)
    finally:
        loop.close()


@pytest.mark.parametrize("fork", [os.fork, fork_in_c], ids=["python", "c"])
@only_shared
def test_a_child_joins_for_itself(make: Make, fork: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """And leaves the parent's channel alone, also when it leaves the block by an exception."""
    monkeypatch.setattr(os, "fork", fork)

    layer = make()
    events = layer.subscribe("news")

    async def enter() -> None:
        await call((getattr(events, "__aenter__", None) or events.__enter__)())

    async def leave() -> None:
        await call((getattr(events, "__aexit__", None) or events.__exit__)(None, None, None))

    async def child() -> tuple[int, Any, int, int]:
        await nothing_comes(events)
        there = await members(layer, "news")
        await publish(layer, "news", {"from": "child"})
        got = await call(events.get(timeout=LIVENESS))
        await leave()
        left = await members(layer, "news")
        await call(layer.close())
        return there, got, left, events.gaps

    async def child_that_only_leaves() -> int:
        await leave()
        left = await members(layer, "news")
        await call(layer.close())
        return left

    run(enter())
    assert in_child(lambda: run(child())) == (2, {"from": "child"}, 1, 0)
    assert in_child(lambda: run(child_that_only_leaves())) == 1

    async def parent_again() -> None:
        assert await call(events.get(timeout=LIVENESS)) == {"from": "child"}
        assert events.gaps == 0
        await leave()
        assert await members(layer, "news") == 0
        await call(layer.close())

    run(parent_again())


EXIT = """
import sys
from asgi_ipc import IPCChannelLayer

def stream(layer):
    with layer.subscribe("news") as events:
        yield
        yield from events

layer = IPCChannelLayer(sys.argv[1])
streaming = stream(layer)
next(streaming)
assert len(layer.group_channels("news")) == 2
"""
# A loop that ends without its generators, as where a program calls sys.exit in a callback.
EXIT_LOOP = """
import asyncio, sys
from asgi_ipc.aio import IPCChannelLayer

async def enter():
    await events.__aenter__()
    assert len(await layer.group_channels("news")) == 2

layer = IPCChannelLayer(sys.argv[1])
events = layer.subscribe("news")
loop = asyncio.new_event_loop()
loop.run_until_complete(enter())
loop.close()
"""
EXIT_ASYNCIO = """
import asyncio, sys
from asgi_ipc.aio import IPCChannelLayer

async def stream(layer):
    async with layer.subscribe("news") as events:
        yield
        async for event in events:
            yield event

async def main():
    global streaming
    layer = IPCChannelLayer(sys.argv[1])
    streaming = stream(layer)
    await streaming.__anext__()
    assert len(await layer.group_channels("news")) == 2

asyncio.run(main())
"""
THREAD = """
import sys, threading
from asgi_ipc import IPCChannelLayer

layer = IPCChannelLayer(sys.argv[1])
with layer.subscribe("news") as events:
    threading.Thread(target=events.get, daemon=True).start()
    sys.exit()
"""


@pytest.mark.parametrize(
    "source", [EXIT, EXIT_ASYNCIO, EXIT_LOOP, THREAD], ids=["with", "asyncio", "loop", "thread"]
)
async def test_the_end_of_the_process_leaves_the_groups(prefix: str, source: str) -> None:
    async with asgi_ipc.aio.IPCChannelLayer(prefix) as layer:
        await layer.group_add("news", "another")
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", source, prefix],
            env=child_environment(),
            capture_output=True,
            text=True,
            timeout=LIVENESS,
            check=False,
        )
        if source is THREAD:  # whose thread may say that its subscription ended
            assert done.returncode == 0 and "atal" not in done.stderr, done.stderr
        else:
            assert (done.returncode, done.stderr) == (0, "")
        assert await layer.group_channels("news") == ["another"]


def test_a_signal_handler_that_raises_ends_a_get(make_blocking: Make) -> None:
    class Stop(Exception):
        pass

    def stop(*_: object) -> None:
        raise Stop

    before = signal.signal(signal.SIGALRM, stop)
    try:
        with make_blocking() as layer:
            with pytest.raises(Stop), layer.subscribe("news") as events:
                signal.setitimer(signal.ITIMER_REAL, 0.1)
                events.get()
            assert layer.group_channels("news") == []
    finally:
        signal.signal(signal.SIGALRM, before)


# -- many at once ---------------------------------------------------------------------------------


async def test_a_cancelled_get_takes_nothing(make_asyncio: Make) -> None:
    async with make_asyncio() as layer, layer.subscribe("news") as events:
        waiting = asyncio.ensure_future(events.get())
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await layer.group_send("news", MESSAGE)
        assert await events.get(timeout=LIVENESS) == MESSAGE


@only_shared
async def test_tasks_that_join_again_at_once_leave_one_channel(make: Make) -> None:
    """Also while other tasks or threads join and leave groups."""
    async with within(make()) as layer, within(layer.subscribe("news")) as events:
        loop = asyncio.get_running_loop()

        def use(what: Any) -> Any:
            if inspect.iscoroutinefunction(layer.send):
                return what()
            return loop.run_in_executor(None, what)

        for _ in range(20):
            await call(layer.flush())

            async def drained() -> None:
                with pytest.raises(TimeoutError):
                    await use(lambda: events.get(timeout=0))

            await asyncio.gather(
                *(drained() for _ in range(4)),
                use(lambda: events.join("weather", "sports")),
                use(lambda: events.leave("weather")),
            )
            await call(events.leave("weather", "sports"))
            assert await members(layer, "weather") == await members(layer, "sports") == 0
            assert await members(layer, "news") == 1
            await publish(layer, "news")
            assert await call(events.get(timeout=LIVENESS)) == MESSAGE
            await nothing_comes(events)
