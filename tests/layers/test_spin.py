"""What a receive does before it sleeps: where messages come fast it spins for a moment.

That a receive has found its message so, and not by a wakeup, shows in that its waiter never waited.
`spin` is set to far more than it can be, so that no test has to come in time.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio

import asgi_ipc
from asgi_ipc import segment, sync
from asgi_ipc.aio import IPCChannelLayer, spin, thread
from asgi_ipc.aio.hub import Hub
from asgi_ipc.aio.spin import Spin
from asgi_ipc.conformance.asynchronous import cancel, together, turns
from asgi_ipc.conformance.base import MESSAGE
from asgi_ipc.conformance.blocking import NOTHING, in_reactor
from asgi_ipc.errors import SegmentVanished

from ..waiting import LIVENESS

LONG = 10 * LIVENESS  # seconds


async def never(*_: object) -> bool:
    raise AssertionError("it went to sleep")


@pytest.fixture(autouse=True)
def cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)


class Clock:
    """Goes on by half a millisecond each time that somebody looks."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        self.now += 0.0005
        return self.now


class Notes(list[bool]):
    """What came of each spin, and what is to happen when the next begins."""

    begun = 0
    then: Callable[[], Any] | None = None

    def due(self) -> bool:
        self.begun += 1
        then, self.then = self.then, None
        if then is not None:
            then()
        return True


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> Notes:
    """Makes every receive spin that finds nothing."""
    found = Notes()
    monkeypatch.setattr(Spin, "due", lambda spin: found.due())
    monkeypatch.setattr(Spin, "waits", property(lambda spin: 0, lambda spin, waits: None))
    monkeypatch.setattr(Spin, "note", lambda spin, hit: found.append(hit))
    return found


def know(layer: Any, *channels: str) -> None:
    """Let a layer look these up, as a receive that waits does."""
    session = layer._core.attach()
    for source in layer._core.sources(session, list(channels)):
        session.store.bind(source.target, 0.0)


