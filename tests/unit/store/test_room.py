"""Room: who waits at a full queue or for memory, and who is rung when there is room again."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_ipc.store.layout import (
    COUNT,
    CROWDED,
    Q_NEXT_SENDER,
    Q_OFFERED,
    Q_PENDING,
    Q_REFUSED,
    Q_SENDING,
    Q_WAITING,
    S_DIRTY,
    S_LIVE,
    S_OFFERED,
    S_REFUSED,
    S_SENDING,
)
from asgi_ipc.store.queues import FULL, PROMISED, Target
from asgi_ipc.store.recovery import flush, recover
from asgi_ipc.store.room import GRACE, NEW
from asgi_ipc.store.store import Store
from asgi_ipc.store.verify import verify

from ..support import (
    FOREVER,
    NOW,
    assert_whole,
    bodies,
    deaths,
    examples,
    make_store,
    owned,
    process,
    put,
    row_of,
    sweep_all,
    take,
    target,
)

CAPACITY = 2


class Sender:
    """A sender that may wait, as a process has it."""

    def __init__(self, store: Store, waiter_id: int, body: bytes = b"", name: str = "c") -> None:
        self.store, self.waiter_id = store, waiter_id
        self.body = body or b"by %d" % waiter_id
        self.target = target(name, CAPACITY)
        self.place = 0
        self.until = float("inf")

    def tries(self, now: float = NOW) -> bool:
        """Whether it has sent."""
        tried = self.store.put_or_park(self.target, self.body, now, self.waiter_id, self.place)
        self.place, self.until = tried.place, tried.until
        return tried.waiter_id >= 0

    def gives_up(self) -> None:
        self.store.leave_room(self.target, self.waiter_id, self.place)
        self.place = 0


def full(name: str = "c", expires: float = FOREVER) -> tuple[Store, int]:
    """A store with a queue at its capacity, and the place of the queue's senders."""
    store = make_store()
    for number in range(CAPACITY):
        put(store, name, b"%d" % number, expires=expires, capacity=CAPACITY)
    return store, store.queues.find(name.encode()) + Q_SENDING


def parked(store: Store, *waiter_ids: int) -> list[Sender]:
    senders = [Sender(store, waiter_id) for waiter_id in waiter_ids]
    assert not any(sender.tries() for sender in senders)
    return senders


def rung(store: Store) -> list[int]:
    """The senders that are to be rung, in order."""
    found = [waiter_id for _, waiter_id in store.rings]
    store.rings.clear()
    return found


def crowded(store: Store, place: int) -> bool:
    word = S_LIVE if place == S_SENDING else place - Q_SENDING + Q_PENDING
    return store.words[word] >= CROWDED


def sends(store: Store, now: float = NOW, name: str = "c") -> bool:
    """Whether a send that does not wait finds room."""
    return put(store, name, b"at once", now, capacity=CAPACITY) >= 0


# -- a queue --------------------------------------------------------------------------------------


def test_the_call_that_finds_no_room_parks() -> None:
    store, place = full()
    [sender] = parked(store, 70)
    assert sender.place == place and store.is_parked(place, 70)
    assert crowded(store, place)
    assert rung(store) == []
    assert_whole(store)
    assert verify(store, NOW) == []


def test_the_take_that_makes_room_has_one_rung() -> None:
    store, place = full()
    first, second = parked(store, 5, 6)
    assert take(store, "c") == b"0"
    assert rung(store) == [5]
    assert first.tries()
    assert rung(store) == []  # it is full again
    assert crowded(store, place)
    assert take(store, "c") == b"1"
    assert rung(store) == [6]
    assert second.tries()
    assert not crowded(store, place)
    assert bodies(store, "c") == [b"by 5", b"by 6"]
    assert_whole(store)


def test_each_gets_its_turn_whoever_makes_room() -> None:
    """Also where each message is taken by another process, which rings others meanwhile."""
    store, _ = full()
    senders = {sender.waiter_id: sender for sender in parked(store, 5, 70, 71, 300)}
    for number, waiter_id in enumerate((4, 6, 72, 1000)):
        store.park(store.require(target(f"other{number}"), NOW), waiter_id)
    served = []
    for number in range(40):
        taker = Store(store.buffer, store.layout)
        put(taker, f"other{number % 4}", b"")  # rings a receiver
        take(taker, "c")
        [waiter_id] = rung(taker)
        assert senders[waiter_id].tries()
        assert not senders[waiter_id].tries()  # it waits for the next one
        rung(store)
        served.append(waiter_id)
    assert served == [5, 70, 71, 300] * 10


