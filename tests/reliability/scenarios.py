"""Operations, with what was there before them, for the tests that kill them (`test_death`) and
interrupt them (`test_exceptions`) at every instruction.

A `Scenario` is done by a victim, a client in one process; a client in another process prepares it
and looks at what is left.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from asgi_ipc import segment
from asgi_ipc.store.layout import (
    DIRTY,
    HALF_HEAD,
    Q_FIRST,
    Q_FIRST_MEMBER,
    Q_LAST,
    Q_MEMBERS,
    Q_NEXT_OWNED,
    Q_OWED,
    Q_PENDING,
    Q_QUICK,
    Q_RUNG,
    Q_SENDING,
    Q_WAITING,
    R_BUCKET,
    R_CHAIN,
    S_BIGGEST,
    S_BURY_AT,
    S_DIRTY,
    S_ENOUGH,
    S_LIMIT,
    S_LIVE,
    S_MARK,
    S_MOVES,
    S_SENDING,
    S_SWEEP_AT,
    T_FREE,
    T_USED,
)
from asgi_ipc.store.queues import Target
from asgi_ipc.store.store import Store
from asgi_ipc.store.wakes import WOKEN

from .clients import Blocking
from .looking import bury_all
from .stepping import forked, reaped

LONG = 1e6  # seconds that are not over before the test is
LARGEST = 64 * 1024  # bytes of a message, packed
OPTIONS = {
    **{"message_memory": 1 << 18, "group_memory": 1 << 16, "max_message_size": LARGEST},
    "expiry": 600.0,  # seconds: on a busy machine one operation may be watched for a minute
}


class Held(NamedTuple):
    """What a layer holds, as its users see it."""

    messages: dict[str, list[Any]]
    groups: dict[str, list[str]]


class Scenario:
    """One operation, by default on nothing. `options` are those of every layer that takes part."""

    options: dict[str, Any] = {}
    channels: tuple[str, ...] = ("work", "other")  # what is looked at afterwards
    groups: tuple[str, ...] = ("room",)
    at_once = False  # all channels and groups change together, or not at all
    shrinks = False  # messages may be gone one after another
    changes = True  # what it does can be seen in `Held`
    owns = ""  # which of the channels is the victim's own
    in_finalizers = False  # most of it is done by finalizers, where an exception is only reported
    least = 30  # instructions that it takes at the least

    def prepare(self, survivor: Blocking) -> None:
        """Fill an empty store."""
        send_numbers(survivor, "work", range(3))
        send_numbers(survivor, "other", range(2))
        survivor.group_add("room", "work")
        survivor.group_add("room", "x.y!1")

    def arm(self, victim: Blocking) -> None:
        """What the victim does before it is watched."""
        victim.idle()

    def operate(self, victim: Blocking) -> None:
        raise NotImplementedError

    def restore(self, survivor: Blocking) -> None:
        """What has to be done before anything is looked at."""

    def fill(self, survivor: Blocking) -> None:
        """The same store every time: empty, but for what `prepare` puts there."""
        survivor.flush()
        bury_all(survivor)
        survivor.idle()
        self.prepare(survivor)

    def held(self, client: Blocking) -> Held:
        groups = {group: sorted(client.group_channels(group)) for group in self.groups}
        return Held({channel: client.drain(channel) for channel in self.channels}, groups)

    def complain(self, found: Held, before: Held, after: Held) -> str:
        """What of `found` can be neither before nor after, or "" """
        if self.at_once:
            return "" if found in (before, after) else f"half done: {found}"
        for channel, messages in found.messages.items():
            old, new = before.messages[channel], after.messages[channel]
            if messages in (old, new):
                continue
            if self.shrinks and len(new) <= len(messages) and messages == old[-len(messages) :]:
                continue
            return f"{channel}: {messages}, which was {old} and was to become {new}"
        for group, members in found.groups.items():
            if members not in (before.groups[group], after.groups[group]):
                return f"group {group}: {members}"
        return ""


def check(found: Any, wanted: Any) -> None:
    """In a victim, where asserts say little."""
    assert found == wanted, f"{found}, and not {wanted}"


def send_numbers(client: Blocking, channel: str, numbers: Iterable[int]) -> None:
    for number in numbers:
        client.send(channel, {"id": number})


MINE = {"id": "mine", "text": "x" * 100}


class Send(Scenario):
    def operate(self, victim: Blocking) -> None:
        victim.send("work", MINE)


class SendWhereSomebodyWaits(Send):
    """The waiter that is picked is gone by the time that it is rung, as a killed one is."""

    def arm(self, victim: Blocking) -> None:
        super().arm(victim)
        session = victim.session
        waiter, generation = session.section(session.store.add_waiter, session.attachment.process)
        session.section(session.store.publish_waiter, waiter, generation)
        target = Target(b"work")
        row = session.section(session.store.find, target)
        session.section(session.store.park, row, waiter)
        self.waiter = waiter, generation


class ReceiveWhereARingIsOwed(Scenario):
    """A waiter that was rung takes a message, and rings the next one, which is gone. The hints say
    so in the other scenarios too, and there it is nonsense."""

    def prepare(self, survivor: Blocking) -> None:
        super().prepare(survivor)
        say_quick(survivor.store)

    def arm(self, victim: Blocking) -> None:
        super().arm(victim)
        session = victim.session
        self.waiters = []
        row = session.section(session.store.find, Target(b"work"))
        for parks in (False, True):
            taken = session.section(session.store.add_waiter, session.attachment.process)
            session.section(session.store.publish_waiter, *taken)
            self.waiters.append(taken)
            if parks:
                session.section(session.store.park, row, taken[0])

    def operate(self, victim: Blocking) -> None:
        core, session = victim.core, victim.session
        source = core.sources(session, ["work"])[0]
        found = core.take_one(session, source, self.waiters[0][0] + WOKEN)
        check(found and found[1]["id"], 0)


class ReceiveInVainWhereARingIsOwed(Scenario):
    channels = ("work", "other", "empty")
    changes = False

    def prepare(self, survivor: Blocking) -> None:
        super().prepare(survivor)
        survivor.send("empty", {})
        survivor.receive("empty")
        say_quick(survivor.store)

    def operate(self, victim: Blocking) -> None:
        check(victim.wait("empty"), (None, None))


class SendToProcess(Scenario):
    channels = ("work", "x.y!")

    def prepare(self, survivor: Blocking) -> None:
        super().prepare(survivor)
        send_numbers(survivor, "x.y!1", range(2))
        send_numbers(survivor, "x.y!2", range(2))

    def operate(self, victim: Blocking) -> None:
        victim.send("x.y!2", MINE)


class SendToNewChannel(Scenario):
    channels = ("work", "other", "new")

    def prepare(self, survivor: Blocking) -> None:
        super().prepare(survivor)
        for i in range(6):  # rows whose bucket is split
            survivor.send(f"c{i}", {"id": i})

    def operate(self, victim: Blocking) -> None:
        victim.send("new", MINE)


class SendToFull(Scenario):
    options = {"capacity": 3}
    changes = False

    def operate(self, victim: Blocking) -> None:
        try:
            victim.send("work", MINE)
        except victim.layer.ChannelFull:
            return
        raise AssertionError("a fourth message was accepted")


class SendInVain(Scenario):
    """A send that waits for room, with a new doorbell, until its time is over."""

    options = {"capacity": 3}
    changes = False

    def arm(self, victim: Blocking) -> None:
        super().arm(victim)
        victim.session.attachment.local.__dict__.pop("waiter", None)

    def operate(self, victim: Blocking) -> None:
        try:
            victim.send_or_wait("work", MINE, 0.005)
        except victim.layer.ChannelFull:
            return
        raise AssertionError("a fourth message was accepted")


class ReceiveWhereSendersWait(Scenario):
    """The receive makes room for a sender that is gone by the time that it is rung."""

    options = {"capacity": 3}

    def arm(self, victim: Blocking) -> None:
        super().arm(victim)
        session = victim.session
        waiter, generation = session.section(session.store.add_waiter, session.attachment.process)
        session.section(session.store.publish_waiter, waiter, generation)
        row = session.section(session.store.find, Target(b"work"))
        for place in (row + Q_SENDING, S_SENDING):
            session.section(session.store.park_sender, place, waiter)
        session.store.words[S_ENOUGH] = session.store.log.max_live // 2

    def operate(self, victim: Blocking) -> None:
        check(victim.receive("work"), ("work", {"id": 0}))


class SendToExpired(Scenario):
    """The queue is full of messages whose time is over."""

    options = {"capacity": 3}
    channels = ("work", "other")

    def prepare(self, survivor: Blocking) -> None:
        for _ in range(3):
            put(survivor, b"work", b"old", -1.0)
        send_numbers(survivor, "other", range(2))
        survivor.group_add("room", "work")

    def operate(self, victim: Blocking) -> None:
        victim.send("work", MINE)


class SendAtEnd(Scenario):
    """The ring wraps."""

    stuck = False
    first: dict[str, Any] = {"id": 0, "body": bytes(640)}
    message: dict[str, Any] = {"id": "mine", "body": bytes(880)}

    def prepare(self, survivor: Blocking) -> None:
        if self.stuck:
            send_numbers(survivor, "work", range(2))
        section, encode = survivor.session.section, survivor.core.codec.encode
        messages = encode(self.first), encode(self.message)
        up_to_the_mark(survivor.store, section, self.stuck, FILLER, *messages, time.monotonic())
        survivor.send("other", self.first)

    def operate(self, victim: Blocking) -> None:
        victim.send("other", self.message)


class SendWithMoves(SendAtEnd):
    """Messages that stand in the tail's way are copied to the head."""

    stuck = True


