"""What a receive does before it sleeps: where messages come fast it looks on for a moment.

That a receive has found its message so, and not by a wakeup, shows in that its waiter never waited.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio

import asgi_ipc
from asgi_ipc import sync
from asgi_ipc.aio import IPCChannelLayer
from asgi_ipc.aio.hub import Hub
from asgi_ipc.aio.spin import Spin
from asgi_ipc.conformance.asynchronous import cancel, together, turns
from asgi_ipc.conformance.blocking import NOTHING, in_reactor

from .contract import MESSAGE

LONG = 0.01  # seconds, the most that `spin` can be


async def never(*_: object) -> bool:
    raise AssertionError("it went to sleep")


@pytest.fixture(autouse=True)
def cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Makes every receive that finds nothing look on; says whether that was worth it."""
    found: list[bool] = []
    monkeypatch.setattr(Spin, "due", lambda self: True)
    monkeypatch.setattr(Spin, "note", lambda self, hit: found.append(hit))
    return found


@pytest.fixture
def blocking(prefix: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[asgi_ipc.IPCChannelLayer]:
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    layer = asgi_ipc.IPCChannelLayer(prefix, spin=LONG, receive_timeout=0.2)
    yield layer
    layer.close()


@pytest_asyncio.fixture
async def layer(prefix: str) -> AsyncIterator[IPCChannelLayer]:
    made = IPCChannelLayer(prefix, spin=LONG)
    await made.send("c", MESSAGE)
    assert await made.receive("c") == MESSAGE  # attached, and the channel found
    yield made
    await made.close()


# -- whether it pays ------------------------------------------------------------------------------


def waits_until_due(spin: Spin) -> int:
    return next(number for number in range(1, 10_000) if spin.due())


def test_the_first_wait_on_a_channel_is_slept_through_and_the_second_is_not() -> None:
    assert waits_until_due(Spin()) == 2


def test_misses_in_a_row_make_it_rare_and_a_hit_begins_anew() -> None:
    spin = Spin()
    waits = []
    for _ in range(8):
        waits.append(waits_until_due(spin))
        spin.note(False)
    assert waits == [2, 5, 17, 65, 257, 1025, 1025, 1025]
    waits_until_due(spin)
    spin.note(True)
    assert [waits_until_due(spin) for _ in range(3)] == [1, 1, 1]


def test_a_channel_that_is_quiet_is_hardly_looked_at(
    blocking: asgi_ipc.IPCChannelLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hits: list[bool] = []
    note = Spin.note

    def noted(spin: Spin, hit: bool) -> None:
        hits.append(hit)
        note(spin, hit)

    monkeypatch.setattr(Spin, "note", noted)
    for _ in range(90):
        assert blocking.receive(["c"], block=True, timeout=0.0001) == NOTHING
    assert hits == [False] * 4


@pytest.mark.parametrize("cls", [asgi_ipc.IPCChannelLayer, IPCChannelLayer])
def test_no_receive_looks_on_where_that_is_turned_off_or_there_is_one_core(
    cls: Any, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cls(prefix)._core.spin == 0.0001
    assert cls(prefix, spin=0)._core.spin == 0
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert cls(prefix)._core.spin == 0


# -- blocking -------------------------------------------------------------------------------------


@pytest.fixture
def later() -> Iterator[Callable[[Callable[[], None]], None]]:
    """Calls a function in a few milliseconds, out of a signal handler of this thread."""

    def later(function: Callable[[], None]) -> None:
        signal.signal(signal.SIGALRM, lambda *_: function())
        signal.setitimer(signal.ITIMER_REAL, 0.003)

    before = signal.getsignal(signal.SIGALRM)
    yield later
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("channel", ["c", "specific.process!local"])
@pytest.mark.parametrize("others", [[], ["quiet", "quiet!"]])
def test_what_comes_meanwhile_needs_no_wakeup(
    blocking: asgi_ipc.IPCChannelLayer,
    notes: list[bool],
    monkeypatch: pytest.MonkeyPatch,
    later: Any,
    channel: str,
    others: list[str],
) -> None:
    queue = channel.partition("local")[0]
    blocking.send(channel, MESSAGE)
    assert blocking.receive([queue, *others], block=True) == (channel, MESSAGE)
    notes.clear()
    monkeypatch.setattr(sync.ThreadWaiter, "wait", never)
    later(lambda: blocking.send(channel, MESSAGE))
    assert blocking.receive([queue, *others], block=True) == (channel, MESSAGE)
    assert notes == [True]


def test_with_nothing_to_be_seen_a_blocking_receive_sleeps(
    blocking: asgi_ipc.IPCChannelLayer, notes: list[bool], later: Any
) -> None:
    slept = []
    later(lambda: slept.append(blocking.receive(["other"])))  # while it looks on, or sleeps
    assert blocking.receive(["c"], block=True, timeout=0.05) == NOTHING
    assert slept == [NOTHING]
    assert notes == [False]


def test_an_exception_of_a_signal_handler_gets_out(
    blocking: asgi_ipc.IPCChannelLayer, notes: list[bool], later: Any
) -> None:
    class Out(Exception):
        pass

    def leave() -> None:
        raise Out

    later(leave)
    with pytest.raises(Out):
        blocking.receive(["c"], block=True)
    blocking.send("c", MESSAGE)
    assert blocking.receive(["c"], block=True) == ("c", MESSAGE)


def test_it_looks_on_no_longer_than_it_may_wait(
    blocking: asgi_ipc.IPCChannelLayer, notes: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    blocking.receive(["c"])  # attached
    now = [time.monotonic()]

    def monotonic() -> float:
        now[0] += 0.0005
        return now[0]

    monkeypatch.setattr(sync, "time", SimpleNamespace(monotonic=monotonic))
    began = now[0]
    assert blocking.receive(["c"], block=True, timeout=0.002) == NOTHING
    assert notes == [False]
    assert now[0] - began < LONG


def test_no_thread_is_kept_from_the_interpreter(
    blocking: asgi_ipc.IPCChannelLayer, notes: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "active_count", lambda: 2)
    assert blocking.receive(["c"], block=True, timeout=0.02) == NOTHING
    assert notes == []


# -- asyncio --------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["receive", "receive_async"])
async def test_the_loop_goes_on_and_what_comes_meanwhile_needs_no_wakeup(
    layer: IPCChannelLayer, notes: list[bool], monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    assert await layer.receive_async(["quiet", "c"], timeout=0) == NOTHING
    notes.clear()
    monkeypatch.setattr(Hub, "wait", never)
    receiving = layer.receive("c") if call == "receive" else layer.receive_async(["quiet", "c"])
    waiting = asyncio.ensure_future(receiving)
    await turns(5)
    assert not waiting.done() and notes == []
    await layer.send("c", MESSAGE)
    [found] = await together([waiting])
    assert found == (MESSAGE if call == "receive" else ("c", MESSAGE))
    assert notes == [True]


@pytest.mark.parametrize("parked", [False, True])
async def test_a_process_specific_channel_is_drained_meanwhile(
    layer: IPCChannelLayer, notes: list[bool], monkeypatch: pytest.MonkeyPatch, parked: bool
) -> None:
    channel = await layer.new_channel()
    waiting = asyncio.ensure_future(layer.receive(channel))
    while parked and not notes:
        await turns(1)
    await turns(1)
    await layer.send(channel, MESSAGE)
    assert await together([waiting]) == [MESSAGE]
    notes.clear()
    monkeypatch.setattr(Hub, "wait", never)
    waiting = asyncio.ensure_future(layer.receive(channel))
    await turns(3)
    await layer.send(channel, MESSAGE)
    assert await together([waiting]) == [MESSAGE]
    assert notes == [True]


async def test_one_receive_of_a_loop_looks_on_at_a_time(
    layer: IPCChannelLayer, notes: list[bool]
) -> None:
    channels = ["c", *(f"c{number}" for number in range(20))]
    waiting = [asyncio.ensure_future(layer.receive(channel)) for channel in channels]
    await turns(5)
    assert layer._core.session is not None
    assert layer._core.session.loop_waiter.sleepers == len(channels) - 1
    for channel in channels:
        await layer.send(channel, MESSAGE)
    assert await together(waiting) == [MESSAGE] * len(channels)
    assert notes == [True]


async def test_cancelled_while_it_looks_on_a_receive_has_taken_nothing(
    layer: IPCChannelLayer, notes: list[bool]
) -> None:
    waiting = asyncio.ensure_future(layer.receive("c"))
    await cancel(waiting, 3)
    assert notes == [False]
    await layer.send("c", MESSAGE)
    assert await together([layer.receive("c")]) == [MESSAGE]


async def test_with_nothing_to_be_seen_a_receive_sleeps_and_is_woken(
    layer: IPCChannelLayer, notes: list[bool]
) -> None:
    waiting = asyncio.ensure_future(layer.receive("c"))
    while not notes:
        await turns(1)
    await turns(1)
    assert notes == [False]
    assert layer._core.session is not None
    assert layer._core.session.loop_waiter.sleepers == 1
    await layer.send("c", MESSAGE)
    assert await together([waiting]) == [MESSAGE]


async def test_receive_async_looks_on_no_longer_than_it_may_wait(
    layer: IPCChannelLayer, notes: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await layer.receive_async(["c"], timeout=0) == NOTHING
    assert notes == [False]


def test_a_reactor_looks_on_too(
    prefix: str, notes: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("twisted", reason="lacking: Twisted")
    from asgi_ipc.reactor import ReactorWaiter

    layer = asgi_ipc.IPCChannelLayer(prefix, spin=LONG)
    layer.send("c", MESSAGE)
    assert in_reactor(layer, ["c"]) == ("c", MESSAGE)
    notes.clear()
    pause = ReactorWaiter.pause
    looks = []

    async def send_in_a_moment(self: Any, seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            layer.send("c", MESSAGE)
        await pause(self, seconds)

    monkeypatch.setattr(ReactorWaiter, "pause", send_in_a_moment)
    monkeypatch.setattr(Hub, "wait", never)
    assert in_reactor(layer, ["c"]) == ("c", MESSAGE)
    assert len(looks) == 3 and notes == [True]
    layer.close()
