"""Sockets that receive again and again on channels of their own, on asyncio: the usual case of a
server, which takes a short way (`nap`). It is left wherever more than that has to be done.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import asgi_ipc
from asgi_ipc import clock, segment
from asgi_ipc.aio import IPCChannelLayer
from asgi_ipc.aio import waiter as waiter_module
from asgi_ipc.aio.hub import Hub
from asgi_ipc.aio.loop import WOKEN_AT_ONCE, AsyncioHub
from asgi_ipc.aio.thread import BLOCKING, finished
from asgi_ipc.attachment.inbox import Inbox
from asgi_ipc.errors import LockBusy, SegmentVanished
from asgi_ipc.segment.doorbell import Ringer
from asgi_ipc.store import recovery

from ..waiting import LIVENESS

Task = asyncio.Task[dict[str, Any]]


def message(number: int) -> dict[str, Any]:
    return {"type": "m", "number": number}


class Socket:
    """A channel, and a task that waits there: not for the first time, so it takes the short way."""

    def __init__(self, layer: IPCChannelLayer, channel: str) -> None:
        self.layer, self.channel = layer, channel

    @classmethod
    async def of(cls, layer: IPCChannelLayer) -> Socket:
        socket = cls(layer, await layer.new_channel())
        await layer.send(socket.channel, message(0))
        assert await layer.receive(socket.channel) == message(0)
        first = asyncio.ensure_future(layer.receive(socket.channel))
        await turns()
        await layer.send(socket.channel, message(0))
        assert await asyncio.wait_for(first, LIVENESS) == message(0)  # it has parked the loop
        return socket

    @property
    def hub(self) -> Hub:
        session = self.layer._core.session
        assert session is not None and session.loop_waiter is not None
        return session.loop_waiter

    @property
    def inbox(self) -> Inbox:
        session = self.layer._core.session
        assert session is not None
        return session.attachment.inbox(self.channel.partition("!")[0] + "!")

    async def waits(self) -> Task:
        task = asyncio.ensure_future(self.layer.receive(self.channel))
        await turns()
        assert self.hub.sleepers
        return task


async def turns(count: int = 3) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Once called, every receive that sleeps otherwise fails."""

    async def wait(*args: Any) -> bool:
        raise AssertionError("it did not take the short way")

    return lambda: monkeypatch.setattr(Hub, "wait", wait)


@pytest.fixture
def layer(prefix: str) -> IPCChannelLayer:
    return IPCChannelLayer(prefix, spin=0)


async def got(task: Task) -> dict[str, Any]:
    return await asyncio.wait_for(task, LIVENESS)


async def test_a_message_comes_by_the_short_way(
    layer: IPCChannelLayer, short: Callable[[], None]
) -> None:
    socket = await Socket.of(layer)
    short()
    for number in range(3):
        task = await socket.waits()
        await layer.send(socket.channel, message(number))
        assert await got(task) == message(number)
    assert socket.hub.sleepers == 0
    assert not socket.inbox.waiting


async def test_it_sleeps_in_the_frame_of_its_receive(layer: IPCChannelLayer) -> None:
    """A coroutine inside it would cost each of thousands of sockets time and memory."""
    socket = await Socket.of(layer)
    waiting = layer.receive(socket.channel)
    waiting.send(None)
    assert not inspect.iscoroutine(waiting.cr_await)
    waiting.close()
    assert socket.hub.sleepers == 0
    assert not socket.inbox.waiting


async def test_what_comes_from_another_thread_of_the_process_wakes_it(
    layer: IPCChannelLayer, short: Callable[[], None]
) -> None:
    """It drains the queue for a socket of its own."""
    socket = await Socket.of(layer)
    blocking = asgi_ipc.IPCChannelLayer(layer.prefix)
    blocking._core.own = layer._core.own
    short()
    task = await socket.waits()
    socket.hub.unwatch()  # so that it is the thread that drains
    blocking.send(socket.channel, message(1))
    queue = socket.channel.partition("!")[0] + "!"
    assert await asyncio.to_thread(blocking.receive, [queue + "other"]) == (None, None)
    assert await got(task) == message(1)
    socket.hub.watch()


async def test_a_receive_that_is_cancelled_takes_nothing(layer: IPCChannelLayer) -> None:
    socket = await Socket.of(layer)
    first, second = await socket.waits(), await socket.waits()
    first.cancel()
    await layer.send(socket.channel, message(1))
    assert await got(second) == message(1)
    assert first.cancelled()
    assert socket.hub.sleepers == 0


