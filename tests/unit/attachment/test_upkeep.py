"""What is done about once a second, and when: over a store on a bytearray, with a clock of its own.

The segment around the store is pretended. `test_attachment` has real processes that die.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from asgi_ipc.attachment import upkeep as module
from asgi_ipc.attachment.inbox import Inbox
from asgi_ipc.attachment.resources import Resources
from asgi_ipc.attachment.suspects import PATIENCE
from asgi_ipc.attachment.upkeep import (
    CHECK_EVERY,
    SWEEP_EVERY,
    SWEEP_HURRY,
    SWEEP_SOON,
    TIDY_EVERY,
    Upkeep,
)
from asgi_ipc.attachment.weak import WeakKeys
from asgi_ipc.errors import LockBusy
from asgi_ipc.store.groups import Groups
from asgi_ipc.store.layout import (
    EXPIRED,
    P_DEAD_SINCE,
    P_GENERATION,
    S_ABANDONED,
    S_BURY_AT,
    S_DROPS,
    S_EPOCH,
    S_SWEEP_AT,
)
from asgi_ipc.store.queues import Taken

from ..support import FOREVER, KIB, NOW, contents, make_store, owned, process, put

EXPIRY = 60.0
SOON = NOW + 5
NONCE = 0xABC


class World:
    """A memory, the processes that live in it, and the attachment of the one at index 0."""

    def __init__(self, folder: Path) -> None:
        self.store = make_store(message_memory=256 * KIB, group_memory=256 * KIB)
        self.folder = folder
        self.living = {0}
        self.sections = 0
        self.busy: Callable[[], bool] = lambda: False
        self.resources, self.upkeep = self.attach(0)
        self.groups = Groups(self.store)

    def attach(self, index: int) -> tuple[Resources, Upkeep]:
        self.living.add(index)
        members = SimpleNamespace(held=lambda index: index in self.living, claimed=set())
        segment: Any = SimpleNamespace(
            memory=self.store.buffer,
            layout=self.store.layout,
            reserve=lambda offset, length: True,
            shortage=lambda: "",
            ringer=lambda: None,
            members=members,
            paths=SimpleNamespace(prefix="pretended", directory=str(self.folder)),
            nonce=NONCE,
        )
        lock: Any = None
        resources = Resources("pretended", segment, index, lock)
        resources.enter(self.section, NOW)
        self.hubs: WeakKeys[Any, Any] = WeakKeys()
        return resources, Upkeep(resources, Groups(resources.store), self.hubs)

    def section(self, operation: Callable[..., Any], *args: Any) -> Any:
        if self.busy():
            raise LockBusy(1)
        self.sections += 1
        return operation(*args)

    def run(self, now: float) -> float:
        """Do what is due at `now`; seconds until the next."""
        return self.upkeep.run(now, EXPIRY, self.section) - now

    def run_everything(self, now: float) -> None:
        """The same, with everything due."""
        self.upkeep.check_at = 0.0
        self.store.doubles[S_BURY_AT] = self.store.doubles[S_SWEEP_AT] = 0.0
        self.run(now)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def about(seconds: float) -> Any:
    return pytest.approx(seconds, abs=1e-6)


# -- when -----------------------------------------------------------------------------------------


def test_an_idle_store_is_swept_once_in_a_while(world: World) -> None:
    world.run(NOW)
    assert world.store.doubles[S_SWEEP_AT] == NOW + SWEEP_EVERY
    before = world.sections
    assert world.run(NOW + 0.5) == about(SWEEP_SOON)
    assert world.sections == before


def test_a_store_with_pending_messages_is_swept_sooner(world: World) -> None:
    put(world.store, "c")
    world.run(NOW)
    assert world.store.doubles[S_SWEEP_AT] == NOW + SWEEP_SOON


def test_a_sweep_that_leaves_something_is_followed_at_once(world: World) -> None:
    for _ in range(200):
        put(world.store, "c", expires=SOON)
    world.run(NOW)
    assert world.run(SOON) == about(SWEEP_HURRY)
    now = SOON
    while contents(world.store).messages:
        now += SWEEP_HURRY
        world.run(now)
    assert world.store.words[S_DROPS + EXPIRED] == 200


def test_one_process_does_it_for_all(world: World) -> None:
    _, other = world.attach(1)
    world.run(NOW)
    before = world.sections
    other.run(NOW, EXPIRY, world.section)
    assert world.sections == before


@pytest.mark.parametrize("word", [S_SWEEP_AT, S_BURY_AT])
@pytest.mark.parametrize("damage", [float("nan"), float("inf"), NOW + 3600])
def test_a_time_that_cannot_be_is_not_waited_for(world: World, word: int, damage: float) -> None:
    world.run(NOW)
    world.store.doubles[word] = damage
    world.run(NOW + CHECK_EVERY)
    assert NOW + CHECK_EVERY < world.store.doubles[word] <= NOW + 2 * CHECK_EVERY


# -- the dead -------------------------------------------------------------------------------------


def test_a_process_that_does_not_hold_its_byte_is_buried(world: World) -> None:
    dead, _ = world.attach(1)
    owned(world.store, "x!", dead.process)
    put(world.store, "x!1")
    world.run_everything(NOW)
    assert contents(world.store).messages
    world.living.remove(1)
    world.run_everything(NOW)
    assert not contents(world.store).messages
    world.run_everything(NOW + EXPIRY)
    assert not world.store.words[dead.process + P_GENERATION]
    assert world.store.words[world.resources.process + P_GENERATION]


def test_a_process_that_attached_since_the_last_look_is_looked_at(world: World) -> None:
    world.run_everything(NOW)
    late = process(world.store, 7)  # and it is dead by now
    world.run_everything(NOW)
    assert world.store.doubles[late + P_DEAD_SINCE] == NOW


def test_what_is_left_of_the_dead_is_cleared_up_at_once(world: World) -> None:
    dead, _ = world.attach(1)
    owned(world.store, "x!", dead.process)
    for _ in range(300):
        put(world.store, "x!1")
    world.living.remove(1)
    world.run_everything(NOW)
    assert 0 < len(contents(world.store).messages[b"x!"]) < 300
    now = world.upkeep.check_at
    assert now == about(NOW + SWEEP_HURRY)
    world.run(now)
    world.run(now + SWEEP_HURRY)
    assert not contents(world.store).messages
    assert world.upkeep.check_at == about(now + SWEEP_HURRY + CHECK_EVERY)


def test_the_doorbells_of_the_dead_are_removed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, generation = world.store.add_waiter(world.resources.process) or (0, 0)
    ours, other = f"{NONCE:016x}", f"{NONCE + 1:016x}"
    kept = ["members", "attach.lock", f"{ours}.{mine}.{generation}", f"{other}.1.1"]
    stale = [f"{ours}.{mine}.{generation - 1}", f"{ours}.{mine + 1}.1", f"{ours}.9999999.1"]
    monkeypatch.setattr(module, "STALE_BELL", 3600.0)
    for name in [*kept, *stale[:2]]:
        (world.folder / name).touch()
    world.run_everything(NOW)
    assert sorted(os.listdir(world.folder)) == sorted(kept)
    monkeypatch.setattr(module, "STALE_BELL", -1.0)  # a bell of an earlier segment is old by now
    (world.folder / stale[2]).touch()
    world.run_everything(NOW + TIDY_EVERY)
    assert sorted(os.listdir(world.folder)) == sorted(kept[:3])


# -- waiters that are gone ------------------------------------------------------------------------


def test_waiter_ids_of_ended_threads_are_given_back_once_the_lock_is_free(world: World) -> None:
    taken = world.store.add_waiter(world.resources.process) or (0, 0)
    world.upkeep.orphans.append(taken)
    world.busy = lambda: True
    with pytest.raises(LockBusy):
        world.run_everything(NOW)
    assert world.upkeep.orphans == [taken]
    world.busy = lambda: False
    world.run_everything(NOW)
    assert world.upkeep.orphans == [] and not world.store.waiter_taken(taken[0])


def test_hubs_of_closed_loops_are_retired(world: World) -> None:
    retired = []

    class Loop:
        pass

    def hub(name: str, closed: bool) -> Any:
        return SimpleNamespace(closed=lambda: closed, retire=lambda: retired.append(name))

    loops = Loop(), Loop()
    world.hubs[loops[0]], world.hubs[loops[1]] = hub("open", False), hub("closed", True)
    world.run_everything(NOW)
    assert retired == ["closed"] and world.hubs.keys() == [loops[0]]


# -- messages that nobody reads -------------------------------------------------------------------


def drained(world: World, queue: str, *local_parts: str) -> Inbox:
    """An inbox with a message for each local part, which expires soon."""
    owned(world.store, queue, world.resources.process)
    inbox = world.resources.inboxes[queue] = Inbox(queue, world.resources.store)
    inbox.refresh()
    for seq, local in enumerate(local_parts, 1):
        inbox.feed(Taken(seq, SOON, local.encode(), b"m"), lambda local: 100)
    return inbox


def members(world: World, group: str) -> set[str]:
    return set(world.groups.channels(group.encode(), SOON))


def silent(world: World, since: float, times: float = PATIENCE) -> float:
    """Let so many times ``expiry`` pass in which this process looks, and nothing is received."""
    for _ in range(int(times)):
        since += EXPIRY
        world.run_everything(since)
    return since


def test_a_channel_whose_message_expired_unread_is_abandoned_much_later(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    inbox = drained(world, "x!", "gone")
    for name in (b"x!gone", b"x!there", b"y!gone"):
        world.groups.add(b"g", name, NOW, FOREVER)
    world.run_everything(NOW)
    assert inbox and not inbox.suspects
    world.run_everything(SOON)
    assert not inbox and [*inbox.suspects] == ["gone"]
    assert world.store.words[S_DROPS + EXPIRED] == 1
    later = silent(world, SOON, PATIENCE - 1)
    assert members(world, "g") == {"x!gone", "x!there", "y!gone"}
    assert not caplog.records
    later = silent(world, later, 1)
    assert members(world, "g") == {"x!there", "y!gone"}
    assert world.store.words[S_ABANDONED] == 1
    assert not inbox.suspects
    (line,) = caplog.messages
    assert "'pretended', channel 'x!gone': abandoned" in line
    silent(world, later)
    assert len(caplog.records) == 1


@pytest.mark.parametrize("when", [0, PATIENCE - 1])
def test_a_channel_that_was_received_on_is_not_abandoned(world: World, when: int) -> None:
    inbox = drained(world, "x!", "busy")
    world.groups.add(b"g", b"x!busy", NOW, FOREVER)
    world.run_everything(SOON)
    later = silent(world, SOON, when)
    inbox.feed(Taken(2, FOREVER, b"busy", b"m"), lambda local: 100)
    inbox.take("busy")
    silent(world, later, 3 * PATIENCE)
    assert members(world, "g") == {"x!busy"}
    assert world.store.words[S_ABANDONED] == 0


def test_what_became_a_member_after_the_suspicion_stays(world: World) -> None:
    drained(world, "x!", "a")
    world.groups.add(b"before", b"x!a", NOW, FOREVER)
    world.run_everything(SOON)
    world.groups.add(b"after", b"x!a", NOW, FOREVER)
    silent(world, SOON)
    assert (members(world, "before"), members(world, "after")) == (set(), {"x!a"})


def test_a_process_that_was_stopped_gets_its_time(world: World) -> None:
    drained(world, "x!", "a")
    world.groups.add(b"g", b"x!a", NOW, FOREVER)
    world.run_everything(SOON)
    world.run_everything(SOON + 1000 * EXPIRY)
    assert members(world, "g") == {"x!a"}


def test_the_longest_expiry_of_the_layers_of_a_process_counts(world: World) -> None:
    drained(world, "x!", "a")
    world.groups.add(b"g", b"x!a", NOW, FOREVER)
    world.run_everything(SOON)
    for number in range(1, 5 * PATIENCE + 1):  # half of the time, in the eyes of the other layer
        world.upkeep.check_at = 0.0
        world.upkeep.run(SOON + number * EXPIRY / 10, EXPIRY / 10, world.section)
    assert members(world, "g") == {"x!a"}
    silent(world, SOON + PATIENCE * EXPIRY / 2, PATIENCE / 2)
    assert members(world, "g") == set()


def test_a_queue_without_members_has_no_suspects(world: World) -> None:
    inbox = drained(world, "x!", "a")
    world.run_everything(SOON)
    assert not inbox and not inbox.suspects


def test_a_queue_that_another_process_receives_on_by_now_has_no_suspects_here(
    world: World,
) -> None:
    """What this process drained before it left is still in its inbox when it attaches again."""
    inbox = drained(world, "x!", "a")
    world.groups.add(b"g", b"x!a", NOW, FOREVER)
    other, _ = world.attach(1)
    world.store.leave(world.resources.process, NOW)
    assert world.store.own(world.store.queues.find(b"x!"), other.process) == 0
    world.run_everything(SOON)
    assert not inbox and not inbox.suspects


def test_many_are_abandoned_in_several_sections_and_a_busy_lock_delays_them(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    gone = [str(number) for number in range(1000)]
    inbox = drained(world, "x!", *gone)
    for local in gone:
        world.groups.add(b"g", b"x!%s" % local.encode(), NOW, FOREVER)
    world.run_everything(SOON)
    later = silent(world, SOON, PATIENCE - 1) + EXPIRY
    busy = iter([False, False, False, True])
    world.busy = lambda: next(busy, False)
    with pytest.raises(LockBusy):
        world.run_everything(later)
    left = members(world, "g")
    assert 0 < len(left) < 1000 and "x!0" in left
    inbox.visited("0")  # it lives after all
    world.run_everything(later)
    assert members(world, "g") == {"x!0"}
    assert world.store.words[S_ABANDONED] == 999
    assert len(caplog.messages) == 1 and "channels: 999." in caplog.text


def test_an_inbox_is_emptied_after_a_flush(world: World) -> None:
    inbox = drained(world, "x!", "a")
    world.store.words[S_EPOCH] += 1
    world.run_everything(NOW)
    assert not inbox and inbox.is_fresh()
    assert world.store.words[S_DROPS + EXPIRED] == 0


# -- memberships that nobody renews ---------------------------------------------------------------

DAY = 86400.0


def received_on(world: World, queue: str, *locals_: str) -> None:
    """This process receives on `queue`, and its channels join a group for a day."""
    row = owned(world.store, queue, world.resources.process)
    assert row
    world.resources.inboxes[queue] = Inbox(queue, world.store)
    for local in locals_:
        world.groups.add(b"room", f"{queue}{local}".encode(), NOW, NOW + DAY)


def lines_at(world: World, caplog: pytest.LogCaptureFixture, now: float) -> list[str]:
    caplog.clear()
    world.run_everything(now)
    return [line for line in caplog.messages if "unless it is renewed" in line]


def test_a_membership_in_its_last_tenth_is_logged(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.upkeep.group_expiries[DAY] = None
    received_on(world, "x!", "a", "b")
    assert lines_at(world, caplog, NOW) == []
    assert lines_at(world, caplog, NOW + 0.89 * DAY) == []
    (line,) = lines_at(world, caplog, NOW + 0.95 * DAY)
    assert "group 'room'" in line and "within 8640 s" in line and "do: 2." in line
    assert "'x!a'" in line or "'x!b'" in line
    assert lines_at(world, caplog, NOW + 0.96 * DAY) == []  # not with each check


def test_a_membership_that_is_renewed_is_not_logged(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.upkeep.group_expiries[DAY] = None
    received_on(world, "x!", "a")
    world.groups.add(b"room", b"x!a", NOW + DAY / 2, NOW + 1.5 * DAY)
    for tenth in range(1, 14):
        assert lines_at(world, caplog, NOW + tenth * DAY / 10) == []
    assert len(lines_at(world, caplog, NOW + 1.45 * DAY)) == 1


def test_channels_of_other_processes_are_theirs_to_log(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.upkeep.group_expiries[DAY] = None
    received_on(world, "x!", "a")
    other, _ = world.attach(1)
    world.store.leave(world.resources.process, NOW)
    assert world.store.own(world.store.queues.find(b"x!"), other.process) == 0
    assert lines_at(world, caplog, NOW + 0.95 * DAY) == []


def test_many_memberships_are_one_line(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.upkeep.group_expiries[DAY] = None
    received_on(world, "x!", *map(str, range(600)))
    received_on(world, "y!", "a")
    (line,) = lines_at(world, caplog, NOW + 0.95 * DAY)
    assert "do: 601." in line
