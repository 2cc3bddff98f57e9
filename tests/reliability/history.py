"""A history checker: many real processes, killed, stopped and cancelled, and all that they did.

Each process appends what it sent (before and after the call) and what it received to a log of its
own, one write for each event, so that what was written is there however the process ended. When
all is over the logs are put together, and `judge` says what cannot have happened in a layer that
keeps its promises. By hand, for as long as wanted::

    python -m tests.reliability.history --seconds 600 --seed 7

The processes are of three kinds: ``blocking`` and ``asyncio`` ones, started anew, and ``forked``
ones, which go on with a layer that their parent made and used. Every one of them sends and
receives, on channels of all three sorts:

- ``work1`` and so on: normal channels, everybody reads;
- ``single?N``: read by whichever process has the place N at the time;
- ``own.<process>!<local>``: the process's own, and a member of the group ``everyone``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import asgi_ipc
import asgi_ipc.aio
from asgi_ipc import segment
from asgi_ipc.segment.paths import Paths
from asgi_ipc.store.layout import (
    BUFFER,
    DROP_REASONS,
    EXPIRED,
    MEMORY,
    Q_OWED,
    Q_QUICK,
    Q_RUNG,
    S_DROPS,
    S_RECOVERIES,
)
from tests.waiting import LIVENESS

KINDS = ("blocking", "asyncio", "forked")
PLACES = 6
WORK = ["work1", "work2", "work3"]
GROUP = "everyone"
OPTIONS = {"capacity": 400, "receive_timeout": 0.25}
PATIENCE = (None, 0.05)  # seconds that a send waits for room

LONGEST = 0.25  # seconds that a call may take,
AT_A_LOOK = 1.5  # and that a receive may, where only the look once a second finds a message
AFTER_KILL = 1.3  # seconds of grace: recovery, and the safety check that makes up for a lost ring
AFTER_STOP = 0.3  # seconds of grace once the stopped process was told to go on

REPOSITORY = Path(__file__).resolve().parents[2]


# -- what a process does --------------------------------------------------------------------------


class Worker:
    """One process of the history: what all three kinds share. `name` is its place and its life."""

    def __init__(self, folder: Path, name: str, seed: int) -> None:
        self.folder = folder
        self.name = name
        self.random = random.Random(seed)
        self.single = f"single?{name.partition('-')[0]}"
        self._log = os.open(folder / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._late = os.open("/proc/thread-self/schedstat", os.O_RDONLY)
        self._numbers: Counter[str] = Counter()

    def log(self, *event: object) -> None:
        os.write(self._log, ("\t".join(map(str, event)) + "\n").encode())

    def now(self) -> tuple[float, float]:
        """The time, and for how long in all this thread was kept waiting for a processor."""
        return time.monotonic(), int(os.pread(self._late, 100, 0).split()[1]) / 1e9

    def done(self, event: str, uid: str, channel: str, begun: tuple[float, float]) -> None:
        """Log a call that is over: when it began, when it ended, how long it had no processor."""
        now, late = self.now()
        self.log(event, uid, channel, begun[0], now, late - begun[1])

    def told(self, what: str) -> bool:
        return (self.folder / what).exists()

    def next(self, stream: str, own: list[str]) -> tuple[str, str, dict[str, Any]]:
        """What to send next: (uid, channel or group, message)."""
        choice = self.random.random()
        if choice < 0.75:
            channel = self.random.choice(WORK)
        elif choice < 0.98:
            channel = f"single?{self.random.randrange(PLACES)}"
        else:
            channel = GROUP
        answer = self.random.choice([self.single, *own, ""])
        return self.message(stream, channel, answer)

    def message(self, stream: str, channel: str, answer: str) -> tuple[str, str, dict[str, Any]]:
        self._numbers[stream] += 1
        uid = f"{self.name}.{stream}.{self._numbers[stream]}"
        padding = "x" * self.random.choice([0, 0, 0, 50, 500, 20_000])
        return uid, channel, {"uid": uid, "answer": answer, "padding": padding}


def blocking(worker: Worker, layer: Any) -> None:
    """The life of a blocking process, forked or not."""
    queue = f"own.{worker.name}!"
    own = [queue + "a", queue + "b"]
    channels = {*WORK, worker.single, queue}
    answers: list[str] = []
    layer.group_add(GROUP, own[0])
    worker.log("born", queue)

    def send(uid: str, channel: str, message: dict[str, Any]) -> None:
        begun = worker.now()
        worker.log("send", uid, channel, begun[0])
        try:
            if channel == GROUP:
                layer.send_group(channel, message)
            else:
                layer.send(channel, message, timeout=worker.random.choice(PATIENCE))
        except layer.ChannelFull:
            worker.done("full", uid, channel, begun)
        else:
            worker.done("sent", uid, channel, begun)

    def receive(block: bool) -> bool:
        begun = worker.now()
        channel, message = layer.receive(channels, block=block)
        if message is None:
            worker.done("waited" if block else "none", "", "", begun)
            return False
        worker.done("got", message["uid"], channel, begun)
        if message["answer"]:
            answers.append(message["answer"])
        return True

    pause = worker.random.choice([0.0, 0.01, 0.02])
    while not worker.told("quiet"):
        sending = worker.random.randrange(1, 8)
        for _ in range(sending):
            send(*worker.next("main", own))
        for _ in range(2 * sending):
            if not receive(False):
                receive(True)
                break
        for channel in answers[:sending]:
            send(*worker.message("answers", channel, ""))
        answers.clear()
        time.sleep(pause)
    worker.log("silent")
    while not worker.told("drain"):
        receive(True)
    while receive(False):
        pass
    layer.close()


async def coroutines(worker: Worker, prefix: str, leaves: bool) -> None:
    """The life of an asyncio process: tasks that receive, and are cancelled, and one that sends.

    With `leaves`, SIGTERM cancels them all. An exception that a signal handler raises in the middle
    of asyncio's own code can lose one of its callbacks: `asyncio.run` would wait for ever.
    """
    if leaves:
        myself = asyncio.current_task()
        assert myself is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, myself.cancel)
    layer = asgi_ipc.aio.IPCChannelLayer(prefix, **OPTIONS)
    own = [await layer.new_channel("own"), await layer.new_channel("own")]
    queue = own[0].partition("!")[0] + "!"
    await layer.group_add(GROUP, own[0])
    worker.log("born", queue)

    async def send(uid: str, channel: str, message: dict[str, Any]) -> None:
        begun = worker.now()
        worker.log("send", uid, channel, begun[0])
        try:
            if channel == GROUP:
                await layer.group_send(channel, message)
            else:
                await layer.send(channel, message, timeout=worker.random.choice(PATIENCE))
        except layer.ChannelFull:
            worker.done("full", uid, channel, begun)
        else:
            worker.done("sent", uid, channel, begun)

    async def receive(stream: str, channels: list[str], timeout: float | None = None) -> bool:
        begun = worker.now()
        channel: str | None
        if timeout is None and len(channels) == 1:
            channel, message = channels[0], await layer.receive(channels[0])
        else:
            channel, message = await layer.receive_async(channels, timeout)
        if message is None:
            return False
        nonlocal answering
        worker.done("got", message["uid"], str(channel), begun)
        if message["answer"] and not quiet:
            answering += 1
            try:
                await send(*worker.message(stream, message["answer"], ""))
            finally:
                answering -= 1
        return True

    quiet, answering = False, 0
    receives: dict[str, asyncio.Task[bool]] = {}

    async def keep_receiving(stream: str, channels: list[str]) -> None:
        while not worker.told("drain"):
            task = receives[stream] = asyncio.ensure_future(receive(stream, channels))
            await asyncio.wait([task])
            if not task.cancelled():
                task.result()  # raises what went wrong

    async def keep_cancelling() -> None:
        while not worker.told("drain") or not all(task.done() for task in receives.values()):
            await asyncio.sleep(worker.random.choice([0.0, 0.0005, 0.01]))
            if receives:
                receives[worker.random.choice(list(receives))].cancel()

    async def keep_sending() -> None:
        pause = worker.random.choice([0.005, 0.02])
        while not worker.told("quiet"):
            for _ in range(worker.random.randrange(1, 8)):
                await send(*worker.next("main", own))
            await asyncio.sleep(pause)
        nonlocal quiet
        quiet = True
        while answering:  # an answer could reach a process that is over
            await asyncio.sleep(0.001)
        worker.log("silent")

    await asyncio.gather(
        keep_receiving("1", [*WORK, worker.single]),
        keep_receiving("2", [WORK[0]]),
        keep_receiving("3", [WORK[1]]),
        keep_receiving("4", [own[0]]),
        keep_receiving("5", [own[1]]),
        keep_cancelling(),
        keep_sending(),
    )
    while await receive("1", [*WORK, worker.single, queue], 0.0):
        pass
    await layer.close()


def live(kind: str, folder: Path, prefix: str, name: str, seed: int, layer: Any = None) -> int:
    """Be a process of the history; returns its exit code. `layer`: the parent's, in a fork."""
    worker = Worker(folder, name, seed)
    # Half of them die of SIGTERM on the spot, half leave: blocking ones wherever they are, asyncio
    # ones at an await.
    leaves = worker.random.random() < 0.5
    try:
        if kind == "asyncio":
            asyncio.run(coroutines(worker, prefix, leaves))
        else:
            if leaves:
                signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
            blocking(worker, layer or asgi_ipc.IPCChannelLayer(prefix, **OPTIONS))
    except asyncio.CancelledError:  # it was told to leave
        return 0
    except Exception as error:
        worker.log("error", repr(error).replace("\t", " "))
        raise
    worker.log("over")
    return 0


