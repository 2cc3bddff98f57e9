"""Processes: which queues they own, what happens when they die or detach, and upkeep."""

from __future__ import annotations

import pytest

from asgi_ipc.errors import CorruptStore
from asgi_ipc.store.groups import Groups
from asgi_ipc.store.layout import (
    DEAD_OWNER,
    MAX_PROCESSES,
    P_DEAD_SINCE,
    P_GENERATION,
    P_PID,
    P_UID,
    PROCESS_WORDS,
    Q_NEXT_OWNED,
    Q_OWNER,
    R_GENERATION,
    S_COUNTER,
    S_DROPS,
)
from asgi_ipc.store.queues import Target
from asgi_ipc.store.store import Store

from ..support import (
    FOREVER,
    KIB,
    NOW,
    assert_whole,
    bodies,
    contents,
    drain,
    make_store,
    owned,
    process,
    put,
    row_of,
    sweep_all,
    target,
    touches,
)

EXPIRY = 60.0


def bury(store: Store, dead: int, now: float, expiry: float = EXPIRY) -> bool:
    """Bury until there is no more to do now; whether the row is then free."""
    for _ in range(1000):
        if store.bury(dead, now, expiry):
            return True
        if not store.words[dead + P_DEAD_SINCE] or not contents(store).owners:
            continue
        if now - store.doubles[dead + P_DEAD_SINCE] < expiry:
            return False
    raise AssertionError("the burial does not end")


# -- attaching ------------------------------------------------------------------------------------


def test_a_process_has_a_row_with_a_generation_of_its_own() -> None:
    store = make_store()
    rows = [store.attach(index, 100 + index, 1000, NOW) for index in (0, 5, MAX_PROCESSES - 1)]
    assert rows == [store.process_row(index) for index in (0, 5, MAX_PROCESSES - 1)]
    assert [store.words[row + P_PID] for row in rows] == [100, 105, 100 + MAX_PROCESSES - 1]
    assert [store.words[row + P_UID] for row in rows] == [1000] * 3
    assert len({store.words[row + P_GENERATION] for row in rows}) == 3


def test_the_counter_never_gives_a_value_twice() -> None:
    store = make_store()
    values = [store.advance_counter() for _ in range(100)]
    assert values == sorted(set(values))
    assert store.words[S_COUNTER] == values[-1]


def test_references_that_lead_to_no_process_are_corrupt() -> None:
    store = make_store()
    first = store.layout.processes
    for wrong in (0, first - 8, first + 1, first + MAX_PROCESSES * PROCESS_WORDS, 2**64 - 1):
        with pytest.raises(CorruptStore):
            store.checked_process(wrong)


# -- ownership ------------------------------------------------------------------------------------


def test_the_first_to_receive_owns_the_queue() -> None:
    store = make_store()
    first, second = process(store, 0), process(store, 1)
    row = row_of(store, "x!")
    assert store.own(row, first) == 0
    assert store.own(row, first) == 0
    assert store.own(row, second) == first
    assert contents(store).owners == {b"x!": 100}
    assert_whole(store)


def test_a_process_owns_many_queues() -> None:
    store = make_store()
    owner = process(store, 0)
    for i in range(10):
        owned(store, f"x{i}!", owner)
    assert contents(store).owners == {b"x%d!" % i: 100 for i in range(10)}
    assert_whole(store)


def test_the_queue_of_a_dead_process_can_be_owned_by_another() -> None:
    store = make_store()
    dead, heir = process(store, 0), process(store, 1)
    for name in ("x!", "y!", "z!"):
        owned(store, name, dead)
    store.bury(dead, NOW, EXPIRY)
    assert store.own(row_of(store, "y!"), heir) == 0
    assert contents(store).owners == {b"x!": 100, b"y!": 101, b"z!": 100}
    assert_whole(store)


def test_a_process_that_came_later_with_the_same_id_does_not_own_what_the_first_did() -> None:
    store = make_store()
    row = owned(store, "x!", process(store, 0))
    bury(store, store.process_row(0), NOW, 0.0)
    later = process(store, 0)
    assert not store.queues.find(b"x!")
    other = process(store, 1)
    assert store.own(row_of(store, "x!"), other) == 0
    assert store.own(row_of(store, "x!"), later) == other
    assert row == row_of(store, "x!")


def test_the_reader_of_a_queue_is_its_living_owner() -> None:
    store = make_store()
    owner, other = process(store, 0), process(store, 1)
    assert store.find_reader(target("x!")) == 0
    row_of(store, "x!")
    assert store.find_reader(target("x!")) == 0
    owned(store, "x!", owner)
    owned(store, "y!", other)
    assert store.find_reader(target("x!1")) == owner
    store.bury(owner, NOW, EXPIRY)
    assert store.find_reader(target("x!1")) == 0
    store.leave(other, NOW)
    assert store.find_reader(target("y!1")) == 0