@pytest.fixture
def blocking(prefix: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[asgi_ipc.IPCChannelLayer]:
    monkeypatch.setattr(thread, "other_threads", lambda: 0)
    layer = asgi_ipc.IPCChannelLayer(prefix, receive_timeout=LONG)
    layer._core.spin = LONG
    know(layer, "c", "quiet")
    yield layer
    layer.close()


@pytest_asyncio.fixture
async def layer(prefix: str) -> AsyncIterator[IPCChannelLayer]:
    made = IPCChannelLayer(prefix)
    made._core.spin = LONG
    await made.send("c", MESSAGE)
    assert await made.receive("c") == MESSAGE  # attached, and the channel found
    know(made, "c", "quiet")
    yield made
    await made.close()


# -- whether it pays ------------------------------------------------------------------------------


def waits_until_due(spin: Spin) -> int:
    return next(number for number in range(1, 10_000) if spin.due())


def test_the_first_wait_on_a_channel_is_slept_through_and_the_second_is_not() -> None:
    assert waits_until_due(Spin()) == 2


def test_misses_in_a_row_make_it_rare_and_a_hit_begins_anew() -> None:
    one = Spin()
    waits = []
    for _ in range(8):
        waits.append(waits_until_due(one))
        one.note(False)
    assert waits == [2, 5, 17, 65, 257, 1025, 1025, 1025]
    waits_until_due(one)
    one.note(True)
    assert [waits_until_due(one) for _ in range(3)] == [1, 1, 1]


def test_after_a_wait_for_nothing_it_rests_once() -> None:
    one = Spin()
    for _ in range(9):
        assert not one.due()
        one.rest()
    assert waits_until_due(one) == 2
    one.note(False)
    one.rest()
    assert waits_until_due(one) == 5


@pytest.fixture
def hits(blocking: asgi_ipc.IPCChannelLayer, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """What came of each spin of a layer that spins."""
    hits: list[bool] = []
    note = Spin.note

    def noted(spin: Spin, hit: bool) -> None:
        hits.append(hit)
        note(spin, hit)

    blocking._core.spin = 1e-6
    monkeypatch.setattr(Spin, "note", noted)
    return hits


def test_a_channel_is_not_spun_for_after_a_wait_for_nothing(
    blocking: asgi_ipc.IPCChannelLayer, hits: list[bool]
) -> None:
    for _ in range(90):
        assert blocking.receive(["c"], block=True, timeout=0.001) == NOTHING
    assert hits == []


def test_none_of_several_channels_is_spun_for_after_a_wait_for_nothing(
    blocking: asgi_ipc.IPCChannelLayer, hits: list[bool]
) -> None:
    know(blocking, "c", "d")
    session = blocking._core.attach()
    for source in blocking._core.sources(session, ["c", "d"]):
        source.spin.note(True)
    hits.clear()
    for seconds in (0.5, *[0.001] * 4):  # each begins with another channel than the last
        assert blocking.receive(["c", "d"], block=True, timeout=seconds) == NOTHING
    assert hits == [False]


@pytest.mark.parametrize("cls", [asgi_ipc.IPCChannelLayer, IPCChannelLayer])
def test_no_receive_spins_where_that_is_turned_off_or_there_is_one_core(
    cls: Any, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cls(prefix)._core.spin == 0.0001
    assert cls(prefix, spin=0)._core.spin == 0
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    assert cls(prefix)._core.spin == 0


@pytest.mark.parametrize("cls", [asgi_ipc.IPCChannelLayer, IPCChannelLayer])
def test_turned_off_it_is_not_even_asked_for(cls: Any, prefix: str, notes: Notes) -> None:
    layer = cls(prefix, spin=0)
    for _ in range(3):
        if cls is IPCChannelLayer:
            assert asyncio.run(layer.receive_async(["c"], timeout=0.001)) == NOTHING
        else:
            assert layer.receive(["c"], block=True, timeout=0.001) == NOTHING
    assert notes.begun == 0


# -- blocking -------------------------------------------------------------------------------------


@pytest.mark.parametrize("channel", ["c", "specific.process!local"])
@pytest.mark.parametrize("others", [[], ["quiet"]])
def test_what_comes_meanwhile_needs_no_wakeup(
    blocking: asgi_ipc.IPCChannelLayer,
    notes: Notes,
    monkeypatch: pytest.MonkeyPatch,
    channel: str,
    others: list[str],
) -> None:
    queue = channel.partition("local")[0]
    know(blocking, queue)
    monkeypatch.setattr(thread.ThreadWaiter, "wait", never)
    notes.then = lambda: blocking.send(channel, MESSAGE)
    assert blocking.receive([queue, *others], block=True) == (channel, MESSAGE)
    assert notes == [True]


def test_what_another_thread_has_drained_is_seen(
    blocking: asgi_ipc.IPCChannelLayer, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert blocking.receive(["p!"]) == NOTHING
    monkeypatch.setattr(thread.ThreadWaiter, "wait", never)
    blocking.send("p!one", MESSAGE)
    blocking.send("p!two", MESSAGE)
    assert blocking.receive(["p!"]) == ("p!one", MESSAGE)  # and drains the other
    assert blocking.receive(["p!"], block=True) == ("p!two", MESSAGE)
    assert notes.begun == 0


def test_what_a_glance_cannot_tell_is_looked_up_at_once(
    blocking: asgi_ipc.IPCChannelLayer, notes: Notes
) -> None:
    sender = asgi_ipc.IPCChannelLayer(blocking.prefix)
    sender.send("new", MESSAGE)
    assert blocking.receive(["newer", "new"], block=True) == ("new", MESSAGE)
    sender.flush()
    sender.send("other", MESSAGE)  # so that the channel comes to lie elsewhere
    sender.send("c", MESSAGE)
    assert blocking.receive(["c", "quiet"], block=True) == ("c", MESSAGE)
    assert notes.begun == 0


def test_nobody_spins_where_somebody_is_parked(
    blocking: asgi_ipc.IPCChannelLayer, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sender rings that one for each message: if others took them it would wake for nothing."""
    session = blocking._core.attach()
    [source] = blocking._core.sources(session, ["c"])
    session.section(session.store.park, source.target.row, 1000)
    assert blocking.receive(["c"], block=True, timeout=0.001) == NOTHING
    assert notes.begun == 0
    session.section(session.store.unpark, source.target.row, 1000)
    # One that follows one in vain for the same channel does not spin in any case.
    assert blocking.receive(["d"], block=True, timeout=0.001) == NOTHING
    notes.clear()
    notes.begun = 0
    notes.then = lambda: session.section(session.store.park, source.target.row, 1000)
    # That ends a spin of two thousand steps at once. It notes neither a hit nor a miss.
    monkeypatch.setattr(spin, "clock", Clock())
    blocking._core.spin = 1.0
    slept = []

    async def wait(*_: object) -> bool:
        slept.append([*notes])
        return False

    monkeypatch.setattr(thread.ThreadWaiter, "wait", wait)
    assert blocking.receive(["c"], block=True) == NOTHING
    assert (notes.begun, slept) == (1, [[]])


def test_an_exception_of_a_signal_handler_gets_out(
    blocking: asgi_ipc.IPCChannelLayer, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Out(Exception):
        pass

    clock = iter([1.0, 2.0, 3.0])

    def monotonic() -> float:
        now = next(clock, None)
        if now is None:
            raise Out
        return now

    with monkeypatch.context() as patch, pytest.raises(Out):
        patch.setattr(spin, "clock", SimpleNamespace(monotonic=monotonic))
        blocking.receive(["c"], block=True)
    blocking.send("c", MESSAGE)
    assert blocking.receive(["c"], block=True) == ("c", MESSAGE)


def test_it_spins_no_longer_than_it_may_wait_and_that_is_no_miss(
    blocking: asgi_ipc.IPCChannelLayer, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    for module in (sync, spin, thread):
        monkeypatch.setattr(module, "clock", clock)
    assert blocking.receive(["c"], block=True, timeout=0.02) == NOTHING
    assert (notes.begun, notes) == (1, [])
    assert clock.now - 1000 < 1


def test_with_nothing_to_be_seen_a_blocking_receive_sleeps(
    blocking: asgi_ipc.IPCChannelLayer, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocking._core.spin = 0.001
    slept = []

    async def wait(*_: object) -> bool:
        slept.append(list(notes))
        return False

    monkeypatch.setattr(thread.ThreadWaiter, "wait", wait)
    assert blocking.receive(["c"], block=True) == NOTHING
    assert slept == [[False]]


def test_no_thread_is_kept_from_the_interpreter(
    blocking: asgi_ipc.IPCChannelLayer, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(thread, "other_threads", lambda: 1)
    assert blocking.receive(["c"], block=True, timeout=0.02) == NOTHING
    assert notes == []


# -- asyncio --------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["receive", "receive_async"])
async def test_the_loop_goes_on_and_what_comes_meanwhile_needs_no_wakeup(
    layer: IPCChannelLayer, notes: Notes, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.setattr(Hub, "wait", never)
    receiving = layer.receive("c") if call == "receive" else layer.receive_async(["quiet", "c"])
    waiting = asyncio.ensure_future(receiving)
    await turns(5)
    assert not waiting.done() and notes.begun == 1
    await layer.send("c", MESSAGE)
    [found] = await together([waiting])
    assert found == (MESSAGE if call == "receive" else ("c", MESSAGE))
    assert notes == [True]


@pytest.mark.parametrize("parked", [False, True])
async def test_a_process_specific_channel_is_drained_meanwhile(
    layer: IPCChannelLayer, notes: Notes, monkeypatch: pytest.MonkeyPatch, parked: bool
) -> None:
    channel = await layer.new_channel()
    waiting = asyncio.ensure_future(layer.receive(channel))  # which has to be looked up, and parks
    await turns(3)
    await layer.send(channel, MESSAGE)
    assert await together([waiting]) == [MESSAGE]
    assert notes.begun == 0
    if not parked:
        hub_of(layer).release()
    monkeypatch.setattr(Hub, "wait", never)
    waiting = asyncio.ensure_future(layer.receive(channel))
    await turns(3)
    await layer.send(channel, MESSAGE)
    assert await together([waiting]) == [MESSAGE]
    assert notes == [True]


async def test_what_is_there_needs_no_spin(layer: IPCChannelLayer, notes: Notes) -> None:
    channel = await layer.new_channel()
    for name in ("c", channel, channel):
        await layer.send(name, MESSAGE)
    assert await layer.receive_async(["quiet", "c"]) == ("c", MESSAGE)
    assert await layer.receive(channel) == MESSAGE
    assert await layer.receive(channel) == MESSAGE
    assert notes.begun == 0


async def test_what_a_glance_cannot_tell_is_looked_up_at_once_by_a_loop(
    layer: IPCChannelLayer, notes: Notes
) -> None:
    sender = IPCChannelLayer(layer.prefix)
    await sender.send("new", MESSAGE)
    assert await layer.receive_async(["newer", "new"]) == ("new", MESSAGE)
    await sender.flush()
    await sender.send("other", MESSAGE)
    await sender.send("c", MESSAGE)
    assert await layer.receive("c") == MESSAGE
    assert notes.begun == 0


async def test_a_flush_ends_a_spin(layer: IPCChannelLayer, notes: Notes) -> None:
    waiting = asyncio.ensure_future(layer.receive("c"))
    await turns(3)
    await layer.flush()
    await layer.send("other", MESSAGE)
    await layer.send("c", MESSAGE)
    assert await together([waiting]) == [MESSAGE]


async def test_a_segment_that_vanishes_during_a_spin_is_told_of(
    layer: IPCChannelLayer, notes: Notes
) -> None:
    layer._core.spin = 0.001
    waiting = asyncio.ensure_future(layer.receive("c"))
    await turns(2)
    segment.destroy(layer.prefix)
    with pytest.raises(SegmentVanished):
        await asyncio.wait_for(waiting, LIVENESS)


async def test_no_loop_spins_where_somebody_is_parked(layer: IPCChannelLayer, notes: Notes) -> None:
    session = layer._core.attach()
    row = session.exact_sources["c"][0].target.row
    session.section(session.store.park, row, 1000)
    assert await layer.receive_async(["c"], timeout=0.001) == NOTHING
    assert notes.begun == 0
    session.section(session.store.unpark, row, 1000)
    waiting = asyncio.ensure_future(layer.receive("c"))
    await turns(3)
    assert (notes.begun, hub_of(layer).sleepers) == (1, 0)
    session.section(session.store.park, row, 1000)
    await turns(3)
    assert hub_of(layer).sleepers == 1
    session.section(session.store.unpark, row, 1000)
    await layer.send("c", MESSAGE)
    assert await together([waiting]) == [MESSAGE]
    assert notes == []


def hub_of(layer: IPCChannelLayer) -> Hub:
    assert layer._core.session is not None
    found: Hub = layer._core.session.loop_waiter
    return found


async def test_one_receive_of_a_loop_spins_at_a_time(layer: IPCChannelLayer, notes: Notes) -> None:
    channels = ["c", *(f"c{number}" for number in range(20))]
    know(layer, *channels)
    waiting = [asyncio.ensure_future(layer.receive(channel)) for channel in channels]
    await turns(5)
    assert hub_of(layer).sleepers == len(channels) - 1
    for channel in channels:
        await layer.send(channel, MESSAGE)
    assert await together(waiting) == [MESSAGE] * len(channels)
    assert notes == [True]


async def test_cancelled_while_it_spins_a_receive_has_taken_nothing_and_the_next_may(
    layer: IPCChannelLayer, notes: Notes
) -> None:
    for number in range(1, 4):
        await cancel(asyncio.ensure_future(layer.receive("c")), 3)
        assert (notes.begun, notes) == (number, [])
    await layer.send("c", MESSAGE)
    assert await together([layer.receive("c")]) == [MESSAGE]


async def test_with_nothing_to_be_seen_a_receive_sleeps_and_is_woken(
    layer: IPCChannelLayer, notes: Notes
) -> None:
    layer._core.spin = 0.001
    waiting = asyncio.ensure_future(layer.receive("c"))
    while not notes:
        await turns(1)
    await turns(1)
    assert notes == [False]
    assert hub_of(layer).sleepers == 1
    await layer.send("c", MESSAGE)
    assert await together([waiting]) == [MESSAGE]


async def test_a_loop_spins_no_longer_than_it_may_wait_and_that_is_no_miss(
    layer: IPCChannelLayer, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = layer._core.attach()
    sources, waiter = session.exact_sources["c"], hub_of(layer)
    clock = Clock()
    assert waiter.begin(session, sources, LONG)
    with monkeypatch.context() as patch:
        patch.setattr(spin, "clock", clock)
        await waiter.spin(sources, LONG, clock.now + 0.02)
    assert clock.now - 1000 < 1 and notes == []
    assert await layer.receive_async(["c"], timeout=0.001) == NOTHING  # and hands it on
    assert notes == []


def test_a_reactor_spins_too(prefix: str, notes: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("twisted", reason="lacking: Twisted")
    from asgi_ipc.aio.reactor import ReactorHub

    layer = asgi_ipc.IPCChannelLayer(prefix)
    layer._for_loops.spin = LONG
    layer.send("c", MESSAGE)
    assert in_reactor(layer, ["c"]) == ("c", MESSAGE)
    pause = ReactorHub.pause
    looks = []

    async def send_in_a_moment(self: Any, seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            layer.send("c", MESSAGE)
        await pause(self, seconds)

    monkeypatch.setattr(ReactorHub, "pause", send_in_a_moment)
    monkeypatch.setattr(Hub, "wait", never)
    assert in_reactor(layer, ["c"]) == ("c", MESSAGE)
    assert len(looks) == 3 and notes == [True]
    layer.close()
