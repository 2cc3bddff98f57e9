"""What ``asgi_ipc.aio.IPCChannelLayer`` promises beyond the contract of Channels 4, a test a
sentence.

The contract itself is ``conformance/test_channels4.py``. The constructor and what a message may
hold are in ``test_sync.py``, for both layers.
"""

from __future__ import annotations

import asyncio
import fcntl
import gc
import inspect
import logging
import operator
import os
import re
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

import asgi_ipc
from asgi_ipc import segment
from asgi_ipc.aio import IPCChannelLayer
from asgi_ipc.aio import waiter as waiter_module
from asgi_ipc.attachment.inbox import Inbox
from asgi_ipc.conformance.asynchronous import (
    cancel,
    drain,
    in_loop,
    numbers,
    receive,
    running_loop,
    send_numbers,
    together,
    turns,
)
from asgi_ipc.conformance.base import MESSAGE
from asgi_ipc.conformance.blocking import NOTHING, STATISTICS
from asgi_ipc.errors import InvalidName, LockBusy, LockTimeout, NotOwner, SegmentVanished
from asgi_ipc.segment.paths import Paths
from asgi_ipc.store.layout import L_EXPIRES, Q_FIRST

from ..environments import run_python
from ..waiting import LIVENESS, eventually, in_threads, until


@pytest_asyncio.fixture
async def make(prefix: str) -> AsyncIterator[Callable[..., Any]]:
    made = []

    def make(**options: Any) -> IPCChannelLayer:
        made.append(IPCChannelLayer(prefix, **options))
        return made[-1]

    yield make
    for layer in made:
        await layer.close()


@pytest.fixture
def layer(make: Callable[..., Any]) -> Any:
    return make()


# -- names and attributes -------------------------------------------------------------------------


async def test_new_channel_is_prefix_process_random(layer: Any) -> None:
    assert re.fullmatch(r"specific\.[^.!?]+![^.!?]+", await layer.new_channel())
    assert re.fullmatch(r"chat\.room\.[^.!?]+![^.!?]+", await layer.new_channel("chat.room"))


async def test_new_channel_names_the_instance(make: Callable[..., Any]) -> None:
    one, two = make(), make()
    names = [(await layer.new_channel()).partition("!")[0] for layer in (one, one, two)]
    assert names[0] == names[1] != names[2]


async def test_client_prefix_is_unique_for_each_instance(make: Callable[..., Any]) -> None:
    assert len({make().client_prefix for _ in range(20)}) == 20


async def test_attributes(make: Callable[..., Any], prefix: str) -> None:
    layer = make(expiry=7, group_expiry=8, capacity=9)
    attributes = (layer.prefix, layer.expiry, layer.group_expiry, layer.capacity)
    assert attributes == (prefix, 7, 8, 9)


async def test_errors_are_attributes_that_derive_from_the_peers(layer: Any) -> None:
    exceptions = pytest.importorskip("channels.exceptions", reason="lacking: Channels 4")
    for name in ("ChannelFull", "MessageTooLarge"):
        assert issubclass(getattr(layer, name), getattr(exceptions, name, Exception))


async def test_require_valid_names(layer: Any) -> None:
    for name in ("c", "p!local", "c?reader", "n" * 99):
        assert layer.require_valid_channel_name(name)
    assert layer.require_valid_group_name("g")
    for name in ("", "a b", "a!b!c", "n" * 100, None):
        with pytest.raises(InvalidName):
            layer.require_valid_channel_name(name)
        with pytest.raises(InvalidName):
            layer.require_valid_group_name(name)
    with pytest.raises(InvalidName):
        layer.require_valid_group_name("a!b")


@pytest.mark.parametrize("name", ["", "n" * 100, "a b", "c?", "a!b!c", b"c", None])
async def test_bad_channel_name_is_refused(layer: Any, name: Any) -> None:
    for call in (
        lambda: layer.send(name, MESSAGE),
        lambda: receive(layer, name),
        lambda: layer.receive_async([name], timeout=0.1),
        lambda: layer.group_add("g", name),
        lambda: layer.group_discard("g", name),
    ):
        with pytest.raises(InvalidName):
            await call()


