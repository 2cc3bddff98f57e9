"""Stopping an operation at its n-th bytecode instruction inside the package, and what for.

`Stepper` counts the instructions that the package executes, in whatever it calls in turn, and acts
at one of them. `Scenario` is an operation with what was there before it; the tests kill it
(`test_death`), interrupt it (`test_exceptions`) or replay its writes (`test_torn_writes`).
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from multiprocessing.connection import Connection, Pipe
from types import CodeType, FrameType
from typing import Any, NamedTuple

import asgi_ipc
import asgi_ipc.aio
from asgi_ipc.layout import (
    CLEAN,
    DIRTY,
    HALF_HEAD,
    MAX_PROCESSES,
    P_GENERATION,
    Q_COUNT,
    Q_FIRST,
    Q_FIRST_MEMBER,
    Q_LAST,
    Q_MEMBERS,
    Q_NEXT_OWNED,
    Q_WAITING,
    R_BUCKET,
    R_CHAIN,
    RECORD_WORDS,
    S_BIGGEST,
    S_BURY_AT,
    S_DIRTY,
    S_LIMIT,
    S_LIVE,
    S_MARK,
    S_SWEEP_AT,
    T_FREE,
    T_USED,
    W_GENERATION,
    W_PROCESS_GENERATION,
    WAITER_WORDS,
)
from asgi_ipc.queues import Target
from asgi_ipc.store import Store
from asgi_ipc.verify import INTERRUPTED, verify

FULL_LENGTH = os.environ.get("ASGI_IPC_TEST_LENGTH") == "full"
PACKAGE = os.path.dirname(asgi_ipc.__file__) + os.sep

LONG = 1e6  # seconds that are not over before the test is
PATIENCE = 20.0  # seconds after which a child that says nothing hangs
LARGEST = 64 * 1024  # bytes of a message, packed


# -- stepping -------------------------------------------------------------------------------------


class Stepper:
    """Runs a call and counts the package's instructions; before each it calls `at(frame, n)`.

    What `at` raises is raised at that instruction, and nothing is counted after it.
    """

    def __init__(self, at: Callable[[FrameType, int], None]) -> None:
        self._at = at
        self._counting = False
        self.taken = 0

    def run(self, call: Callable[[], Any]) -> Any:
        # Without the collector, whose finalizers would be counted now in one run, now in another.
        gc.collect()
        gc.disable()
        try:
            if sys.version_info >= (3, 12):
                return self._run_monitored(call)
            # What is traced shows opcodes only if some frame had asked for them before.
            sys._getframe().f_trace_opcodes = True
            sys.settrace(self._call)
            self._counting = True
            return call()
        finally:
            self._counting = False
            sys.settrace(None)
            gc.enable()

    def _call(self, frame: FrameType, event: str, arg: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes = True
        return self._step

    def _step(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "opcode":
            self._count(frame)
        return self._step

    def _run_monitored(self, call: Callable[[], Any]) -> Any:
        """From Python 3.12 on a frame that asks for opcodes while it is called gets none, or not
        until it is called again: there every function of the package is told beforehand."""
        monitoring: Any = sys.monitoring
        tool = monitoring.DEBUGGER_ID
        monitoring.use_tool_id(tool, "stepping")
        try:
            wanted = monitoring.events.INSTRUCTION
            monitoring.register_callback(
                tool, wanted, lambda code, at: self._count(sys._getframe(1))
            )
            for code in package_code():
                monitoring.set_local_events(tool, code, wanted)
            self._counting = True
            return call()
        finally:
            self._counting = False
            for code in package_code():
                monitoring.set_local_events(tool, code, 0)
            monitoring.register_callback(tool, wanted, None)
            monitoring.free_tool_id(tool)

    def _count(self, frame: FrameType) -> None:
        if not self._counting:
            return
        self.taken += 1
        try:
            self._at(frame, self.taken)
        except BaseException:
            self._counting = False
            raise


@cache
def package_code() -> list[CodeType]:
    """The code of every function of the package that is imported, also of those inside others."""
    found: dict[int, CodeType] = {}
    seen: set[int] = set()
    left: list[Any] = [
        vars(module) for name, module in [*sys.modules.items()] if name.startswith("asgi_ipc")
    ]
    while left:
        thing = left.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, dict):
            left += thing.values()
        elif isinstance(thing, CodeType):
            if thing.co_filename.startswith(PACKAGE):
                found[id(thing)] = thing
                left += thing.co_consts
        elif isinstance(thing, type):
            if thing.__module__.startswith("asgi_ipc"):
                left += vars(thing).values()
        else:
            for name in ("__code__", "__func__", "__wrapped__", "fget", "func"):
                left.append(getattr(thing, name, None))
    return [*found.values()]


class Step(NamedTuple):
    """One instruction of a recorded run."""

    instruction: tuple[str, int, int]
    where: str
    dirty: bool


def instruction_of(frame: FrameType) -> tuple[str, int, int]:
    return frame.f_code.co_filename, frame.f_code.co_firstlineno, frame.f_lasti


def place_of(frame: FrameType) -> str:
    code = frame.f_code
    return f"{os.path.basename(code.co_filename)}:{frame.f_lineno} {code.co_name}"


def record(call: Callable[[], Any], dirty: Callable[[], bool]) -> list[Step]:
    """The instructions that `call` takes when nothing stops it."""
    steps: list[Step] = []

    def at(frame: FrameType, n: int) -> None:
        steps.append(Step(instruction_of(frame), place_of(frame), dirty()))

    Stepper(at).run(call)
    return steps


def chosen(steps: list[Step], seed: str, some: int = 50, outside: bool = False) -> list[int]:
    """At which of `steps` to stop, from 1: all of them at full length.

    Else: every instruction that runs while the store is dirty (and with `outside` every other one
    too), when it comes for the first time; some of all, evenly spread; and the end, where nothing
    is stopped.
    """
    count = len(steps)
    if FULL_LENGTH:
        return [*range(1, count + 1), 2 * count + 1000]
    first: dict[Any, int] = {}
    for n, step in enumerate(steps, 1):
        if step.dirty or outside:
            first.setdefault(step.instruction, n)
    every = max(1, count // some)
    spread = range(1 + random.Random(seed).randrange(every), count + 1, every)
    return sorted({1, count, 2 * count + 1000, *first.values(), *spread})


class Moment(NamedTuple):
    """The `time`-th time that an instruction comes. Steadier than a number of steps: the way to it
    may be longer than it was in the recorded run."""

    instruction: tuple[str, int, int]
    time: int
    where: str


THE_END = Moment(("", 0, 0), 0, "the end")


def moments(steps: list[Step], numbers: Iterable[int]) -> Iterator[Moment]:
    """What the `numbers` of a recorded run stand for; one that is too high is the end."""
    wanted = set(numbers)
    times: Counter[Any] = Counter()
    for n, step in enumerate(steps, 1):
        times[step.instruction] += 1
        if n in wanted:
            yield Moment(step.instruction, times[step.instruction], step.where)
    if max(wanted) > len(steps):
        yield THE_END


def at_moment(moment: Moment, act: Callable[[FrameType], None]) -> Callable[[FrameType, int], None]:
    """For a `Stepper`: `act(frame)` when the moment comes."""
    lasti, time = moment.instruction[2], 0

    def at(frame: FrameType, n: int) -> None:
        nonlocal time
        if frame.f_lasti == lasti and instruction_of(frame) == moment.instruction:
            time += 1
            if time == moment.time:
                act(frame)

    return at


def die(frame: FrameType) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# -- who does it ----------------------------------------------------------------------------------


class Blocking:
    """A client of the blocking layer, with the calls that scenarios are made of."""

    def __init__(self, prefix: str, **options: Any) -> None:
        self.layer: Any = self.new_layer(prefix, options)

    def new_layer(self, prefix: str, options: dict[str, Any]) -> Any:
        return asgi_ipc.IPCChannelLayer(prefix, **{"receive_timeout": 0.005, **options})

    def do(self, result: Any) -> Any:
        return result

    @property
    def core(self) -> Any:
        return self.layer._core

    @property
    def session(self) -> Any:
        return self.core.session or self.core.attach()

    @property
    def store(self) -> Store:
        return self.session.store

    def send(self, channel: str, message: dict[str, Any]) -> None:
        self.do(self.layer.send(channel, message))

    def receive(self, *channels: str) -> Any:
        """What is there: (channel, message) or (None, None)."""
        return self.layer.receive(channels)

    def wait(self, *channels: str) -> Any:
        """The same, waiting for ``receive_timeout``."""
        return self.layer.receive(channels, block=True)

    def group_add(self, group: str, channel: str) -> None:
        self.do(self.layer.group_add(group, channel))

    def group_discard(self, group: str, channel: str) -> None:
        self.do(self.layer.group_discard(group, channel))

    def group_channels(self, group: str) -> list[str]:
        return self.do(self.layer.group_channels(group))

    def group_send(self, group: str, message: dict[str, Any]) -> None:
        self.layer.send_group(group, message)

    def flush(self) -> None:
        self.do(self.layer.flush())

    def close(self) -> None:
        self.do(self.layer.close())

    def idle(self) -> None:
        """Attach, and see to it that no upkeep comes in between for a while."""
        session, later = self.session, time.monotonic() + 60
        session.attachment._check_at = session.attachment.due = later
        session.store.doubles[S_BURY_AT] = session.store.doubles[S_SWEEP_AT] = later

    def drain(self, channel: str) -> list[Any]:
        found = []
        while True:
            name, message = self.receive(channel)
            if name is None:
                return found
            found.append((name, message["id"]))


class Asyncio(Blocking):
    """A client of the asyncio layer: each call in a new event loop, as `async_to_sync` does it."""

    def new_layer(self, prefix: str, options: dict[str, Any]) -> Any:
        return asgi_ipc.aio.IPCChannelLayer(prefix, **{"receive_timeout": 0.005, **options})

    def do(self, result: Any) -> Any:
        loop = asyncio.new_event_loop()
        try:
            return loop.run_until_complete(result)
        finally:
            for task in asyncio.all_tasks(loop):
                task.cancel()
            loop.run_until_complete(asyncio.sleep(0))
            loop.close()

    def receive(self, *channels: str) -> Any:
        return self.do(self.layer.receive_async(channels, timeout=0))

    def wait(self, *channels: str) -> Any:
        return self.do(self.layer.receive_async(channels))

    def group_send(self, group: str, message: dict[str, Any]) -> None:
        self.do(self.layer.group_send(group, message))


def forked(child: Callable[[Connection], None]) -> tuple[int, Connection]:
    """Run `child` in a forked process, with its end of a pipe: (pid, our end)."""
    ours, theirs = Pipe()
    pid = os.fork()
    if pid:
        theirs.close()
        return pid, ours
    status = 1
    try:
        ours.close()
        child(theirs)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def reaped(pid: int) -> int:
    """How a child ended: its exit code, or minus the signal that killed it."""
    _, status = os.waitpid(pid, 0)
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def answer(connection: Connection, pid: int) -> Any:
    """The next thing that a child says; one that says nothing is killed, and the test fails."""
    if not connection.poll(PATIENCE):
        os.kill(pid, signal.SIGKILL)
        reaped(pid)
        raise AssertionError(f"the child hung for {PATIENCE:g} s")
    return connection.recv()


# -- what it is done to ---------------------------------------------------------------------------


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

    def prepare(self, survivor: Blocking) -> None:
        if self.stuck:
            send_numbers(survivor, "work", range(2))
        section, now = survivor.session.section, time.monotonic()
        up_to_the_mark(survivor.store, section, self.stuck, FILLER, now)
        send_numbers(survivor, "other", range(1))

    def operate(self, victim: Blocking) -> None:
        victim.send("other", {"id": "mine", "body": FILLER + bytes(400)})


class SendWithMoves(SendAtEnd):
    """Messages that stand in the tail's way are copied to the head."""

    stuck = True


