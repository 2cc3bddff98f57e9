"""The plan of a broadcast: where it leads, how long it holds, and how it is updated."""

from __future__ import annotations

import pytest

from asgi_ipc.errors import CorruptStore
from asgi_ipc.options import UnknownCapacity
from asgi_ipc.store import recovery
from asgi_ipc.store.groups import Groups
from asgi_ipc.store.layout import DIRTY, G_RECENT, G_VERSION, R_GENERATION, RECENT_CHANGES, S_DIRTY
from asgi_ipc.store.plans import Plan, Planner

from ..support import (
    FOREVER,
    KIB,
    NOW,
    make_store,
    owned,
    planned,
    process,
    put,
    reached,
    row_of,
    touches,
)

SOON = NOW + 60


class Broadcasts:
    """Groups, and a sender that keeps its plan for one of them."""

    def __init__(self, **sizes: int) -> None:
        self.groups = Groups(make_store(**sizes))
        self.store = self.groups.store
        self.planner = Planner(self.groups, lambda channel: 10 * len(channel))
        self.plan: Plan | None = None

    def join(self, *channels: str, expires: float = FOREVER) -> None:
        for channel in channels:
            self.groups.add(b"g", channel.encode(), NOW, expires)

    def leave(self, *channels: str) -> None:
        for channel in channels:
            self.groups.discard(b"g", channel.encode())

    def send(self, now: float = NOW) -> set[str]:
        """The channels that a broadcast reaches by the plan that is kept."""
        self.plan = self.planner.plan(b"g", now, self.plan)
        found = reached(self.groups, self.plan)
        assert found == planned(self.groups, "g", now)
        return found

    def holds(self, now: float = NOW) -> bool:
        assert self.plan is not None
        return self.planner.current(self.plan, now)

    def parts(self, queue: str) -> set[bytes]:
        assert self.plan is not None
        return set(self.plan.channels[queue.encode()][2])


@pytest.fixture
def broadcasts() -> Broadcasts:
    return Broadcasts()


# -- where it leads -------------------------------------------------------------------------------


def test_it_names_each_queue_once_with_its_local_parts(broadcasts: Broadcasts) -> None:
    broadcasts.join("a", "x!1", "x!2", "y!1", "x!3")
    broadcasts.send()
    assert broadcasts.plan is not None and set(broadcasts.plan.channels) == {b"a", b"x!", b"y!"}
    assert broadcasts.parts("x!") == {b"1", b"2", b"3"}
    assert broadcasts.parts("y!") == {b"1"} and broadcasts.parts("a") == {b""}


def test_it_leads_to_the_rows_of_its_queues(broadcasts: Broadcasts) -> None:
    broadcasts.join("a", "x!1")
    broadcasts.send()
    assert broadcasts.plan is not None
    for name in ("a", "x!"):
        row, generation, _ = broadcasts.plan.channels[name.encode()]
        assert row == row_of(broadcasts.store, name)
        assert generation == broadcasts.store.words[row + R_GENERATION]


def test_it_knows_the_capacity_of_each_member(broadcasts: Broadcasts) -> None:
    broadcasts.join("x!1", "x!long")
    broadcasts.send()
    assert broadcasts.plan is not None
    assert broadcasts.plan.channels[b"x!"][2] == {b"1": 30, b"long": 60}


def test_it_asks_for_capacities_that_are_not_known_all_at_once(broadcasts: Broadcasts) -> None:
    broadcasts.join("x!1", "x!2", "y!1")
    known = {"x!1": 5}
    planner = Planner(broadcasts.groups, known.get)
    with pytest.raises(UnknownCapacity) as asked:
        planner.plan(b"g", NOW)
    assert sorted(asked.value.channels) == ["x!2", "y!1"]
    known.update({"x!2": 6, "y!1": 7})
    plan = planner.plan(b"g", NOW)
    assert plan is not None
    assert plan.channels[b"x!"][2] == {b"1": 5, b"2": 6} and plan.channels[b"y!"][2] == {b"1": 7}
    broadcasts.join("y!2")
    with pytest.raises(UnknownCapacity):
        planner.plan(b"g", NOW, plan)
    assert not planner.current(plan, NOW)
    known["y!2"] = 8
    assert planner.plan(b"g", NOW, plan) is plan and planner.current(plan, NOW)
    assert plan.channels[b"y!"][2] == {b"1": 7, b"2": 8}


