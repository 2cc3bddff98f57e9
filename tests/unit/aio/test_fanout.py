"""A broadcast as its sender sees it: which targets a plan becomes, and what a change costs."""

from __future__ import annotations

import pytest

from asgi_ipc.aio.fanout import Fanout
from asgi_ipc.store.groups import Groups
from asgi_ipc.store.layout import LOCAL_SEPARATOR, Q_CAPACITY
from asgi_ipc.store.plans import Planner
from asgi_ipc.store.queues import GONE, Target
from asgi_ipc.store.store import Store

from ..support import FOREVER, NOW, make_store, sweep_all

GROUP = b"chat"


class Sender:
    """What one process knows of a group."""

    def __init__(self, **capacities: int) -> None:
        self.store: Store = make_store()
        self.groups = Groups(self.store)
        self.planner = Planner(self.groups, lambda channel: capacities.get(channel[0], 100))
        self.fanout: Fanout | None = None

    def add(self, *channels: str) -> None:
        for channel in channels:
            self.groups.add(GROUP, channel.encode(), NOW, FOREVER)

    def targets(self) -> list[Target]:
        known = None if self.fanout is None else self.fanout.plan
        plan = self.planner.plan(GROUP, NOW, known)
        assert plan is not None
        if self.fanout is None or self.fanout.plan is not plan:
            self.fanout = Fanout(plan, 60.0)
        self.fanout.update(self.store)
        return self.fanout.targets


def reached(targets: list[Target]) -> set[tuple[bytes, bytes]]:
    """Queue and local part of every member, each of which must be reached once."""
    found = [
        (target.queue, local)
        for target in targets
        for local in target.local_parts.split(LOCAL_SEPARATOR)
    ]
    assert len(found) == len(set(found))
    return set(found)


def test_a_queue_is_one_target_whatever_the_number_of_its_members() -> None:
    sender = Sender()
    sender.add("plain", "p!1", "p!2", "p!3")
    targets = sender.targets()
    assert sorted(target.queue for target in targets) == [b"p!", b"plain"]
    assert reached(targets) == {(b"plain", b""), (b"p!", b"1"), (b"p!", b"2"), (b"p!", b"3")}


def test_more_local_parts_than_a_record_holds_are_several_targets() -> None:
    sender = Sender()
    sender.store.layout.max_locals = 100
    names = [f"p!socket{number:05}" for number in range(40)]
    sender.add(*names)
    targets = sender.targets()
    assert len(targets) > 4 and max(target.local_length for target in targets) <= 100
    assert reached(targets) == {(b"p!", name[2:].encode()) for name in names}


def test_a_broadcast_goes_by_the_smallest_capacity_and_shows_it_to_onlookers() -> None:
    sender = Sender(p=7)
    sender.add("p!1", "p!2")
    [target] = sender.targets()
    assert target.capacity == sender.store.words[sender.store.queues.find(b"p!") + Q_CAPACITY] == 7


def test_only_the_queues_that_changed_get_new_targets() -> None:
    sender = Sender()
    sender.add("a", "b", "p!1")
    before = sender.targets()
    kept = {target.queue: target for target in before}
    sender.add("p!2", "c")
    after = sender.targets()
    assert reached(after) >= {(b"p!", b"1"), (b"p!", b"2"), (b"c", b"")}
    assert {target.queue for target in after if target is kept.get(target.queue)} == {b"a", b"b"}
    # Who is half way through a broadcast goes on with the list that it has.
    assert reached(before) == {(b"a", b""), (b"b", b""), (b"p!", b"1")}


@pytest.mark.parametrize("gone", ["a", "p!1"])
def test_a_member_that_left_is_no_target(gone: str) -> None:
    sender = Sender()
    sender.add("a", "b", "p!1")
    sender.targets()
    sender.groups.discard(GROUP, gone.encode())
    queue, mark, local = gone.encode().partition(b"!")
    assert (queue + mark, local) not in reached(sender.targets())
    assert len(sender.targets()) == 2


def test_a_queue_that_is_gone_is_not_made_again() -> None:
    sender = Sender()
    sender.add("a")
    [target] = sender.targets()
    sender.groups.discard(GROUP, b"a")
    sweep_all(sender.store, NOW + 1000)
    assert sender.store.put(target, b"body", NOW + 1000) == GONE
    assert not sender.store.queues.find(b"a")