# -- what is done to them -------------------------------------------------------------------------


class Life(NamedTuple):
    """A process that runs."""

    name: str
    pid: int
    child: subprocess.Popen[bytes] | None  # None: a fork of this very process


class Disturbance(NamedTuple):
    """What was done to somebody, and how long others may suffer from it."""

    what: str
    name: str
    begin: float
    end: float


class Chaos:
    """Starts the processes, disturbs them, starts others in their place, and ends it all."""

    def __init__(self, prefix: str, folder: Path, seed: int, nonsense: bool = False) -> None:
        self.prefix = prefix
        self.folder = folder
        self.nonsense = nonsense
        self.random = random.Random(seed)
        self.layer = asgi_ipc.IPCChannelLayer(prefix, **OPTIONS)
        self.layer.send("warm", {})  # used before anybody is forked, as a preloaded layer is
        assert self.layer.receive(["warm"]) == ("warm", {})
        self.disturbances: list[Disturbance] = []
        self._deck: list[signal.Signals] = []  # the next ones
        self.killed: dict[str, int] = {}  # name → by which signal
        self.codes: dict[str, int] = {}
        self.problems: list[str] = []
        self._lives = Counter[int]()
        self._running: dict[int, Life] = {}

    def start(self, place: int) -> None:
        self._lives[place] += 1
        kind = KINDS[(place + self._lives[place]) % len(KINDS)]
        name = f"{place}-{self._lives[place]}-{kind}"
        seed = self.random.randrange(1 << 30)
        if kind == "forked":
            pid = os.fork()
            if not pid:
                self._be_forked(name, seed)
            self._running[place] = Life(name, pid, None)
            return
        with open(self.folder / f"{name}.err", "wb") as errors:
            child = subprocess.Popen(
                [sys.executable, "-m", __spec__.name if __spec__ else __name__]
                + ["--kind", kind, "--prefix", self.prefix, "--name", name]
                + ["--folder", str(self.folder), "--seed", str(seed)],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                cwd=REPOSITORY,
            )
        self._running[place] = Life(name, child.pid, child)

    def _be_forked(self, name: str, seed: int) -> None:
        code = 1
        try:
            file = os.open(self.folder / f"{name}.err", os.O_WRONLY | os.O_CREAT, 0o600)
            os.dup2(file, 1)
            os.dup2(file, 2)
            code = live("forked", self.folder, self.prefix, name, seed, self.layer)
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)

    def run(self, seconds: float) -> None:
        for place in range(PLACES):
            self.start(place)
        for life in self._running.values():
            self._wait_for(life, "born")
        self.begin = time.monotonic()
        while time.monotonic() < self.begin + seconds:
            self._rest(self.random.uniform(0.2, 4.0))
            for place in self.random.sample(range(PLACES), self.random.choice([1, 1, 2])):
                self._disturb(place)
        self.end = time.monotonic()
        for step, awaited in (("quiet", "silent"), ("drain", "over")):
            (self.folder / step).touch()
            for life in self._running.values():
                self._wait_for(life, awaited)
        for place in range(PLACES):
            self._reap(place)

    def _disturb(self, place: int) -> None:
        life = self._running[place]
        if not self._wait_for(life, "born"):
            return
        if not self._deck:  # so that a short run has each of them, too
            self._deck = [signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP]
            self.random.shuffle(self._deck)
        how = self._deck.pop()
        begin = time.monotonic()
        if self._ended(life):
            self.problems.append(f"{life.name} ended with {self.codes[life.name]} by itself")
            self.start(place)
            return
        os.kill(life.pid, how)
        if how == signal.SIGSTOP:
            self._rest(self.random.uniform(0.05, 0.7))
            os.kill(life.pid, signal.SIGCONT)
            end = time.monotonic() + AFTER_STOP
        else:
            self.killed[life.name] = how
            self._reap(place)
            end = time.monotonic() + AFTER_KILL
            self.start(place)
        self.disturbances.append(Disturbance(signal.Signals(how).name, life.name, begin, end))

    def _rest(self, seconds: float) -> None:
        """Leave them alone, and see how long a processor is not to be had by anybody."""
        until = time.monotonic() + seconds
        while (before := time.monotonic()) < until:
            if self.nonsense:
                self._talk_nonsense()
            time.sleep(0.001 if self.nonsense else 0.01)
            now = time.monotonic()
            if now - before > 0.1:
                self.disturbances.append(Disturbance("busy machine", "", before - 0.1, now + 0.1))

    def _talk_nonsense(self) -> None:
        """Overwrite the hints of all queues, without the lock. Most often they now say that a ring
        is under way, so that the next one is left out."""
        store = self.layer._core.attach().store
        any_word = self.random.getrandbits(64)
        for row in list(store.queues.rows()):
            if self.random.random() < 0.5:
                store.doubles[row + Q_RUNG] = time.monotonic()
                store.words[row + Q_QUICK] = 1
            else:
                store.words[row + Q_RUNG] = any_word
                store.words[row + Q_QUICK] = any_word >> 63
            store.words[row + Q_OWED] = any_word & 6

    def _wait_for(self, life: Life, event: str) -> bool:
        """Until a process has logged `event`. False, and a problem, if it never did."""
        path, deadline = self.folder / f"{life.name}.log", time.monotonic() + LIVENESS
        while time.monotonic() < deadline:
            ended = self._ended(life)  # first: it may log and end between the two looks
            with contextlib.suppress(FileNotFoundError):
                if f"\n{event}".encode() in b"\n" + path.read_bytes():
                    return True
            if ended:
                break
            time.sleep(0.01)
        state = f"ended with {self.codes[life.name]}" if life.name in self.codes else "is stuck"
        self.problems.append(f"{life.name} did not come to {event!r}: it {state}")
        return False

    def _ended(self, life: Life) -> bool:
        if life.name not in self.codes:
            if life.child is not None:
                code = life.child.poll()
                if code is not None:
                    self.codes[life.name] = code
            else:
                pid, status = os.waitpid(life.pid, os.WNOHANG)
                if pid:
                    self.codes[life.name] = os.waitstatus_to_exitcode(status)
        return life.name in self.codes

    def _reap(self, place: int) -> None:
        """Until the process at `place` has ended, which it must by itself."""
        life, deadline = self._running[place], time.monotonic() + LIVENESS
        while not self._ended(life):
            if time.monotonic() > deadline:
                self.problems.append(f"{life.name} did not end by itself")
                os.kill(life.pid, signal.SIGKILL)
                deadline += LIVENESS
            time.sleep(0.002)

    def stop_all(self) -> None:
        """However it went: leave no process behind."""
        for place, life in self._running.items():
            if not self._ended(life):
                os.kill(life.pid, signal.SIGKILL)
                self._reap(place)

    def drops(self) -> dict[str, int]:
        words = self.layer._core.attach().store.words
        found = {reason: words[S_DROPS + at] for at, reason in enumerate(DROP_REASONS)}
        return {**found, "recoveries": words[S_RECOVERIES]}