@pytest.mark.parametrize("turn", [0, 5, 6, 63, 64, 1087, 1088, 2**32, 2**64 - 1])
def test_any_turn_finds_a_sender(turn: int) -> None:
    store, place = full()
    parked(store, 5)
    store.words[place + Q_NEXT_SENDER - Q_SENDING] = turn
    take(store, "c")
    assert rung(store) == [5]


def test_a_sender_that_answers_offers_what_is_left_to_the_next() -> None:
    store, _ = full()
    first, second, third = parked(store, 5, 6, 7)
    take(store, "c")
    assert rung(store) == [5]
    take(store, "c")
    assert rung(store) == [6]
    assert second.tries()
    assert rung(store) == [7]  # there is room for one more; 5 may be dead
    assert third.tries()
    assert not first.tries()


def test_a_sender_that_gives_up_passes_its_ring_on() -> None:
    store, place = full()
    first, second = parked(store, 5, 6)
    take(store, "c")
    assert rung(store) == [5]
    first.gives_up()
    assert rung(store) == [6]
    second.gives_up()
    assert not crowded(store, place)
    assert sends(store)


def test_a_sender_that_was_not_rung_leaves_no_trace() -> None:
    store, place = full()
    before = bytes(store.buffer)
    [sender] = parked(store, 5)
    sender.gives_up()
    assert bytes(store.buffer) == before
    assert rung(store) == []


def test_the_last_of_a_process_that_waits_with_one_id_leaves() -> None:
    """Tasks of one loop share a waiter id: one that leaves leaves the others parked."""
    store, place = full()
    [sender] = parked(store, 5)
    store.leave_room(sender.target, 5, place, stays=True)
    assert store.is_parked(place, 5) and crowded(store, place)


def test_waiting_counts_no_refusal() -> None:
    store, place = full()
    parked(store, 5)
    assert store.words[place - Q_SENDING + Q_REFUSED] == store.words[S_REFUSED] == 0
    assert not sends(store)
    assert store.words[place - Q_SENDING + Q_REFUSED] == store.words[S_REFUSED] == 1
    store.count_refusal(place - Q_SENDING, -1)
    store.count_refusal(place - Q_SENDING, -1)  # after a flush, say
    assert store.words[place - Q_SENDING + Q_REFUSED] == store.words[S_REFUSED] == 0


def test_receivers_and_senders_at_one_queue_are_told_apart() -> None:
    store, place = full()
    row = place - Q_SENDING
    store.park(row, 9)
    parked(store, 5)
    assert store.is_room(place) and not store.is_room(row)
    assert store.pick_if_pending(row) == 9
    assert store.pick_if_pending(place) == 0
    take(store, "c")
    assert rung(store) == [5]
    assert store.words[row + Q_WAITING] == 0


@pytest.mark.parametrize("place", [Q_SENDING, 10**6 + Q_SENDING])
def test_a_ring_from_before_a_flush_is_passed_on_to_nobody(place: int) -> None:
    store = make_store()
    assert store.pick_if_pending(store.layout.queues.base + place) == 0


# -- expiry, and whatever else makes room ---------------------------------------------------------


def test_a_sender_knows_when_the_oldest_message_expires() -> None:
    store, _ = full(expires=NOW + 3)
    first, second = parked(store, 5, 6)
    assert first.until == NOW + 3
    assert not first.tries(NOW + 2.9)
    assert first.tries(NOW + 3)  # nobody has rung it
    assert 6 in rung(store)
    assert second.tries(NOW + 3)


def test_a_message_that_expires_while_another_sends_is_room_for_those_that_wait() -> None:
    store, _ = full(expires=NOW + 3)
    parked(store, 5, 6)
    assert not sends(store, NOW + 3)
    assert rung(store) == [5, 6]


def test_a_sweep_makes_room() -> None:
    store, _ = full(expires=NOW + 3)
    parked(store, 5)
    sweep_all(store, NOW + 3)
    assert rung(store) == [5]


