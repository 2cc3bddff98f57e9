"""The ring of records: where it puts them, how it makes room, and that no reader notices a move."""

from __future__ import annotations

from collections import deque
from functools import partial
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_ipc.errors import CorruptStore
from asgi_ipc.store.layout import (
    HALF_HEAD,
    HALF_TAIL,
    L_SEQ,
    L_SIZE,
    L_STATE,
    Q_FIRST,
    S_ENDS,
    S_LIVE,
    S_MARK,
    S_MOVES,
    WORD,
    record_words,
)
from asgi_ipc.store.queues import MESSAGES
from asgi_ipc.store.store import Store

from ..support import (
    FULL_LENGTH,
    KIB,
    NOW,
    Reserve,
    assert_whole,
    bodies,
    drain,
    examples,
    make_store,
    put,
    row_of,
    take,
    touches,
)

LARGEST = 1024  # bytes: the max_message_size of `make_store`


def mark(store: Store) -> int:
    """Bytes of the log that are reserved."""
    return int(store.words[S_MARK] - store.log.start) * WORD


def churn(store: Store, total: int, size: int = 500) -> None:
    """Send and receive `total` bytes through one channel, where one message is always pending."""
    for i in range(total // size):
        assert put(store, "churn", i.to_bytes(4, "big") * (size // 4)) == 0
        if i:
            assert take(store, "churn") == (i - 1).to_bytes(4, "big") * (size // 4)
    take(store, "churn")


def fill(store: Store, name: str, size: int, number: int = 1 << 30) -> int:
    """Send up to `number` messages, until memory is full; return how many were accepted."""
    for i in range(number):
        if put(store, name, bytes(size), capacity=1 << 30) < 0:
            return i
    return number


# -- where records lie ----------------------------------------------------------------------------


def test_an_empty_log_begins_at_its_start_again_after_each_message() -> None:
    """So a lightly loaded layer keeps using the same pages."""
    store = make_store()
    churn(store, 100 * KIB)
    assert store.words[S_ENDS] == store.log.empty
    put(store, "one", b"message")
    assert store.log.live_records() == [store.log.start]


def test_beside_a_stuck_message_it_keeps_using_the_same_place() -> None:
    store = make_store()
    put(store, "stuck", b"unread")
    head = store.halves[HALF_HEAD]
    for _ in range(100):
        put(store, "c", bytes(500))
        take(store, "c")
        assert store.halves[HALF_HEAD] == head
    assert store.words[S_MOVES] == 0


def test_a_record_takes_what_its_body_and_local_parts_need() -> None:
    store = make_store()
    for size in (0, 1, 8, 15, 16, 17, 100):
        put(store, "x!local", b"b" * size)
    sizes = [store.halves[2 * at + L_SIZE] for at in store.log.live_records()]
    assert sizes == [record_words(size, 5) for size in (0, 1, 8, 15, 16, 17, 100)]


def test_records_never_overlap_and_stay_inside_the_log() -> None:
    store = make_store()
    for i in range(200):
        put(store, f"channel{i % 7}", bytes(i * 37 % 1000))
        if i % 3 == 2:
            take(store, f"channel{i % 5}")
        places = sorted((at, at + store.halves[2 * at + L_SIZE]) for at in store.log.live_records())
        for (_, end), (start, _) in zip(places, places[1:]):
            assert end <= start
        assert places[0][0] >= store.log.start and places[-1][1] <= store.words[S_MARK]


def test_nothing_is_written_where_no_memory_is_reserved() -> None:
    reserve = Reserve()
    store = make_store(reserve=reserve)
    for i in range(300):
        put(store, f"channel{i}", bytes([255]) * (i * 31 % 1000))
    end = max(offset + length for offset, length in reserve.granted)
    assert any(offset >= store.log.start * WORD for offset, _ in reserve.granted)
    touched = bytearray(store.buffer)
    touched[: store.layout.fixed_bytes] = bytes(store.layout.fixed_bytes)
    first = store.log.start * WORD
    for offset, length in [*reserve.granted, (first, 4 * KIB)]:
        touched[offset : offset + length] = bytes(length)
    assert not any(touched)
    assert end <= store.layout.size


# -- wrapping and moving --------------------------------------------------------------------------


def test_a_stuck_message_is_carried_along() -> None:
    store = make_store()
    put(store, "stuck", b"unread")
    churn(store, 100 * KIB)
    assert store.words[S_MOVES] > 0
    assert_whole(store)
    assert drain(store, "stuck") == [b"unread"]


def test_a_stuck_message_does_not_walk_the_ring_through_all_memory() -> None:
    store = make_store(message_memory=1024 * KIB, first_mark=64 * KIB)
    put(store, "stuck", b"unread")
    churn(store, 3 * 1024 * KIB)
    assert mark(store) == 64 * KIB


def test_messages_that_are_stuck_in_many_channels_do_not_either() -> None:
    store = make_store(message_memory=1024 * KIB, first_mark=64 * KIB)
    for i in range(20):
        put(store, f"stuck{i}", b"unread %d" % i)
        churn(store, 30 * KIB)
    churn(store, 2 * 1024 * KIB)
    assert mark(store) == 64 * KIB
    assert [drain(store, f"stuck{i}") for i in range(20)] == [[b"unread %d" % i] for i in range(20)]


def test_memory_grows_only_while_more_than_half_is_alive() -> None:
    store = make_store(message_memory=1024 * KIB, first_mark=16 * KIB)
    grown = 0
    for i in range(2000):
        before = mark(store)
        assert put(store, f"c{i % 9}", bytes(200), capacity=1 << 30) == 0
        if i % 2:
            take(store, f"c{i % 4}")
        if mark(store) > before:
            grown += 1
            assert 2 * store.words[S_LIVE] * WORD > before - 4 * LARGEST
    assert grown


def test_a_move_keeps_sequence_number_place_and_body() -> None:
    store = make_store()
    for i in range(5):
        put(store, "kept", b"kept %d" % i)
    row = row_of(store, "kept")
    before = store.words[row + Q_FIRST]
    sequence = [store.words[at + L_SEQ] for at in sorted(store.log.live_records())]
    churn(store, 64 * KIB)
    assert store.words[S_MOVES] >= 5 and store.words[row + Q_FIRST] != before
    taken = []
    while (message := store.peek(row)) is not None:
        taken.append((message.seq, message.body))
        store.pop(row)
    assert taken == [(seq, b"kept %d" % i) for i, seq in enumerate(sequence)]


def test_moves_are_few_for_each_send() -> None:
    """At the limit of three quarters, each send copies about two others of its size."""
    store = make_store(message_memory=256 * KIB)
    number = fill(store, "0", 500)
    for i in range(number):  # spread over the channels, so that readers do not take the oldest
        take(store, "0")
        assert put(store, f"{i % 8}", bytes(500)) == 0
    before = store.words[S_MOVES]
    for i in range(3000):
        name = f"{i * i % 8}"
        if take(store, name) is not None:
            assert put(store, name, bytes(500)) == 0
    assert 0 < store.words[S_MOVES] - before <= 4 * 3000


# -- memory full ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 100, 500, 1000])
def test_message_memory_is_what_fits(size: int) -> None:
    store = make_store()
    number = fill(store, "c", size)
    assert number == store.layout.max_live // record_words(size, 0)
    assert 64 * KIB - LARGEST * 2 < number * record_words(size, 0) * WORD <= 64 * KIB


def test_full_memory_loses_nothing() -> None:
    store = make_store()
    sent = [b"%04d" % i * 100 for i in range(fill(store, "probe", 400))]
    drain(store, "probe")
    for body in sent:
        assert put(store, "c", body) == 0
    for _ in range(10):
        assert put(store, "c", bytes(400)) == MESSAGES
    assert_whole(store)
    assert drain(store, "c") == sent


def test_full_memory_takes_again_what_was_received() -> None:
    store = make_store()
    fill(store, "c", 400)
    for _ in range(500):
        assert take(store, "c") is not None
        assert put(store, "c", bytes(400)) == 0
        assert put(store, "c", bytes(400)) == MESSAGES


def test_expired_messages_make_room() -> None:
    store = make_store()
    while put(store, "brief", bytes(400), expires=NOW + 60) >= 0:
        pass
    assert put(store, "c", bytes(400), NOW + 59) == MESSAGES
    for _ in range(100):
        assert put(store, "c", bytes(400), NOW + 60) == 0
    assert len(bodies(store, "c")) == 100


@pytest.mark.parametrize("granted", [0, 4 * KIB, 20 * KIB])
def test_memory_that_cannot_be_reserved_is_like_full_memory(granted: int) -> None:
    store, number = store_that_cannot_grow(granted)
    assert 8 <= number < store.layout.max_live // record_words(100, 0)
    assert mark(store) <= 8 * KIB + granted
    assert_whole(store)
    assert drain(store, "stuck") == [b"unread" * 100]
    assert len(drain(store, "c")) == number
    assert fill(store, "c", 100) >= number


def store_that_cannot_grow(granted: int) -> tuple[Store, int]:
    """A store with a message that nobody reads and as many others as fit; and their number."""
    reserve = Reserve()
    store = make_store(reserve=reserve, first_mark=8 * KIB)
    row_of(store, "c")  # the table has its memory now
    row_of(store, "stuck")
    row_of(store, "stuck too")
    reserve.limit = granted
    put(store, "stuck", b"unread" * 100)
    return store, fill(store, "c", 100)


@pytest.mark.parametrize("granted", [0, 4 * KIB, 20 * KIB])
def test_a_log_that_cannot_grow_is_not_jammed_by_stuck_messages(granted: int) -> None:
    store, number = store_that_cannot_grow(granted)
    fill(store, "stuck too", 0)
    assert len(drain(store, "c")) == number
    for _ in range(100):
        assert put(store, "c", bytes(100)) == 0
        assert take(store, "c") is not None


def test_memory_that_comes_free_outside_is_used() -> None:
    reserve = Reserve()
    store = make_store(reserve=reserve)
    row_of(store, "c")
    reserve.limit = 0
    few = fill(store, "c", 300)
    reserve.limit = 1 << 30
    assert few + fill(store, "c", 300) == store.layout.max_live // record_words(300, 0)


# -- the largest message --------------------------------------------------------------------------


@pytest.mark.parametrize("granted", [0, 1 << 30])
def test_the_largest_message_fits_into_an_empty_log_after_any_history(granted: int) -> None:
    reserve = Reserve()
    store = make_store(reserve=reserve, first_mark=8 * KIB)
    for i in range(9):
        row_of(store, f"c{i}")
    reserve.limit = granted
    for i in range(3000):
        put(store, f"c{i % 9}", bytes(i * 53 % LARGEST))
        if i % 7:
            take(store, f"c{i * i % 9}")
        if i % 100 == 99:
            for j in range(9):
                drain(store, f"c{j}")
            assert put(store, "c0", bytes(LARGEST)) == 0
    assert_whole(store)


Step = tuple[str, int, int]


def steps() -> st.SearchStrategy[list[Step]]:
    several = st.tuples(st.sampled_from("ssst"), st.integers(0, 4), st.integers(0, LARGEST))
    return st.lists(several, max_size=400)


@examples(100)
@given(steps=steps(), granted=st.sampled_from([0, 4 * KIB, 1 << 30]))
def test_as_long_as_less_than_the_limit_lives_there_is_room(
    steps: list[Step], granted: int
) -> None:
    """Whatever the order of sizes, and even if some do not read: a send is refused only if too much
    is live, or if no memory can be reserved."""
    reserve = Reserve()
    store = make_store(reserve=reserve, first_mark=8 * KIB)
    model = [deque() for _ in range(5)]
    for i in range(5):
        row_of(store, f"c{i}")
    reserve.limit = granted
    for number, (step, channel, size) in enumerate(steps):
        if step == "s":
            body = number.to_bytes(4, "big") * (size // 4)
            if put(store, f"c{channel}", body) == 0:
                model[channel].append(body)
            else:
                over = store.words[S_LIVE] + record_words(len(body), 0) > store.layout.max_live
                assert over or granted < 1 << 30
        else:
            expected = model[channel].popleft() if model[channel] else None
            assert take(store, f"c{channel}") == expected
    assert_whole(store)
    assert [drain(store, f"c{i}") for i in range(5)] == [list(waiting) for waiting in model]
    assert put(store, "c0", bytes(LARGEST)) == 0


@pytest.mark.parametrize("seed", range(2000 if FULL_LENGTH else 200))
def test_there_is_room_after_long_histories_of_small_and_large_messages(seed: int) -> None:
    """A few large messages among many small ones, channels that nobody reads for long, and an empty
    log in between: each of these once left the tail behind a record that was too large to move."""
    random = Random(seed)
    largest = random.choice([2, 8, 32]) * KIB
    reserve = Reserve()
    store = make_store(
        reserve=reserve,
        message_memory=random.choice([64, 256]) * KIB,
        max_message_size=largest,
        first_mark=random.choice([4, 64]) * KIB,
    )
    for i in range(6):
        row_of(store, f"c{i}")
    reserve.limit = granted = random.choice([0, 64 * KIB, 1 << 30])
    names = [f"c{i}" for i in range(random.randint(1, 6))]
    large, slow = random.choice([0, 0.05, 0.5]), random.random() < 0.5
    for _ in range(1000):
        name = random.choice(names)
        if random.random() < 0.5:
            size = largest if random.random() < large else random.randint(0, 200)
            if put(store, name, bytes(size), capacity=1 << 30) < 0:
                live = store.words[S_LIVE] + record_words(size, 0)
                assert live > store.layout.max_live or granted < 1 << 30
                assert_whole(store)
                for name in names:
                    for _ in range(random.randint(0, 20)):
                        take(store, name)
        elif name != "c0" or not slow or random.random() < 0.03:
            take(store, name)


def test_a_reader_that_never_comes_does_not_jam_large_broadcasts() -> None:
    store = make_store(message_memory=1024 * KIB, max_message_size=128 * KIB)
    for _ in range(200):
        assert put(store, "large", bytes(85_000)) == 0
        assert put(store, "nobody", bytes(80)) == 0
        assert take(store, "large") == bytes(85_000)


def test_a_message_that_is_always_under_way_seldom_makes_a_send_make_room() -> None:
    store = make_store(first_mark=64 * KIB)
    calls = []
    make_room = store.log.make_room
    store.log.make_room = lambda *args: calls.append(args) or make_room(*args)
    churn(store, 10_000 * 100, size=100)
    assert len(calls) < 500


# -- bounded work ---------------------------------------------------------------------------------


def test_a_send_costs_the_same_however_much_is_queued() -> None:
    def cost(queued: int) -> int:
        store = make_store(message_memory=1024 * KIB, first_mark=2048 * KIB // 2)
        put(store, "c", b"first", capacity=1 << 30)
        for i in range(queued):
            put(store, f"other{i % 50}", b"waits", capacity=1 << 30)
        put(store, "c", b"second", capacity=1 << 30)
        return touches(store, lambda store: put(store, "c", b"x", capacity=1 << 30))

    assert cost(5000) == cost(50)


def test_a_receive_costs_the_same_however_much_is_queued() -> None:
    def cost(queued: int) -> int:
        store = make_store(message_memory=1024 * KIB, first_mark=2048 * KIB // 2)
        for i in range(queued):
            put(store, f"other{i % 50}", b"waits", capacity=1 << 30)
            put(store, "c", b"waits", capacity=1 << 30)
        return touches(store, lambda store: take(store, "c"))

    assert cost(2500) == cost(50)


@pytest.mark.parametrize("memory", [64 * KIB, 256 * KIB])
def test_the_work_of_a_send_is_bounded_whatever_the_log_looks_like(memory: int) -> None:
    """In the worst case: a log at its limit, of small live records with dead ones between them."""
    store = make_store(message_memory=memory)
    for i in range(fill(store, "a", 40)):
        take(store, "a")
        put(store, "b" if i % 2 else "a", bytes(40), capacity=1 << 30)
    worst = 0
    for i in range(400 if FULL_LENGTH else 100):
        size = LARGEST if i % 10 == 0 else 40
        take(store, "b" if i % 3 else "a")
        worst = max(worst, touches(store, partial(put, name="c", body=bytes(size))))
        put(store, "c", bytes(size))
    assert 0 < worst < 6000


# -- what cannot be right -------------------------------------------------------------------------


def test_ends_outside_the_log_are_corrupt() -> None:
    for half in (HALF_HEAD, HALF_TAIL):
        for wrong in (0, 2**32 - 1):
            store = make_store()
            store.halves[half] = wrong
            with pytest.raises(CorruptStore):
                store.log.ends()


@pytest.mark.parametrize(
    ("field", "wrong"), [(L_SIZE, 0), (L_SIZE, 3), (L_SIZE, 2**31), (L_STATE, 0), (L_STATE, 7)]
)
def test_what_is_no_record_is_corrupt(field: int, wrong: int) -> None:
    store = make_store()
    put(store, "c", b"message")
    at = store.log.live_records()[0]
    store.halves[2 * at + field] = wrong
    with pytest.raises(CorruptStore):
        store.log.size(at)
    with pytest.raises(CorruptStore):
        store.log.live_records()


def test_a_record_too_large_to_be_one_is_not_moved() -> None:
    store = make_store(message_memory=256 * KIB)
    put(store, "stuck", b"unread")
    at = store.log.live_records()[0]
    store.halves[2 * at + L_SIZE] = store.log.max_record + 2
    with pytest.raises(CorruptStore):
        churn(store, 2048 * KIB)


def test_a_log_of_records_that_overlap_its_end_is_corrupt() -> None:
    store = make_store()
    for _ in range(3):
        put(store, "c", b"message")
    last = store.log.live_records()[-1]
    store.halves[2 * last + L_SIZE] += 2
    with pytest.raises(CorruptStore):
        store.log.live_records()