class SendThatGrows(Scenario):
    """More memory is reserved. What was reserved stays so: only the first step is a new one."""

    options = {"max_message_size": 1 << 20}

    def arm(self, victim: Blocking) -> None:
        super().arm(victim)
        store = victim.store
        if store.halves[HALF_HEAD] < store.layout.log + FIRST_WORDS:
            store.words[S_MARK] = store.layout.log + FIRST_WORDS
            store.words[S_LIMIT] = 0

    def operate(self, victim: Blocking) -> None:
        victim.send("work", {"id": "mine", "body": b"x" * 200_000})


class Receive(Scenario):
    least = 100

    def operate(self, victim: Blocking) -> None:
        assert victim.receive("work") == ("work", {"id": 0})


class ReceiveExpired(Scenario):
    shrinks = True

    def prepare(self, survivor: Blocking) -> None:
        for _ in range(3):
            put(survivor, b"work", b"old", -1.0)
        super().prepare(survivor)

    def operate(self, victim: Blocking) -> None:
        assert victim.receive("work") == ("work", {"id": 0})


class ReceiveAny(Scenario):
    def operate(self, victim: Blocking) -> None:
        victim.core._turn = 0
        assert victim.receive("empty", "work", "other")[0] is not None


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
        assert victim.receive("v.y!") == ("v.y!0", {"id": 0})