def test_it_leaves_out_whose_time_is_over(broadcasts: Broadcasts) -> None:
    broadcasts.join("a", "x!1", expires=SOON)
    broadcasts.join("b", "x!2")
    assert broadcasts.send(SOON) == {"b", "x!2"}


def test_without_living_members_there_is_none(broadcasts: Broadcasts) -> None:
    assert broadcasts.planner.plan(b"g", NOW) is None
    broadcasts.join("a", expires=SOON)
    assert broadcasts.planner.plan(b"g", SOON) is None


# -- how long it holds ----------------------------------------------------------------------------


def test_it_holds_until_somebody_joins_leaves_or_runs_out(broadcasts: Broadcasts) -> None:
    broadcasts.join("a", "b")
    broadcasts.join("c", expires=SOON)
    broadcasts.send()
    broadcasts.groups.add(b"other", b"a", NOW, FOREVER)
    put(broadcasts.store, "a")
    assert broadcasts.holds() and broadcasts.holds(SOON - 1) and not broadcasts.holds(SOON)
    broadcasts.join("d")
    assert not broadcasts.holds()
    broadcasts.send()
    assert broadcasts.holds()
    broadcasts.leave("d")
    assert not broadcasts.holds()


def test_renewing_keeps_it(broadcasts: Broadcasts) -> None:
    broadcasts.join("a", "b")
    broadcasts.send()
    broadcasts.join("a")
    assert broadcasts.holds()


def test_it_does_not_hold_longer_than_a_membership_that_was_cut_short(
    broadcasts: Broadcasts,
) -> None:
    """As by another process, whose ``group_expiry`` is lower."""
    broadcasts.join("a", expires=SOON)
    assert broadcasts.send(NOW) == {"a"}
    broadcasts.join("a", expires=NOW + 1)
    assert not broadcasts.holds()
    assert broadcasts.send(NOW) == {"a"}
    assert broadcasts.send(NOW + 1) == set()


def test_it_does_not_hold_for_a_group_that_was_made_again(broadcasts: Broadcasts) -> None:
    broadcasts.join("a")
    broadcasts.send()
    broadcasts.leave("a")
    broadcasts.join("a")
    assert not broadcasts.holds()
    assert broadcasts.send() == {"a"}


def test_recovery_ends_it(broadcasts: Broadcasts) -> None:
    """A process may have died between a change and the note of it."""
    broadcasts.join("a", "b")
    broadcasts.send()
    before = broadcasts.plan
    broadcasts.store.words[S_DIRTY] = DIRTY
    recovery.recover(broadcasts.store, NOW)
    assert not broadcasts.holds()
    assert broadcasts.send() == {"a", "b"} and broadcasts.plan is not before


# -- how it is updated ----------------------------------------------------------------------------


def test_joins_and_leaves_are_followed(broadcasts: Broadcasts) -> None:
    broadcasts.join("a", "x!1", "x!2")
    broadcasts.send()
    before = broadcasts.plan
    broadcasts.join("x!3", "b")
    broadcasts.leave("x!1", "a")
    assert broadcasts.send() == {"b", "x!2", "x!3"}
    assert broadcasts.plan is before


def test_members_that_come_and_go_in_between_are_followed(broadcasts: Broadcasts) -> None:
    broadcasts.join("stays")
    broadcasts.send()
    broadcasts.join("x!1")
    broadcasts.leave("x!1")
    broadcasts.join("x!2")  # it gets the row of x!1
    assert broadcasts.send() == {"stays", "x!2"}
    broadcasts.leave("x!2")
    broadcasts.groups.add(b"other", b"a", NOW, FOREVER)  # and another group's member gets it
    assert broadcasts.send() == {"stays"}


def test_an_expired_member_that_joins_again_is_followed(broadcasts: Broadcasts) -> None:
    broadcasts.join("a")
    broadcasts.join("b", expires=SOON)
    assert broadcasts.send(SOON) == {"a"}
    broadcasts.groups.add(b"g", b"b", SOON, FOREVER)
    assert broadcasts.send(SOON) == {"a", "b"}


