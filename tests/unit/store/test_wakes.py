"""Wakes: which message rings a waiter, which ring is owed, and who pays it."""

from __future__ import annotations

import struct

import pytest

from asgi_ipc.store import recovery
from asgi_ipc.store.layout import DIRTY, Q_OWED, Q_QUICK, Q_RUNG, Q_WAITERS, Q_WAITING, S_DIRTY
from asgi_ipc.store.queues import Target
from asgi_ipc.store.store import Store
from asgi_ipc.store.wakes import LEAVING, QUICK, UNDER_WAY, WOKEN

from ..support import NOW, make_store, owned, process, put, row_of, take, target

SOON = QUICK / 2  # a receiver that comes back so soon is quick
SLOWLY = 0.0005


class Place:
    """A queue where some wait."""

    def __init__(self, *waiters: int, quick: bool = True) -> None:
        self.store = make_store()
        self.row = row_of(self.store, "c")
        self.now = NOW
        if quick:
            receiver = self.receiver(1)
            receiver.comes_back(SOON, message=True)
            receiver.comes_back(SOON)
            assert self.store.unpark(self.row, 1)
        for waiter in waiters:
            self.receiver(waiter).looks()

    def receiver(self, waiter: int) -> Receiver:
        return Receiver(self, waiter)

    def send(self, times: int = 1) -> list[int]:
        """Who is rung for each of the messages."""
        return [put(self.store, "c", now=self.now) for _ in range(times)]

    def rings(self) -> list[int]:
        """Who was rung by those who took messages."""
        rung = [waiter for row, waiter in self.store.rings if row == self.row]
        self.store.rings.clear()
        return rung

    @property
    def hints(self) -> tuple[float, int, int]:
        words = self.store.words
        rung = self.store.doubles[self.row + Q_RUNG]
        return rung, words[self.row + Q_QUICK], words[self.row + Q_OWED]


class Receiver:
    """One that waits at a place."""

    def __init__(self, place: Place, waiter: int) -> None:
        self.place, self.waiter, self.target = place, waiter, target("c")

    def looks(self, woken: bool = False, waits: bool = True) -> bytes | None:
        waiter = (self.waiter + WOKEN if woken else self.waiter) if waits else 0
        return self.place.store.take(self.target, self.place.now, waiter)

    def comes_back(self, seconds: float, message: bool = False) -> None:
        if message:
            put(self.place.store, "c", now=self.place.now)
            assert self.looks(waits=False) == b"body"
        else:
            self.place.now += seconds
            assert self.looks() is None


def test_where_receivers_are_not_quick_each_message_rings() -> None:
    place = Place(3, 4, 5, quick=False)
    assert sorted(place.send(3)) == [3, 4, 5]
    assert place.hints[1:] == (0, 0)


def test_a_receiver_that_comes_back_late_makes_the_queue_slow() -> None:
    place = Place()
    assert place.hints[1] == 1
    receiver = place.receiver(3)
    receiver.comes_back(0.0, message=True)
    receiver.comes_back(SLOWLY)
    assert place.hints[1] == 0


def test_one_that_looks_again_in_vain_says_nothing_about_the_time_of_its_work() -> None:
    place = Place()
    receiver = place.receiver(3)
    receiver.comes_back(SOON)
    receiver.comes_back(1.0)
    assert place.hints[1] == 1


def test_a_ring_is_left_out_while_one_is_under_way_to_a_quick_queue() -> None:
    place = Place(3, 4)
    first = place.send()
    assert place.send(5) == [0] * 5
    assert place.hints == (NOW + SOON, 1, 1)
    place.now += 2 * UNDER_WAY
    assert {*first, *place.send()} == {3, 4}


def test_a_receiver_that_was_rung_rings_the_next_and_that_one_the_next() -> None:
    """Each of them may have taken its last message."""
    place = Place(3, 4, 5, 6)
    rung = place.send(4)[:1]
    for _ in range(3):
        assert place.receiver(rung[-1]).looks(woken=True) == b"body"
        rung += place.rings()
    assert sorted(rung) == [3, 4, 5, 6]
    assert place.receiver(rung[-1]).looks(woken=True) == b"body"
    assert place.rings() == []
    assert place.hints == (0.0, 1, 0)


def test_a_receiver_that_is_awake_does_not_pay_while_another_is_under_way() -> None:
    place = Place(3, 4)
    place.send(4)
    awake = place.receiver(9)
    assert awake.looks(waits=False) == b"body"
    place.now += SOON
    assert awake.looks(waits=False) == b"body"
    assert place.rings() == []
    assert place.hints[2] == 1


def test_a_receiver_that_is_awake_pays_if_nobody_comes() -> None:
    place = Place(3, 4)
    place.send(4)
    place.now += 2 * UNDER_WAY
    assert place.receiver(9).looks(waits=False) == b"body"
    assert len(place.rings()) == 1


def test_a_receiver_that_is_awake_pays_where_it_finds_that_it_is_slow() -> None:
    place = Place(3, 4)
    place.send(4)
    awake = place.receiver(9)
    assert awake.looks(waits=False) == b"body"
    place.now += SLOWLY
    assert awake.looks(waits=False) == b"body"
    assert len(place.rings()) == 1
    assert place.hints[1] == 0


