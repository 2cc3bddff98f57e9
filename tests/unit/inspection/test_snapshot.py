"""Snapshots of a segment that changes while they are taken, and what they say of odd segments."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import pytest

from asgi_ipc.errors import SegmentVanished
from asgi_ipc.inspection.snapshot import Snapshot
from asgi_ipc.statistics import Channel, Group, Process
from asgi_ipc.store.layout import (
    CLEAN,
    DIRTY,
    M_QUEUE_GENERATION,
    P_LEFT,
    PAGE,
    Q_OWNER_GENERATION,
    R_GENERATION,
    S_DIRTY,
    S_EPOCH,
    WORD,
)

from ..support import row_of
from .inspected import Inspected


@pytest.fixture
def inspected(prefix: str) -> Inspected:
    return Inspected(prefix)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that snapshots and layers see, in its one item."""
    now = [time.monotonic()]
    monkeypatch.setattr("asgi_ipc.clock.monotonic", lambda: now[0])
    return now


def channels_of(inspected: Inspected, before: Snapshot | None = None) -> dict[str, Channel]:
    return {one.name: one for one in Snapshot(inspected.view).channels(before)}


def at_each_header(inspected: Inspected, happen: Callable[[int], None]) -> list[int]:
    """Let something happen before each reading of the header; returns the readings."""
    words, readings = inspected.view.words, []

    def reading(first: int, count: int) -> memoryview[int]:
        if (first, count) == (0, PAGE // WORD):
            readings.append(len(readings))
            happen(readings[-1])
        return words(first, count)

    inspected.view.words = reading  # type: ignore[method-assign]
    return readings


# -- taking one -----------------------------------------------------------------------------------


def test_a_flush_in_between_makes_it_take_another(inspected: Inspected) -> None:
    inspected.layer.send("c", {})

    def flush(reading: int) -> None:
        if reading == 1:
            inspected.layer.flush()

    readings = at_each_header(inspected, flush)
    snapshot = Snapshot(inspected.view)
    assert len(readings) == 4
    assert snapshot.channels() == [] and snapshot.totals().pending == 0
    assert snapshot.header[S_EPOCH] == inspected.store.words[S_EPOCH]


def test_it_gives_up_on_a_quiet_moment(inspected: Inspected) -> None:
    """It must answer, even if it is flushed all the time."""
    readings = at_each_header(inspected, lambda reading: inspected.layer.flush())
    assert Snapshot(inspected.view).totals().sent == 0
    assert len(readings) == 10


def test_a_call_that_ends_meanwhile_does_not_disturb_it(inspected: Inspected) -> None:
    words = inspected.store.words

    def end(reading: int) -> None:
        words[S_DIRTY] = DIRTY if reading == 0 else CLEAN

    readings = at_each_header(inspected, end)
    Snapshot(inspected.view)
    assert len(readings) == 2


def test_a_call_that_goes_on_makes_it_take_another(inspected: Inspected) -> None:
    """What it changes may be half done in the copy."""
    words = inspected.store.words

    def end(reading: int) -> None:
        words[S_DIRTY] = DIRTY if reading < 2 else CLEAN

    readings = at_each_header(inspected, end)
    Snapshot(inspected.view)
    assert len(readings) == 4


def test_a_segment_that_was_removed(inspected: Inspected, prefix: str) -> None:
    inspected.view.vanished = lambda: True  # type: ignore[method-assign]
    with pytest.raises(SegmentVanished, match=repr(prefix)):
        Snapshot(inspected.view)


# -- rates ----------------------------------------------------------------------------------------


def test_rates_of_a_channel_since_an_earlier_snapshot(
    inspected: Inspected, clock: list[float]
) -> None:
    layer = inspected.layer
    for _ in range(6):
        layer.send("c", {})
    clock[0] += 10
    before = Snapshot(inspected.view)
    for _ in range(4):
        layer.send("c", {})
    for _ in range(7):
        layer.receive(["c"])
    clock[0] += 2
    found = channels_of(inspected, before)["c"]
    assert (found.pending, found.sent) == (3, 10)
    assert (found.sent_rate, found.left_rate) == (pytest.approx(2), pytest.approx(3.5))
    found = channels_of(inspected)["c"]  # since it was created
    assert (found.sent_rate, found.left_rate) == (pytest.approx(10 / 12), pytest.approx(7 / 12))


def test_a_channel_in_the_row_of_another_does_not_go_on_counting(
    inspected: Inspected, clock: list[float]
) -> None:
    for _ in range(6):
        inspected.layer.send("c", {})
    before = Snapshot(inspected.view)
    inspected.layer.flush()
    clock[0] += 2
    inspected.layer.send("d", {})
    clock[0] += 1
    assert inspected.row("d") in before.queues
    assert channels_of(inspected, before)["d"].sent_rate == pytest.approx(1)


def test_a_flush_starts_the_rates_again(inspected: Inspected, clock: list[float]) -> None:
    for _ in range(6):
        inspected.layer.send("c", {})
    before = Snapshot(inspected.view).totals()
    clock[0] += 5
    inspected.layer.flush()
    clock[0] += 2
    inspected.layer.send("c", {})
    rates = Snapshot(inspected.view).stats(before).rates
    assert (rates.period, rates.sent) == (pytest.approx(2), pytest.approx(0.5))


def test_expired_messages_that_nobody_dropped_yet(inspected: Inspected, clock: list[float]) -> None:
    inspected.layer.send("c", {})
    clock[0] += 50
    inspected.layer.send("c", {})
    clock[0] += 20  # messages expire after 60 seconds
    snapshot = Snapshot(inspected.view)
    (found,) = snapshot.channels()
    assert (found.pending, found.oldest) == (1, pytest.approx(20))
    stats = snapshot.stats()
    assert (stats.pending, stats.oldest) == (1, pytest.approx(20))


# -- owners, waiters, groups ----------------------------------------------------------------------


def test_an_owner_of_another_generation_is_no_owner(inspected: Inspected) -> None:
    """Its row belongs to another process by now."""
    row = row_of(inspected.store, "specific.a!")
    inspected.store.own(row, inspected.process)
    assert channels_of(inspected)["specific.a!"].owner == os.getpid()
    inspected.store.words[row + Q_OWNER_GENERATION] += 1
    assert channels_of(inspected)["specific.a!"].owner == 0


def test_only_waiters_that_can_be_rung_wait(inspected: Inspected) -> None:
    store, row = inspected.store, row_of(inspected.store, "c")
    taken = store.add_waiter(inspected.process)
    assert taken is not None
    waiter_id, generation = taken
    store.park(row, waiter_id)
    store.park(row, 700)  # left behind: nobody has that id
    assert channels_of(inspected)["c"].waiting == ()  # its doorbell is not open yet
    store.publish_waiter(waiter_id, generation)
    assert channels_of(inspected)["c"].waiting == (os.getpid(),)
    assert Snapshot(inspected.view).waiters() >= 1
    inspected.view.attached = dict  # type: ignore[method-assign]
    assert channels_of(inspected)["c"].waiting == ()  # of a dead process


def test_ghosts_and_ended_memberships_are_not_shown(
    inspected: Inspected, clock: list[float]
) -> None:
    layer, store = inspected.layer, inspected.store
    for name in ("a", "b"):
        layer.group_add("g", name)
    (first, _) = store.members.rows()
    store.words[first + M_QUEUE_GENERATION] += 1
    (group,) = Snapshot(inspected.view).groups()
    assert isinstance(group, Group) and len(group.members) == 1
    clock[0] += 86_401  # memberships last a day
    assert Snapshot(inspected.view).groups() == []


def test_processes_that_are_gone(inspected: Inspected, clock: list[float]) -> None:
    store = inspected.store
    for index, pid in ((5, 1005), (6, 1006)):
        row = store.attach(index, pid, 33, clock[0])
        store.own(row_of(store, f"specific.{pid}!"), row)
    store.words[row + P_LEFT] = 1
    clock[0] += 3
    found: dict[int, Process] = {one.pid: one for one in Snapshot(inspected.view).processes()}
    assert {pid: one.state for pid, one in found.items()} == {
        os.getpid(): "alive",
        1005: "dead",
        1006: "left",
    }
    dead = found[1005]
    assert (dead.owns, dead.uid, dead.command) == (("specific.1005!",), 33, "")
    assert dead.attached == pytest.approx(3) and not dead.holds_lock


def test_the_holder_of_the_lock(inspected: Inspected) -> None:
    section = inspected.layer._core.attach().section
    assert Snapshot(inspected.view).holder() == 0
    assert section(lambda: Snapshot(inspected.view).holder()) == os.getpid()


def test_a_row_that_is_free_is_not_a_channel(inspected: Inspected) -> None:
    inspected.layer.send("c", {})
    inspected.store.words[inspected.row("c") + R_GENERATION] = 0
    assert Snapshot(inspected.view).channels() == []
