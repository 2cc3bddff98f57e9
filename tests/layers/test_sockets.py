"""Sockets that receive again and again on channels of their own, on asyncio: the usual case of a
server, which takes a short way (`receive_own`). It is left wherever more than that has to be done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

import asgi_ipc
from asgi_ipc import clock, segment
from asgi_ipc.aio import IPCChannelLayer
from asgi_ipc.aio.hub import Hub
from asgi_ipc.attachment.inbox import Inbox
from asgi_ipc.errors import LockBusy, SegmentVanished
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
    hub._look_at -= 2 * hub.look_every
    await layer.send(socket.channel, message(1))
    assert await got(task) == message(1)
    before = hub._timer
    task = await socket.waits()
    assert hub._timer is not before
    await layer.send(socket.channel, message(2))
    assert await got(task) == message(2)