async def test_a_receive_that_is_cancelled_when_woken_leaves_the_message_to_the_next(
    layer: IPCChannelLayer,
) -> None:
    socket = await Socket.of(layer)
    first, second = await socket.waits(), await socket.waits()
    await layer.send(socket.channel, message(1))
    socket.hub.rung()  # wakes the first
    first.cancel()
    assert await got(second) == message(1)
    assert first.cancelled()


async def test_what_expired_is_passed_over(layer: IPCChannelLayer, prefix: str) -> None:
    socket = await Socket.of(layer)
    hasty = IPCChannelLayer(prefix, expiry=1e-6)
    task = await socket.waits()
    await hasty.send(socket.channel, message(1))
    await turns(10)
    await layer.send(socket.channel, message(2))
    assert await got(task) == message(2)


async def test_it_waits_on_after_a_flush(layer: IPCChannelLayer) -> None:
    socket = await Socket.of(layer)
    task = await socket.waits()
    await layer.flush()
    await turns(10)
    assert not task.done()
    await layer.send(socket.channel, message(1))
    assert await got(task) == message(1)


async def test_a_flush_that_rang_nobody_is_noticed_by_the_next_receive(
    layer: IPCChannelLayer,
) -> None:
    socket = await Socket.of(layer)
    session = layer._core.attach()
    await layer.send(socket.channel, message(1))
    socket.hub.rung()
    session.section(recovery.flush, session.store, clock.monotonic())
    task = asyncio.ensure_future(layer.receive(socket.channel))
    await turns()
    assert not task.done()
    await layer.send(socket.channel, message(2))
    assert await got(task) == message(2)


async def test_a_mailbox_that_was_removed_meanwhile_is_looked_up_again(
    layer: IPCChannelLayer, short: Callable[[], None]
) -> None:
    socket = await Socket.of(layer)
    short()
    socket.inbox._tidy()
    assert not socket.inbox._boxes
    for number in range(2):
        task = await socket.waits()
        await layer.send(socket.channel, message(number))
        assert await got(task) == message(number)


async def test_a_glance_finds_a_mailbox_that_was_removed_before_a_receive_with_a_timeout(
    layer: IPCChannelLayer,
) -> None:
    socket = await Socket.of(layer)
    core = layer._core
    session = core.attach()
    sources = session.exact_sources[socket.channel]
    socket.inbox._tidy()
    with pytest.raises(TimeoutError):
        await layer.receive(socket.channel, timeout=0.001)
    await layer.send(socket.channel, message(1))
    socket.hub.rung()
    assert core.glance(session, sources) == (socket.channel, message(1))


async def test_sockets_share_what_they_learn_of_their_queue(layer: IPCChannelLayer) -> None:
    sockets = [await Socket.of(layer) for _ in range(2)]
    session = layer._core.attach()
    one, other = (session.exact_sources[socket.channel][0] for socket in sockets)
    assert one.local != other.local and one.box is not other.box
    assert one.target is other.target and one.spin is other.spin