class ReceiveInVain(Scenario):
    """A receive that waits, with a new doorbell, until its time is over."""

    changes = False

    def arm(self, victim: Blocking) -> None:
        super().arm(victim)
        victim.session.attachment.local.__dict__.pop("waiter", None)

    def operate(self, victim: Blocking) -> None:
        assert victim.wait("empty", "empty.too") == (None, None)


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
    """Every membership has run out: the sweep that makes room takes the group itself away."""

    def prepare(self, survivor: Blocking) -> None:
        send_numbers(survivor, "work", range(3))
        for i in range(survivor.store.members.max_rows):
            member(survivor, b"room", b"m%d" % i, -1.0)

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
        attachment._check_at = attachment.due = 0.0
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
        session.attachment._bury_the_dead(time.monotonic(), 0.0, session.section)

    def restore(self, survivor: Blocking) -> None:
        bury_all(survivor)


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
    "send to a process": SendToProcess,
    "send to a new channel": SendToNewChannel,
    "send to a full queue": SendToFull,
    "send past an expired backlog": SendToExpired,
    "send where the ring wraps": SendAtEnd,
    "send with relocation": SendWithMoves,
    "send that reserves memory": SendThatGrows,
    "receive": Receive,
    "receive past expired ones": ReceiveExpired,
    "receive from several": ReceiveAny,
    "receive by a process": ReceiveOwn,
    "receive in vain": ReceiveInVain,
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
    "attach": Attach,
    "detach": Detach,
    "flush": Flush,
    "recovery": Recovery,
}