@pytest.mark.parametrize("name", ["", "n" * 100, "a b", "a!b", "a?b", b"g", None])
async def test_bad_group_name_is_refused(layer: Any, name: Any) -> None:
    for call in (
        lambda: layer.group_add(name, "c"),
        lambda: layer.group_discard(name, "c"),
        lambda: layer.group_channels(name),
        lambda: layer.group_send(name, MESSAGE),
    ):
        with pytest.raises(InvalidName):
            await call()


# -- receive --------------------------------------------------------------------------------------


async def test_slow_socket_does_not_hold_up_the_others(make: Callable[..., Any]) -> None:
    layer = make(capacity=200)
    slow, quick = await layer.new_channel(), await layer.new_channel()
    for number in range(50):
        await layer.send(slow, {"number": number})
        await layer.send(quick, {"number": number})
    assert numbers([await receive(layer, quick) for _ in range(50)]) == list(range(50))
    assert numbers([await receive(layer, slow) for _ in range(50)]) == list(range(50))


async def test_one_that_waits_gets_what_another_drained(layer: Any) -> None:
    one, two = await layer.new_channel(), await layer.new_channel()
    waiting = [asyncio.ensure_future(layer.receive(name)) for name in (one, two)]
    await turns(3)
    await layer.send(two, {"to": 2})
    await layer.send(one, {"to": 1})
    assert await together(waiting) == [{"to": 1}, {"to": 2}]


@pytest.mark.parametrize("whose", ["another instance", "another process", "nobody"])
async def test_receive_on_the_name_of_another_fails_at_once(
    make: Callable[..., Any], prefix: str, whose: str
) -> None:
    layer, other = make(), make()
    name = {
        "another instance": await other.new_channel(),
        "another process": run_python(
            "import asyncio, asgi_ipc.aio\n"
            f"layer = asgi_ipc.aio.IPCChannelLayer({prefix!r})\n"
            "print(asyncio.run(layer.new_channel()))"
        ),
        "nobody": "specific.nobody!local",
    }[whose]
    await other.send(name, MESSAGE)
    with pytest.raises(NotOwner):
        await layer.receive(name)
    if whose == "another instance":
        assert await receive(other, name) == MESSAGE


async def test_receive_async_gives_channel_and_message(layer: Any) -> None:
    await layer.send("c", MESSAGE)
    assert await layer.receive_async(["other", "c"]) == ("c", MESSAGE)


@pytest.mark.parametrize("kind", [list, tuple, set, iter, dict.fromkeys])
async def test_receive_async_takes_any_iterable_of_names(layer: Any, kind: Any) -> None:
    await layer.send("c", MESSAGE)
    assert await layer.receive_async(kind(["other", "c"])) == ("c", MESSAGE)


@pytest.mark.parametrize("timeout", [0, 0.05])
async def test_receive_async_gives_nothing_when_its_timeout_runs_out(
    make: Callable[..., Any], timeout: float
) -> None:
    layer = make(receive_timeout=100 * LIVENESS)
    waiting = layer.receive_async(["c"], timeout=timeout)
    assert await asyncio.wait_for(waiting, LIVENESS) == NOTHING


async def test_what_came_before_the_timeout_is_received_however_late(
    make: Callable[..., Any],
) -> None:
    """A process may be held up for longer than a receive waits."""
    layer = make()
    waiting = asyncio.ensure_future(layer.receive_async(["p!", "c"], timeout=0.01))
    await asyncio.sleep(0)
    await layer.send("c", MESSAGE)
    time.sleep(0.02)  # the loop does not get to run before the deadline
    assert await waiting == ("c", MESSAGE)


async def test_receive_async_waits_for_the_receive_timeout(make: Callable[..., Any]) -> None:
    layer = make(receive_timeout=0.05)
    assert await asyncio.wait_for(layer.receive_async(["c"]), LIVENESS) == NOTHING


async def test_receive_async_without_timeout_waits_for_ever(make: Callable[..., Any]) -> None:
    layer = make(receive_timeout=0.01)
    waiting = asyncio.ensure_future(layer.receive_async(["c"], timeout=None))
    await layer.receive_async(["other"])
    await layer.receive_async(["other"])
    assert not waiting.done()
    await layer.send("c", MESSAGE)
    assert await asyncio.wait_for(waiting, LIVENESS) == ("c", MESSAGE)