def test_an_owner_whose_row_belongs_to_another_process_is_none() -> None:
    store = make_store()
    row = owned(store, "x!", process(store, 0))
    process(store, 0)
    assert store.owner(row) == store.find_reader(target("x!")) == 0


# -- death ----------------------------------------------------------------------------------------


def test_what_waits_for_a_dead_process_is_dropped_at_once() -> None:
    store = make_store()
    dead = process(store, 0)
    owned(store, "x!", dead)
    for i in range(5):
        put(store, f"x!{i}")
    put(store, "c", b"stays")
    assert store.bury(dead, NOW, EXPIRY)
    assert store.words[dead + P_GENERATION] != 0
    assert list(contents(store).messages) == [b"c"]
    assert store.words[S_DROPS + DEAD_OWNER] == 5
    assert_whole(store)


def test_the_memberships_of_a_dead_process_last_until_expiry() -> None:
    """They last at least until a message to them expires unread (A6)."""
    store = make_store()
    groups = Groups(store)
    dead = process(store, 0)
    owned(store, "x!", dead)
    groups.add(b"g", b"x!a", NOW, FOREVER)
    groups.add(b"g", b"alive", NOW, FOREVER)
    assert store.bury(dead, NOW, EXPIRY)
    assert store.bury(dead, NOW + EXPIRY - 1, EXPIRY)
    assert groups.channels(b"g", NOW + EXPIRY - 1) == ["x!a", "alive"]
    assert store.bury(dead, NOW + EXPIRY, EXPIRY)
    assert groups.channels(b"g", NOW + EXPIRY) == ["alive"]
    assert store.words[dead + P_GENERATION] == 0
    assert_whole(store)


def test_a_message_that_expires_unread_ends_the_memberships_of_a_dead_process_sooner() -> None:
    store = make_store()
    groups = Groups(store)
    dead = process(store, 0)
    owned(store, "x!", dead)
    groups.add(b"g", b"x!a", NOW, FOREVER)
    store.bury(dead, NOW, EXPIRY)
    put(store, "x!a", now=NOW + 1, expires=NOW + 2)
    store.sweep(NOW + 3)
    assert bury(store, dead, NOW + 3)
    assert groups.channels(b"g", NOW + 3) == []


def test_a_message_that_expires_in_the_queue_of_a_living_process_ends_nothing() -> None:
    store = make_store()
    groups = Groups(store)
    owned(store, "x!", process(store, 0))
    groups.add(b"g", b"x!a", NOW, FOREVER)
    put(store, "x!a", expires=NOW + 1)
    store.sweep(NOW + 2)
    assert store.words[store.process_row(0) + P_DEAD_SINCE] == 0
    assert groups.channels(b"g", NOW + 2) == ["x!a"]


def test_messages_that_come_after_the_death_are_dropped_too() -> None:
    store = make_store()
    dead = process(store, 0)
    owned(store, "x!", dead)
    store.bury(dead, NOW, EXPIRY)
    put(store, "x!a", b"too late")
    store.bury(dead, NOW + 1, EXPIRY)
    assert contents(store).messages == {}
    assert store.words[S_DROPS + DEAD_OWNER] == 1


def test_a_queue_without_memberships_goes_with_its_owner() -> None:
    store = make_store()
    dead = process(store, 0)
    owned(store, "x!", dead)
    put(store, "x!a")
    assert bury(store, dead, NOW, 0.0)
    assert not store.queues.find(b"x!")
    assert_whole(store)


def test_targets_of_a_queue_whose_owner_is_gone_do_not_reach_the_next_owner_by_the_old_row() -> (
    None
):
    store = make_store()
    groups = Groups(store)
    dead = process(store, 0)
    row = owned(store, "x!", dead)
    groups.add(b"g", b"x!a", NOW, FOREVER)
    generation = store.words[row + R_GENERATION]
    bury(store, dead, NOW, 0.0)
    fixed = store.fix(Target(b"x!", b"a", 10), row, generation)
    assert store.put(fixed, b"for the dead", NOW) < 0


def test_ghosts_are_swept_and_the_row_is_free_in_the_end() -> None:
    store = make_store()
    groups = Groups(store)
    dead = process(store, 0)
    owned(store, "x!", dead)
    for i in range(20):
        groups.add(b"g%d" % (i % 3), b"x!%d" % i, NOW, FOREVER)
    bury(store, dead, NOW, 0.0)
    sweep_all(store, NOW + 1000)
    assert store.members.used == store.groups.used == 0
    sweep_all(store, NOW + 2000)
    assert store.queues.used == 0
    assert_whole(store)


def test_what_others_own_is_left_alone() -> None:
    store = make_store()
    groups = Groups(store)
    dead, alive = process(store, 0), process(store, 1)
    owned(store, "x!", dead)
    owned(store, "y!", alive)
    put(store, "y!a", b"stays")
    groups.add(b"g", b"y!a", NOW, FOREVER)
    assert bury(store, dead, NOW, 0.0)
    assert bodies(store, "y!") == [b"stays"]
    assert groups.channels(b"g", NOW) == ["y!a"]
    assert contents(store).owners == {b"y!": 101}


