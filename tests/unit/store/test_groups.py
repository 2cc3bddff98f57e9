"""Groups: who is a member, for how long, and where a broadcast goes."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from asgi_ipc.errors import CorruptStore, LimitReached
from asgi_ipc.store import recovery
from asgi_ipc.store.groups import Groups
from asgi_ipc.store.layout import (
    BYTES_A_MEMBER,
    DIRTY,
    M_GROUP,
    M_NEXT,
    R_GENERATION,
    S_ABANDONED,
    S_COUNTER,
    S_DIRTY,
)
from asgi_ipc.store.plans import Plan, Planner
from asgi_ipc.store.store import Store

from ..support import (
    FOREVER,
    KIB,
    NOW,
    Reserve,
    assert_whole,
    contents,
    examples,
    make_store,
    owned,
    planned,
    process,
    put,
    reached,
    row_of,
    sweep_all,
)

SOON = NOW + 60


def make_groups(**sizes: int) -> Groups:
    return Groups(make_store(**sizes))


def join(groups: Groups, group: str, *channels: str, expires: float = FOREVER) -> None:
    for channel in channels:
        groups.add(group.encode(), channel.encode(), NOW, expires)


def members(groups: Groups, group: str, now: float = NOW) -> list[str]:
    return groups.channels(group.encode(), now)


# -- joining and leaving --------------------------------------------------------------------------


def test_a_channel_that_joins_is_a_member_until_it_leaves() -> None:
    groups = make_groups()
    join(groups, "g", "a", "x!1", "b?c")
    assert members(groups, "g") == ["a", "x!1", "b?c"]
    groups.discard(b"g", b"x!1")
    assert members(groups, "g") == ["a", "b?c"]
    assert_whole(groups.store)


def test_joining_twice_is_joining_once() -> None:
    groups = make_groups()
    join(groups, "g", "a", "b", "a")
    assert sorted(members(groups, "g")) == ["a", "b"]
    groups.discard(b"g", b"a")
    assert members(groups, "g") == ["b"]


def test_leaving_what_one_is_not_in_is_nothing() -> None:
    groups = make_groups()
    join(groups, "g", "a")
    before = bytes(groups.store.buffer)
    groups.discard(b"g", b"b")
    groups.discard(b"unknown", b"a")
    assert bytes(groups.store.buffer) == before


def test_a_channel_can_be_in_many_groups() -> None:
    groups = make_groups()
    for i in range(10):
        join(groups, f"g{i}", "a")
    groups.discard(b"g4", b"a")
    assert [members(groups, f"g{i}") for i in range(10)] == [
        ["a"] if i != 4 else [] for i in range(10)
    ]
    assert_whole(groups.store)


def test_nobody_is_a_member_of_an_unknown_group() -> None:
    groups = make_groups()
    assert members(groups, "unknown") == []
    assert groups.find(b"unknown") == 0


def test_a_group_goes_with_its_last_member() -> None:
    groups = make_groups()
    join(groups, "g", "a", "b")
    for name in (b"a", b"b"):
        groups.discard(b"g", name)
    assert groups.store.groups.used == groups.store.members.used == 0


# -- how long -------------------------------------------------------------------------------------


def test_a_membership_ends() -> None:
    groups = make_groups()
    join(groups, "g", "a", expires=SOON)
    join(groups, "g", "b")
    assert members(groups, "g", SOON - 0.001) == ["a", "b"]
    assert members(groups, "g", SOON) == ["b"]


def test_joining_again_renews() -> None:
    groups = make_groups()
    join(groups, "g", "a", expires=SOON)
    groups.add(b"g", b"a", SOON - 1, SOON + 60)
    assert members(groups, "g", SOON + 59) == ["a"]
    assert members(groups, "g", SOON + 60) == []


def test_joining_again_after_the_end_is_joining() -> None:
    groups = make_groups()
    join(groups, "g", "a", expires=SOON)
    groups.add(b"g", b"a", SOON + 1, FOREVER)
    assert members(groups, "g", SOON + 1) == ["a"]
    assert_whole(groups.store)


def test_memberships_that_ended_are_swept() -> None:
    groups = make_groups()
    for i in range(30):
        join(groups, f"g{i % 4}", f"a{i}", expires=SOON)
    join(groups, "g0", "stays")
    sweep_all(groups.store, SOON)
    assert groups.store.members.used == groups.store.groups.used == 1
    assert members(groups, "g0", SOON) == ["stays"]
    assert_whole(groups.store)


def test_a_queue_with_members_keeps_its_row() -> None:
    groups = make_groups()
    join(groups, "g", "a")
    sweep_all(groups.store, NOW + 10_000)
    assert members(groups, "g", NOW + 10_000) == ["a"]
    assert groups.store.queues.used == 1


@pytest.mark.parametrize("known", [True, False])
def test_a_queue_is_claimed_before_its_channel_is_a_member(known: bool) -> None:
    """If its earlier owner died, the earlier membership is a ghost, and not renewed."""
    groups = make_groups()
    store = groups.store
    dead, heir = process(store, 0), process(store, 1)
    if known:
        owned(store, "x!", dead)
        join(groups, "g", "x!1")
        store.bury(dead, NOW, 10.0)
    assert groups.add(b"g", b"x!1", NOW, FOREVER, lambda row, now: store.own(row, heir))
    assert contents(store).owners == {b"x!": 101}
    assert members(groups, "g") == ["x!1"] and planned(groups, "g") == {"x!1"}
    assert_whole(store)
    assert not groups.add(b"g", b"x!1", NOW, FOREVER, lambda row, now: store.own(row, heir))


# -- limits ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 7, 64])
def test_the_limit_is_of_memberships_however_they_are_spread(number: int) -> None:
    """4,000 fit in a megabyte, whether in one group or each in its own."""
    groups = make_groups(group_memory=64 * KIB)
    limit = 64 * KIB // BYTES_A_MEMBER
    for i in range(limit):
        join(groups, f"g{i % number}", f"a{i}")
    with pytest.raises(LimitReached, match=f"{limit} memberships in {number} groups"):
        join(groups, "g0", "one too many")
    assert_whole(groups.store)
    assert len(members(groups, "g0")) == -(-limit // number)


def test_beyond_the_limit_everything_else_goes_on() -> None:
    groups = make_groups()
    limit = groups.store.members.max_rows
    for i in range(limit):
        join(groups, "g", f"a{i}")
    before = contents(groups.store)
    for _ in range(3):
        with pytest.raises(LimitReached):
            join(groups, "g", "one too many")
        with pytest.raises(LimitReached):
            join(groups, "other", "one too many")
    assert contents(groups.store) == before
    join(groups, "g", "a5", expires=SOON)
    assert put(groups.store, "elsewhere") == 0
    groups.discard(b"g", b"a5")
    join(groups, "other", "in its place")
    assert members(groups, "other") == ["in its place"]
    assert_whole(groups.store)


def test_at_the_limit_memberships_that_ended_make_room_at_once() -> None:
    groups = make_groups()
    limit = groups.store.members.max_rows
    join(groups, "old", *[f"a{i}" for i in range(limit)], expires=SOON)
    groups.add(b"new", b"a", SOON, FOREVER)
    assert members(groups, "new", SOON) == ["a"]
    assert_whole(groups.store)


def test_at_the_limit_a_group_whose_last_member_makes_room_for_the_next_stays_a_group() -> None:
    groups = make_groups()
    limit = groups.store.members.max_rows
    join(groups, "g", "old", expires=SOON)
    join(groups, "others", *[f"a{i}" for i in range(limit - 1)])
    groups.add(b"g", b"new", SOON, FOREVER)
    assert members(groups, "g", SOON) == ["new"]
    assert_whole(groups.store)


def test_without_memory_for_rows_a_join_is_refused_and_changes_nothing() -> None:
    reserve = Reserve()
    groups = Groups(make_store(reserve=reserve))
    row_of(groups.store, "a")
    reserve.limit = 0
    before = contents(groups.store)
    with pytest.raises(LimitReached):
        join(groups, "g", "a")
    assert contents(groups.store) == before
    assert_whole(groups.store)
    reserve.limit = 1 << 30
    join(groups, "g", "a")
    assert members(groups, "g") == ["a"]


def test_without_a_row_for_its_queue_a_join_is_refused_and_changes_nothing() -> None:
    groups = Groups(make_store(queues=4))
    for i in range(4):
        put(groups.store, f"busy{i}")
    with pytest.raises(LimitReached, match="channel"):
        join(groups, "g", "new")
    assert members(groups, "g") == []
    assert_whole(groups.store)


# -- memberships that end soon --------------------------------------------------------------------


def ending(groups: Groups, queue: str, before: float) -> list[tuple[str, str]]:
    """All that end between NOW and `before`, however many calls that takes."""
    row = groups.store.queues.find(queue.encode())
    generation = groups.store.words[row + R_GENERATION]
    found, member = groups.ending(row, generation, NOW, before, 0)
    while member:
        more, member = groups.ending(row, generation, NOW, before, member)
        found += more
    return found


def test_those_of_a_queue_that_end_in_time_are_found() -> None:
    groups = make_groups()
    join(groups, "g", "x!soon", "y!soon", expires=SOON)
    join(groups, "h", "x!soon", expires=SOON)
    join(groups, "g", "x!later")
    assert ending(groups, "x!", SOON) == []
    assert sorted(ending(groups, "x!", SOON + 1)) == [("g", "x!soon"), ("h", "x!soon")]
    join(groups, "g", "x!soon")  # renewed
    assert ending(groups, "x!", SOON + 1) == [("h", "x!soon")]
    groups.add(b"h", b"x!soon", NOW - 60, NOW)  # over
    assert ending(groups, "x!", SOON + 1) == []
    assert_whole(groups.store)


def test_those_that_end_in_time_are_found_a_bounded_number_for_each_call() -> None:
    groups = make_groups(group_memory=256 * KIB)
    names = [f"x!{number}" for number in range(1000)]
    join(groups, "g", *names, expires=SOON)
    row = groups.store.queues.find(b"x!")
    generation = groups.store.words[row + R_GENERATION]
    some, member = groups.ending(row, generation, NOW, FOREVER, 0)
    assert 0 < len(some) < 1000 and member
    assert sorted(ending(groups, "x!", FOREVER)) == sorted(("g", name) for name in names)


def test_the_search_ends_where_its_queue_or_its_place_is_gone() -> None:
    groups = make_groups(group_memory=256 * KIB)
    join(groups, "g", *[f"x!{number}" for number in range(600)], expires=SOON)
    row = groups.store.queues.find(b"x!")
    generation = groups.store.words[row + R_GENERATION]
    assert groups.ending(row, generation + 1, NOW, FOREVER, 0) == ([], 0)
    _, member = groups.ending(row, generation, NOW, FOREVER, 0)
    groups.discard(b"g", groups.store.members.name(member))
    assert groups.ending(row, generation, NOW, FOREVER, member) == ([], 0)


# -- ghosts ---------------------------------------------------------------------------------------


def haunted(*channels: str) -> Groups:
    """A group with members of a process that is gone, and one living member."""
    groups = make_groups()
    store = groups.store
    dead = process(store, 0)
    owned(store, "x!", dead)
    join(groups, "g", *channels)
    while not store.bury(dead, NOW, 0.0):
        pass
    return groups


def test_nobody_sees_a_ghost() -> None:
    groups = haunted("x!1", "alive", "x!2")
    assert members(groups, "g") == ["alive"]
    assert planned(groups, "g") == {"alive"}
    assert groups.store.members.used == 3


def test_ghosts_are_swept() -> None:
    groups = haunted("x!1", "alive", "x!2")
    groups.sweep(NOW, 100)
    assert groups.store.members.used == 1
    assert members(groups, "g") == ["alive"]
    assert_whole(groups.store)


def test_a_ghost_that_joins_again_lives() -> None:
    groups = haunted("x!1", "alive")
    join(groups, "g", "x!1")
    assert sorted(members(groups, "g")) == ["alive", "x!1"]
    assert planned(groups, "g") == {"alive", "x!1"}
    groups.sweep(NOW, 100)
    assert sorted(members(groups, "g")) == ["alive", "x!1"]
    assert_whole(groups.store)


def test_ghosts_make_room_at_the_limit() -> None:
    limit = make_store().members.max_rows
    groups = haunted(*[f"x!{i}" for i in range(limit)])
    join(groups, "new", "a")
    assert members(groups, "new") == ["a"]


def test_ghosts_stay_ghosts_after_recovery() -> None:
    groups = haunted("x!1", "alive", "x!2")
    groups.store.words[S_DIRTY] = DIRTY
    recovery.recover(groups.store, NOW)
    assert members(groups, "g") == ["alive"]
    assert_whole(groups.store)


# -- abandoned channels ---------------------------------------------------------------------------


def abandon(groups: Groups, queue: str, *abandoned: str, since: int = 0) -> int:
    """Abandon channels until it is done; how many calls that took. `since`: what the counter was
    when they fell silent, by default now."""
    store = groups.store
    row, since = row_of(store, queue), since or store.words[S_COUNTER]
    found = {name.encode(): since for name in abandoned}
    at, calls = 0, 0
    while True:
        at = groups.abandon(
            row, store.words[row + R_GENERATION], lambda name: found.get(name, 0), at
        )
        calls += 1
        assert calls < 1000
        if not at:
            return calls


def test_abandon_ends_and_counts_all_memberships_of_a_channel() -> None:
    groups = make_groups()
    for i in range(5):
        join(groups, f"g{i}", "x!1", "x!2", "y!1", "x!3")
    abandon(groups, "x!", "1", "3", "unknown")
    for i in range(5):
        assert sorted(members(groups, f"g{i}")) == ["x!2", "y!1"]
    assert groups.store.words[S_ABANDONED] == 10
    assert_whole(groups.store)


def test_abandon_leaves_what_has_joined_since() -> None:
    groups = make_groups()
    join(groups, "before", "x!1")
    since = groups.store.words[S_COUNTER]
    join(groups, "after", "x!1")
    abandon(groups, "x!", "1", since=since)
    assert (members(groups, "before"), members(groups, "after")) == ([], ["x!1"])
    assert groups.store.words[S_ABANDONED] == 1


def test_abandon_does_a_bounded_part_of_the_work_in_each_call() -> None:
    groups = make_groups(group_memory=256 * KIB)
    for i in range(1000):
        join(groups, f"g{i % 3}", f"x!{i}")
    assert abandon(groups, "x!", *[str(i) for i in range(0, 1000, 2)]) > 3
    left = {name for i in range(3) for name in members(groups, f"g{i}")}
    assert left == {f"x!{i}" for i in range(1, 1000, 2)}
    assert_whole(groups.store)


def test_abandon_goes_on_when_the_member_it_stopped_at_left_meanwhile() -> None:
    groups = make_groups(group_memory=256 * KIB)
    for i in range(600):
        join(groups, "g", f"x!{i}")
    store = groups.store
    row, since = row_of(store, "x!"), store.words[S_COUNTER]
    gone = {b"%d" % i: since for i in range(600) if i % 5}

    def abandon_some(at: int) -> int:
        return groups.abandon(row, store.words[row + R_GENERATION], lambda n: gone.get(n, 0), at)

    at = abandon_some(0)
    assert at
    groups.discard(b"g", store.members.name(at))
    join(groups, "g", "another")  # which gets its row
    while at:
        at = abandon_some(at)
    assert not {f"x!{i}" for i in range(600) if i % 5} & set(members(groups, "g"))
    assert "another" in members(groups, "g")
    assert_whole(groups.store)


def test_abandon_in_a_queue_that_is_gone_does_nothing() -> None:
    groups = make_groups()
    join(groups, "g", "x!1")
    row, words = row_of(groups.store, "x!"), groups.store.words
    assert groups.abandon(row, words[row + R_GENERATION] + 1, lambda name: 1 << 60, 0) == 0
    assert members(groups, "g") == ["x!1"]
    assert words[S_ABANDONED] == 0


def test_a_flush_counts_abandoned_memberships_anew() -> None:
    groups = make_groups()
    join(groups, "g", "x!1")
    abandon(groups, "x!", "1")
    recovery.flush(groups.store, NOW)
    assert groups.store.words[S_ABANDONED] == 0


# -- against a model ------------------------------------------------------------------------------

CHANNELS = ["a", "b", "c?d", "x!1", "x!2", "y!1", "y!2"]
GROUPS = ["g", "h", "i"]
OWNERS = {"x!": 0, "y!": 1}


class AgainstDicts(RuleBasedStateMachine):
    """Joins, leaves, time, sweeps, recovery and the deaths of readers, against dicts."""

    @initialize()
    def begin(self) -> None:
        self.groups = make_groups()
        self.store: Store = self.groups.store
        self.planner = Planner(self.groups, len)
        self.plans: dict[str, Plan] = {}  # those that a sender keeps
        self.now = NOW
        self.model: dict[str, dict[str, float]] = {group: {} for group in GROUPS}
        for queue, index in OWNERS.items():
            owned(self.store, queue, process(self.store, index))

    @rule(group=st.sampled_from(GROUPS), channel=st.sampled_from(CHANNELS), life=st.floats(1, 90))
    def add(self, group: str, channel: str, life: float) -> None:
        self.groups.add(group.encode(), channel.encode(), self.now, self.now + life)
        self.model[group][channel] = self.now + life

    @rule(group=st.sampled_from(GROUPS), channel=st.sampled_from(CHANNELS))
    def discard(self, group: str, channel: str) -> None:
        self.groups.discard(group.encode(), channel.encode())
        self.model[group].pop(channel, None)

    @rule(queue=st.sampled_from(list(OWNERS)))
    def die(self, queue: str) -> None:
        """The owner of a queue has died, long ago, and another process takes its place."""
        row = self.store.process_row(OWNERS[queue])
        while not self.store.bury(row, self.now, 0.0):
            pass
        for known in self.model.values():
            for channel in [name for name in known if name.startswith(queue)]:
                del known[channel]
        owned(self.store, queue, process(self.store, OWNERS[queue]))

    @rule(queue=st.sampled_from(list(OWNERS)), local=st.sampled_from(["1", "2"]))
    def expire_socket(self, queue: str, local: str) -> None:
        abandon(self.groups, queue, local)
        for known in self.model.values():
            known.pop(queue + local, None)

    @rule(seconds=st.floats(0, 60))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(limit=st.integers(1, 20))
    def sweep(self, limit: int) -> None:
        self.groups.sweep(self.now, limit)
        self.store.sweep(self.now)

    @rule()
    def recover(self) -> None:
        self.store.words[S_DIRTY] = DIRTY
        recovery.recover(self.store, self.now)

    @invariant()
    def same(self) -> None:
        if not hasattr(self, "groups"):
            return
        assert_whole(self.store)
        for group, known in self.model.items():
            expected = {channel for channel, expires in known.items() if expires > self.now}
            found = members(self.groups, group, self.now)
            assert len(found) == len(set(found)) and set(found) == expected
            assert planned(self.groups, group, self.now) == expected
            # A plan that is kept and updated leads to the same channels.
            kept = self.planner.plan(group.encode(), self.now, self.plans.get(group))
            assert reached(self.groups, kept) == expected
            if kept is not None:
                self.plans[group] = kept


TestAgainstDicts = AgainstDicts.TestCase
TestAgainstDicts.settings = examples(60, stateful_step_count=50)


# -- what cannot be right -------------------------------------------------------------------------


def test_a_loop_of_members_is_corrupt() -> None:
    groups = make_groups()
    join(groups, "g", "a", "b")
    first, second = groups.store.members.rows()
    groups.store.words[first + M_NEXT] = second
    with pytest.raises(CorruptStore):
        members(groups, "g")
    with pytest.raises(CorruptStore):
        planned(groups, "g")


@pytest.mark.parametrize("wrong", [1, 2**32, 2**64 - 1])
def test_a_member_that_leads_nowhere_is_corrupt(wrong: int) -> None:
    groups = make_groups()
    join(groups, "g", "a", "b")
    first, second = groups.store.members.rows()
    groups.store.words[second + M_NEXT] = wrong
    with pytest.raises(CorruptStore):
        members(groups, "g")
    groups.store.words[second + M_GROUP] = wrong
    with pytest.raises(CorruptStore):
        groups.sweep(FOREVER, 10)