# -- what must not have happened ------------------------------------------------------------------


class Event(NamedTuple):
    process: str
    what: str
    uid: str
    channel: str
    begin: float
    end: float
    late: float


def read(folder: Path) -> Iterator[Event]:
    """All events of all logs, those of one process in their order."""
    for path in sorted(folder.glob("*.log")):
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]:
            what, *rest = line.split("\t")
            if what in ("born", "silent", "over", "error"):
                yield Event(path.stem, what, "", "".join(rest), 0.0, 0.0, 0.0)
            elif what == "send":
                yield Event(path.stem, what, rest[0], rest[1], float(rest[2]), 0.0, 0.0)
            else:
                uid, channel, *times = rest
                yield Event(path.stem, what, uid, channel, *map(float, times))


def judge(
    events: Iterable[Event],
    killed: Iterable[str],
    drops: dict[str, int],
    disturbances: Iterable[Disturbance],
    begin: float,
    end: float,
    longest: float = LONGEST,
) -> tuple[list[str], dict[str, Any]]:
    """What is wrong with a history, in words, and figures that show how much there was to judge."""
    events, killed = list(events), set(killed)
    problems = [f"{e.process} raised {e.channel}" for e in events if e.what == "error"]
    sent = {e.uid: e for e in events if e.what == "sent"}
    tried = {e.uid for e in events if e.what == "send"}
    refused = {e.uid for e in events if e.what == "full"}
    owners = {e.channel: e.process for e in events if e.what == "born"}
    got: dict[tuple[str, str], Event] = {}
    by_stream: dict[tuple[str, str], list[Event]] = defaultdict(list)
    for event in events:
        if event.what != "got":
            continue
        if event.uid not in tried:
            problems.append(f"{event.uid} came to {event.process}, and nobody sent it")
        elif event.uid in refused:
            problems.append(f"{event.uid} came to {event.process}, and its send was refused")
        twin = got.setdefault((event.uid, event.channel), event)
        if twin is not event:
            problems.append(f"duplicate: {event.uid} came to {twin.process} and {event.process}")
        by_stream[event.uid.rpartition(".")[0], event.channel].append(event)
    problems += _out_of_order(by_stream.values())

    received = {uid for uid, _ in got}
    lost, lost_own = [], []
    for uid, event in sent.items():
        if uid in received or event.channel == GROUP:
            continue
        owner = owners.get(event.channel.partition("!")[0] + "!")
        if "!" not in event.channel:
            lost.append(uid)
        elif owner not in killed:
            lost_own.append(uid)
    counted = drops[DROP_REASONS[EXPIRED]] + drops[DROP_REASONS[MEMORY]]
    if len(lost) > len(killed) + counted:
        problems.append(
            f"{len(lost)} messages were lost, and {len(killed)} deaths and {counted} counted "
            f"drops explain fewer: {lost[:9]}"
        )
    if len(lost_own) > drops[DROP_REASONS[BUFFER]] + counted:
        problems.append(f"{len(lost_own)} messages to living processes were lost: {lost_own[:9]}")

    windows = _union((d.begin, d.end) for d in disturbances)
    judged, worst = 0, 0.0
    for event in events:
        if event.what not in ("sent", "full", "got", "none", "waited"):
            continue
        since, allowed = event.begin, longest
        if event.what == "waited":
            allowed += float(OPTIONS["receive_timeout"])
        elif event.what == "got":
            # What counts is how long it waited for a message that was there.
            its = sent.get(event.uid)
            if its is None:
                continue  # its sender was killed: nobody knows since when it was there
            since = max(since, its.end)
        outside = _outside(since, event.end, windows)
        judged += outside == event.end - since
        took = outside - event.late
        worst = max(worst, took - allowed + longest)
        if took > allowed:
            problems.append(
                f"{event.process}: {event.what} {event.uid} {event.channel} took "
                f"{event.end - since:.3f} s from {since:.3f}, {took:.3f} s of it unexplained"
            )
    calm = _outside(begin, end, windows)
    figures = {
        "processes": len({e.process for e in events}),
        "killed": len(killed),
        "sent": len(sent),
        "received": len(got),
        "refused": len(refused),
        "lost": len(lost),
        "to_the_dead": sum("!" in e.channel and uid not in received for uid, e in sent.items()),
        "drops": drops,
        "disturbances": Counter(d.what for d in disturbances),
        "calls_judged": judged,
        "calm_seconds": round(calm, 1),
        "longest_ms": round(worst * 1000, 1),
    }
    return problems, figures