def test_a_burial_is_done_in_bounded_parts() -> None:
    def cost(messages: int, queues: int) -> int:
        store = make_store(message_memory=1024 * KIB, first_mark=512 * KIB)
        dead = process(store, 0)
        for i in range(queues):
            owned(store, f"x{i}!", dead)
        for i in range(messages):
            put(store, f"x{i % queues}!a", b"", capacity=1 << 30)
        return touches(store, lambda store: store.bury(dead, NOW, 0.0))

    assert cost(5000, 1) <= cost(500, 1) + 10
    assert cost(1000, 1000) <= 2 * cost(500, 500)


def test_a_burial_of_many_messages_and_queues_comes_to_an_end() -> None:
    store = make_store(message_memory=1024 * KIB, first_mark=512 * KIB)
    dead = process(store, 0)
    for i in range(300):
        owned(store, f"x{i}!", dead)
        for _ in range(5):
            put(store, f"x{i}!a", b"")
    assert bury(store, dead, NOW, 0.0)
    assert contents(store) == ({}, {}, {})
    assert_whole(store)


@pytest.mark.parametrize("since", [float("nan"), float("inf"), NOW + 1e9])
def test_a_time_of_death_that_cannot_be_is_taken_for_now(since: float) -> None:
    store = make_store()
    dead = process(store, 0)
    owned(store, "x!", dead)
    store.doubles[dead + P_DEAD_SINCE] = since
    store.bury(dead, NOW, EXPIRY)
    assert store.words[dead + P_GENERATION] and store.doubles[dead + P_DEAD_SINCE] == NOW
    store.bury(dead, NOW + EXPIRY, EXPIRY)
    assert not store.words[dead + P_GENERATION]


def test_a_loop_in_the_list_of_queues_is_a_corrupt_store() -> None:
    store = make_store()
    dead = process(store, 0)
    first, second = owned(store, "x!", dead), owned(store, "y!", dead)
    store.words[first + Q_NEXT_OWNED] = second
    for expiry in (EXPIRY, 0.0):
        with pytest.raises(CorruptStore):
            store.bury(dead, NOW, expiry)


def test_a_row_that_is_free_is_buried_already() -> None:
    store = make_store()
    assert store.bury(store.process_row(3), NOW, EXPIRY)


# -- leaving --------------------------------------------------------------------------------------


def test_a_process_that_leaves_owning_nothing_frees_its_row() -> None:
    store = make_store()
    row = process(store, 0)
    store.leave(row, NOW)
    assert store.words[row + P_GENERATION] == 0


def test_what_waits_for_a_process_that_left_stays_until_expiry() -> None:
    """It may attach again and go on receiving."""
    store = make_store()
    row = process(store, 0)
    owned(store, "x!", row)
    put(store, "x!a", b"waits")
    store.leave(row, NOW)
    store.bury(row, NOW + 1, EXPIRY)
    assert bodies(store, "x!") == [b"waits"]
    back = process(store, 1)
    assert store.own(row_of(store, "x!"), back) == 0
    store.bury(row, NOW + EXPIRY, EXPIRY)
    assert bodies(store, "x!") == [b"waits"]
    assert contents(store).owners == {b"x!": 101}
    assert_whole(store)


def test_what_waits_for_a_process_that_left_and_does_not_come_back_goes() -> None:
    store = make_store()
    row = process(store, 0)
    queue = owned(store, "x!", row)
    put(store, "x!a", b"waits")
    store.leave(row, NOW)
    assert bury(store, row, NOW + EXPIRY)
    assert contents(store).messages == {}
    assert store.words[queue + Q_OWNER] == 0
    assert store.words[row + P_GENERATION] == 0


# -- upkeep ---------------------------------------------------------------------------------------


def test_a_fresh_store_holds_nothing_and_needs_no_upkeep() -> None:
    store = make_store()
    assert contents(store) == ({}, {}, {})
    assert not store.sweep(NOW)
    assert_whole(store)


def test_a_sweep_says_whether_more_is_over() -> None:
    store = make_store()
    for _ in range(100):
        put(store, "unread", b"", expires=NOW + 1)
    put(store, "c", b"stays")
    rounds = 1
    while store.sweep(NOW + 1):
        rounds += 1
    assert rounds > 1
    assert drain(store, "c", NOW + 1) == [b"stays"]
    assert not store.sweep(NOW + 1)


def test_after_close_the_memory_is_released() -> None:
    store = make_store()
    put(store, "c")
    buffer = store.buffer
    store.close()
    buffer.extend(b"impossible while a view of it exists")
    with pytest.raises(ValueError, match="released"):
        store.find(target("c"))
