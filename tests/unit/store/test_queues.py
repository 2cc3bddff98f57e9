"""Channels: each message comes out once and in order, capacity and expiry hold, and no reference in
memory is followed unchecked."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from asgi_ipc.errors import CorruptStore, LimitReached
from asgi_ipc.store import queues
from asgi_ipc.store.layout import (
    DEAD,
    EXPIRED,
    L_LENGTH,
    L_LOCALS,
    L_QUEUE,
    L_SEQ,
    L_STATE,
    Q_CREATED,
    Q_DROPS,
    Q_FIRST,
    Q_PENDING,
    Q_REFUSED,
    Q_SENT,
    RECORD_WORDS,
    S_DROPS,
    S_REFUSED,
    S_SEQ,
    WORD,
)
from asgi_ipc.store.queues import (
    CHANNELS,
    FULL,
    GONE,
    MACHINE,
    MESSAGES,
    Target,
    checksum,
)
from asgi_ipc.store.store import Store
from asgi_ipc.store.verify import verify

from ..support import (
    FOREVER,
    KIB,
    NOW,
    Killed,
    Message,
    Reserve,
    assert_whole,
    bodies,
    contents,
    copy_of,
    drain,
    examples,
    make_store,
    next_holder,
    put,
    row_of,
    take,
    target,
    touches,
    under_watch,
)

SOON = NOW + 60


# -- order and number -----------------------------------------------------------------------------


def test_messages_come_out_once_in_the_order_they_went_in() -> None:
    store = make_store()
    sent = [b"%d" % i for i in range(50)]
    for body in sent:
        put(store, "c", body)
    assert drain(store, "c") == sent
    assert take(store, "c") is None


def test_channels_do_not_mix() -> None:
    store = make_store()
    for i in range(20):
        put(store, f"c{i % 4}", b"%d" % i)
    for i in range(4):
        assert drain(store, f"c{i}") == [b"%d" % j for j in range(i, 20, 4)]


def test_two_processes_share_the_channels() -> None:
    """Each has its own objects over the same bytes."""
    store = make_store()
    other = Store(store.buffer, store.layout)
    for i in range(10):
        put(store if i % 2 else other, "c", b"%d" % i)
    assert [take(other if i % 3 else store, "c") for i in range(10)] == [
        b"%d" % i for i in range(10)
    ]


def test_an_empty_body_is_a_message() -> None:
    store = make_store()
    put(store, "c", b"")
    assert drain(store, "c") == [b""]


def test_peek_leaves_the_message_and_pop_takes_it() -> None:
    store = make_store()
    put(store, "x!one", b"1", expires=SOON)
    put(store, "x!two", b"2")
    row = row_of(store, "x!")
    assert store.peek(row) == store.peek(row)
    first = store.peek(row)
    assert first is not None
    assert first[1:] == (SOON, b"one", b"1")
    store.pop(row)
    second = store.peek(row)
    assert second is not None and second.seq > first.seq
    assert second[1:] == (FOREVER, b"two", b"2")
    store.pop(row)
    assert store.peek(row) is None
    assert_whole(store)


def test_sequence_numbers_rise_over_all_channels() -> None:
    store = make_store()
    seen = []
    for i in range(6):
        put(store, f"x{i % 2}!", b"")
        seen.append(store.words[S_SEQ])
    assert seen == sorted(set(seen))


def test_a_number_may_be_of_more_than_32_bits() -> None:
    """A checksum begins with it. From Python 3.15 on, that warns of more than 32 bits."""
    store = make_store()
    store.words[S_SEQ] = 2**32 - 2
    sent = [b"last", b"next", b"and so on"]
    for body in sent:
        put(store, "x", body)
    assert store.words[S_SEQ] == 2**32 + 1
    assert verify(store, NOW) == []
    assert drain(store, "x") == sent
    for local in (b"", b"a"):
        for body in (b"body", b"large" * 20_000):
            assert checksum(2**32 + 5, local, body) == checksum(5, local, body)


def test_a_target_is_found_again_after_its_row_went_to_another_queue() -> None:
    store = make_store()
    old = target("first")
    store.put(old, b"1", NOW)
    store.take(old, NOW)
    store.reclaim(NOW, 0.0, 10)
    assert row_of(store, "second") == old.row
    assert store.take(old, NOW) is None
    store.put(old, b"2", NOW)
    assert drain(store, "second") == []
    assert drain(store, "first") == [b"2"]


class Interrupted(Target):
    """A target that a signal interrupts after `left` stores to it."""

    left: float = float("inf")

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "left":
            if self.left <= 0:
                raise KeyboardInterrupt
            self.left -= 1
        super().__setattr__(name, value)


@pytest.mark.parametrize("stores", range(3))
@pytest.mark.parametrize("exists", [True, False])
def test_a_target_that_was_looked_up_in_part_is_looked_up_again(stores: int, exists: bool) -> None:
    store = make_store()
    for name in ("other", "mine") if exists else ("other",):
        row_of(store, name)
    mine = Interrupted(b"mine", b"", 10)
    mine.left = stores
    with pytest.raises(KeyboardInterrupt):
        store.put(mine, b"1", NOW)
    mine.left = float("inf")
    assert store.take(mine, NOW) is None
    assert store.put(mine, b"2", NOW) == 0
    assert drain(store, "other") == []
    assert drain(store, "mine") == [b"2"]
    assert_whole(store)


def test_a_fixed_target_whose_queue_is_gone_is_not_made_again() -> None:
    store = make_store()
    row = row_of(store, "x!")
    generation = store.words[row + queues.R_GENERATION]
    fixed = store.fix(Target(b"x!", b"a,b", 10), row, generation)
    assert store.put(fixed, b"1", NOW) == 0
    store.pop(row)
    store.reclaim(NOW, 0.0, 10)
    assert store.put(fixed, b"2", NOW) == GONE
    assert store.queues.find(b"x!") == 0


def test_local_parts_travel_with_the_message() -> None:
    store = make_store()
    store.put(Target(b"x!", b"one,two,three", 10, FOREVER - NOW), b"body", NOW)
    assert contents(store).messages == {b"x!": [Message(b"body", b"one,two,three", FOREVER)]}


# -- capacity -------------------------------------------------------------------------------------


def test_a_full_channel_refuses_and_nothing_is_changed_but_the_count_of_it() -> None:
    store = make_store()
    for i in range(3):
        assert put(store, "c", b"%d" % i, capacity=3) == 0
    row = row_of(store, "c")
    for i in range(1, 4):
        assert put(store, "c", b"no", capacity=3) == FULL
        assert store.words[row + Q_REFUSED] == store.words[S_REFUSED] == i
    assert_whole(store)
    assert drain(store, "c") == [b"0", b"1", b"2"]


def test_a_full_channel_takes_again_what_was_received() -> None:
    store = make_store()
    for _ in range(3):
        put(store, "c", capacity=3)
    take(store, "c")
    assert put(store, "c", capacity=3) == 0
    assert put(store, "c", capacity=3) == FULL


def test_a_full_channel_does_not_concern_the_others() -> None:
    store = make_store()
    put(store, "c", capacity=1)
    assert put(store, "c", capacity=1) == FULL
    assert put(store, "d", capacity=1) == 0


def test_the_capacity_of_a_process_is_shared_by_its_local_parts() -> None:
    store = make_store()
    assert [put(store, f"x!{i}", capacity=2) for i in range(3)] == [0, 0, FULL]


def test_capacity_is_that_of_the_sender() -> None:
    store = make_store()
    put(store, "c", capacity=1)
    assert put(store, "c", capacity=1) == FULL
    assert put(store, "c", capacity=2) == 0


# -- expiry ---------------------------------------------------------------------------------------


def test_an_expired_message_is_not_received() -> None:
    store = make_store()
    put(store, "c", b"old", expires=SOON)
    put(store, "c", b"new")
    assert take(store, "c", SOON) == b"new"
    assert_whole(store)


def test_a_message_can_be_received_up_to_its_expiry() -> None:
    store = make_store()
    put(store, "c", b"old", expires=SOON)
    assert take(store, "c", SOON - 0.001) == b"old"


def test_expired_messages_are_counted() -> None:
    store = make_store()
    for _ in range(3):
        put(store, "c", expires=SOON)
    assert take(store, "c", SOON) is None
    assert store.words[row_of(store, "c") + Q_DROPS + EXPIRED] == 3
    assert store.words[S_DROPS + EXPIRED] == 3


def test_expired_messages_do_not_fill_a_channel() -> None:
    store = make_store()
    for _ in range(3):
        put(store, "c", b"old", expires=SOON, capacity=3)
    assert put(store, "c", b"no", SOON - 1, capacity=3) == FULL
    assert put(store, "c", b"new", SOON, capacity=3) == 0
    assert_whole(store)
    assert bodies(store, "c") == [b"new"]


def test_messages_of_a_queue_that_nobody_reads_expire() -> None:
    store = make_store()
    for i in range(50):
        put(store, f"unread{i % 9}", expires=SOON)
    put(store, "c", b"lives")
    store.sweep(SOON - 1)
    assert store.words[S_DROPS + EXPIRED] == 0
    while store.sweep(SOON):
        pass
    assert contents(store).messages == {b"c": [Message(b"lives", b"", FOREVER)]}
    assert store.words[S_DROPS + EXPIRED] == 50
    assert_whole(store)


def test_messages_behind_one_that_lives_expire_too() -> None:
    """The sweep of the log stops there, but the sweep of the queues does not."""
    store = make_store()
    put(store, "c", b"lives")
    for i in range(5):
        put(store, f"unread{i}", expires=SOON)
    for _ in range(3):
        store.sweep(SOON)
    assert list(contents(store).messages) == [b"c"]


def test_a_sweep_does_a_bounded_part_of_the_work() -> None:
    def cost(number: int) -> int:
        store = make_store(message_memory=1024 * KIB, first_mark=512 * KIB)
        for i in range(number):
            put(store, f"unread{i % 40}", expires=SOON, capacity=1 << 30)
        return touches(store, lambda store: store.sweep(SOON))

    assert cost(4000) < cost(400) + 100


def test_find_unexpired_drops_expired_messages() -> None:
    store = make_store()
    put(store, "c", expires=SOON)
    row = store.find_unexpired(target("c"), SOON)
    assert row == row_of(store, "c")
    assert store.words[row + Q_PENDING] == 0
    assert store.find_unexpired(target("unknown"), SOON) == 0


# -- figures --------------------------------------------------------------------------------------


def test_sent_messages_are_counted() -> None:
    store = make_store()
    for _ in range(5):
        put(store, "c", capacity=3)
        assert store.words[row_of(store, "c") + Q_PENDING] <= 3
    assert store.words[row_of(store, "c") + Q_SENT] == 3
    drain(store, "c")
    assert store.words[row_of(store, "c") + Q_SENT] == 3


def test_a_queue_knows_since_when_it_exists() -> None:
    store = make_store()
    put(store, "c", now=NOW + 5)
    assert store.doubles[row_of(store, "c") + Q_CREATED] == NOW + 5


def test_what_expired_in_a_buffer_is_counted() -> None:
    store = make_store()
    row = row_of(store, "x!")
    assert store.count_taken(target("x!"), EXPIRED, 3) == row
    assert store.words[row + Q_DROPS + EXPIRED] == store.words[S_DROPS + EXPIRED] == 3
    assert store.count_taken(target("y!"), EXPIRED, 3) == 0


# -- rows -----------------------------------------------------------------------------------------


def test_a_receive_of_an_unknown_name_makes_nothing() -> None:
    store = make_store()
    before = bytes(store.buffer)
    assert take(store, "unknown") is None
    assert bytes(store.buffer) == before


def test_idle_queues_are_reclaimed() -> None:
    store = make_store()
    for i in range(20):
        put(store, f"c{i}")
        drain(store, f"c{i}")
    store.sweep(NOW)
    assert store.queues.used == 20
    store.sweep(NOW + queues.IDLE - 1)
    assert store.queues.used == 20
    store.sweep(NOW + queues.IDLE)
    assert store.queues.used == 0
    assert_whole(store)


def test_a_queue_in_use_is_not_reclaimed() -> None:
    store = make_store()
    for later in range(0, 1000, 30):
        put(store, "busy", now=NOW + later)
        drain(store, "busy", NOW + later)
        store.sweep(NOW + later)
    assert store.queues.find(b"busy")


def test_a_queue_with_messages_is_not_reclaimed() -> None:
    store = make_store()
    put(store, "c")
    for _ in range(3):
        store.sweep(NOW + 10 * queues.IDLE)
    assert drain(store, "c") == [b"body"]


def test_when_rows_run_out_unused_ones_are_reclaimed_at_once() -> None:
    store = make_store(queues=8)
    for i in range(100):
        assert put(store, f"c{i}") == 0
        assert drain(store, f"c{i}") == [b"body"]
    assert_whole(store)


def test_when_rows_run_out_new_channels_are_refused_and_the_others_go_on() -> None:
    store = make_store(queues=8)
    for i in range(8):
        put(store, f"c{i}", b"%d" % i)
    assert put(store, "new") == CHANNELS
    with pytest.raises(LimitReached, match="no room for channel 'new': 8 channels are in use"):
        store.take(target("new"), NOW, waiter_id=3)
    assert take(store, "new") is None
    assert_whole(store)
    assert [drain(store, f"c{i}") for i in range(8)] == [[b"%d" % i] for i in range(8)]
    assert put(store, "new") == 0


def test_when_memory_for_rows_cannot_be_reserved_new_channels_are_refused() -> None:
    reserve = Reserve(limit=0)
    store = make_store(reserve=reserve)
    assert put(store, "c") == MACHINE
    with pytest.raises(LimitReached, match="no memory for more: nobody says why"):
        store.take(target("c"), NOW, waiter_id=3)
    assert not any(store.buffer[store.layout.queues.base * WORD : store.layout.log * WORD])
    reserve.limit = 1 << 30
    assert put(store, "c") == 0


def test_what_is_refused_for_want_of_memory_is_counted_in_the_same_section() -> None:
    store = make_store(queues=1)
    sent = 0
    while put(store, "c", bytes(400), capacity=1 << 30) != MESSAGES:
        sent += 1
    assert sent and store.words[S_REFUSED] == 1
    assert put(store, "another") == CHANNELS
    assert store.words[S_REFUSED] == 2
    assert_whole(store)


# -- bounded work ---------------------------------------------------------------------------------


def test_a_receive_that_finds_nothing_costs_the_same_however_many_channels_there_are() -> None:
    def cost(channels: int) -> int:
        store = make_store(first_mark=64 * KIB)
        row_of(store, "mine")
        for i in range(channels):
            row_of(store, f"c{i}")
        watched, watch = under_watch(store)
        known = target("mine")
        watched.find(known)
        looked_up = watch.touches
        assert watched.take(known, NOW) is None
        return watch.touches - looked_up

    assert cost(1000) == cost(10)


def test_a_full_queue_of_expired_messages_is_dropped_in_bounded_parts() -> None:
    def cost(number: int) -> int:
        store = make_store(message_memory=1024 * KIB, first_mark=512 * KIB)
        for _ in range(number):
            put(store, "c", expires=SOON, capacity=1 << 30)
        return touches(store, lambda store: put(store, "c", now=SOON, capacity=number))

    assert cost(4000) < 2 * cost(200)


# -- against a model ------------------------------------------------------------------------------

NAMES = ["a", "b", "c?d", "x!"]
LIFE = 60.0
CAPACITY = 12


class AgainstDeques(RuleBasedStateMachine):
    """Sends, receives, time, sweeps and deaths, against a dict of deques."""

    @initialize(mark=st.sampled_from([1, 4, 64]))
    def begin(self, mark: int) -> None:
        self.store = make_store(first_mark=mark * KIB)
        self.now = NOW
        self.number = 0
        self.model: dict[str, deque[tuple[bytes, float]]] = {name: deque() for name in NAMES}

    def expected(self, name: str) -> list[bytes]:
        return [body for body, expires in self.model[name] if expires > self.now]

    @rule(name=st.sampled_from(NAMES), size=st.integers(0, 1000), times=st.integers(1, 5))
    def send(self, name: str, size: int, times: int) -> None:
        for _ in range(times):
            self.number += 1
            body = self.number.to_bytes(4, "big") + bytes(size)
            expires = self.now + LIFE
            answer = put(self.store, name, body, self.now, expires=expires, capacity=CAPACITY)
            if answer == FULL:
                assert len(self.expected(name)) == CAPACITY
            else:
                assert answer == 0 and len(self.expected(name)) < CAPACITY
                self.model[name].append((body, expires))

    @rule(name=st.sampled_from(NAMES[:3]))
    def receive(self, name: str) -> None:
        expected = self.expected(name)
        assert take(self.store, name, self.now) == (expected[0] if expected else None)
        while self.model[name]:
            if self.model[name].popleft()[1] > self.now:
                break

    @rule()
    def drain(self) -> None:
        """As the owner of a process-specific queue does, which checks the expiry itself."""
        row = self.store.find(target("x!"))
        taken = []
        while row and (message := self.store.peek(row)) is not None:
            taken += [message.body] if message.expires > self.now else []
            self.store.pop(row)
        assert taken == self.expected("x!")
        self.model["x!"].clear()

    @rule(seconds=st.floats(0, 40))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def sweep(self) -> None:
        self.store.sweep(self.now)

    @rule(name=st.sampled_from(NAMES), size=st.integers(0, 1000), moment=st.integers(0, 30))
    def die_while_sending(self, name: str, size: int, moment: int) -> None:
        self.number += 1  # two that died with the same body could not be told apart
        body = b"of the dead %d" % self.number + bytes(size)
        expires = self.now + LIFE
        self.die(
            moment,
            lambda store: put(store, name, body, self.now, expires=expires, capacity=CAPACITY),
        )
        if body in bodies(self.store, name):
            self.model[name].append((body, expires))

    @rule(name=st.sampled_from(NAMES[:3]), moment=st.integers(0, 12))
    def die_while_receiving(self, name: str, moment: int) -> None:
        expected = self.expected(name)
        self.die(moment, lambda store: take(store, name, self.now))
        if expected and expected[0] not in bodies(self.store, name):
            while self.model[name].popleft()[1] <= self.now:
                pass

    def die(self, moment: int, operation: Any) -> None:
        watched, _ = under_watch(self.store, moment)
        try:
            operation(watched)
        except Killed:
            pass
        self.store = next_holder(copy_of(watched), self.now)

    @invariant()
    def same(self) -> None:
        if hasattr(self, "store"):
            assert_whole(self.store)
            living = contents(self.store).living(self.now).messages
            for name in NAMES:
                waiting = [message.body for message in living.get(name.encode(), [])]
                assert waiting == self.expected(name)


TestAgainstDeques = AgainstDeques.TestCase
TestAgainstDeques.settings = examples(60, stateful_step_count=50)


# -- what cannot be right -------------------------------------------------------------------------


def of_one_message(name: str = "c") -> tuple[Store, int, int]:
    """A store with one message, the row of its queue, and its record."""
    store = make_store()
    put(store, name, b"a message that is long enough to be altered")
    row = row_of(store, name)
    return store, row, store.words[row + Q_FIRST]


@pytest.mark.parametrize("wrong", [1, 7, 2**32, 2**64 - 1])
def test_a_queue_that_leads_out_of_the_log_is_corrupt(wrong: int) -> None:
    store, row, _ = of_one_message()
    store.words[row + Q_FIRST] = wrong
    with pytest.raises(CorruptStore):
        take(store, "c")
    with pytest.raises(CorruptStore):
        store.peek(row)


@pytest.mark.parametrize(
    ("half", "wrong"),
    [
        (L_QUEUE, 0),
        (L_QUEUE, 2**32 - 1),
        (L_STATE, DEAD),
        (L_STATE, 0),
        (L_LENGTH, 0),
        (L_LENGTH, 2**32 - 1),
        (2 * L_SEQ, 77),
        (2 * RECORD_WORDS, 77),
        (2 * RECORD_WORDS + 5, 77),
    ],
)
@pytest.mark.parametrize("name", ["c", "x!local"])
def test_a_message_that_was_altered_is_not_delivered(name: str, half: int, wrong: int) -> None:
    store, row, at = of_one_message(name)
    store.halves[2 * at + half] = wrong
    with pytest.raises(CorruptStore):
        take(store, name) if name == "c" else store.peek(row)


def test_altered_local_parts_are_not_delivered() -> None:
    store, row, at = of_one_message("x!local")
    store.halves[2 * at + L_LOCALS] = 2
    with pytest.raises(CorruptStore):
        store.peek(row)


@pytest.mark.parametrize("end", [0, -1])
def test_a_large_message_that_was_altered_at_either_end_is_not_delivered(end: int) -> None:
    store = make_store(message_memory=1024 * KIB, max_message_size=512 * KIB)
    body = bytes(300 * KIB)
    assert put(store, "c", body) == 0
    at = store.words[row_of(store, "c") + Q_FIRST]
    start = (at + RECORD_WORDS) * WORD
    store.buffer[start if end == 0 else start + len(body) - 1] ^= 1
    with pytest.raises(CorruptStore):
        take(store, "c")


def test_a_large_message_arrives_whole() -> None:
    store = make_store(message_memory=1024 * KIB, max_message_size=512 * KIB)
    body = bytes(range(256)) * 1200
    assert put(store, "c", body) == 0
    assert drain(store, "c") == [body]