@pytest.mark.parametrize("left", ["message", "waiter"])
def test_nothing_is_owed_where_no_message_or_no_waiter_is_left(left: str) -> None:
    place = Place(3, 4)
    (first, *_) = place.send(2)
    if left == "waiter":
        place.store.pick(place.row)
    else:
        assert place.receiver(9).looks(waits=False) == b"body"
    assert place.receiver(first).looks(woken=True) == b"body"
    assert place.rings() == []
    assert place.hints == (0.0, 1, 0)


def test_a_receiver_that_was_rung_in_vain_ends_the_ring() -> None:
    place = Place(3, 4)
    (first,) = place.send()
    assert take(place.store, "c", place.now) == b"body"
    assert place.receiver(first).looks(woken=True) is None
    assert place.hints == (0.0, 1, 0)
    assert place.send()[0] in (3, 4)


def test_one_that_was_not_rung_leaves_the_ring_under_way() -> None:
    place = Place(3, 4)
    place.send()
    assert take(place.store, "c", place.now) == b"body"
    place.receiver(9).looks()
    assert place.send() == [0]


def test_a_receiver_that_wakes_without_a_ring_is_not_parked_once_it_has_a_message() -> None:
    """Else the next message would ring one that does not wait."""
    place = Place(3)
    place.store.words[place.row + Q_QUICK] = 1
    place.store.doubles[place.row + Q_RUNG] = place.now
    assert place.send() == [0]
    assert place.receiver(3).looks(woken=True) == b"body"
    assert not place.store.words[place.row + Q_WAITING]


def test_a_ring_that_is_passed_on_to_nobody_is_not_under_way() -> None:
    place = Place(3, 4)
    (first,) = place.send()
    assert place.store.pick_another(place.row) in (3, 4)
    assert place.hints[0]
    assert place.store.pick_another(place.row) == 0
    assert place.hints[0] == 0.0

    place = Place(3, 4)
    (first,) = place.send()
    assert take(place.store, "c", place.now) == b"body"
    assert place.store.pick_if_pending(place.row) == 0
    assert place.hints[0] == 0.0
    assert place.send() == [7 - first]

    place = Place(3, 4)
    (first,) = place.send()
    assert place.store.park_if_empty(place.row, first)  # a message is there: another of its loop
    assert take(place.store, "c", place.now) == b"body"
    assert not place.store.park_if_empty(place.row, first)
    assert place.send()[0] in (3, 4)


def test_a_summary_without_a_waiter_is_not_taken_for_a_ring() -> None:
    place = Place(3)
    place.store.unpark(place.row, 3)
    place.store.words[place.row + Q_WAITING] = 1
    assert place.send() == [0]
    assert place.hints[0] == 0.0


def nan(quiet: bool) -> float:
    found: float = struct.unpack("<d", struct.pack("<Q", 0x7FF8 << 48 if quiet else 0x7FF1 << 48))[
        0
    ]
    return found


@pytest.mark.parametrize("rung", [NOW * 2, -1e300, nan(True), nan(False), float("inf"), -0.0])
def test_impossible_times_are_not_under_way(rung: float) -> None:
    place = Place(3, 4)
    place.store.doubles[place.row + Q_RUNG] = rung
    place.store.words[place.row + Q_OWED] = 1 << 60
    first = place.send()
    assert first[0] in (3, 4)
    assert place.receiver(first[0]).looks(woken=True) == b"body"


def test_recovery_forgets_the_hints() -> None:
    place = Place(3, 4)
    place.send(2)
    place.store.words[S_DIRTY] = DIRTY
    recovery.recover(place.store, place.now)
    assert place.hints == (0.0, 0, 0)


@pytest.mark.parametrize("rung", [False, True])
@pytest.mark.parametrize("messages", [0, 1])
def test_a_receiver_that_leaves_is_parked_no_more(rung: bool, messages: int) -> None:
    place = Place(3)
    receiver = place.receiver(3)
    if rung:
        assert place.send() == [3]
        place.receiver(4).looks(waits=False)
    for _ in range(messages):
        put(place.store, "c", now=place.now)
        place.store.park(place.row, 3)
    found = place.store.take(receiver.target, place.now, 3 + WOKEN + LEAVING)
    assert (found is not None, place.hints) == (messages > 0, (0.0, place.hints[1], 0))
    assert place.store.words[place.row + Q_WAITING] == 0
    assert place.store.words[place.row + Q_WAITERS] == 0


def test_another_queue_in_the_same_row_has_no_hints() -> None:
    place = Place(3, 4)
    place.send(2)
    recovery.flush(place.store, place.now)
    assert row_of(place.store, "other") == place.row
    assert place.hints == (0.0, 0, 0)


def test_a_process_specific_queue_is_never_quick() -> None:
    """Its process takes all at once."""
    store: Store = make_store()
    row = owned(store, "x!", process(store, 0))
    mine: Target = target("x!")
    for _ in range(3):
        store.find(mine)
        store.park_receiver(mine, NOW, 3)
        assert put(store, "x!1") == 3
        store.pop(row)
        assert store.words[row + Q_QUICK] == 0
        store.park_receiver(mine, NOW, 3 + WOKEN)
        assert store.doubles[row + Q_RUNG] == 0.0
        store.unpark(row, 3)