def test_the_death_of_the_reader_makes_room() -> None:
    store = make_store()
    reader = process(store, 0)
    row = owned(store, "specific.X!", reader)
    for _ in range(CAPACITY):
        put(store, "specific.X!a", capacity=CAPACITY)
    sender = Sender(store, 5, name="specific.X!a")
    assert not sender.tries()
    store.bury(reader, NOW, 60.0)
    assert rung(store) == [5]
    while not store.bury(reader, NOW + 61, 60.0):
        pass
    assert sender.tries(NOW + 61)
    assert_whole(store)
    assert row_of(store, "specific.X!") == row


def test_a_queue_that_went_while_a_sender_slept_is_made_again() -> None:
    store, place = full(expires=NOW + 1)
    [sender] = parked(store, 5)
    for later in (10, 1000, 2000):
        sweep_all(store, NOW + later)
    assert store.queues.find(b"c") == 0
    assert rung(store) == [5]
    assert sender.tries(NOW + 2000)
    assert_whole(store)
    assert not crowded(store, row_of(store, "c") + Q_SENDING)


def test_a_flush_and_a_recovery_empty_the_sets() -> None:
    for mend in (flush, recover):
        store, place = full()
        parked(store, 5, 700)
        store.park_sender(S_SENDING, 6)
        for offered in (S_OFFERED, place - Q_SENDING + Q_OFFERED):
            store.doubles[offered] = NOW
        mend(store, NOW)
        assert not crowded(store, S_SENDING) and store.words[S_SENDING] == 0
        assert store.words[S_OFFERED] == 0
        row = row_of(store, "c")
        assert not crowded(store, row + Q_SENDING) and store.words[row + Q_SENDING] == 0
        assert store.words[row + Q_OFFERED] == 0
        assert_whole(store)


def test_a_sender_parks_again_after_a_flush() -> None:
    store, _ = full()
    [sender] = parked(store, 5)
    flush(store, NOW)
    put(store, "another")  # has the row now
    for _ in range(CAPACITY):
        put(store, "c", capacity=CAPACITY)
    assert not sender.tries()
    assert sender.place == row_of(store, "c") + Q_SENDING
    take(store, "c")
    assert rung(store) == [5]
    assert sender.tries()


# -- first come, first served ---------------------------------------------------------------------


def test_what_becomes_free_is_for_senders_that_wait() -> None:
    store, place = full()
    [sender] = parked(store, 5)
    take(store, "c")
    assert not sends(store)
    late = Sender(store, 6)
    assert not late.tries()
    assert rung(store) == [5]
    assert sender.tries()
    assert bodies(store, "c") == [b"1", b"by 5"]
    take(store, "c")
    assert rung(store) == [6]
    assert late.tries()
    take(store, "c")
    assert sends(store)  # nobody waits


def test_others_may_send_where_there_is_room_for_all_that_wait() -> None:
    """They wait for a channel with a small capacity; the queue has channels with others."""
    store = make_store()
    other = target("c", 5)
    for body in (b"0", b"1"):
        store.put(other, body, NOW)
    first, second = parked(store, 5, 6)
    assert store.put(other, b"2", NOW) == 0
    assert store.put(other, b"3", NOW) == FULL  # what is left may be for the two
    assert take(store, "c") == b"0" and rung(store) == [5]
    assert store.put(other, b"3", NOW) == 0
    assert store.put(other, b"4", NOW) == FULL  # the one that was rung counts, too
    first.gives_up()
    assert store.put(other, b"4", NOW) == 0
    assert store.put(other, b"5", NOW) == FULL
    for body in (b"1", b"2", b"3"):
        assert take(store, "c") == body
    assert second.tries()
    assert store.words[store.queues.find(b"c") + Q_NEXT_SENDER] >> 16 == 0
    assert verify(store, NOW) == []


def test_a_sender_that_was_rung_and_died_keeps_others_for_a_moment_only() -> None:
    store, place = full()
    [dead] = parked(store, 5)
    take(store, "c")
    assert rung(store) == [5]
    assert not sends(store, NOW + 1)
    assert not sends(store, NOW + 1 + GRACE / 2)
    assert sends(store, NOW + 1 + GRACE)
    assert not crowded(store, place)
    assert store.words[place - Q_SENDING + Q_OFFERED] == 0


def test_the_next_is_rung_for_one_that_died() -> None:
    for help in ("a send", "the sweep"):
        store, _ = full()
        parked(store, 5, 6)
        take(store, "c")
        assert rung(store) == [5]
        for now in (NOW + 1, NOW + 1 + GRACE):
            assert rung(store) == []
            if help == "a send":
                sends(store, now)
            else:
                store.sweep(now)
        assert rung(store) == [6]