async def test_receive_async_takes_any_process_specific_channel(layer: Any) -> None:
    await layer.send("worker.made.up!local", MESSAGE)
    assert await layer.receive_async(["worker.made.up!"]) == ("worker.made.up!local", MESSAGE)


async def test_receive_async_takes_buffered_messages_first_and_in_order(layer: Any) -> None:
    names = [await layer.new_channel() for _ in range(3)]
    for number in range(4):
        for name in names:
            await layer.send(name, {"number": number})
    assert await receive(layer, names[2]) == {"number": 0}  # which buffers those before it
    await layer.send(names[0], {"number": 4})
    shared = names[0].partition("!")[0] + "!"
    got = [await layer.receive_async([shared], timeout=LIVENESS) for _ in range(12)]
    expected = [(name, number) for number in range(4) for name in names]
    expected.remove((names[2], 0))
    assert [(name, message["number"]) for name, message in got] == [*expected, (names[0], 4)]


async def test_quiet_channel_is_not_starved(layer: Any) -> None:
    """M9, for receive_async, which takes several channels at once."""
    await send_numbers(layer, "busy", range(5))
    await layer.send("quiet", MESSAGE)
    for _ in range(100):
        channel, _message = await layer.receive_async(["busy", "quiet"])
        if channel == "quiet":
            return
        await layer.send("busy", MESSAGE)
    pytest.fail("100 messages of the busy channel came before the one of the quiet channel")


@pytest.mark.parametrize("after", range(6))
async def test_cancelled_receive_async_loses_nothing(layer: Any, after: int) -> None:
    got = []
    channels = [await layer.new_channel(), "c", "d"]
    shared = channels[0].partition("!")[0] + "!"
    for number in range(30):
        task = asyncio.ensure_future(layer.receive_async([shared, "c", "d"], timeout=None))
        await turns(number % 2)
        await layer.send(channels[number % 3], {"number": number})
        got += [message for _channel, message in await cancel(task, after)]
    for channel in channels:
        got += await drain(layer, channel)
    assert sorted(numbers(got)) == list(range(30))


@pytest.mark.parametrize("channel", ["c", "process-specific"])
async def test_message_that_cannot_be_read_does_not_end_a_receive(
    make: Callable[..., Any], caplog: pytest.LogCaptureFixture, channel: str
) -> None:
    """It is dropped, counted and logged, and the receive goes on."""
    pytest.importorskip("cryptography", reason="lacking: cryptography")
    layer = make(symmetric_encryption_keys=["ours"])
    channel = channel if channel == "c" else await layer.new_channel()
    waiting = asyncio.ensure_future(layer.receive(channel))
    with caplog.at_level(logging.DEBUG):
        await make(symmetric_encryption_keys=["theirs"]).send(channel, {"number": 1})
        await make().send(channel, {"number": 2})
        await make(symmetric_encryption_keys=["ours", "theirs"]).send(channel, {"number": 3})
        assert await asyncio.wait_for(waiting, LIVENESS) == {"number": 3}
    assert [record for record in caplog.records if record.name.startswith("asgi_ipc")]


async def test_any_of_the_keys_decrypts(make: Callable[..., Any]) -> None:
    pytest.importorskip("cryptography", reason="lacking: cryptography")
    await make(symmetric_encryption_keys=["old"]).send("c", MESSAGE)
    layer = make(symmetric_encryption_keys=[b"new", "old"])
    assert await receive(layer, "c") == MESSAGE


async def test_vanished_segment_raises_in_every_waiting_receive(make: Callable[..., Any]) -> None:
    one, two = make(), make()
    waiting = {
        asyncio.ensure_future(one.receive("c")),
        asyncio.ensure_future(two.receive("c")),
        asyncio.ensure_future(one.receive(await one.new_channel())),
        asyncio.ensure_future(two.receive_async(["d"], timeout=None)),
    }
    await turns(3)
    segment.destroy(one.prefix)
    done, pending = await asyncio.wait(waiting, timeout=LIVENESS)
    assert not pending
    assert [type(task.exception()) for task in done] == [SegmentVanished] * 4


