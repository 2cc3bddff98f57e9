"""Waiter ids, and the waiter set of each queue, which says whom to ring."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_ipc.store.layout import MAX_WAITERS, Q_WAITERS, Q_WAITING
from asgi_ipc.store.store import Store

from ..support import (
    NOW,
    assert_whole,
    examples,
    make_store,
    process,
    put,
    row_of,
    take,
    target,
    touches,
)


def queue_with(*waiter_ids: int) -> tuple[Store, int]:
    """A store, and the row of a queue where these waiter ids are parked."""
    store = make_store()
    row = row_of(store, "c")
    for waiter_id in waiter_ids:
        store.park(row, waiter_id)
    return store, row


def add(store: Store, owner: int) -> tuple[int, int]:
    taken = store.add_waiter(owner)
    assert taken is not None
    store.publish_waiter(*taken)
    return taken


# -- ids ------------------------------------------------------------------------------------------


def test_every_id_but_0_can_be_taken_and_0_stands_for_nobody() -> None:
    store = make_store()
    owner = process(store, 0)
    ids = [add(store, owner) for _ in range(MAX_WAITERS - 1)]
    assert {waiter_id for waiter_id, _ in ids} == set(range(1, MAX_WAITERS))
    assert len({generation for _, generation in ids}) == MAX_WAITERS - 1
    assert store.add_waiter(owner) is None


def test_an_id_that_was_given_back_is_taken_again_with_another_generation() -> None:
    store = make_store()
    owner = process(store, 0)
    waiter_id, generation = add(store, owner)
    store.remove_waiter(waiter_id, generation)
    assert store.waiter_generation(waiter_id) == 0
    again, another = add(store, owner)
    assert again == waiter_id and another != generation


def test_an_id_is_taken_from_the_moment_it_is_asked_for() -> None:
    store = make_store()
    owner = process(store, 0)
    first = store.add_waiter(owner)
    second = store.add_waiter(owner)
    assert first is not None and second is not None
    assert first[0] != second[0]


def test_a_waiter_has_no_generation_before_its_bell_is_open() -> None:
    store = make_store()
    taken = store.add_waiter(process(store, 0))
    assert taken is not None
    assert store.waiter_generation(taken[0]) == 0
    store.publish_waiter(*taken)
    assert store.waiter_generation(taken[0]) == taken[1]


def test_an_id_that_has_gone_to_somebody_else_is_not_given_back() -> None:
    store = make_store()
    owner = process(store, 0)
    waiter_id, old = add(store, owner)
    store.remove_waiter(waiter_id, old)
    _, new = add(store, owner)
    store.remove_waiter(waiter_id, old)
    assert store.waiter_generation(waiter_id) == new


def test_an_id_that_somebody_else_is_about_to_publish_is_not_given_back() -> None:
    store = make_store()
    owner = process(store, 0)
    waiter_id, old = add(store, owner)
    store.remove_waiter(waiter_id, old)
    taken = store.add_waiter(owner)
    assert taken is not None and taken[0] == waiter_id
    store.remove_waiter(waiter_id, old)
    other = store.add_waiter(owner)
    assert other is not None and other[0] != waiter_id


def test_the_ids_of_a_dead_process_are_free() -> None:
    store = make_store()
    dead, alive = process(store, 0), process(store, 1)
    gone = [add(store, dead), add(store, dead)]
    stays = add(store, alive)
    unpublished = store.add_waiter(dead)
    assert unpublished is not None
    store.bury(dead, NOW, 60.0)
    assert [store.waiter_generation(waiter_id) for waiter_id, _ in gone] == [0, 0]
    assert store.waiter_generation(stays[0]) == stays[1]
    ids = {add(store, alive)[0] for _ in range(3)}
    assert ids == {gone[0][0], gone[1][0], unpublished[0]}


# -- sets -----------------------------------------------------------------------------------------


def test_nobody_is_picked_from_an_empty_set() -> None:
    store, row = queue_with()
    assert store.pick(row) == 0


@pytest.mark.parametrize("waiter_id", [1, 63, 64, 65, MAX_WAITERS - 1])
def test_a_waiter_that_is_parked_is_picked_once(waiter_id: int) -> None:
    store, row = queue_with(waiter_id)
    assert store.pick(row) == waiter_id
    assert store.pick(row) == 0
    assert store.words[row + Q_WAITING] == 0


def test_parking_twice_is_parking_once() -> None:
    store, row = queue_with(5, 5)
    assert store.pick(row) == 5
    assert store.pick(row) == 0


def test_a_waiter_that_unparks_is_not_picked() -> None:
    store, row = queue_with(5, 6)
    assert store.unpark(row, 5)
    assert store.pick(row) == 6
    assert store.pick(row) == 0


def test_unparking_tells_whether_a_ring_is_under_way() -> None:
    store, row = queue_with(5)
    assert store.pick(row) == 5
    assert not store.unpark(row, 5)
    store.park(row, 5)
    assert store.unpark(row, 5)
    assert not store.unpark(row, 5)


def test_queues_have_sets_of_their_own() -> None:
    store, row = queue_with(5)
    other = row_of(store, "d")
    assert store.pick(other) == 0
    store.park(other, 6)
    assert store.pick(row) == 5
    assert store.pick(other) == 6


@pytest.mark.parametrize("number", [3, 64, 200])
def test_waiters_that_park_again_take_turns(number: int) -> None:
    waiters = set(range(1, number + 1))
    store, row = queue_with(*waiters)
    for _ in range(3):
        picked = []
        for _ in range(number):
            picked.append(store.pick(row))
            store.park(row, picked[-1])
        assert set(picked) == waiters


def test_a_bit_that_leads_nowhere_is_passed_over() -> None:
    """A process that is killed while it parks leaves the summary bit without a waiter."""
    store, row = queue_with(700)
    store.words[row + Q_WAITING] |= 0b111
    assert store.pick(row) == 700
    assert store.pick(row) == 0
    assert store.words[row + Q_WAITING] == 0


def test_a_summary_of_words_that_there_are_not_is_passed_over() -> None:
    store, row = queue_with(5)
    store.words[row + Q_WAITING] |= 1 << 63 | 1 << 16
    assert store.pick(row) == 5
    assert store.pick(row) == 0


@examples(200)
@given(
    st.lists(
        st.tuples(st.sampled_from(["park", "unpark", "pick"]), st.integers(1, MAX_WAITERS - 1)),
        max_size=60,
    )
)
def test_a_set_is_a_set(steps: list[tuple[str, int]]) -> None:
    store, row = queue_with()
    model: set[int] = set()
    for step, waiter_id in steps:
        if step == "park":
            store.park(row, waiter_id)
            model.add(waiter_id)
        elif step == "unpark":
            assert store.unpark(row, waiter_id) == (waiter_id in model)
            model.discard(waiter_id)
        else:
            picked = store.pick(row)
            assert (picked in model) if model else picked == 0
            model.discard(picked)
    left = set(iter(lambda: store.pick(row), 0))
    assert left == model
    assert not any(store.words[row + Q_WAITERS + i] for i in range(MAX_WAITERS // 64))


def test_picking_costs_the_same_whoever_waits() -> None:
    def cost(*waiters: int) -> int:
        store, row = queue_with(*waiters)
        return touches(store, lambda store: store.pick(row))

    assert max(cost(1), cost(1023), cost(*range(1, 1024))) <= 5


# -- with messages --------------------------------------------------------------------------------


def test_a_receive_parks_in_the_call_that_found_nothing() -> None:
    store = make_store()
    assert store.take(target("c"), NOW, waiter_id=7) is None
    assert put(store, "c") == 7
    assert put(store, "c") == 0


def test_a_receive_that_got_something_is_not_parked() -> None:
    store = make_store()
    put(store, "c")
    assert store.take(target("c"), NOW, waiter_id=7) == b"body"
    assert put(store, "c") == 0


def test_a_receive_that_does_not_wait_is_not_parked() -> None:
    store = make_store()
    row_of(store, "c")
    assert take(store, "c") is None
    assert put(store, "c") == 0


def test_one_message_wakes_one_waiter() -> None:
    store, row = queue_with(3, 4, 5)
    assert sorted([put(store, "c"), put(store, "c"), put(store, "c")]) == [3, 4, 5]
    assert put(store, "c") == 0


def test_a_message_that_is_refused_wakes_nobody() -> None:
    store = make_store()
    put(store, "c", capacity=1)
    row = row_of(store, "c")
    store.park(row, 3)
    assert put(store, "c", capacity=1) < 0
    assert store.pick(row) == 3


def test_a_queue_is_awaited_while_a_waiter_is_parked() -> None:
    store, row = queue_with()
    assert not store.is_awaited(row)
    store.park(row, 700)
    assert store.is_awaited(row)
    put(store, "c")
    assert not store.is_awaited(row)


def test_park_if_empty() -> None:
    store, row = queue_with()
    assert not store.park_if_empty(row, 3)
    assert put(store, "c") == 3
    assert store.park_if_empty(row, 4)
    assert put(store, "c") == 0


def test_a_ring_is_passed_on_only_while_a_message_is_pending() -> None:
    store, row = queue_with(3, 4)
    assert store.pick_if_pending(row) == 0
    first = put(store, "c")
    second = store.pick_if_pending(row)
    assert {first, second} == {3, 4}
    take(store, "c")
    store.park(row, 5)
    assert store.pick_if_pending(row) == 0


def test_a_ring_for_a_queue_that_is_gone_is_passed_on_to_nobody() -> None:
    store, row = queue_with()
    store.reclaim(NOW, 0.0, 10)
    assert store.pick_if_pending(row) == 0


def test_a_queue_at_which_somebody_waits_is_not_reclaimed() -> None:
    store, row = queue_with()
    owner = process(store, 0)
    waiter_id, _ = add(store, owner)
    store.park(row, waiter_id)
    for _ in range(3):
        store.sweep(NOW + 1000)
    assert put(store, "c") == waiter_id


def test_a_queue_at_which_only_the_dead_wait_is_reclaimed() -> None:
    store, row = queue_with()
    dead = process(store, 0)
    waiter_id, _ = add(store, dead)
    store.park(row, waiter_id)
    store.bury(dead, NOW, 60.0)
    for _ in range(3):
        store.sweep(NOW + 1000)
    assert store.queues.used == 0
    assert_whole(store)