def test_a_sender_that_looks_by_itself_helps_itself() -> None:
    """It looks once a second; the one that was rung before it is dead."""
    store, _ = full()
    _, second = parked(store, 5, 6)
    take(store, "c")
    assert rung(store) == [5]
    assert second.tries(NOW + 1)


@pytest.mark.parametrize("has_room", [True, False])
def test_a_crowd_of_nobody_disperses(has_room: bool) -> None:
    """A sender was killed between the two stores with which it parks."""
    store, place = full()
    store.words[place - Q_SENDING + Q_PENDING] |= CROWDED
    assert verify(store, NOW) == []
    if has_room:
        take(store, "c")
    store.sweep(NOW)
    store.sweep(NOW + GRACE)
    assert not crowded(store, place)


def test_the_sweep_rings_nobody_where_there_is_no_room() -> None:
    store, place = full()
    parked(store, 5)
    for now in (NOW, NOW + GRACE, NOW + 10):
        store.sweep(now)
    assert rung(store) == [] and store.is_parked(place, 5)


def test_a_queue_where_only_the_dead_wait_to_send_is_freed() -> None:
    store, place = full()
    alive = store.add_waiter(process(store, 0))
    assert alive is not None
    store.publish_waiter(*alive)
    parked(store, 5, 6, 7)
    for _ in range(CAPACITY):
        take(store, "c")
    assert store.is_parked(place, 7)
    store.park_sender(place, alive[0])
    store.reclaim(NOW, 0.0, 64)
    assert store.queues.find(b"c") and store.is_parked(place, alive[0])
    assert not store.is_parked(place, 7)
    store.remove_waiter(*alive)
    store.reclaim(NOW, 0.0, 64)
    assert store.queues.find(b"c") == 0
    assert_whole(store)


def test_time_that_goes_back_keeps_nobody() -> None:
    store, place = full()
    parked(store, 5)
    take(store, "c")
    assert not sends(store, NOW + 1000)
    assert sends(store, NOW)


# -- memory ---------------------------------------------------------------------------------------


def fill(store: Store, name: str = "filler", size: int = 1000) -> None:
    while put(store, name, b"x" * size, capacity=10**9) >= 0:
        pass


def wide(store: Store, waiter_id: int, size: int = 1000, name: str = "wide") -> Sender:
    sender = Sender(store, waiter_id, b"y" * size)
    sender.target = target(name, 10**9)
    return sender


def test_a_sender_waits_for_memory_and_any_take_gives_it() -> None:
    store = make_store()
    fill(store)
    sender = wide(store, 5)
    assert not sender.tries()
    assert sender.place == S_SENDING and crowded(store, S_SENDING)
    assert verify(store, NOW) == []
    take(store, "filler")
    assert rung(store) == [5]
    assert sender.tries()
    assert not crowded(store, S_SENDING)
    assert_whole(store)


def test_a_sender_is_not_rung_before_there_is_enough() -> None:
    store = make_store()
    fill(store, size=100)
    sender = wide(store, 5, size=1000)
    assert not sender.tries()
    takes = 0
    while not (found := rung(store)):
        take(store, "filler")
        takes += 1
    assert found == [5]
    assert takes >= 5
    assert sender.tries()


def test_memory_is_promised_too() -> None:
    store = make_store()
    fill(store)
    sender = wide(store, 5)
    assert not sender.tries()
    take(store, "filler")
    assert put(store, "other", b"z" * 1000) == PROMISED
    for _ in range(3):
        take(store, "filler")
    assert put(store, "other", b"z" * 1000) == 0  # there is enough for both
    assert sender.tries()
    take(store, "filler")
    assert put(store, "other", b"z" * 1000) == 0


def test_memory_that_was_promised_to_the_dead_can_be_had() -> None:
    store = make_store()
    fill(store)
    assert not wide(store, 5).tries()
    take(store, "filler")
    store.sweep(NOW)
    store.sweep(NOW + GRACE)
    assert not crowded(store, S_SENDING)
    assert put(store, "other", b"z" * 1000) == 0


def test_the_oldest_message_that_expires_gives_memory() -> None:
    store = make_store()
    while put(store, "filler", b"x" * 1000, expires=NOW + 7, capacity=10**9) >= 0:
        pass
    sender = wide(store, 5)
    assert not sender.tries()
    assert sender.until == NOW + 7
    assert sender.tries(NOW + 7)


