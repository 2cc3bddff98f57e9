"""Wherever a process is killed, the next holder of the lock finds every other message in its queue,
in order and once, and every membership. Most tests kill an operation at its first write, at its
second, and so on until it ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_ipc.errors import CorruptStore
from asgi_ipc.store import recovery
from asgi_ipc.store.groups import Groups
from asgi_ipc.store.layout import (
    DEAD_OWNER,
    DIRTY,
    FLUSHING,
    G_COUNT,
    G_FIRST,
    HALF_HEAD,
    L_NEXT,
    L_PREV,
    L_QUEUE,
    L_SEQ,
    L_SIZE,
    M_NEXT,
    M_PREV,
    M_QUEUE_NEXT,
    M_QUEUE_PREV,
    MAX_PROCESSES,
    P_OWNED,
    Q_FIRST,
    Q_FIRST_MEMBER,
    Q_LAST,
    Q_MEMBERS,
    Q_NEXT_OWNED,
    Q_PENDING,
    Q_WAITING,
    R_BUCKET,
    R_CHAIN,
    R_GENERATION,
    S_BIGGEST,
    S_BURY_AT,
    S_COUNTER,
    S_DIRTY,
    S_DROPS,
    S_ENDS,
    S_EPOCH,
    S_LIMIT,
    S_LIVE,
    S_MARK,
    S_MOVES,
    S_RECOVERIES,
    S_SEQ,
    S_SWEEP_AT,
    T_FREE,
    T_HIGH,
    T_USED,
)
from asgi_ipc.store.plans import Planner
from asgi_ipc.store.store import Store

from ..support import (
    FOREVER,
    LATER,
    NOW,
    Killed,
    assert_whole,
    bodies,
    busy_store,
    contents,
    copy_of,
    deaths,
    drain,
    examples,
    make_store,
    next_holder,
    process,
    put,
    row_of,
    take,
    target,
    under_watch,
)


def crowded_store() -> Store:
    """A store where the next large record wraps, and records at the tail must be moved for it."""
    store = make_store(first_mark=4096)
    process(store, 0)
    put(store, "stuck", b"stuck" * 20)
    put(store, "brief", b"brief" * 20, expires=LATER)
    while not moves(store, send_large):
        put(store, "work", b"w" * 100)
        if len(bodies(store, "work")) > 2:
            take(store, "work")
    return store


def send_large(store: Store) -> None:
    put(store, "work", b"large" * 100)


def moves(store: Store, operation: Callable[[Store], Any]) -> int:
    """How many records `operation` would move."""
    trial = copy_of(store)
    operation(trial)
    return trial.words[S_MOVES] - store.words[S_MOVES]


def single_message() -> Store:
    store = make_store()
    put(store, "only", b"last")
    return store


def tight_log() -> Store:
    store = make_store(first_mark=1024)
    put(store, "work", b"1" * 700)
    return store


def full_table() -> Store:
    """No row is left for another queue, but some can be reclaimed."""
    store = make_store(queues=8)
    for i in range(8):
        row_of(store, f"queue{i}")
    put(store, "queue3", b"stays")
    return store


def expired_at_the_limit() -> Store:
    """As much is live as possible, and some of it expires at LATER."""
    store = make_store(first_mark=64 * 1024)
    while store.words[S_LIVE] + 150 < store.layout.max_live:
        put(store, "brief", b"b" * 1000, expires=LATER)
    put(store, "work", b"stays")
    return store


OPERATIONS: dict[str, tuple[Callable[[], Store], Callable[[Store], Any]]] = {
    "send": (busy_store, lambda store: put(store, "work", b"new")),
    "send to a waiter": (busy_store, lambda store: put(store, "empty", b"new")),
    "send to a new channel": (busy_store, lambda store: put(store, "new", b"new")),
    "send of local parts": (busy_store, lambda store: put(store, "specific.b!one", b"new")),
    "send at capacity": (busy_store, lambda store: put(store, "brief", b"new", LATER, capacity=4)),
    "send that moves a record": (crowded_store, send_large),
    "send that grows the log": (tight_log, lambda store: put(store, "work", b"2" * 700)),
    "send to a new channel when rows have run out": (
        full_table,
        lambda store: put(store, "new", b"new"),
    ),
    "send when memory has run out": (
        expired_at_the_limit,
        lambda store: put(store, "work", b"n" * 1000, LATER),
    ),
    "receive": (busy_store, lambda store: take(store, "work")),
    "receive of the last": (single_message, lambda store: take(store, "only")),
    "receive past expired ones": (busy_store, lambda store: take(store, "brief", LATER)),
    "receive that parks": (busy_store, lambda store: store.take(target("new"), NOW, 7)),
    "pop": (busy_store, lambda store: store.pop(row_of(store, "specific.a!"))),
    "join": (busy_store, lambda store: Groups(store).add(b"chat", b"work", NOW, FOREVER)),
    "join of a new group": (
        busy_store,
        lambda store: Groups(store).add(b"new", b"unheard-of", NOW, FOREVER),
    ),
    "renewal": (busy_store, lambda store: Groups(store).add(b"chat", b"work", NOW, 2 * FOREVER)),
    "return of an expired member": (
        busy_store,
        lambda store: Groups(store).add(b"chat", b"specific.b!socket1", LATER, FOREVER),
    ),
    "leave": (busy_store, lambda store: Groups(store).discard(b"chat", b"specific.a!socket1")),
    "leave of the last": (busy_store, lambda store: Groups(store).discard(b"alone", b"work")),
    "own": (busy_store, lambda store: store.own(row_of(store, "empty"), store.process_row(0))),
    "attach": (busy_store, lambda store: process(store, 2)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_that_is_killed_has_happened_or_not(name: str) -> None:
    make, operation = OPERATIONS[name]
    store = make()
    before = contents(store).living(LATER)
    done = copy_of(store)
    operation(done)
    assert_whole(done)
    after = contents(done).living(LATER)
    for left in deaths(store, operation):
        next_holder(left, LATER)
        assert_whole(left)
        assert contents(left).living(LATER) in (before, after)


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_follows_a_death_works(name: str) -> None:
    make, operation = OPERATIONS[name]
    for left in deaths(make(), operation):
        next_holder(left, LATER + 1)
        groups = Groups(left)
        take(left, "work", LATER + 1)  # memory may be full
        groups.add(b"after", b"work", LATER + 1, FOREVER)
        assert put(left, "work", b"after", LATER + 1) >= 0
        assert_whole(left)
        assert drain(left, "work", LATER + 1)[-1] == b"after"
        assert groups.channels(b"after", LATER + 1) == ["work"]


UPKEEP: dict[str, Callable[[Store], Any]] = {
    "of queues": lambda store: store.sweep(LATER + 100),
    "of groups": lambda store: Groups(store).sweep(LATER, 100),
    "of the log": lambda store: store.sweep_log(100, LATER),
}


@pytest.mark.parametrize("name", UPKEEP)
def test_upkeep_that_is_killed_takes_nothing_that_lives(name: str) -> None:
    store = busy_store()
    drain(store, "work")
    before = contents(store).living(LATER)
    for left in deaths(store, UPKEEP[name]):
        next_holder(left, LATER)
        assert_whole(left)
        assert contents(left).living(LATER) == before


@pytest.mark.parametrize(("expiry", "memberships"), [(0.0, 3), (60.0, 6)])
def test_a_burial_that_is_killed_is_finished_by_the_next(expiry: float, memberships: int) -> None:
    store = busy_store()
    before = contents(store)
    del before.messages[b"specific.a!"]

    def bury(store: Store) -> None:
        store.bury(store.process_row(0), NOW, expiry)

    for left in deaths(store, bury):
        next_holder(left)
        bury(left)
        assert_whole(left)
        found = contents(left)
        assert found.messages == before.messages
        assert len(found.groups[b"chat"]) == memberships
        assert found.groups[b"alone"] == before.groups[b"alone"]
        assert found.owners[b"specific.b!"] == before.owners[b"specific.b!"]


# -- from the primary words alone -----------------------------------------------------------------

Step = tuple[int, str, int]


def histories() -> st.SearchStrategy[list[Step]]:
    names = st.sampled_from(["a", "b", "c?d", "x!1", "x!2", "y!1"])
    return st.lists(st.tuples(st.integers(0, 7), names, st.integers(0, 900)), max_size=60)


def store_of_two() -> Store:
    """An empty store with two processes."""
    store = make_store(first_mark=2048)
    process(store, 0)
    process(store, 1)
    return store


def run(store: Store, history: list[Step]) -> None:
    """Do one of eight things for each step; the number is a size, or selects something."""
    groups = Groups(store)
    for kind, name, number in history:
        group = b"group%d" % (number % 3)
        if kind < 3:
            put(store, name, bytes([number % 256]) * number)
        elif kind < 5:
            row = store.find(target(name))
            if row and store.peek(row):
                store.pop(row)
        elif kind == 5:
            groups.add(group, name.encode(), NOW, FOREVER)
        elif kind == 6:
            groups.discard(group, name.encode())
        elif "!" in name:
            store.own(row_of(store, name), store.process_row(number % 2))


DERIVED = {
    "queues": (
        *(R_BUCKET, R_CHAIN),
        *(Q_FIRST, Q_LAST, Q_PENDING, Q_NEXT_OWNED, Q_MEMBERS, Q_FIRST_MEMBER),
    ),
    "groups": (R_BUCKET, R_CHAIN, G_FIRST, G_COUNT),
    "members": (R_BUCKET, R_CHAIN, M_NEXT, M_PREV, M_QUEUE_NEXT, M_QUEUE_PREV),
}


def ruin(store: Store, value: int) -> None:
    """Overwrite all derived words."""
    words = store.words
    for at in (S_LIVE, S_BIGGEST, S_LIMIT):
        words[at] = value
    for table in (store.queues, store.groups, store.members):
        words[table.state + T_FREE] = words[table.state + T_USED] = value
        derived = DERIVED[table.what]
        for i in range(table.high):
            row = table.base + i * table.row_words
            for field in derived:
                words[row + field] = value
    for at in store.log.live_records():
        words[at + L_NEXT] = words[at + L_PREV] = value
    for index in range(MAX_PROCESSES):
        words[store.process_row(index) + P_OWNED] = value


@examples(100)
@given(history=histories(), value=st.sampled_from([0, 1, 2**40, 2**64 - 1]))
def test_recovery_needs_nothing_that_is_derived(history: list[Step], value: int) -> None:
    store = store_of_two()
    run(store, history)
    before = contents(store)
    ruin(store, value)
    store.words[S_DIRTY] = DIRTY
    recovery.recover(store, NOW)
    assert_whole(store)
    assert contents(store) == before


@examples(100)
@given(history=histories(), last=histories(), moment=st.integers(0, 400))
def test_recovery_at_a_random_moment_loses_at_most_what_was_in_hand(
    history: list[Step], last: list[Step], moment: int
) -> None:
    store = store_of_two()
    run(store, history)
    watched, _ = under_watch(store, moment)
    done = 0
    try:
        for step in last:
            run(watched, [step])
            done += 1
    except Killed:
        pass
    left = next_holder(copy_of(watched))
    assert_whole(left)
    run(store, last[:done])
    before = contents(store)
    run(store, last[done : done + 1])
    assert contents(left) in (before, contents(store))


def test_recovery_twice_is_recovery_once() -> None:
    store = busy_store()
    store.words[S_DIRTY] = DIRTY
    recovery.recover(store, NOW)
    once = contents(store)
    store.words[S_DIRTY] = DIRTY
    recovery.recover(store, NOW)
    assert_whole(store)
    assert contents(store) == once


def test_recovery_that_is_killed_is_done_again() -> None:
    store = crowded_store()
    run(store, [(5, "x!1", 1), (5, "x!2", 1), (7, "x!1", 0), (5, "work", 2)])
    before = contents(store)
    ruin(store, 1)
    store.words[S_DIRTY] = DIRTY
    for left in deaths(store, lambda store: recovery.recover(store, NOW)):
        assert left.words[S_DIRTY] == DIRTY
        recovery.recover(left, NOW)
        assert_whole(left)
        assert contents(left) == before


def test_recovery_is_counted() -> None:
    store = busy_store()
    for _ in range(3):
        store.words[S_DIRTY] = DIRTY
        next_holder(store)
    assert store.words[S_RECOVERIES] == 3


def test_recovery_empties_the_waiter_sets() -> None:
    store = busy_store()
    row = row_of(store, "empty")
    store.words[S_DIRTY] = DIRTY
    next_holder(store)
    assert store.words[row + Q_WAITING] == 0
    assert store.pick(row) == 0


def test_recovery_gives_every_group_another_version() -> None:
    """The rows in a plan that was made before may belong to other queues now."""
    store = busy_store()
    planner = Planner(Groups(store), len)
    plan = planner.plan(b"chat", NOW)
    assert plan is not None and planner.current(plan, NOW)
    store.words[S_DIRTY] = DIRTY
    next_holder(store)
    assert not planner.current(plan, NOW)


def test_sequence_numbers_and_the_counter_go_on_after_recovery() -> None:
    store = busy_store()
    sequence, counter = store.words[S_SEQ], store.words[S_COUNTER]
    store.words[S_DIRTY] = DIRTY
    next_holder(store)
    assert store.words[S_SEQ] >= sequence
    assert store.words[S_COUNTER] >= counter


def test_a_half_done_move_leaves_one_message() -> None:
    store = crowded_store()
    expected = contents(store).messages[b"stuck"]
    halves_done = 0
    for left in deaths(store, send_large):
        sequence = [left.words[at + L_SEQ] for at in left.log.live_records()]
        halves_done += len(sequence) != len(set(sequence))
        next_holder(left)
        assert_whole(left)
        assert contents(left).messages[b"stuck"] == expected
    assert halves_done, "no death came between the copy and the end of the original"


# -- what cannot be right -------------------------------------------------------------------------


def out_of_the_log(store: Store) -> None:
    store.halves[HALF_HEAD] = store.layout.log_end + 2


def record_of_no_queue(store: Store) -> None:
    store.halves[2 * store.log.live_records()[0] + L_QUEUE] = 3


def record_without_end(store: Store) -> None:
    store.halves[2 * store.log.live_records()[0] + L_SIZE] = 2**31


def record_of_no_size(store: Store) -> None:
    store.halves[2 * store.log.live_records()[0] + L_SIZE] = 0


def more_rows_than_fit(store: Store) -> None:
    store.words[store.queues.state + T_HIGH] = store.queues.max_rows + 1


def mark_beyond_the_end(store: Store) -> None:
    store.words[S_MARK] = store.layout.log_end + 2


DAMAGE = [
    out_of_the_log,
    record_of_no_queue,
    record_without_end,
    record_of_no_size,
    more_rows_than_fit,
    mark_beyond_the_end,
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_recovery_of_what_cannot_be_right_says_so_and_stays_due(damage: Any) -> None:
    store = busy_store()
    damage(store)
    store.words[S_DIRTY] = DIRTY
    for _ in range(2):
        with pytest.raises(CorruptStore):
            recovery.recover(store, NOW)
        assert store.words[S_DIRTY] == DIRTY


@pytest.mark.parametrize("damage", DAMAGE)
def test_flush_repairs_what_recovery_cannot(damage: Any) -> None:
    store = busy_store()
    damage(store)
    recovery.flush(store, NOW)
    assert_whole(store)
    put(store, "work", b"new")
    assert drain(store, "work") == [b"new"]


@pytest.mark.parametrize("word", [S_COUNTER, S_SEQ, S_RECOVERIES, S_MOVES])
def test_flush_sets_back_a_counter_that_would_soon_overflow(word: int) -> None:
    store = busy_store()
    store.words[word] = (1 << 64) - 2
    recovery.flush(store, NOW)
    assert not store.words[word] >> 62
    store.words[S_DIRTY] = DIRTY
    recovery.recover(store, NOW)
    for i in range(5):
        put(store, f"c{i}", b"new")
    assert_whole(store)


def test_no_generation_comes_twice_even_if_the_counter_was_set_back() -> None:
    store = busy_store()
    before = {store.words[row + R_GENERATION] for row in store.queues.rows()}
    store.words[S_COUNTER] = min(before) - 1
    recovery.flush(store, NOW)
    put(store, "new", b"")
    assert store.words[row_of(store, "new") + R_GENERATION] > max(before)


@pytest.mark.parametrize("word", [S_SWEEP_AT, S_BURY_AT])
def test_after_a_flush_upkeep_is_due(word: int) -> None:
    store = busy_store()
    store.doubles[word] = float("nan")
    recovery.flush(store, NOW)
    assert store.doubles[word] <= NOW


# -- flush ----------------------------------------------------------------------------------------


def test_flush_forgets_messages_groups_and_owners() -> None:
    store = busy_store()
    recovery.flush(store, NOW)
    assert_whole(store)
    assert contents(store) == ({}, {}, {})
    assert store.words[S_ENDS] == store.log.empty


def test_flush_changes_the_epoch() -> None:
    store = busy_store()
    epochs = {store.words[S_EPOCH]}
    for _ in range(3):
        recovery.flush(store, NOW)
        epochs.add(store.words[S_EPOCH])
    assert len(epochs) == 4


def test_flush_changes_an_epoch_that_was_damaged() -> None:
    """Even if it is the next one: inboxes have read it."""
    store = make_store()
    store.words[S_COUNTER] = 1 << 60  # later than now
    store.words[S_EPOCH] = damaged = store.words[S_COUNTER] + 1
    recovery.flush(store, NOW)
    assert damaged != store.words[S_EPOCH] <= store.words[S_COUNTER]


def test_flush_sets_the_counters_back() -> None:
    store = busy_store()
    store.bury(store.process_row(0), NOW, 0.0)
    assert store.words[S_DROPS + DEAD_OWNER] == 3
    recovery.flush(store, LATER)
    assert store.words[S_DROPS + DEAD_OWNER] == 0


def test_flush_leaves_processes_and_waiters() -> None:
    store = make_store()
    owner = process(store, 0)
    taken = store.add_waiter(owner)
    assert taken is not None
    store.publish_waiter(*taken)
    recovery.flush(store, NOW)
    assert store.waiter_generation(taken[0]) == taken[1]
    assert store.own(row_of(store, "x!"), owner) == 0


def test_targets_from_before_a_flush_lead_to_new_queues() -> None:
    store = make_store()
    old = target("work")
    store.put(old, b"before", NOW)
    recovery.flush(store, NOW)
    put(store, "other", b"other")  # it gets the row that was work's
    assert store.take(old, NOW) is None
    store.put(old, b"after", NOW)
    assert drain(store, "work") == [b"after"]
    assert drain(store, "other") == [b"other"]


def test_a_flush_that_is_killed_is_finished_by_recovery() -> None:
    for left in deaths(busy_store(), lambda store: recovery.flush(store, NOW)):
        begun = left.words[S_DIRTY] == FLUSHING
        next_holder(left)
        assert_whole(left)
        if begun:
            assert contents(left) == ({}, {}, {})
        else:
            assert contents(left) == contents(busy_store())


def test_a_flush_that_is_killed_again_and_again_ends() -> None:
    for once in deaths(single_message(), lambda store: recovery.flush(store, NOW), every=100):
        if once.words[S_DIRTY] == FLUSHING:
            for twice in deaths(once, lambda store: recovery.recover(store, NOW), every=100):
                assert twice.words[S_DIRTY] == FLUSHING
                next_holder(twice)
                assert_whole(twice)
                assert contents(twice) == ({}, {}, {})