async def test_a_lock_that_is_busy_when_it_wakes_is_ridden_out(
    layer: IPCChannelLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    socket = await Socket.of(layer)
    task = await socket.waits()
    core, calls = layer._core, []
    real = core.upkeep

    def upkeep(*args: Any) -> None:
        calls.append(args)
        if len(calls) == 1:
            raise LockBusy(0)
        real(*args)

    monkeypatch.setattr(core, "upkeep", upkeep)
    await layer.send(socket.channel, message(1))
    core.attach().attachment.due = 0.0
    assert await got(task) == message(1)
    assert calls
    assert socket.hub.sleepers == 0


async def test_a_segment_that_vanishes_is_told_of(layer: IPCChannelLayer) -> None:
    socket = await Socket.of(layer)
    task = await socket.waits()
    segment.destroy(layer.prefix)
    with pytest.raises(SegmentVanished):
        await got(task)


async def test_a_timer_that_does_not_call_is_set_again(layer: IPCChannelLayer) -> None:
    """It was set while the clock of the loop was replaced."""
    socket = await Socket.of(layer)
    hub = socket.hub
    task = await socket.waits()
    assert hub._timer is not None
    hub._timer.cancel()
    hub.late_at -= 3 * hub.look_every
    await layer.send(socket.channel, message(1))
    assert await got(task) == message(1)
    before = hub._timer
    task = await socket.waits()
    assert hub._timer is not before
    await layer.send(socket.channel, message(2))
    assert await got(task) == message(2)


# -- a broadcast to many --------------------------------------------------------------------------

MANY = 3 * WOKEN_AT_ONCE + 7


class Crowd:
    """Many sockets in a group, all of which wait; in the order in which they get what it is sent.
    `heard` is what they got."""

    def __init__(self, layer: IPCChannelLayer) -> None:
        self.layer = layer
        self.channels: list[str] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.heard: list[tuple[str, int]] = []

    @classmethod
    async def of(cls, layer: IPCChannelLayer) -> Crowd:
        crowd = cls(layer)
        for _ in range(MANY):
            channel = await layer.new_channel()
            await layer.group_add("crowd", channel)
            # A group sends to who joined last first.
            crowd.channels.insert(0, channel)
            crowd.tasks.insert(0, asyncio.ensure_future(crowd._listen(channel)))
        await turns()
        return crowd

    async def _listen(self, channel: str) -> None:
        while True:
            found = await self.layer.receive(channel)
            self.heard.append((channel, found["number"]))

    async def send(self, number: int) -> None:
        await self.layer.group_send("crowd", message(number))

    async def hears(self, count: int) -> None:
        """Turn by turn of the loop."""
        deadline = clock.monotonic() + LIVENESS
        while len(self.heard) < count:
            assert clock.monotonic() < deadline
            await asyncio.sleep(0)

    async def end(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


@pytest.fixture
async def crowd(layer: IPCChannelLayer) -> AsyncIterator[Crowd]:
    made = await Crowd.of(layer)
    yield made
    await made.end()


async def test_a_broadcast_wakes_a_bounded_number_in_a_turn_of_the_loop(crowd: Crowd) -> None:
    for number in range(3):  # from the second on, they take the short way
        before = heard = len(crowd.heard)
        await crowd.send(number)
        most = 0
        while heard < before + MANY:
            await crowd.hears(heard + 1)
            most, heard = max(most, len(crowd.heard) - heard), len(crowd.heard)
        assert 0 < most <= WOKEN_AT_ONCE
        assert [channel for channel, _ in crowd.heard[before:]] == crowd.channels


async def test_broadcasts_that_overlap_reach_everybody_in_order(crowd: Crowd) -> None:
    await crowd.send(0)
    await crowd.hears(1)  # the others are still to be woken
    assert len(crowd.heard) < MANY
    for number in (1, 2):
        await crowd.send(number)
    await crowd.hears(3 * MANY)
    for channel in crowd.channels:
        assert [number for of, number in crowd.heard if of == channel] == [0, 1, 2]


async def test_who_is_cancelled_before_it_is_woken_leaves_its_message(crowd: Crowd) -> None:
    await crowd.send(0)
    await crowd.hears(1)
    last, task = crowd.channels[-1], crowd.tasks[-1]
    assert (last, 0) not in crowd.heard
    task.cancel()
    await crowd.hears(MANY - 1)
    assert await asyncio.wait_for(crowd.layer.receive(last), LIVENESS) == message(0)


async def test_who_is_not_woken_in_a_turn_of_the_loop_is_found_by_the_look(
    crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception out of a signal handler came between two turns."""
    monkeypatch.setattr(AsyncioHub, "_wake_some", lambda *_: None)
    await crowd.send(0)
    await turns(10)
    assert not crowd.heard
    await crowd.hears(MANY)


def by_a_loop(layer: IPCChannelLayer, channel: str) -> dict[str, Any]:
    return asyncio.run(layer.receive(channel))


def by_a_thread(layer: IPCChannelLayer, channel: str) -> dict[str, Any]:
    core = layer._core
    session = core.session
    assert session is not None
    sources = [core._named_source(session, channel)]
    found = finished(core.receive(session, sources, None, BLOCKING))
    assert found is not None
    return found[1]


@pytest.mark.parametrize("receive", [by_a_loop, by_a_thread])
async def test_others_of_the_process_do_not_wait_for_turns_of_a_loop(
    crowd: Crowd,
    receive: Callable[[IPCChannelLayer, str], dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The last socket of the group is received on in another thread."""
    monkeypatch.setattr(waiter_module, "CHECK_EVERY", 1000.0)  # it does not look by itself
    channel, task = crowd.channels.pop(), crowd.tasks.pop()
    task.cancel()
    await asyncio.wait([task])
    session = crowd.layer._core.session
    assert session is not None
    inbox = session.attachment.inbox(channel.partition("!")[0] + "!")
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(receive, crowd.layer, channel)
        while channel.partition("!")[2] not in inbox.waiting:
            await asyncio.sleep(0.001)
        mine = next(each for each in session.attachment.hubs.values() if each.sleepers > 1)
        assert isinstance(mine, AsyncioHub)
        with monkeypatch.context() as patch:  # the ring is for this loop
            patch.setattr(Ringer, "ring", lambda *_: True)
            await crowd.send(7)
        mine._drain(session, inbox.queue)
        assert other.result(LIVENESS) == message(7)  # while this loop stands still
    await crowd.hears(MANY - 1)