def test_memory_of_the_machine() -> None:
    granted = True
    store = make_store(reserve=lambda offset, length: granted)
    row_of(store, "wide")
    granted = False
    fill(store)
    sender = wide(store, 5)
    assert not sender.tries()
    for _ in range(100):
        if 5 in rung(store) and sender.tries():
            break
        take(store, "filler")
    else:
        raise AssertionError("it was never rung")
    assert_whole(store)


def test_a_sender_that_had_waited_for_room_waits_for_memory() -> None:
    store = make_store()
    for _ in range(CAPACITY):
        put(store, "wide", b"s", capacity=CAPACITY)
    sender = Sender(store, 5, b"y" * 1000, name="wide")
    assert not sender.tries()
    queue = sender.place
    fill(store)
    fill(store, size=1)
    take(store, "wide")
    assert rung(store) == [5]
    assert not sender.tries()
    assert sender.place == S_SENDING
    assert not crowded(store, queue)
    sender.gives_up()
    assert not crowded(store, S_SENDING)


# -- deaths ---------------------------------------------------------------------------------------


def _park(store: Store) -> None:
    Sender(store, 70).tries()


def _take(store: Store) -> None:
    take(store, "c")


def _answer(store: Store) -> None:
    sender = Sender(store, 5)
    sender.place = row_of(store, "c") + Q_SENDING
    take(store, "c")
    sender.tries()


@pytest.mark.parametrize("operation", [_park, _take, _answer])
def test_after_a_death_at_any_write_nothing_is_lost_and_nobody_waits_for_ever(
    operation: Any,
) -> None:
    store, _ = full()
    parked(store, 5, 6)
    for left in deaths(store, operation):
        if left.words[S_DIRTY]:
            recover(left, NOW)
        assert_whole(left)
        assert verify(left, NOW) == []
        living = Sender(left, 7)
        for _ in range(2 * CAPACITY + 2):
            take(left, "c")
        assert living.tries(NOW + 1) or living.tries(NOW + 1 + GRACE)
        assert bodies(left, "c")[-1] == b"by 7"


# -- any history ----------------------------------------------------------------------------------


@given(st.integers(0, 2**32), st.integers(1, 4))
@examples(30)
def test_nobody_waits_where_there_is_room(seed: int, capacity: int) -> None:
    """Senders come, are rung late, give up; readers take; messages expire. No sender waits beside
    room unless a ring is under way, and all messages arrive once."""
    chance = random.Random(seed)
    store = make_store()
    waiting: dict[int, Sender] = {}
    under_way: list[int] = []
    sent: list[bytes] = []
    got: list[bytes] = []
    now = NOW
    for number in range(1, 300):
        now += chance.random() * GRACE / 10
        step = chance.random()
        if step < 0.45:
            sender = Sender(store, number, b"%d" % number)
            sender.target = target("c", capacity)
            if sender.tries(now):
                sent.append(sender.body)
            else:
                waiting[number] = sender
        elif step < 0.8:
            body = take(store, "c", now)
            if body is not None:
                got.append(body)
        elif step < 0.9 and waiting:
            waiting.pop(chance.choice(list(waiting))).gives_up()
        elif under_way:
            _let_try(under_way, waiting, sent, now)
        under_way += rung(store)
        free = store.words[row_of(store, "c") + Q_PENDING] & COUNT < capacity
        if free and waiting:
            assert under_way
    while waiting:
        if under_way:
            _let_try(under_way, waiting, sent, now)
        else:
            body = take(store, "c", now)
            assert body is not None, "senders wait at an empty queue"
            got.append(body)
        under_way += rung(store)
    assert_whole(store)
    got += iter(lambda: take(store, "c", now), None)  # type: ignore[arg-type]
    assert got == sent
    assert not crowded(store, row_of(store, "c") + Q_SENDING)
    assert put(store, "c", capacity=capacity) == 0


def _let_try(
    under_way: list[int], waiting: dict[int, Sender], sent: list[bytes], now: float
) -> None:
    sender = waiting.get(under_way.pop(0))
    if sender is not None and sender.tries(now):
        del waiting[sender.waiter_id]
        sent.append(sender.body)


def test_a_target_that_has_not_been_looked_up_can_be_new() -> None:
    store = make_store()
    assert store.put(Target(b"c", b"", 1), b"body", NOW, NEW) == 0
    assert store.put(Target(b"c", b"", 1), b"body", NOW, NEW) == FULL