# -- helpers of scenarios -------------------------------------------------------------------------

FILLER = b"f" * 480
FIRST_WORDS = 8 * 1024
MARGIN = 32  # words


def put(client: Blocking, queue: bytes, body: bytes, lives: float) -> None:
    """A record that expires in `lives` seconds, which may be negative."""
    session, now = client.session, time.monotonic()
    assert session.section(session.put, Target(queue, capacity=1000), body, now, now + lives) >= 0


def member(client: Blocking, group: bytes, channel: bytes, lives: float) -> None:
    session, now = client.session, time.monotonic()
    # Swept only if it has run out by then.
    session.section(session.groups.add, group, channel, now - LONG, now + lives)


def up_to_the_mark(store: Store, section: Any, stuck: bool, body: bytes, now: float) -> None:
    """Send and receive until the next record that is MARGIN words larger wraps the ring; or, with
    a message stuck at the tail, until it has to be moved."""
    words, halves = store.words, store.halves
    target = Target(b"filler", capacity=1000)
    size = RECORD_WORDS + ((len(body) + 64 + 15) >> 4 << 1)
    body += bytes(64)
    section(store.put, target, body, now, now + LONG)
    while halves[HALF_HEAD] + size + MARGIN <= (words[S_LIMIT] if stuck else words[S_MARK]):
        section(store.put, target, body, now, now + LONG)
        assert section(store.take, target, now) == body
    assert words[S_LIVE], "the log is empty, so it begins anew"


def ruin(store: Store) -> None:
    """Overwrite what is derived, as a call does that was stopped in the middle."""
    words = store.words
    words[S_DIRTY] = DIRTY
    words[S_LIVE] = words[S_LIMIT] = 12345
    words[S_BIGGEST] = 2
    for row in store.queues.rows():
        for word in (Q_FIRST, Q_LAST, Q_COUNT, Q_FIRST_MEMBER, Q_MEMBERS, Q_NEXT_OWNED, Q_WAITING):
            words[row + word] = row
    for table in (store.queues, store.groups, store.members):
        words[table.state + T_FREE] = words[table.state + T_USED] = 7
        for row in table.rows():
            words[row + R_BUCKET] = words[row + R_CHAIN] = row


def fill_from(survivor: Blocking, scenario: Scenario) -> None:
    """The same store every time: empty, but for what the scenario puts there."""
    survivor.idle()
    survivor.flush()
    bury_all(survivor)
    scenario.prepare(survivor)


def bury_all(survivor: Blocking) -> None:
    """See to all that is left of dead processes, as if `expiry` were over."""
    session = survivor.session
    store, attachment, now = session.store, session.attachment, time.monotonic()
    for index in range(MAX_PROCESSES):
        row = store.process_row(index)
        if store.words[row + P_GENERATION] and not attachment.alive(row):
            while not session.section(store.bury, row, now, 0.0):
                pass


def generations(store: Store, base: int, width: int, word: int, count: int = 1024) -> list[int]:
    """Which rows of a fixed region are in use."""
    found = store.words[base + word : base + count * width : width].tolist()
    return [index for index, generation in enumerate(found) if generation]


def waiters_in_use(store: Store) -> list[int]:
    base = store.layout.waiters
    return sorted(
        {
            *generations(store, base, WAITER_WORDS, W_GENERATION),
            *generations(store, base, WAITER_WORDS, W_PROCESS_GENERATION),
        }
    )


def assert_whole(survivor: Blocking) -> None:
    """A call later nothing is wrong."""
    session = survivor.session
    found = session.section(verify, session.store, time.monotonic())
    assert found == [], found


def assert_as_before_the_call(survivor: Blocking) -> None:
    """What a death or an exception has left, before anybody looks: nothing that was not allowed."""
    session = survivor.session
    assert session.attachment.lock.holder() == 0, "the lock is held"
    found = verify(session.store, time.monotonic())
    assert all(line.startswith(INTERRUPTED) for line in found), found
    assert bool(found) == (session.store.words[S_DIRTY] != CLEAN)


def assert_the_largest_fits(survivor: Blocking) -> None:
    body = b"x" * (survivor.core.max_message_size - 100)
    survivor.send("largest", {"id": body})
    assert survivor.drain("largest") == [("largest", body)]