def _never(offset: int, length: int) -> bool:
    return False


class SendThatGrows(Scenario):
    """More memory is reserved. What was reserved stays so: only the first step is a new one."""

    options = {"message_memory": 1 << 21, "max_message_size": 1 << 20}

    def arm(self, victim: Blocking) -> None:
        super().arm(victim)
        store = victim.store
        if store.halves[HALF_HEAD] < store.layout.log + FIRST_WORDS:
            store.words[S_MARK] = store.layout.log + FIRST_WORDS
            store.words[S_LIMIT] = 0
        # Whether there is memory behind it already depends on the runs before this one.
        victim.session.attachment.segment._backed = _never

    def operate(self, victim: Blocking) -> None:
        victim.send("work", {"id": "mine", "body": b"x" * 200_000})


class Receive(Scenario):
    least = 100

    def operate(self, victim: Blocking) -> None:
        check(victim.receive("work"), ("work", {"id": 0}))


class ReceiveExpired(Scenario):
    shrinks = True

    def prepare(self, survivor: Blocking) -> None:
        for _ in range(3):
            put(survivor, b"work", b"old", -1.0)
        super().prepare(survivor)

    def operate(self, victim: Blocking) -> None:
        check(victim.receive("work"), ("work", {"id": 0}))


class ReceiveAny(Scenario):
    def operate(self, victim: Blocking) -> None:
        victim.core._turn = 0
        check(victim.receive("empty", "work", "other"), ("work", {"id": 0}))


