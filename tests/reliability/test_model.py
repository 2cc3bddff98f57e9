"""Both contracts against dicts and deques: a state machine over a store on a bytearray.

Several processes, each with the real operations of a layer on its own view of one memory. What is
replaced is the world around them: the clock (time is an input), the lock, the doorbells (rings are
noted) and the kernel's word on who lives. Between any two operations the dirty word may be set,
so that the next one recovers first, or finishes a flush.

The model is exact about what a receiver gets and about who is a member of what. It is not about
when something that has expired is let go, which the contracts leave open.
"""

from __future__ import annotations

import sys
import types
from collections import Counter, deque
from contextlib import ExitStack
from typing import Any, NamedTuple
from unittest import mock

from hypothesis import Phase
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import asgi_ipc.aio.operations
import asgi_ipc.aio.receiving
import asgi_ipc.attachment.attachment
import asgi_ipc.attachment.drops
import asgi_ipc.attachment.resources
import asgi_ipc.attachment.upkeep
from asgi_ipc import errors
from asgi_ipc.aio.operations import Core
from asgi_ipc.aio.sending import Room
from asgi_ipc.aio.session import Session
from asgi_ipc.aio.waiter import Waiter
from asgi_ipc.attachment.attachment import Attachment
from asgi_ipc.attachment.inbox import IN_HAND
from asgi_ipc.attachment.resources import Resources
from asgi_ipc.attachment.suspects import PATIENCE
from asgi_ipc.attachment.upkeep import CHECK_EVERY
from asgi_ipc.errors import LimitReached, NotAChannel, NotOwner
from asgi_ipc.options import Options
from asgi_ipc.segment.section import Waits
from asgi_ipc.store.layout import (
    BUFFER,
    CAPACITY,
    COUNT,
    CROWDED,
    DEAD_OWNER,
    DIRTY,
    EXPIRED,
    FLUSHING,
    MEMORY,
    Q_MEMBERS,
    Q_OWED,
    Q_PENDING,
    Q_QUICK,
    Q_RUNG,
    S_ABANDONED,
    S_BURY_AT,
    S_DIRTY,
    S_DROPS,
    S_EPOCH,
    S_LIVE,
    S_SWEEP_AT,
    UNDECODABLE,
    WORD,
    record_words,
)
from asgi_ipc.store.queues import FULL
from asgi_ipc.store.wakes import UNDER_WAY

from ..unit.support import FULL_LENGTH, KIB, NOW, Reserve, assert_whole, examples, make_store

EXPIRY = 60.0
GROUP_EXPIRY = 700.0
CAPACITIES = {"tiny": 1, "x.A!2": 2, "y.*": 3}
CAPACITY_OF_ALL_OTHERS = 4
WAITS = Waits(10.0, 10.0)
MAX_MESSAGE = 6 * KIB

NORMAL = ["n0", "n1", "n2", "tiny", "r?a", "r?b"]
SPECIFIC = ["x.A!1", "x.A!2", "x.A!3", "y.B!1", "y.B!2"]
BESIDE = ["x.A!other", "y.B!other"]  # other channels of the same processes
MANY = [f"many.{i}" for i in range(30)]  # more than there are rows for
GROUPS = ["g0", "g1", "n0"]  # a group may have the name of a channel

# What was met in all runs together: a machine that never comes to a thing has not tested it.
met: Counter[str] = Counter()


class Item(NamedTuple):
    """A message in a queue, or a copy of it in the buffer of a local part."""

    number: int
    locals: tuple[str, ...]
    expires: float
    body: dict[str, Any]
    words: int


class FreeLock:
    """A lock that nobody else wants, which sees that it is taken and released in turn."""

    handle = object()
    held = False

    def trylock(self, handle: object) -> int:
        assert not self.held
        self.held = True
        return 0

    def unlock(self, handle: object) -> int:
        self.held = False
        return 0

    def consistent(self, handle: object) -> int:
        return 0

    def holder(self) -> int:
        return 0


class Pretended(Resources):
    """What a process that is only pretended has of a memory that others share."""

    def __init__(self, world: Model, index: int) -> None:
        self.world = world
        segment = types.SimpleNamespace(
            memory=world.store.buffer,
            layout=world.store.layout,
            reserve=world.reserve,
            shortage=lambda: "",
            ringer=lambda: types.SimpleNamespace(ring=self.rings),
            check_length=lambda: None,
            vanished=lambda: False,
            named=None,
            repair=lambda: None,
            paths=types.SimpleNamespace(prefix="model", directory="/nonexistent"),
            nonce=0,
        )
        super().__init__("model", segment, index, FreeLock())  # type: ignore[arg-type]

    def rings(self, waiter: int, generation: int, row: int) -> bool:
        """In place of a doorbell: noted, if there is somebody who hears it."""
        if self.world.waiters[waiter] not in self.world.places:
            return False
        if row and self.store.is_room(row):
            self.world.rung.append(("room", waiter))
        elif row:
            self.world.rung.append((self.store.queues.name(row).decode(), waiter))
        return True

    def ring_everyone(self) -> None:
        self.world.parked.clear()

    def is_alive(self, process: int) -> bool:
        return process not in self.world.dead


def never(attachment: Attachment) -> None:
    raise AssertionError("the segment vanished")


class Place(Attachment):
    """The attachment of such a process."""

    def __init__(self, world: Model, index: int) -> None:
        self.world = world
        self.index = index
        super().__init__(Pretended(world, index), WAITS, never)
        self.due = float("inf")
        self.waiters = [self.new_waiter() for _ in range(3)]

    def new_waiter(self) -> int:
        waiter, generation = self.section(self.store.add_waiter, self.process)
        self.section(self.store.publish_waiter, waiter, generation)
        self.world.waiters[waiter] = self.index
        return int(waiter)