def test_ghosts_go_when_another_takes_over_their_queue(broadcasts: Broadcasts) -> None:
    store = broadcasts.store
    dead = process(store, 0)
    owned(store, "x!", dead)
    broadcasts.join("x!1", "x!2", "alive")
    broadcasts.send()
    while not store.bury(dead, NOW, 0.0):
        pass
    assert broadcasts.send() == {"alive"}
    owned(store, "x!", process(store, 1))
    broadcasts.join("x!3")
    assert broadcasts.send() == {"alive", "x!3"}


@pytest.mark.parametrize("changes", [RECENT_CHANGES, RECENT_CHANGES + 1, 3 * RECENT_CHANGES])
def test_a_plan_that_is_far_behind_is_made_again(broadcasts: Broadcasts, changes: int) -> None:
    broadcasts.join("x!first")
    broadcasts.send()
    before = broadcasts.plan
    names = {f"x!{i}" for i in range(changes)}
    broadcasts.join(*names)
    assert broadcasts.send() == {"x!first", *names}
    assert (broadcasts.plan is before) == (changes == RECENT_CHANGES)


def test_what_changed_is_told_once(broadcasts: Broadcasts) -> None:
    broadcasts.join("a", "x!1", "y!1")
    broadcasts.send()
    assert broadcasts.plan is not None
    assert broadcasts.plan.changed == {b"a", b"x!", b"y!"}
    broadcasts.plan.changed.clear()
    broadcasts.join("x!2")
    broadcasts.leave("a")
    broadcasts.send()
    assert broadcasts.plan.changed == {b"a", b"x!"}


def test_an_interruption_in_the_middle_changes_nothing(broadcasts: Broadcasts) -> None:
    """A signal handler raises: the plan still has the old version, and the update can be repeated
    with the same result."""
    broadcasts.join("a", "x!1")
    broadcasts.send()
    broadcasts.join("x!2", "x!3")
    broadcasts.leave("x!1")
    calls = 0

    def interrupting(channel: str) -> int:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return 100

    planner = Planner(broadcasts.groups, interrupting)
    with pytest.raises(KeyboardInterrupt):
        planner.plan(b"g", NOW, broadcasts.plan)
    assert not broadcasts.holds()
    assert broadcasts.send() == {"a", "x!2", "x!3"}


# -- what it costs --------------------------------------------------------------------------------


def test_making_one_costs_what_its_group_has_members_and_no_more() -> None:
    def cost(others: int) -> int:
        broadcasts = Broadcasts(group_memory=512 * KIB)
        broadcasts.join(*[f"a{i}" for i in range(5)])
        for i in range(others):
            broadcasts.groups.add(b"g%d" % (i % 10), b"b%d" % i, NOW, FOREVER)
        return touches(broadcasts.store, lambda store: Planner(Groups(store), len).plan(b"g", NOW))

    assert cost(1000) <= cost(10) + 5


def test_following_costs_the_same_however_many_members_there_are() -> None:
    def cost(members: int) -> int:
        broadcasts = Broadcasts(group_memory=512 * KIB)
        broadcasts.join(*[f"x!{i}" for i in range(members)])
        broadcasts.send()
        broadcasts.leave("x!0")
        broadcasts.join("x!new")
        kept = broadcasts.plan
        return touches(
            broadcasts.store, lambda store: Planner(Groups(store), len).plan(b"g", NOW, kept)
        )

    assert cost(1000) <= cost(10) + 5


# -- what cannot be right -------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [3, 2**33, 2**64 - 1])
def test_a_change_that_leads_nowhere_is_corrupt(broadcasts: Broadcasts, wrong: int) -> None:
    broadcasts.join("a", "b")
    broadcasts.send()
    broadcasts.join("c")
    row = broadcasts.groups.find(b"g")
    version = broadcasts.store.words[row + G_VERSION]
    broadcasts.store.words[row + G_RECENT + version % RECENT_CHANGES] = wrong
    with pytest.raises(CorruptStore):
        broadcasts.planner.plan(b"g", NOW, broadcasts.plan)