class ReceiveOwn(Scenario):
    """All that waits for the victim's sockets moves into its inbox, and one message out of that."""

    channels = ("work", "v.y!")
    groups = ("room", "victims")
    shrinks = True
    owns = "v.y!"

    def prepare(self, survivor: Blocking) -> None:
        super().prepare(survivor)
        for number in range(2):
            send_numbers(survivor, f"v.y!{number}", range(3))

    def operate(self, victim: Blocking) -> None:
        check(victim.receive("v.y!"), ("v.y!0", {"id": 0}))


class ReceiveInVain(Scenario):
    """A receive that waits, with a new doorbell, until its time is over."""

    changes = False

    def arm(self, victim: Blocking) -> None:
        super().arm(victim)
        victim.session.attachment.local.__dict__.pop("waiter", None)

    def operate(self, victim: Blocking) -> None:
        check(victim.wait("empty", "empty.too"), (None, None))


class GroupAdd(Scenario):
    groups = ("room", "hall")

    def operate(self, victim: Blocking) -> None:
        victim.group_add("hall", "x.new!1")


class GroupRenew(Scenario):
    changes = False

    def operate(self, victim: Blocking) -> None:
        victim.group_add("room", "x.y!1")


class GroupReturn(Scenario):
    """A membership that had run out, and was not swept yet, begins again."""

    def prepare(self, survivor: Blocking) -> None:
        super().prepare(survivor)
        member(survivor, b"room", b"x.y!late", -1.0)

    def operate(self, victim: Blocking) -> None:
        victim.group_add("room", "x.y!late")


class GroupDiscard(Scenario):
    def operate(self, victim: Blocking) -> None:
        victim.group_discard("room", "x.y!1")


class GroupDiscardLast(Scenario):
    groups = ("room", "hall")

    def prepare(self, survivor: Blocking) -> None:
        super().prepare(survivor)
        survivor.group_add("hall", "work")

    def operate(self, victim: Blocking) -> None:
        victim.group_discard("hall", "work")


class GroupSend(Scenario):
    channels = ("work", "other", "x.y!")

    def prepare(self, survivor: Blocking) -> None:
        super().prepare(survivor)
        survivor.group_add("room", "x.y!2")
        survivor.group_add("room", "other")
        send_numbers(survivor, "x.y!2", range(2))

    def operate(self, victim: Blocking) -> None:
        victim.group_send("room", MINE)