class Parked(Waiter):
    """A waiter that is parked and never waits."""

    def __init__(self, waiter_id: int) -> None:
        self.waiter_id = waiter_id

    def begin(self, session: Any, sources: Any, spin: float) -> bool:
        raise NotImplementedError

    async def spin(self, sources: Any, seconds: float, deadline: float | None) -> None:
        raise NotImplementedError

    async def wait(self, core: Any, session: Any, sources: Any, deadline: float | None) -> bool:
        raise NotImplementedError


class Death(NamedTuple):
    noticed: float | None
    in_order: bool


class Looks:
    """How long a process has looked at one of its inboxes, and when it did so last."""

    time = 0.0
    last = float("inf")

    def look(self, now: float) -> float:
        self.time += min(max(now - self.last, 0.0), max(EXPIRY, 2 * CHECK_EVERY))
        self.last = now
        return self.time


class Model(RuleBasedStateMachine):
    """What the store must do, and that it does."""

    memory = 64 * KIB
    rows = 20  # queues that there is room for

    # -- the world --------------------------------------------------------------------------------

    @initialize(scarce=st.booleans())
    def begin(self, scarce: bool) -> None:
        self.now = NOW
        self.patches = ExitStack()
        clock = types.SimpleNamespace(monotonic=lambda: self.now)
        for module in (
            asgi_ipc.aio.session,
            asgi_ipc.aio.operations,
            asgi_ipc.aio.receiving,
            asgi_ipc.aio.sending,
            asgi_ipc.attachment.attachment,
            asgi_ipc.attachment.resources,
            asgi_ipc.attachment.drops,
        ):
            if hasattr(module, "clock"):
                self.patches.enter_context(mock.patch.object(module, "clock", clock))
        # Log lines are not what this is about, and there are many.
        for module in (asgi_ipc.attachment.drops, asgi_ipc.attachment.upkeep):
            self.patches.enter_context(mock.patch.object(module, "logger"))
        self.reserve = Reserve(72 * KIB if scarce else 1 << 40)
        self.scarce = scarce
        self.store = make_store(
            reserve=self.reserve,
            message_memory=self.memory,
            max_message_size=MAX_MESSAGE,
            queues=self.rows,
        )
        self.cores: dict[int, Core] = {}
        self.dead: dict[int, Death] = {}  # by process
        self.queues: dict[str, deque[Item]] = {}
        self.inboxes: dict[tuple[int, str], dict[str, list[Item]]] = {}
        self.owners: dict[str, int] = {}  # queue → process
        self.members: dict[str, dict[str, float]] = {}
        self.joins = 0
        self.joined: dict[tuple[str, str], int] = {}  # group and channel → number of the join
        # By process and queue; local part → since when, and the number of the last join then.
        self.suspects: dict[tuple[int, str], dict[str, tuple[float, int]]] = {}
        self.looks: dict[tuple[int, str], Looks] = {}
        self.abandoned = 0
        self.gone_with: dict[str, float] = {}  # queues of the dead, and when they died
        self.parked: dict[str, set[int]] = {}
        self.woken: set[tuple[str, int]] = set()  # who was rung and has not come since
        self.once_parked: set[str] = set()  # bits of the dead may keep their rows for a while
        self.waiters: dict[int, int] = {}  # waiter → index of its process
        self.places: set[int] = set()  # indices of living processes
        self.rung: list[tuple[str, int]] = []
        self.number = 0
        self.drops = Counter[int]()
        self.lost = 0  # what must turn up as expired or as a dead owner's
        self.flushes = 0
        self.pending_flush = False
        for _ in range(2):
            self.start_process()

    def teardown(self) -> None:
        if not hasattr(self, "patches"):
            return
        try:
            if sys.exc_info()[0] is None:
                self.drained_the_largest_fits_again()
        finally:
            self.patches.close()

    def drained_the_largest_fits_again(self) -> None:
        """All that is left expires; then it is counted, and nothing is in the way."""
        self.settle()
        self.interrupted(DIRTY)  # so that no waiter keeps a row
        core = next(iter(self.cores.values()))
        self.now += EXPIRY + GROUP_EXPIRY
        for _ in range(200):
            for each in self.cores.values():
                self.upkeep_of(each)
        store = self.store
        assert store.words[S_LIVE] == 0
        epoch = store.words[S_EPOCH]  # what was flushed stays in an inbox until it is next used
        for place in map(self.place, self.cores.values()):
            assert not [inbox for inbox in place.inboxes.values() if inbox and inbox.epoch == epoch]
        self.lost += sum(map(len, self.queues.values()))
        for boxes in self.inboxes.values():
            self.lost += sum(map(len, boxes.values()))
        assert store.words[S_DROPS + EXPIRED] + store.words[S_DROPS + DEAD_OWNER] == self.lost
        if not self.scarce:
            core.send("n1", {"pad": b"x" * (MAX_MESSAGE - 20)})
        elif store.queues.high:  # its first rows were reserved in time
            core.send("n1", {"pad": b"x" * 1000})
        assert_whole(store)
        met["ends"] += 1

    def place(self, core: Core) -> Place:
        assert core.session is not None
        place = core.session.attachment
        assert isinstance(place, Place)
        return place

    def start_process(self) -> None:
        index = len(self.cores) + len(self.dead)
        if index >= 6:
            return
        options = Options.read(
            "model",
            {
                "message_memory": self.memory,
                "group_memory": 64 * KIB,
                "max_message_size": MAX_MESSAGE,
                "expiry": EXPIRY,
                "group_expiry": GROUP_EXPIRY,
                "capacity": CAPACITY_OF_ALL_OTHERS,
                "channel_capacity": CAPACITIES,
            },
        )
        core = Core(options)
        self.places.add(index)
        place = Place(self, index)
        of_three = place.make_section_of_three(WAITS)
        core.session = Session(place, of_three, core.capacities.known)
        self.cores[place.process] = core

    def settle(self) -> None:
        """A flush that was begun is finished by whoever comes next."""
        if self.pending_flush:
            self.pending_flush = False
            self.place(self.any_core(0)).section(lambda: None)
            self.flushed()

    def flushed(self) -> None:
        for thing in (self.queues, self.inboxes, self.owners, self.members, self.parked):
            thing.clear()
        self.woken.clear()
        self.suspects.clear()
        self.abandoned = 0
        self.gone_with.clear()
        self.drops.clear()
        self.lost = 0
        self.flushes += 1

    # -- what the model knows ---------------------------------------------------------------------

    def capacity(self, channel: str) -> int:
        if channel == "tiny":
            return 1
        if channel == "x.A!2":
            return 2
        return 3 if channel.startswith("y.") else CAPACITY_OF_ALL_OTHERS

    def living(self, queue: str) -> list[Item]:
        return [item for item in self.queues.get(queue, ()) if item.expires > self.now]

    def let_go(self, queue: str) -> None:
        """Everything lives equally long, so what has expired is at the front."""
        waiting = self.queues.get(queue, deque())
        while waiting and waiting[0].expires <= self.now:
            waiting.popleft()
            self.lost += 1
            met["expired"] += 1

    def alive_in(self, group: str) -> list[str]:
        return [name for name, until in self.members.get(group, {}).items() if until > self.now]

    def names_in_use(self) -> set[str]:
        """Queues that must have a row, or may still have one."""
        used = {queue for queue, waiting in self.queues.items() if waiting}
        used |= set(self.owners) | set(self.gone_with) | set(self.parked) | self.once_parked
        return used | {queue_of(name) for names in self.members.values() for name in names}

    def no_room(self, words: int, queues: int = 1) -> bool:
        """Whether a refusal for want of memory can be right."""
        expired_too = self.store.words[S_LIVE] & COUNT
        return (
            expired_too + words > self.store.layout.max_live
            or self.scarce
            or len(self.names_in_use()) + queues > self.rows
        )

    def sent(self, queue: str, item: Item) -> None:
        """A message is in a queue: somebody who waits there, if anybody does, has been rung, or the
        ring is owed."""
        self.queues.setdefault(queue, deque()).append(item)
        met["sent"] += 1
        if self.parked.get(queue) and not self.was_rung(queue):
            row = self.store.queues.find(queue.encode())
            assert self.store.words[row + Q_OWED], f"who waits for {queue} was not rung"
            assert self.store.words[row + Q_QUICK]
            assert 0 <= self.now - self.store.doubles[row + Q_RUNG] < UNDER_WAY
            met["owed"] += 1

    def was_rung(self, queue: str) -> bool:
        """Whether one of those who wait for a queue was rung now."""
        waiting = self.parked.get(queue, set())
        rung = [waiter for where, waiter in self.rung if where == queue]
        while rung and rung[0] not in waiting:
            # The id was that of one that died while it was parked. Its new holder passes it on.
            self.rung.remove((queue, rung[0]))
            (place,) = [
                self.place(core)
                for core in self.cores.values()
                if rung[0] in self.place(core).waiters
            ]
            place.pass_on(self.store.queues.find(queue.encode()))
            rung = [waiter for where, waiter in self.rung if where == queue]
            met["passed on"] += 1
        if not rung:
            return False
        waiting.discard(rung[0])
        self.woken.add((queue, rung[0]))
        self.rung.remove((queue, rung[0]))
        met["rung"] += 1
        if not waiting:
            del self.parked[queue]
        return True

    def item(self, locals_: tuple[str, ...], message: dict[str, Any]) -> Item:
        size = len(next(iter(self.cores.values())).codec.encode(message))
        words = record_words(size, len(",".join(locals_)))
        return Item(message["number"], locals_, self.now + EXPIRY, message, words)

    def message(self, size: int) -> dict[str, Any]:
        self.number += 1
        return {"number": self.number, "pad": bytes([self.number % 256]) * size}

    # -- rules: sending ---------------------------------------------------------------------------

    def any_core(self, which: int) -> Core:
        return list(self.cores.values())[which % len(self.cores)]

    @rule(
        who=st.integers(0, 9),
        channel=st.sampled_from(NORMAL + SPECIFIC + MANY),
        size=st.sampled_from([0, 10, 300, 1500, MAX_MESSAGE - 40]),
        times=st.integers(1, 5),
    )
    def send_a_few(self, who: int, channel: str, size: int, times: int) -> None:
        for _ in range(times):
            self.send(who, channel, size)

    @rule(
        who=st.integers(0, 9),
        channels=st.lists(st.sampled_from(NORMAL + SPECIFIC + MANY)) | st.permutations(MANY),
    )
    def send_to_many(self, who: int, channels: list[str]) -> None:
        for i, channel in enumerate(channels):
            self.send(who + i, channel, 100 * i)

    def send(self, who: int, channel: str, size: int) -> None:
        self.settle()
        core = self.any_core(who)
        queue, local = queue_of(channel), channel.partition("!")[2]
        message = self.message(size)
        item = self.item((local,), message)
        self.rung.clear()
        own = self.drain_own(core, channel)
        try:
            core.send(channel, message)
        except NotAChannel:
            assert channel in GROUPS
            met["a group's name"] += 1
        except errors.ChannelFull as error:
            if "no memory" in str(error):
                met["memory full"] += 1
                assert self.no_room(item.words)
            else:
                met["full"] += 1
                assert own or len(self.living(queue)) >= self.capacity(channel)
                assert own is not False
        else:
            assert not own
            assert len(self.living(queue)) < self.capacity(channel)
            self.sent(queue, item)

    def drain_own(self, core: Core, channel: str) -> bool | None:
        """What a send to a channel of the sender's own process does before, once it has found the
        queue full. Returns whether the channel itself is full; None if it goes by the queue."""
        queue, local = queue_of(channel), channel.partition("!")[2]
        place, capacity = self.place(core), self.capacity(channel)
        if not local or self.owners.get(queue) != place.process:
            return None
        assert core.session is not None
        if queue.encode() not in core.session.own:
            if len(self.living(queue)) < capacity:
                return None
            self.let_go(queue)
        self.know_capacities(core)
        box = self.inboxes.setdefault((place.process, queue), {})
        row = self.store.queues.find(queue.encode())
        pending = self.store.words[row + Q_PENDING] & COUNT if row else 0
        if pending and len(box.get(local, ())) + pending >= capacity:
            met["drained by a send"] += 1
            self.drain(queue, box, IN_HAND)
        if len(box.get(local, ())) >= capacity:
            self.expire_box(place, queue)
        full = len(box.get(local, ())) >= capacity
        met["own channel full"] += full
        return full

    def know_capacities(self, core: Core) -> None:
        """Else a send that drains a queue stops at a capacity that it has to look up, and continues
        only if the queue has no room yet."""
        core.capacities.look_up(SPECIFIC + BESIDE)

    @rule(
        who=st.integers(0, 9),
        channel=st.sampled_from(["n1", "n2", "tiny", "r?a"]),
        size=st.sampled_from([0, 300]),
        leaves=st.booleans(),
    )
    def wait_for_room(self, who: int, channel: str, size: int, leaves: bool) -> None:
        """A send that parks where there is no room, until somebody receives; or it gives up."""
        for number in range(self.capacity(channel)):
            self.send(who + number, channel, 0)
        core = self.any_core(who)
        session, waits = core.attach(), Parked(self.place(core).waiters[0])
        message = self.message(size)
        item = self.item(("",), message)
        target, body, _ = core._prepared(session, channel, message)
        room = Room(channel, target, session.store)
        self.rung.clear()
        found = core._send_or_park(session, room, body, waits)
        if found < 0 and found != FULL:
            assert self.no_room(item.words)
            core._leave_room(session, room, waits)
            assert not self.store.words[S_LIVE] >= CROWDED
            return
        if found < 0:
            assert len(self.living(channel)) >= self.capacity(channel)
            assert self.store.words[target.row + Q_PENDING] >= CROWDED
            if leaves:
                core._leave_room(session, room, waits)
                met["gave up"] += 1
            else:
                self.expect(core, core.exact_source(session, channel), None)
                assert ("room", waits.waiter_id) in self.rung
                found = core._send_or_park(session, room, body, waits)
                if found < 0:
                    assert found != FULL and self.no_room(item.words)
                    core._leave_room(session, room, waits)
                met["waited for room"] += found >= 0
            assert self.store.words[target.row + Q_PENDING] < CROWDED
        if found >= 0:
            assert len(self.living(channel)) < self.capacity(channel)
            self.sent(channel, item)

    @rule(who=st.integers(0, 9), group=st.sampled_from(GROUPS))
    def send_to_a_group(self, who: int, group: str) -> None:
        """As to a channel, which only one of them can be."""
        self.settle()
        if self.alive_in(group):
            self.send(who, group, 10)

    @rule(who=st.integers(0, 9), channel=st.sampled_from(NORMAL + SPECIFIC))
    def send_too_much(self, who: int, channel: str) -> None:
        self.settle()
        core = self.any_core(who)
        try:
            core.send(channel, {"pad": b"x" * MAX_MESSAGE})
        except errors.MessageTooLarge:
            met["too large"] += 1
        except NotAChannel:
            assert channel in GROUPS
        else:
            raise AssertionError("more than max_message_size was accepted")

    @rule(who=st.integers(0, 9), group=st.sampled_from(GROUPS), size=st.sampled_from([0, 500]))
    def group_send(self, who: int, group: str, size: int) -> None:
        self.settle()
        core = self.any_core(who)
        message = self.message(size)
        queues: dict[str, list[str]] = {}
        for name in self.alive_in(group):
            queues.setdefault(queue_of(name), []).append(name)
        before = [self.store.words[S_DROPS + reason] for reason in (CAPACITY, MEMORY)]
        self.rung.clear()
        self.know_capacities(core)
        core.group_send(group, message)  # never ChannelFull
        full, no_memory = (
            self.store.words[S_DROPS + reason] - old
            for reason, old in zip((CAPACITY, MEMORY), before)
        )
        expected_full = 0
        for queue, names in queues.items():
            item = self.item(tuple(name.partition("!")[2] for name in names), message)
            process = self.place(core).process
            full_queue = len(self.living(queue)) >= min(map(self.capacity, names))
            if full_queue and "!" in queue and self.owners.get(queue) == process:
                self.drain(queue, self.inboxes.setdefault((process, queue), {}))
                met["drained by a broadcast"] += 1
                full_queue = False
            if full_queue:
                expected_full += 1
            elif self.holds(queue, item.number):
                self.sent(queue, item)
                met["broadcast"] += 1
                met["broadcast to several"] += len(names) > 1
            else:
                assert self.no_room(item.words, 0)
                no_memory -= 1
        assert no_memory == 0
        assert full == expected_full
        met["group full"] += full
        self.drops[CAPACITY] += full
        self.drops[MEMORY] += self.store.words[S_DROPS + MEMORY] - before[1]

    @rule(who=st.integers(0, 9), group=st.sampled_from(GROUPS))
    def fill_a_member(self, who: int, group: str) -> None:
        """So that a group send meets a full channel, whatever the examples are."""
        self.group_add(who, group, "tiny")
        for number in range(CAPACITIES["tiny"] + 1):
            self.group_send(who + number, group, 0)

    @rule(
        who=st.integers(0, 9),
        group=st.sampled_from(GROUPS),
        channel=st.sampled_from(SPECIFIC),
        to=st.sampled_from(["the channel", "another", "the group"]),
    )
    def send_to_itself(self, who: int, group: str, channel: str, to: str) -> None:
        """Others fill a queue of a process, which then sends to itself."""
        self.receive_exactly(who, channel)
        owner = self.owners.get(queue_of(channel))
        if owner not in self.cores:
            return
        itself = list(self.cores).index(owner)
        if to == "the group":
            self.group_add(itself, group, channel)
        for number in range(self.capacity(channel)):
            self.send(itself + number + 1, channel, 0)
        if to == "the group":
            self.group_send(itself, group, 0)
        else:
            self.send(itself, channel if to == "the channel" else queue_of(channel) + "other", 0)

    def holds(self, queue: str, number: int) -> bool:
        """Whether the newest message of a queue is the one of that number."""
        return number in [message["number"] for message in self.stored(queue)]

    def stored(self, queue: str) -> list[dict[str, Any]]:
        """What waits in a queue, unexpired, read without taking it."""
        store = self.store
        row = store.queues.find(queue.encode())
        found, at = [], store.words[row + 4] if row else 0
        while at:
            taken = store._read(row, at)
            if taken.expires > self.now:
                found.append(next(iter(self.cores.values())).codec.decode(taken.body))
            at = store.words[at + 2]
        return found

    # -- rules: receiving -------------------------------------------------------------------------

    @rule(
        who=st.integers(0, 9),
        names=st.lists(
            st.sampled_from([*NORMAL, "x.A!", "y.B!", *MANY[:3]]), max_size=4, unique=True
        ),
    )
    def receive(self, who: int, names: list[str]) -> None:
        """Channels 1: several channels, process-specific ones up to the ``!``."""
        self.settle()
        core = self.any_core(who)
        sources = core.sources(core.attach(), names)
        if sources:
            self.expect(core, sources, None)

    @rule(who=st.integers(0, 9), name=st.sampled_from(NORMAL + SPECIFIC + MANY))
    def receive_exactly(self, who: int, name: str) -> None:
        """Channels 4: one channel by its full name."""
        self.settle()
        core = self.any_core(who)
        self.expect(core, core.exact_source(core.attach(), name), None)

    @rule(who=st.integers(0, 9), name=st.sampled_from(NORMAL), waiter=st.integers(0, 2))
    def receive_or_park(self, who: int, name: str, waiter: int) -> None:
        self.settle()
        core = self.any_core(who)
        session = core.attach()
        sources = session.exact_sources.get(name) or core.exact_source(session, name)
        self.expect(core, sources, Parked(self.place(core).waiters[waiter]))

    @rule(
        name=st.sampled_from(NORMAL),
        times=st.integers(1, 4),
        seconds=st.sampled_from([0.0, 2**-21, 2**-10]),  # sums of these are exact
    )
    def quick_receivers(self, name: str, times: int, seconds: float) -> None:
        """All wait; some messages come; who is rung comes, and so on until nobody is. The second
        time it is known whether they are quick."""
        for _ in range(2):
            for who in range(len(self.cores)):
                for waiter in range(3):
                    self.receive_or_park(who, name, waiter)
            for number in range(times):
                self.send(number, name, 10)
                self.now += seconds / 4
            for _ in range(20):
                rung = [waiter for queue, waiter in self.woken if queue == name]
                if not rung:
                    break
                self.answer(min(rung), name, seconds)
            else:
                raise AssertionError(f"who waits for {name} is rung for ever")

    def answer(self, waiter: int, name: str, seconds: float) -> None:
        """A waiter that was rung comes, and comes again after `seconds`."""
        places = [self.place(core) for core in self.cores.values()]
        who = [place.index for place in places].index(self.waiters[waiter])
        for _ in range(2):
            self.now += seconds
            self.receive_or_park(who, name, places[who].waiters.index(waiter))

    @rule(
        name=st.sampled_from(NORMAL + SPECIFIC),
        rung=st.sampled_from([0.0, 1e-5, 0.5]),
        quick=st.integers(0, 1),
        owed=st.integers(0, 1),
    )
    def nonsense(self, name: str, rung: float, quick: int, owed: int) -> None:
        """The hints say what is not so."""
        row = self.store.queues.find(queue_of(name).encode())
        if row and not self.store.words[S_DIRTY]:
            self.store.doubles[row + Q_RUNG] = self.now - rung
            self.store.words[row + Q_QUICK], self.store.words[row + Q_OWED] = quick, owed
            met["nonsense"] += 1

    def expect(self, core: Core, sources: Any, waiter: Any) -> None:
        """Receive from `sources`, in this order, and compare."""
        place = self.place(core)
        if self.may_lack_rows(sources):
            return
        expected: Any = None
        boxes = {s.queue: self.inboxes.setdefault((place.process, s.queue), {}) for s in sources}
        for source in sources:
            if source.inbox is not None and expected is None:
                before = self.lost
                expected = self.from_box(boxes[source.queue], source)
                if expected is not None or self.lost > before:
                    self.visited(place.process, source.queue, source.local)
        if expected is None:
            for source in sources:
                if source.inbox is None:
                    self.let_go(source.queue)
                    waiting = self.queues.get(source.queue)
                    if waiting:
                        expected = [(source.channel, waiting.popleft().body)]
                else:
                    if self.owned_by_another(place.process, source.queue):
                        expected = NotOwner
                        break
                    self.visited(place.process, source.queue, source.local)
                    self.drain(source.queue, boxes[source.queue])
                    expected = self.from_box(boxes[source.queue], source)
                if expected is not None:
                    break
        parked, owed = False, 0
        if waiter is not None:
            mine = sources[0].queue, waiter.waiter_id
            parked = mine in self.woken or mine[1] in self.parked.get(mine[0], ())
            row = self.store.queues.find(mine[0].encode())
            owed = self.store.words[row + Q_OWED] if row else 0
        self.rung.clear()
        try:
            found = core.take(core.session, sources, waiter, parked)
        except NotOwner:
            met["not the owner"] += 1
            assert expected is NotOwner
            return
        except LimitReached:
            met["no row"] += 1
            assert len(self.names_in_use()) + 1 > self.rows or self.scarce
            assert expected is None, (expected, [source.channel for source in sources])
            self.forget_unbound(place, sources)
            return
        assert expected is not NotOwner
        if expected is None:
            assert found is None
            met["nothing"] += 1
            if waiter is not None:
                self.parked.setdefault(sources[0].queue, set()).add(waiter.waiter_id)
                self.woken.discard((sources[0].queue, waiter.waiter_id))
            return
        assert found in expected
        met["received"] += 1
        if waiter is not None:
            queue = sources[0].queue
            self.woken.discard((queue, waiter.waiter_id))
            if parked and queue in self.parked:
                self.parked[queue].discard(waiter.waiter_id)
                if not self.parked[queue]:
                    del self.parked[queue]
            row = self.store.queues.find(queue.encode())
            more = self.store.words[row + Q_PENDING] & COUNT and self.parked.get(queue)
            if self.was_rung(queue):
                met["paid"] += 1
            else:
                assert not (parked and owed and more), f"nobody else was rung for {queue}"
        else:
            for queue in {queue for queue, _ in self.rung if queue != "room"}:
                met["paid"] += self.was_rung(queue)
        self.remove_from_box(boxes, found)

    def may_lack_rows(self, sources: Any) -> bool:
        """Whether a receive from several queues may end at one of them for want of a row. The model
        does not know at which, nor what was done before."""
        rowless = [
            source
            for source in sources
            if source.inbox is not None and not self.store.queues.find(source.queue.encode())
        ]
        full = self.scarce or self.store.queues.used + len(rowless) > self.rows
        return len(sources) > 1 and bool(rowless) and full

    def visited(self, process: int, queue: str, local: str | None) -> None:
        """A receive has named these channels: nobody takes them for abandoned."""
        suspects = self.suspects.get((process, queue), {})
        for each in list(suspects) if local is None else [local]:
            if suspects.pop(each, None) is not None:
                met["suspect that lives"] += 1

    def forget_unbound(self, place: Place, sources: Any) -> None:
        """No room for the queue: then nobody has come to own it either."""
        for source in sources:
            if source.queue.endswith("!") and not self.store.queues.find(source.queue.encode()):
                assert not self.queues.get(source.queue)
                self.owners.pop(source.queue, None)

    def owned_by_another(self, process: int, queue: str) -> bool:
        owner = self.owners.get(queue)
        if owner is not None and owner != process:
            if owner not in self.dead:
                return True
            if self.dead[owner].noticed is None:
                self.notice_death(owner)
            if not self.dead[owner].in_order:
                self.end_memberships(queue)
            met["inherited"] += 1
        self.owners[queue] = process
        self.gone_with.pop(queue, None)
        return False

    def drain(self, queue: str, box: dict[str, list[Item]], slack: int | None = None) -> None:
        """`slack`: messages beyond the capacity of each channel, if a send of the process drains;
        else it is what the last such send has left."""
        self.let_go(queue)
        if slack is None:
            slack = self.place(self.cores[self.owners[queue]]).inboxes[queue].slack
        for item in self.queues.pop(queue, ()):
            met["drained"] += 1
            for local in item.locals:
                buffer = box.setdefault(local, [])
                if len(buffer) >= self.capacity(queue + local) + slack:
                    self.drops[BUFFER] += 1
                    met["buffer full"] += 1
                else:
                    buffer.append(item)

    def from_box(self, box: dict[str, list[Item]], source: Any) -> Any:
        """What may come out of a buffer for `source`: a list, because the members of one
        broadcast are in no order."""
        if source.local is None:
            held = {item.number: item for each in box.values() for item in each}
            for _, item in sorted(held.items()):
                holders = [local for local, each in box.items() if item in each]
                if item.expires > self.now:
                    return [(source.queue + local, item.body) for local in holders]
                for local in holders:
                    box[local].remove(item)
                    self.lost += 1
                    met["expired in a buffer"] += 1
            return None
        buffer = box.get(source.local, [])
        while buffer and buffer[0].expires <= self.now:
            buffer.pop(0)
            self.lost += 1
            met["expired in a buffer"] += 1
        return [(source.channel, buffer[0].body)] if buffer else None

    def remove_from_box(self, boxes: dict[str, dict[str, list[Item]]], found: Any) -> None:
        queue, local = queue_of(found[0]), found[0].partition("!")[2]
        if not queue.endswith("!"):
            return
        buffer = boxes[queue][local]
        assert buffer[0].body == found[1]
        del buffer[0]

    @rule(who=st.integers(0, 9), channel=st.sampled_from(SPECIFIC), times=st.integers(1, 4))
    def slow_socket(self, who: int, channel: str, times: int) -> None:
        """Messages come for one socket of a process, and only another of its sockets reads."""
        self.settle()
        owner = self.owners.get(queue_of(channel))
        if owner in self.cores:
            who = list(self.cores).index(owner)
        for _ in range(times):
            self.send(who, channel, 10)
            self.receive_exactly(who, queue_of(channel) + "other")

    @rule(who=st.integers(0, 9), channel=st.sampled_from(SPECIFIC), exactly=st.booleans())
    def late_socket(self, who: int, channel: str, exactly: bool) -> None:
        """A socket that comes back when what was kept for it has expired."""
        self.slow_socket(who, channel, 2)
        self.now += EXPIRY + 1
        for i in range(len(self.cores)):
            if exactly:
                self.receive_exactly(i, channel)
            else:
                self.receive(i, [queue_of(channel)])

    # -- rules: groups ----------------------------------------------------------------------------

    @rule(
        who=st.integers(0, 9),
        group=st.sampled_from(GROUPS),
        channels=st.lists(st.sampled_from(["n1", "tiny", *SPECIFIC, *SPECIFIC, *MANY[:2]])),
    )
    def group_add_some(self, who: int, group: str, channels: list[str]) -> None:
        for i, channel in enumerate(channels):
            self.group_add(who + i, group, channel)

    def group_add(self, who: int, group: str, channel: str) -> None:
        self.settle()
        core = self.any_core(who)
        try:
            core.group_add(group, channel)
        except LimitReached:
            met["group memory full"] += 1
            assert self.scarce or len(self.names_in_use() | {queue_of(channel)}) > self.rows
        else:
            met["member"] += 1
            if channel not in self.alive_in(group):
                self.joins += 1
                self.joined[group, channel] = self.joins
            self.visited(self.place(core).process, queue_of(channel), channel.partition("!")[2])
            self.members.setdefault(group, {})[channel] = self.now + GROUP_EXPIRY

    @rule(
        who=st.integers(0, 9),
        group=st.sampled_from(GROUPS),
        channel=st.sampled_from(["n1", *SPECIFIC]),
    )
    def group_discard(self, who: int, group: str, channel: str) -> None:
        self.settle()
        self.any_core(who).group_discard(group, channel)
        self.members.get(group, {}).pop(channel, None)

    @rule(who=st.integers(0, 9), group=st.sampled_from(GROUPS))
    def group_channels(self, who: int, group: str) -> None:
        self.settle()
        found = self.any_core(who).group_channels(group)
        assert sorted(found) == sorted(self.alive_in(group))

    # -- rules: the rest --------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.001, 0.5, 10.0, 31.0, 61.0, 150.0, 710.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(who=st.integers(0, 9), rarely=st.integers(0, 5))
    def flush(self, who: int, rarely: int) -> None:
        if rarely:
            return
        self.pending_flush = False
        self.any_core(who).flush()
        self.flushed()
        met["flush"] += 1

    @rule(who=st.integers(0, 9))
    def upkeep(self, who: int) -> None:
        self.settle()
        core = self.any_core(who)
        for process in list(self.dead):
            self.notice_death(process)
        self.upkeep_boxes(core)
        self.upkeep_of(core)
        met["upkeep"] += 1

    @rule(group=st.sampled_from(GROUPS), channels=st.lists(st.sampled_from(SPECIFIC), min_size=1))
    def everything_expires(self, group: str, channels: list[str]) -> None:
        for i in range(len(self.cores)):
            self.upkeep(i)
        self.group_add_some(0, group, channels)
        self.now += EXPIRY + 1
        for i in range(len(self.cores)):
            self.upkeep(i)
        self.group_channels(0, group)

    def upkeep_of(self, core: Core) -> None:
        place = self.place(core)
        place.upkeep.check_at = 0.0
        place.store.doubles[S_BURY_AT] = place.store.doubles[S_SWEEP_AT] = 0.0
        place.do_upkeep(self.now, EXPIRY, place.section)
        place.due = float("inf")  # only ever when a rule says so

    @rule(
        group=st.sampled_from(GROUPS),
        channel=st.sampled_from(SPECIFIC),
        times=st.sampled_from([1, PATIENCE - 1, PATIENCE, PATIENCE]),
        reads=st.sampled_from(["never", "exactly", "any", "another"]),
    )
    def nobody_receives(self, group: str, channel: str, times: int, reads: str) -> None:
        """A message for a member expires in the buffer of its process, and then it is silent, or
        reads once although there is nothing."""
        self.group_add(0, group, channel)
        self.slow_socket(0, channel, 1)
        self.now += 1.0
        for turn in range(times + 1):
            self.now += EXPIRY
            for i in range(len(self.cores)):
                self.upkeep(i)
                if turn == 1 and reads == "exactly":
                    self.receive_exactly(i, channel)
                elif turn == 1 and reads == "any":
                    self.receive(i, [queue_of(channel)])
                elif turn == 1 and reads == "another":
                    self.receive_exactly(i, queue_of(channel) + "other")
        self.group_channels(0, group)

    def upkeep_boxes(self, core: Core) -> None:
        """What nobody has read in a buffer goes; who stays silent for long after that is taken out
        of all groups."""
        place = self.place(core)
        for queue in place.inboxes:
            key = place.process, queue
            time = self.looks.setdefault(key, Looks()).look(self.now)
            suspects = self.suspects.setdefault(key, {})
            self.expire_box(place, queue)
            for local, (since, joins) in list(suspects.items()):
                if since <= time - PATIENCE * EXPIRY:
                    del suspects[local]
                    self.abandon(queue + local, joins)

    def expire_box(self, place: Place, queue: str) -> None:
        """What nobody has read in a buffer goes, and its channels become suspect."""
        key = place.process, queue
        time = self.looks.setdefault(key, Looks()).time
        suspects = self.suspects.setdefault(key, {})
        row = self.store.queues.find(queue.encode())
        members = self.store.words[row + Q_MEMBERS] if row else 0  # ghosts, too
        for local, buffer in self.inboxes.get(key, {}).items():
            while buffer and buffer[0].expires <= self.now:
                buffer.pop(0)
                self.lost += 1
                met["expired unread"] += 1
                if members and self.owners.get(queue) == place.process:
                    suspects.setdefault(local, (time, self.joins))

    def abandon(self, channel: str, joins: int) -> None:
        """Take a channel out of the groups that it was in when its message expired."""
        for group, names in self.members.items():
            if channel in names and self.joined[group, channel] <= joins:
                if names.pop(channel) > self.now:
                    self.abandoned += 1
                    met["abandoned"] += 1

    @rule(who=st.integers(0, 9), in_order=st.booleans())
    @precondition(lambda self: len(self.cores) > 1)
    def die(self, who: int, in_order: bool) -> None:
        self.settle()
        owners = [core for process, core in self.cores.items() if process in self.owners.values()]
        core = owners[who % len(owners)] if owners else self.any_core(who)
        place = self.place(core)
        del self.cores[place.process]
        self.places.discard(place.index)
        self.woken = {each for each in self.woken if each[1] not in place.waiters}
        for queue in list(self.parked):
            self.parked[queue].difference_update(place.waiters)
            if not self.parked[queue]:
                del self.parked[queue]
                self.once_parked.add(queue)
        owned = [queue for queue, owner in self.owners.items() if owner == place.process]
        if in_order:
            place.section(place.store.leave, place.process, self.now)
            self.dead[place.process] = Death(self.now, True)
        else:
            self.dead[place.process] = Death(None, False)
        for key in [key for key in self.inboxes if key[0] == place.process]:
            del self.inboxes[key]
        for key in [key for key in self.suspects if key[0] == place.process]:
            del self.suspects[key]
        met["death of an owner"] += bool(owned)

    @rule()
    def start(self) -> None:
        self.settle()
        self.start_process()

    def notice_death(self, process: int) -> None:
        """What the dead had not read is dropped, and `expiry` later their memberships too."""
        death = self.dead[process]
        noticed = self.now if death.noticed is None else death.noticed
        # A message that expired unread shows that nobody will come: then it need not wait.
        queues = [queue for queue, owner in self.owners.items() if owner == process]
        over = self.now - noticed >= EXPIRY
        if death.noticed is not None:
            over = over or any(self.saw_expiry(queue) for queue in queues)
        self.dead[process] = Death(noticed, death.in_order)
        for queue in queues:
            if over or not death.in_order:
                self.lost += len(self.queues.pop(queue, ()))
            if over:
                del self.owners[queue]
                self.parked.pop(queue, None)
                self.end_memberships(queue)

    def end_memberships(self, queue: str) -> None:
        """Whoever was in groups there has gone with the reader."""
        for names in self.members.values():
            for name in [name for name in names if queue_of(name) == queue]:
                del names[name]
                met["ghost"] += 1

    def saw_expiry(self, queue: str) -> bool:
        """Whether the store has let something expire there, which it does in its own time."""
        row = self.store.queues.find(queue.encode())
        owner = self.store.words[row + 7] if row else 0
        return bool(owner) and self.store.doubles[owner + 4] < 0

    @rule(kind=st.sampled_from([DIRTY] * 9 + [FLUSHING]))
    def interrupted(self, kind: int) -> None:
        """Somebody died in the middle of a call, or of a flush."""
        if self.pending_flush:
            return
        self.store.words[S_DIRTY] = kind
        if kind == FLUSHING:
            self.pending_flush = True
        else:
            self.parked.clear()
            self.woken.clear()
            met["recovery"] += 1

    @rule(who=st.integers(0, 9), channel=st.sampled_from(NORMAL + SPECIFIC))
    def statistics(self, who: int, channel: str) -> None:
        self.settle()
        core = self.any_core(who)
        found = core.channel_statistics(channel)
        assert found["messages_pending"] == len(self.living(queue_of(channel)))
        waiting = self.living(queue_of(channel))
        age = self.now - (waiting[0].expires - EXPIRY) if waiting else 0.0
        assert abs(found["messages_max_age"] - age) < 1e-6
        for figure in core.global_statistics().values():
            assert figure >= 0

    # -- always -----------------------------------------------------------------------------------

    @invariant()
    def the_store_agrees(self) -> None:
        if not hasattr(self, "cores") or self.store.words[S_DIRTY]:
            return
        assert_whole(self.store)
        words = self.store.words
        for reason in (CAPACITY, MEMORY, UNDECODABLE, BUFFER):
            assert words[S_DROPS + reason] == self.drops[reason]
        assert words[S_ABANDONED] >= self.abandoned  # those that had ended otherwise count as well
        for queue in {*self.queues, *map(queue_of, NORMAL + SPECIFIC + MANY)}:
            mine = [item.body for item in self.living(queue)]
            assert self.stored(queue) == mine, queue
        size = self.store.layout.size
        assert all(at % WORD == 0 and at + n <= size for at, n in self.reserve.granted)


def queue_of(channel: str) -> str:
    queue, mark, _ = channel.partition("!")
    return queue + mark


def test_both_contracts_against_dicts_and_deques() -> None:
    met.clear()
    # Shrinking a failure takes minutes: that is for the run at full length.
    phases = tuple(Phase) if FULL_LENGTH else (Phase.explicit, Phase.generate)
    number = 300 if FULL_LENGTH else 150
    run_state_machine_as_test(
        Model, settings=examples(number, stateful_step_count=50, phases=phases)
    )
    never = [
        *("sent", "received", "nothing", "rung", "drained", "ends", "recovery", "flush"),
        *("owed", "paid", "nonsense"),
        *("full", "memory full", "no row", "too large", "a group's name", "not the owner"),
        *("expired", "expired in a buffer", "buffer full", "expired unread"),
        *("abandoned", "suspect that lives"),
        *("gave up", "waited for room"),
        *("drained by a send", "own channel full", "drained by a broadcast"),
        *("member", "broadcast", "broadcast to several", "group full"),
        *("death of an owner", "inherited", "ghost"),
    ]
    assert [what for what in never if not met[what]] == []