def _out_of_order(streams: Iterable[list[Event]]) -> Iterator[str]:
    """Messages of one sender to one channel that were taken in another order than sent.

    Two readers log in any order. But if the later message was there before the receive that got
    the earlier one had begun, it was taken first; and one reader that has one receive at a time
    logs in the order in which it took.
    """
    for stream in streams:
        stream = sorted(stream, key=lambda e: int(e.uid.rpartition(".")[2]))
        soonest = None
        for event in reversed(stream):
            if soonest is not None and event.begin > soonest.end:
                yield f"{soonest.uid} was taken before {event.uid}, on {event.channel}"
            if soonest is None or event.end < soonest.end:
                soonest = event


def _union(windows: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    found: list[tuple[float, float]] = []
    for begin, end in sorted(windows):
        if found and begin <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((begin, end))
    return found


def _outside(begin: float, end: float, windows: list[tuple[float, float]]) -> float:
    """How much of a stretch of time is in none of the windows, which are in order."""
    outside, at = end - begin, bisect_right(windows, (begin, begin))
    for first, last in windows[max(at - 1, 0) :]:
        if first >= end:
            break
        outside -= max(min(end, last) - max(begin, first), 0.0)
    return outside


# -- all of it ------------------------------------------------------------------------------------


def left_behind(prefix: str) -> list[str]:
    """What lies beside the segment that belongs to nobody who lives."""
    folder = Path(Paths(prefix).directory)
    return sorted(path.name for path in folder.iterdir() if path.is_fifo())


def history(
    seconds: float, seed: int, folder: Path, longest: float = LONGEST, nonsense: bool = False
) -> tuple[list[str], dict[str, Any]]:
    """Live through it, and judge it: problems and figures."""
    prefix = f"h{os.getpid()}-{secrets.token_hex(4)}"
    open_before = set(os.listdir("/proc/self/fd"))
    chaos = Chaos(prefix, folder, seed, nonsense)
    try:
        try:
            chaos.run(seconds)
        finally:
            chaos.stop_all()
        drops = chaos.drops()
        problems, figures = judge(
            *(read(folder), chaos.killed, drops, chaos.disturbances),
            *(chaos.begin, chaos.end, longest),
        )
        problems = chaos.problems + problems
        for name, code in chaos.codes.items():
            how = chaos.killed.get(name)
            if code not in ({0} if how is None else {-how, 0} if how == signal.SIGTERM else {-how}):
                errors = (folder / f"{name}.err").read_text(errors="replace")[-2000:]
                problems.append(f"{name} ended with {code}: {errors}")
        figures["doorbells_left"] = _eventually_none(chaos, lambda: left_behind(prefix))
        if figures["doorbells_left"]:
            problems.append(f"doorbells of the dead were left: {figures['doorbells_left']}")
        chaos.layer.close()
        del chaos
        gc.collect()
        leaked = {
            (fd, os.readlink(f"/proc/self/fd/{fd}"))
            for fd in set(os.listdir("/proc/self/fd")) - open_before
            if os.path.exists(f"/proc/self/fd/{fd}")
        }
        if leaked:
            problems.append(f"descriptors were left open: {leaked}")
    finally:
        segment.destroy(prefix)
    left = [path.name for path in Path("/dev/shm").glob(f"*{prefix}*")]
    if left:
        problems.append(f"left in shared memory: {left}")
    with contextlib.suppress(ChildProcessError):
        problems.append(f"a child was left: {os.waitpid(-1, os.WNOHANG)}")
    return problems, figures


def _eventually_none(chaos: Chaos, what: Callable[[], list[str]]) -> list[str]:
    """Give the upkeep of a process that lives the time to clear up."""
    deadline = time.monotonic() + LIVENESS
    while (left := what()) and time.monotonic() < deadline:
        chaos.layer.receive(["nothing"], block=False)
        time.sleep(0.05)
    return left


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--longest", type=float, default=LONGEST, help="seconds for any call")
    parser.add_argument("--nonsense", action="store_true", help="hints that say what is not so")
    parser.add_argument("--keep", help="folder for the logs, which stay there")
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--prefix", help=argparse.SUPPRESS)
    parser.add_argument("--name", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.kind:
        return live(given.kind, Path(given.folder), given.prefix, given.name, given.seed)
    seed = secrets.randbelow(1 << 30) if given.seed is None else given.seed
    print(f"seed {seed}, {given.seconds:g} s", flush=True)
    with contextlib.ExitStack() as stack:
        kept = given.keep or stack.enter_context(tempfile.TemporaryDirectory())
        Path(kept).mkdir(parents=True, exist_ok=True)
        longest = max(given.longest, AT_A_LOOK) if given.nonsense else given.longest
        problems, figures = history(given.seconds, seed, Path(kept), longest, given.nonsense)
    print(json.dumps(figures, indent=1), flush=True)
    for problem in problems[:50]:
        print("PROBLEM:", problem)
    print(f"{len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