class GroupAddWhenFull(Scenario):
    """All its memberships have run out: the sweep that makes room takes the group itself away."""

    def prepare(self, survivor: Blocking) -> None:
        send_numbers(survivor, "work", range(3))
        for i in range(3):
            member(survivor, b"room", b"m%d" % i, -1.0)
        for i in range(3, survivor.store.members.max_rows):
            member(survivor, b"others", b"m%d" % i, LONG)

    def operate(self, victim: Blocking) -> None:
        victim.group_add("room", "work")


class Sweep(Scenario):
    """Messages, memberships and queues whose time is over go."""

    changes = False

    def prepare(self, survivor: Blocking) -> None:
        for i in range(3):
            put(survivor, b"late", b"old", -1.0)
            member(survivor, b"room", b"late%d" % i, -1.0)
            put(survivor, b"work", b"old", -1.0)
        super().prepare(survivor)
        put(survivor, b"idle", b"x", LONG)
        survivor.session.section(survivor.store.take, Target(b"idle"), time.monotonic())

    def operate(self, victim: Blocking) -> None:
        session, now = victim.session, time.monotonic()
        session.section(session.groups.sweep, now, 64)
        session.section(session.store.sweep, now)
        session.section(session.store.reclaim, now, 0.0, 64)


class Upkeep(Sweep):
    """The same as a call does it when it is due, with the look at who lives."""

    def operate(self, victim: Blocking) -> None:
        attachment, doubles = victim.session.attachment, victim.store.doubles
        attachment.upkeep.check_at = attachment.due = 0.0
        doubles[S_BURY_AT] = doubles[S_SWEEP_AT] = 0.0
        victim.core.upkeep(victim.session, time.monotonic())


class Bury(Scenario):
    """A process is dead that had queues of its own, in groups, and doorbells."""

    channels = ("work",)
    groups = ("room", "ghosts")
    shrinks = True
    changes = False  # nobody else saw them

    def prepare(self, survivor: Blocking) -> None:
        super().prepare(survivor)

        def child(connection: Connection) -> None:
            client = Blocking(survivor.layer.prefix, **self.options)
            for queue in "abc":
                assert client.receive(f"dead.{queue}!") == (None, None)
                client.group_add("ghosts", f"dead.{queue}!1")
                client.send(f"dead.{queue}!1", MINE)
            client.wait("empty")
            client.group_discard("ghosts", "dead.c!1")
            os.kill(os.getpid(), signal.SIGKILL)

        pid, connection = forked(child)
        assert reaped(pid) == -signal.SIGKILL
        connection.close()
        assert len(survivor.group_channels("ghosts")) == 2

    def operate(self, victim: Blocking) -> None:
        session = victim.session
        session.attachment.upkeep.bury_the_dead(time.monotonic(), 0.0, session.section)

    def restore(self, survivor: Blocking) -> None:
        bury_all(survivor)


class Creation(Scenario):
    """There is nothing, and the first send makes it."""

    channels = ("work",)
    groups = ()

    def prepare(self, survivor: Blocking) -> None:
        survivor.close()
        segment.destroy(survivor.layer.prefix)

    def arm(self, victim: Blocking) -> None:
        victim.close()

    def operate(self, victim: Blocking) -> None:
        victim.send("work", MINE)


class Attach(Scenario):
    """An attach, and the send that it is for."""

    def arm(self, victim: Blocking) -> None:
        victim.close()

    def operate(self, victim: Blocking) -> None:
        victim.send("work", MINE)


class Detach(Scenario):
    changes = False
    in_finalizers = True

    def arm(self, victim: Blocking) -> None:
        super().arm(victim)
        assert victim.receive("v.z!") == (None, None)

    def operate(self, victim: Blocking) -> None:
        victim.close()


class Flush(Scenario):
    at_once = True

    def operate(self, victim: Blocking) -> None:
        victim.flush()


class Recovery(Scenario):
    """All that is derived is wrong, and the next call puts it right."""

    channels = ("work", "other", "x.y!")
    groups = ("room", "hall")
    changes = False

    def prepare(self, survivor: Blocking) -> None:
        super().prepare(survivor)
        survivor.group_add("hall", "x.y!1")
        send_numbers(survivor, "x.y!1", range(2))

    def arm(self, victim: Blocking) -> None:
        super().arm(victim)
        victim.receive("v.z!")
        ruin(victim.store)

    def operate(self, victim: Blocking) -> None:
        victim.session.section(lambda: None)