async def test_waiting_receive_rides_out_a_lock_timeout(
    make: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    layer = make(lock="file", lock_timeout=0.05)
    own = await layer.new_channel()
    waiting = [asyncio.ensure_future(layer.receive(channel)) for channel in ("c", own)]
    await turns(3)

    async def logged() -> bool:
        return any(record.name == "asgi_ipc" for record in caplog.records)

    with caplog.at_level(logging.DEBUG):
        with open(Paths(layer.prefix).section_lock) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            with pytest.raises(TimeoutError):
                await layer.send("c", {"number": 1})
            await eventually(logged)
            assert not any(task.done() for task in waiting)
        for channel in ("c", own):
            await layer.send(channel, {"to": channel})
    assert await together(waiting) == [{"to": "c"}, {"to": own}]


async def test_loop_goes_on_while_the_lock_is_held(make: Callable[..., Any]) -> None:
    """Also that of a receive, which looks after the segment once a second."""
    layer = make(lock="file")
    waiting = asyncio.ensure_future(layer.receive("c"))
    await turns(3)

    async def beat() -> None:
        until = time.monotonic() + 1.5
        beats = 0
        while beats < 40 or time.monotonic() < until:
            await asyncio.sleep(0.01)
            beats += 1

    with open(Paths(layer.prefix).section_lock) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        sending = asyncio.ensure_future(layer.send("c", MESSAGE))
        await asyncio.wait_for(beat(), LIVENESS / 2)
        assert not sending.done()
    assert await together([sending, waiting]) == [None, MESSAGE]


@pytest.mark.parametrize("released", [True, False])
async def test_a_send_whose_time_is_over_while_the_lock_is_held_waits_for_the_lock(
    make: Callable[..., Any], released: bool
) -> None:
    layer = make(lock="file", capacity=1, lock_timeout=LIVENESS if released else 0.2)
    await layer.send("c", MESSAGE)
    sending = asyncio.ensure_future(layer.send("c", MESSAGE, timeout=0.2))
    await turns(3)
    with open(Paths(layer.prefix).section_lock) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        await asyncio.sleep(0.5)
        if released:
            assert not sending.done()
            fcntl.flock(file, fcntl.LOCK_UN)
        with pytest.raises(layer.ChannelFull if released else LockTimeout) as told:
            await asyncio.wait_for(sending, LIVENESS)
    assert type(told.value) is not LockBusy
    assert await layer.receive("c") == MESSAGE


# -- groups, flush, statistics --------------------------------------------------------------------


async def test_group_channels_are_the_full_names_of_the_members(layer: Any) -> None:
    members = ["c", "c?reader", await layer.new_channel(), await layer.new_channel()]
    for member in members:
        await layer.group_add("g", member)
    assert sorted(await layer.group_channels("g")) == sorted(members)
    assert list(await layer.group_channels("nobody")) == []


async def test_extensions(layer: Any) -> None:
    assert {"groups", "flush"} <= set(layer.extensions)


async def test_message_whose_expiry_is_no_number_is_dropped(layer: Any) -> None:
    bad, good = await layer.new_channel(), await layer.new_channel()
    for name in (bad, good):
        await layer.send(name, MESSAGE)
    session = layer._core.session
    record = session.store.words[session.targets[bad].row + Q_FIRST]
    session.store.doubles[record + L_EXPIRES] = float("nan")
    assert await receive(layer, good) == MESSAGE  # which buffers the other
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(layer.receive(bad), 0.05)
    assert (await layer.stats()).dropped["expired"] == 1


async def test_flush_empties_the_buffers_of_every_client(make: Callable[..., Any]) -> None:
    layer = make()
    one, two = await layer.new_channel(), await layer.new_channel()
    for name in (one, two):
        await layer.send(name, MESSAGE)
    assert await receive(layer, two) == MESSAGE  # which buffers the other
    await make().flush()
    assert await drain(layer, one) == []


async def test_loop_goes_on_when_what_it_has_drained_is_flushed(
    layer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A receive that is about to take a message out of the buffer finds it flushed: it waits, and
    does not look at the same buffer again and again."""
    channel = await layer.new_channel()
    receiving = asyncio.ensure_future(layer.receive(channel))
    await turns(3)
    looks = 0
    join = Inbox.join

    def counted(inbox: Inbox, *args: Any) -> bool:
        nonlocal looks
        looks += 1
        assert looks < 1000, "it spins"
        return join(inbox, *args)

    monkeypatch.setattr(Inbox, "join", counted)
    hub_of_loop = layer._core.attach().loop_waiter
    await layer.send(channel, MESSAGE)
    hub_of_loop.rung()
    assert layer._core.attach().attachment.inboxes[channel.partition("!")[0] + "!"]
    await layer.flush()
    await layer.send(channel, {"after": "the flush"})
    assert await asyncio.wait_for(receiving, LIVENESS) == {"after": "the flush"}


async def test_waiting_receive_outlives_a_flush(make: Callable[..., Any]) -> None:
    layer = make()
    waiting = [
        asyncio.ensure_future(layer.receive(name)) for name in ("c", await layer.new_channel())
    ]
    name = await layer.new_channel()
    waiting.append(asyncio.ensure_future(layer.receive(name)))
    await turns(3)
    await make().flush()
    await layer.send("c", {"to": "c"})
    await layer.send(name, {"to": name})
    assert await together([waiting[0], waiting[2]]) == [{"to": "c"}, {"to": name}]
    await cancel(waiting[1], after=0)


async def test_statistics_have_six_names(make: Callable[..., Any]) -> None:
    layer = make(capacity=3)
    for number in range(4):
        try:
            await layer.send("c", {"number": number})
        except layer.ChannelFull:
            pass
    await receive(layer, "c")
    for asked in (layer.global_statistics(), layer.channel_statistics("c")):
        statistics = (await asked) if inspect.isawaitable(asked) else asked
        assert set(statistics) == STATISTICS
        assert statistics["messages_count"] == 3
        assert statistics["messages_pending"] == 2
        assert statistics["channel_full_count"] == 1
        assert statistics["messages_max_age"] > 0


# -- loops, lifetime ------------------------------------------------------------------------------


async def test_blocking_worker_answers_an_asyncio_consumer(
    make: Callable[..., Any], prefix: str
) -> None:
    layer = make()
    reply_to = await layer.new_channel()

    def work() -> None:
        worker = asgi_ipc.IPCChannelLayer(prefix, receive_timeout=LIVENESS)
        _channel, request = worker.receive(["requests"], block=True)
        worker.send(request["reply_to"], {"answer": request["number"] + 1})
        worker.close()

    loop = asyncio.get_running_loop()
    working = loop.run_in_executor(None, work)
    await layer.send("requests", {"reply_to": reply_to, "number": 1})
    assert await receive(layer, reply_to) == {"answer": 2}
    await working


async def test_asyncio_worker_answers_a_blocking_client(
    make: Callable[..., Any], prefix: str
) -> None:
    layer = make()

    def ask() -> Any:
        client = asgi_ipc.IPCChannelLayer(prefix, receive_timeout=LIVENESS)
        reply_to = client.new_channel("reply?")
        client.send("requests", {"reply_to": reply_to, "number": 1})
        answer = client.receive([reply_to], block=True)[1]
        client.close()
        return answer

    asking = asyncio.get_running_loop().run_in_executor(None, ask)
    request = await receive(layer, "requests")
    await layer.send(request["reply_to"], {"answer": request["number"] + 1})
    assert await asyncio.wait_for(asking, LIVENESS) == {"answer": 2}


def test_send_and_group_calls_need_no_loop(layer: Any) -> None:
    for call in (
        layer.send("c", MESSAGE),
        layer.group_add("g", "c"),
        layer.group_send("g", MESSAGE),
        layer.group_discard("g", "c"),
    ):
        with pytest.raises(StopIteration):
            call.send(None)
    assert asyncio.run(drain(layer, "c")) == [MESSAGE] * 2


def test_nothing_outlives_its_loop(layer: Any, prefix: str) -> None:
    async def use() -> None:
        waiting = asyncio.ensure_future(layer.receive("c"))
        asyncio.ensure_future(layer.receive(await layer.new_channel()))
        await turns(3)
        await layer.send("c", MESSAGE)
        await asyncio.wait_for(waiting, LIVENESS)

    def run(loops: int) -> None:
        for _ in range(loops):
            asyncio.run(use())

    def held() -> list[int]:
        gc.collect()
        return [len(held_of(prefix)), threading.active_count()]

    run(2)
    before = held()
    run(10)
    # What a call is about to close, or has just opened again, may still be there.
    until(lambda: all(map(operator.le, held(), before)), what="what the loops held to be closed")


def test_loops_of_one_process_share_the_buffers(layer: Any) -> None:
    with running_loop() as loop:
        one, two = (asyncio.run(layer.new_channel()) for _ in range(2))
        waiting = in_loop(loop, layer.receive(two))
        in_loop(loop, turns(3)).result(LIVENESS)

        async def send_to_both_and_receive_one() -> Any:
            waits_here = asyncio.ensure_future(layer.receive(one))
            await turns(3)
            await layer.send(two, {"to": 2})
            await layer.send(one, {"to": 1})
            return await asyncio.wait_for(waits_here, LIVENESS)

        assert asyncio.run(send_to_both_and_receive_one()) == {"to": 1}
        assert waiting.result(LIVENESS) == {"to": 2}


def test_many_threads_and_loops_at_once(make: Callable[..., Any]) -> None:
    layer = make(capacity=1000)

    async def send_and_receive(first: int) -> list[Any]:
        sending = asyncio.ensure_future(send_numbers(layer, "c", range(first, 400, 4)))
        got = [await receive(layer, "c") for _ in range(100)]
        await sending
        return got

    got = in_threads(lambda first=first: asyncio.run(send_and_receive(first)) for first in range(4))
    assert sorted(numbers(sum(got, []))) == list(range(400))


@pytest.mark.parametrize("name", ["close", "close_pools"])
async def test_close_frees_what_this_layer_holds(layer: Any, prefix: str, name: str) -> None:
    await use(layer)
    assert held_of(prefix)
    await getattr(layer, name)()
    assert held_of(prefix) == []


async def test_close_never_unlinks(make: Callable[..., Any]) -> None:
    layer = make()
    await layer.send("c", MESSAGE)
    await layer.close()
    assert await receive(make(), "c") == MESSAGE


async def test_next_call_after_close_attaches_again(layer: Any) -> None:
    await layer.send("c", MESSAGE)
    await layer.close()
    assert await receive(layer, "c") == MESSAGE
    await layer.close()
    await use(layer)


async def test_close_leaves_other_layers_alone(make: Callable[..., Any]) -> None:
    one, two = make(), make()
    await one.send("other", MESSAGE)
    waiting = asyncio.ensure_future(two.receive("c"))
    await turns(3)
    await one.close()
    await two.send("c", MESSAGE)
    assert await asyncio.wait_for(waiting, LIVENESS) == MESSAGE


async def test_dropped_layer_leaks_nothing(prefix: str) -> None:
    for _ in range(3):
        await use(IPCChannelLayer(prefix))

    async def nothing_is_held() -> bool:
        gc.collect()
        return held_of(prefix) == []

    await eventually(nothing_is_held)


# -- used above -----------------------------------------------------------------------------------


async def use(layer: Any) -> None:
    waiting = asyncio.ensure_future(layer.receive("c"))
    await turns(3)
    await layer.send("c", MESSAGE)
    assert await asyncio.wait_for(waiting, LIVENESS) == MESSAGE


def open_descriptors() -> list[str]:
    """What each open file descriptor of this process stands for."""
    folder = Path("/proc/self/fd")
    if not folder.exists():
        pytest.skip("lacking: /proc")
    links = []
    for descriptor in folder.iterdir():
        try:
            links.append(os.readlink(descriptor))
        except FileNotFoundError:  # the one that lists them
            pass
    return links


def held_of(prefix: str) -> list[str]:
    """Descriptors and mappings of this process that belong to `prefix`."""
    mapped = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    return [line for line in open_descriptors() + mapped if prefix in line]


async def test_woken_receive_that_is_cancelled_leaves_its_turn_to_the_next(
    layer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One loop, two receives, one doorbell: the ring was for both. No safety check helps here."""
    monkeypatch.setattr(waiter_module, "CHECK_EVERY", 1000.0)
    first = asyncio.ensure_future(layer.receive("c"))
    second = asyncio.ensure_future(layer.receive("c"))
    await turns(3)
    await layer.send("c", MESSAGE)
    waiter = layer._core.session.loop_waiter
    waiter.rung()  # the loop would call it now: it wakes the first
    first.cancel()
    assert await asyncio.wait_for(second, LIVENESS) == MESSAGE