SCENARIOS: dict[str, type[Scenario]] = {
    "send": Send,
    "send where somebody waited": SendWhereSomebodyWaits,
    "receive where a ring is owed": ReceiveWhereARingIsOwed,
    "receive in vain where a ring is owed": ReceiveInVainWhereARingIsOwed,
    "send to a process": SendToProcess,
    "send to a new channel": SendToNewChannel,
    "send to a full queue": SendToFull,
    "send in vain": SendInVain,
    "send past an expired backlog": SendToExpired,
    "send where the ring wraps": SendAtEnd,
    "send with relocation": SendWithMoves,
    "send that reserves memory": SendThatGrows,
    "receive": Receive,
    "receive past expired ones": ReceiveExpired,
    "receive from several": ReceiveAny,
    "receive by a process": ReceiveOwn,
    "receive in vain": ReceiveInVain,
    "receive where senders wait": ReceiveWhereSendersWait,
    "group_add": GroupAdd,
    "group_add again": GroupRenew,
    "group_add after the end": GroupReturn,
    "group_add when all is full": GroupAddWhenFull,
    "group_discard": GroupDiscard,
    "group_discard of the last": GroupDiscardLast,
    "group_send": GroupSend,
    "sweep": Sweep,
    "upkeep": Upkeep,
    "bury": Bury,
    "first creation": Creation,
    "attach": Attach,
    "detach": Detach,
    "flush": Flush,
    "recovery": Recovery,
}


# -- helpers of scenarios -------------------------------------------------------------------------

FILLER = b"f" * 544
FIRST_WORDS = 8 * 1024


def put(client: Blocking, queue: bytes, body: bytes, lives: float) -> None:
    """A record that expires in `lives` seconds, which may be negative."""
    session, now = client.session, time.monotonic()
    target = Target(queue, capacity=1000, expiry=lives)
    assert session.section(session.put, target, body, now) >= 0


def say_quick(store: Store) -> None:
    """Set the hints of all queues: receivers are quick, a ring is under way, and one is owed."""
    for row in store.queues.rows():
        store.words[row + Q_QUICK] = store.words[row + Q_OWED] = 1
        store.doubles[row + Q_RUNG] = time.monotonic()


def member(client: Blocking, group: bytes, channel: bytes, lives: float) -> None:
    session, now = client.session, time.monotonic()
    # Swept only if it has run out by then.
    session.section(session.groups.add, group, channel, now - LONG, now + lives)


def up_to_the_mark(
    store: Store, section: Any, stuck: bool, body: bytes, first: bytes, second: bytes, now: float
) -> None:
    """Send and receive `body` until, after the message `first`, the message `second` wraps the
    ring; or, with a message stuck at the tail, has to move it. If `first` is shorter than `body`
    the right place can be stepped over, lap by lap."""
    filler = Target(b"filler", capacity=1000, expiry=LONG)

    def comes(copy: Store) -> bool:
        other = Target(b"other", capacity=1000, expiry=LONG)
        copy.put(other, first, now)
        head, moves = copy.halves[HALF_HEAD], copy.words[S_MOVES]
        copy.put(other, second, now)
        return copy.words[S_MOVES] > moves if stuck else copy.halves[HALF_HEAD] < head

    section(store.put, filler, body, now)
    # As often as the first time: to try it out on a copy takes long.
    known = stuck, len(body), len(first), len(second), len(store.buffer)
    rounds = 0
    while rounds != _rounds.get(known):
        if known not in _rounds and comes(Store(bytearray(store.buffer), store.layout)):
            _rounds[known] = rounds
            break
        assert rounds < 10_000, "it never comes"
        section(store.put, filler, body, now)
        assert section(store.take, filler, now) == body
        rounds += 1
    assert store.words[S_LIVE], "the log is empty, so it begins anew"


_rounds: dict[Any, int] = {}


def ruin(store: Store) -> None:
    """Overwrite what is derived, as a call does that was stopped in the middle."""
    words = store.words
    words[S_DIRTY] = DIRTY
    words[S_LIVE] = words[S_LIMIT] = 12345
    words[S_BIGGEST] = 2
    for row in store.queues.rows():
        for word in (
            Q_FIRST,
            Q_LAST,
            Q_PENDING,
            Q_FIRST_MEMBER,
            Q_MEMBERS,
            Q_NEXT_OWNED,
            Q_WAITING,
            Q_SENDING,
        ):
            words[row + word] = row
    for table in (store.queues, store.groups, store.members):
        words[table.state + T_FREE] = words[table.state + T_USED] = 7
        for row in table.rows():
            words[row + R_BUCKET] = words[row + R_CHAIN] = row
