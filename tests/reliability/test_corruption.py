"""Bits that flip under a live layer, and segments that are already wrong when a process attaches.

Whatever bytes are in memory, a call returns or raises an error of this package within a second,
plus any time for which it waits for the lock. It never hangs, never crashes the interpreter, and
never returns what was not sent. Flushing (or removing, if the header itself is gone) repairs the
layer. The tests do not touch the bytes of the mutex, which libc follows. Everything runs in
children that a watchdog kills.
"""

from __future__ import annotations

import asyncio
import faulthandler
import json
import mmap
import os
import random
import select
import signal
import struct
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256
from typing import Any

import pytest

from asgi_ipc import IPCChannelLayer, segment
from asgi_ipc.aio import IPCChannelLayer as AsyncLayer
from asgi_ipc.errors import (
    CorruptHeader,
    CorruptStore,
    IncompatibleSegment,
    IPCError,
    LockTimeout,
    SegmentError,
)
from asgi_ipc.segment.paths import Paths
from asgi_ipc.store.layout import (
    DIRTY,
    EXPIRED,
    H_LOCK,
    H_MACHINE,
    H_MAGIC,
    H_MESSAGE_MEMORY,
    H_MODE,
    H_SIZE,
    H_VERSION,
    HALF_HEAD,
    LOCK_BYTES,
    MAGIC,
    PAGE,
    Q_FIRST,
    RECORD_WORDS,
    S_BURY_AT,
    S_DIRTY,
    S_DROPS,
    S_MARK,
    S_SWEEP_AT,
    S_TABLES,
    TABLE_WORDS,
    VERSION,
    W_GENERATION,
    W_TAKEN,
    WAITER_WORDS,
    WORD,
    Layout,
)

from ..forks import Line, child, rests
from ..waiting import LIVENESS

FULL_LENGTH = os.environ.get("ASGI_IPC_TEST_LENGTH") == "full"
CHILDREN = 200 if FULL_LENGTH else 10
LOOPS = 40 if FULL_LENGTH else 4
FLIPS = 1000  # for each child
LIMIT = 1.0  # seconds for any call
LONG = 15.0  # seconds for what comes at once, or after damage perhaps never

SIZES: dict[str, Any] = {
    "message_memory": 64 * 1024,
    "group_memory": 64 * 1024,
    "max_message_size": 4096,
}
OPTIONS: dict[str, Any] = {**SIZES, "receive_timeout": 0.001, "lock_timeout": 0.5}
# Beside another process, which may hold the lock for long: it waits for a processor meanwhile.
PATIENT = {"lock_timeout": LIVENESS}
LOCK = range(H_LOCK * WORD, H_LOCK * WORD + LOCK_BYTES)

pytestmark = pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="lacking: /dev/shm")


# -- children under a watchdog --------------------------------------------------------------------


def now() -> float:
    """Seconds, without those for which this thread was kept waiting for a processor."""
    with open("/proc/thread-self/schedstat", "rb") as file:
        return time.perf_counter() - int(file.read().split()[1]) / 1e9


def readable(fd: int, seconds: float) -> bool:
    poller = select.poll()  # `select` takes no descriptor above 1023
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(seconds * 1000))


def in_child(work: Callable[[Callable[[str], None]], Any]) -> Any:
    """Run `work(alive)` in a forked child and return its result, which must be JSON.

    Fails if the child dies, raises, or does not call `alive` for too long.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            os.close(reader)
            faulthandler.register(signal.SIGUSR1, file=writer)

            def alive(about: str = "") -> None:
                os.write(writer, f". {about}\n".encode())

            os.write(writer, f"= {json.dumps(work(alive))}\n".encode())
            code = 0
        except BaseException:
            os.write(writer, f"! {json.dumps(traceback.format_exc())}\n".encode())
        finally:
            os._exit(code)
    os.close(writer)
    text = b""
    hung = False
    with os.fdopen(reader, "rb", buffering=0) as pipe:
        while True:
            if not readable(pipe, 0.5 if hung else LIVENESS):
                # First it prints where it is.
                os.kill(pid, signal.SIGKILL if hung else signal.SIGUSR1)
                if hung:
                    break
                hung = True
                continue
            read = pipe.read(65536)
            if not read:
                break
            text += read
    _, status = os.waitpid(pid, 0)
    lines = text.decode().splitlines()
    last = next((line for line in reversed(lines) if line.startswith(". ")), "the beginning")
    assert not hung, f"the child hung after {last}\n{text.decode().partition('recent')[2][:1500]}"
    assert not os.WIFSIGNALED(status), f"signal {os.WTERMSIG(status)} after {last}"
    for line in lines:
        if line.startswith("! "):
            pytest.fail(f"in the child, after {last}:\n{json.loads(line[2:])}", pytrace=False)
    assert lines and lines[-1].startswith("= ")
    return json.loads(lines[-1][2:])


@contextmanager
def attached_child(prefix: str) -> Iterator[None]:
    """Keep another, idle process attached to `prefix`."""

    def attach(line: Line) -> None:
        layer = IPCChannelLayer(prefix, **OPTIONS)
        layer.send("attached", {})
        rests(line)

    with child(attach) as process:
        process.hear()
        yield


def path_of(prefix: str) -> str:
    return f"/dev/shm/asgi_ipc.{prefix}"


@contextmanager
def memory_of(prefix: str) -> Iterator[mmap.mmap]:
    fd = os.open(path_of(prefix), os.O_RDWR)
    try:
        memory = mmap.mmap(fd, 0)
    finally:
        os.close(fd)
    try:
        yield memory
    finally:
        memory.close()


def write(prefix: str, content: bytes) -> None:
    """Write the segment of a prefix by hand."""
    fd = os.open(path_of(prefix), os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(content)


# -- a live layer ---------------------------------------------------------------------------------


class Victim:
    """A layer that is used while its memory is damaged, and knows what it has sent."""

    channels = ["a", "b", "c?d", "x!1", "x!2", "y!1"]
    sources = ["a", "b", "c?d", "x!", "y!"]
    groups = ["g", "h"]
    clock = staticmethod(now)

    def __init__(self, prefix: str, chance: random.Random, **options: Any) -> None:
        self.prefix = prefix
        self.chance = chance
        self.layer = IPCChannelLayer(prefix, **{**OPTIONS, **options})
        self.sent: set[tuple[int, bytes]] = set()
        self.number = 0
        self.errors = self.calls = self.received = 0
        self.slowest = 0.0
        self.unhealed = 0

    def message(self) -> dict[str, Any]:
        self.number += 1
        body = self.chance.randbytes(self.chance.choice([0, 5, 40, 700]))
        self.sent.add((self.number, body))
        return {"n": self.number, "body": body}

    def one_call(self) -> None:
        """Make any call of the layer; an error of this package is a valid result."""
        chance, layer = self.chance, self.layer
        kind = chance.randrange(10)
        began = self.clock()
        self.calls += 1
        try:
            if kind < 3:
                layer.send(chance.choice(self.channels), self.message())
            elif kind < 6:
                channels = chance.sample(self.sources, chance.randint(1, 3))
                self.check(layer.receive(channels, block=kind == 5 and chance.random() < 0.2))
            elif kind == 6:
                layer.group_add(chance.choice(self.groups), chance.choice(self.channels))
            elif kind == 7:
                layer.send_group(chance.choice(self.groups), self.message())
            elif kind == 8:
                channel = chance.choice(self.channels)
                layer.group_discard(chance.choice(self.groups), channel)
                layer.channel_statistics(channel)
            else:
                for channel in layer.group_channels(chance.choice(self.groups)):
                    assert isinstance(channel, str)
                layer.global_statistics()
        except IPCError as error:
            assert not isinstance(error, LockTimeout), error
            self.errors += 1
        took = self.clock() - began
        self.slowest = max(self.slowest, took)
        assert took < LIMIT, f"call {kind} took {took:.1f} s"

    def check(self, found: Any) -> None:
        channel, message = found
        if channel is not None:
            self.received += 1
            assert (message["n"], message["body"]) in self.sent, "not a message that was sent"

    def works(self, own: str = "x!1") -> bool:
        """Whether the layer works like a fresh one; `own` is a channel of this process."""
        layer = self.layer
        try:
            for channel in ("a", "new?" + os.urandom(4).hex(), own):
                message = self.message()
                layer.send(channel, message)
                source = channel.partition("!")[0] + "!" if "!" in channel else channel
                if layer.receive([source]) != (channel, message):
                    return False
            layer.group_add("g", "b")
            if layer.group_channels("g") != ["b"]:
                return False
            message = self.message()
            layer.send_group("g", message)
            return layer.receive(["b"]) == ("b", message)
        except IPCError:
            return False

    def heal(self) -> None:
        """Flush, or if that is not enough, remove the segment and attach to another one."""
        try:
            self.layer.flush()
            flushed = self.works()
        except IPCError:
            flushed = False
        if not flushed:
            self.unhealed += 1
            segment.destroy(self.prefix)
            self.layer.close()
            self.layer = IPCChannelLayer(self.prefix, **OPTIONS)
            assert self.works(), "not even a new segment works"


def damage(memory: mmap.mmap, layout: Layout, chance: random.Random) -> str:
    """Damage one bit or one page, mostly where something is stored. Returns where."""
    if chance.random() < 0.05:
        page = chance.choice(
            [
                0,
                layout.processes * WORD,
                layout.waiters * WORD,
                layout.queues.base * WORD,
                layout.groups.base * WORD,
                layout.members.base * WORD,
                layout.log * WORD,
                chance.randrange(0, layout.size // PAGE) * PAGE,
            ]
        )
        if page == 0:
            memory[: LOCK.start] = bytes(LOCK.start)
            memory[LOCK.stop : PAGE] = bytes(PAGE - LOCK.stop)
        else:
            memory[page : page + PAGE] = bytes(PAGE)
        return f"page {page // PAGE}"
    first, length = chance.choice(
        [
            (0, LOCK.start),
            (LOCK.stop, 512),
            (LOCK.stop, 512),
            (layout.processes * WORD, 256),
            (layout.waiters * WORD, 256),
            (layout.queues.base * WORD, 8 * layout.queues.words * WORD),
            (layout.queues.base * WORD, 8 * layout.queues.words * WORD),
            (layout.groups.base * WORD, 2 * layout.groups.words * WORD),
            (layout.members.base * WORD, 8 * layout.members.words * WORD),
            (layout.log * WORD, 256),
            (layout.log * WORD, 2048),
            (layout.log * WORD, 2048),
            (LOCK.stop, layout.size - LOCK.stop),
        ]
    )
    at, bit = first + chance.randrange(length), chance.randrange(8)
    assert at not in LOCK
    memory[at] ^= 1 << bit
    return f"byte {at} bit {bit} (word {at // WORD})"


def live_under_damage(prefix: str, seed: int, alive: Callable[[str], None]) -> dict[str, Any]:
    chance = random.Random(seed)
    layout = Layout(*SIZES.values())
    victim = Victim(prefix, chance)
    assert victim.works()
    done = 0
    while done < FLIPS:
        for _ in range(chance.randrange(8)):
            victim.one_call()
        with memory_of(prefix) as memory:
            for _ in range(chance.choice([1, 1, 1, 2, 5])):
                where = damage(memory, layout, chance)
                done += 1
                alive(f"seed {seed}, damage {done}: {where}")
        for _ in range(6):
            victim.one_call()
        victim.heal()
        victim.sent.clear()
    return {
        "flips": done,
        "calls": victim.calls,
        "errors": victim.errors,
        "received": victim.received,
        "unhealed": victim.unhealed,
        "slowest": victim.slowest,
    }


@pytest.mark.parametrize("seed", range(CHILDREN))
def test_damage_under_a_live_layer(prefix: str, seed: int) -> None:
    result = in_child(lambda alive: live_under_damage(prefix, seed, alive))
    assert result["flips"] >= FLIPS
    assert result["errors"] > 50, "the damage had no effect"
    assert result["received"] > 100, "too few messages arrived in spite of the damage"
    assert result["unhealed"] == 0, "flush did not repair it"


def work_beside(prefix: str, seed: int, stop: int, alive: Callable[[str], None]) -> dict[str, int]:
    """Use the layer, whatever happens to it, until there is something to read in `stop`."""
    victim = Victim(prefix, random.Random(seed), **PATIENT)
    # It stands still while the thread sleeps, as it does for the lock; the watchdog ends that.
    victim.clock = time.thread_time
    # Other processes send too, so each message carries a proof that it was sent.
    victim.message = lambda: proven(victim.chance)  # type: ignore[method-assign]
    victim.check = lambda found: check_proof(victim, found)  # type: ignore[method-assign]
    while not readable(stop, 0):
        for _ in range(20):
            victim.one_call()
        alive(f"seed {seed}, {victim.calls} calls")
    return {"calls": victim.calls, "errors": victim.errors, "received": victim.received}


def proven(chance: random.Random) -> dict[str, Any]:
    body = chance.randbytes(chance.choice([0, 5, 40, 700]))
    return {"sum": sha256(body).digest(), "body": body}


def check_proof(victim: Victim, found: Any) -> None:
    channel, message = found
    if channel is not None:
        victim.received += 1
        assert sha256(message["body"]).digest() == message["sum"], "not a message that was sent"


def test_damage_while_another_process_is_in_the_middle_of_its_calls(prefix: str) -> None:
    """Bits also flip between two steps of a call: while it writes, links and looks."""
    stop, tell = os.pipe()

    def damage_and_flush(alive: Callable[[str], None]) -> dict[str, int]:
        chance = random.Random(5)
        layout = Layout(*SIZES.values())
        layer = IPCChannelLayer(prefix, **{**OPTIONS, **PATIENT})
        layer.flush()
        refused = 0
        for number in range(FLIPS):
            with memory_of(prefix) as memory:
                where = damage(memory, layout, chance)
            alive(f"damage {number}: {where}")
            time.sleep(0.001)  # lets the other process continue
            layer.flush()
            try:
                layer.send("a", proven(chance))
            except IPCError:
                refused += 1  # by damage that the other process made because of ours
        os.write(tell, b"1")
        return {"refused": refused}

    try:
        with ThreadPoolExecutor(1) as beside:
            working = beside.submit(in_child, lambda alive: work_beside(prefix, 1, stop, alive))
            try:
                result = in_child(damage_and_flush)
            finally:
                os.write(tell, b"1")
            worked = working.result()
    finally:
        os.close(stop)
        os.close(tell)
    assert result["refused"] < FLIPS // 10, result
    assert worked["received"] > 100 and worked["errors"] > 0, worked


class Loop:
    """An asyncio layer with receives that wait on every channel while its memory is damaged."""

    def __init__(self, prefix: str, chance: random.Random) -> None:
        self.prefix, self.chance = prefix, chance
        self.layer = AsyncLayer(prefix, lock_timeout=0.5, **SIZES)
        self.sent: set[int] = set()
        self.got: set[int] = set()
        self.number = self.errors = 0

    def message(self) -> dict[str, Any]:
        self.number += 1
        self.sent.add(self.number)
        return {"n": self.number}

    async def receive_for_ever(self, channel: str) -> None:
        while True:
            try:
                message = await self.layer.receive(channel)
            except IPCError:
                self.errors += 1
                await asyncio.sleep(0.001)
            else:
                assert message.keys() == {"n"} and message["n"] in self.sent
                self.got.add(message["n"])

    async def call(self, calling: Awaitable[Any]) -> bool:
        """Whether a call that never waits succeeds. In any case it ends within the limit."""
        began = now()
        try:
            await calling
        except IPCError as error:
            assert not isinstance(error, LockTimeout), error
            self.errors += 1
            return False
        finally:
            assert now() - began < LIMIT
        return True

    async def some_calls(self, channels: list[str]) -> None:
        layer, chance = self.layer, self.chance
        for _ in range(chance.randrange(6)):
            channel, message = chance.choice(channels), self.message()
            name, *arguments = chance.choice(
                [
                    ("send", channel, message),
                    ("group_add", "g", channel),
                    ("group_send", "g", message),
                    ("group_discard", "g", channel),
                    ("group_channels", "g"),
                    ("receive_async", ["c"], 0.001),
                ]
            )
            await self.call(getattr(layer, name)(*arguments))
        await asyncio.sleep(0)

    async def arrives(self, channels: list[str]) -> bool:
        """Whether the waiting receives get what is sent to them now, whatever happened before."""
        wanted = set()
        for channel in channels:
            message = self.message()
            wanted.add(message["n"])
            if not await self.call(self.layer.send(channel, message)):
                return False
        deadline = time.monotonic() + LONG / 2
        while not wanted <= self.got and time.monotonic() < deadline:
            await asyncio.sleep(0.001)
        return wanted <= self.got

    async def live(self, damages: int, alive: Callable[[str], None]) -> dict[str, int]:
        layout = Layout(*SIZES.values())
        own = await self.layer.new_channel()
        channels = ["a", "b", "c?d", own, own + ".2"]
        receives = [asyncio.ensure_future(self.receive_for_ever(channel)) for channel in channels]
        assert await self.arrives(channels)
        done = 0
        while done < damages:
            await self.some_calls(channels)
            with memory_of(self.prefix) as memory:
                for _ in range(self.chance.choice([1, 1, 1, 2, 5])):
                    alive(f"damage {done}: {damage(memory, layout, self.chance)}")
                    done += 1
            await self.some_calls(channels)
            assert await self.call(self.layer.flush()), "it cannot be flushed"
            assert await self.arrives(channels), "flush did not repair it"
        for receive in receives:
            assert not receive.done(), receive
            receive.cancel()
        over, _ = await asyncio.wait(receives, timeout=LIMIT)
        assert len(over) == len(receives), "a receive cannot be cancelled"
        await self.layer.close()
        return {"got": len(self.got), "errors": self.errors}


@pytest.mark.parametrize("seed", range(LOOPS))
def test_damage_under_a_loop_that_waits(prefix: str, seed: int) -> None:
    """A waiting receive raises or goes on waiting, and gets what is sent after a flush."""

    def work(alive: Callable[[str], None]) -> dict[str, int]:
        return asyncio.run(Loop(prefix, random.Random(seed)).live(FLIPS // 4, alive))

    result = in_child(work)
    assert result["errors"] > 0, "the damage had no effect"
    assert result["got"] > FLIPS // 4, "too few messages arrived in spite of the damage"


def doorbells(prefix: str) -> set[str]:
    folder = Paths(prefix).directory
    return {name for name in os.listdir(folder) if name.count(".") == 2}


def lose_doorbell(prefix: str, store: Any, how: str) -> None:
    """Make the only waiter deaf: damage its row, or remove its FIFO."""
    (bell,) = doorbells(prefix)
    if how == "removed":
        os.unlink(os.path.join(Paths(prefix).directory, bell))
        return
    row = store.layout.waiters + int(bell.split(".")[1]) * WAITER_WORDS
    store.words[row + {"row of the doorbell": W_GENERATION, "row of the id": W_TAKEN}[how]] ^= 64


@pytest.mark.parametrize("how", ["removed", "row of the doorbell", "row of the id"])
@pytest.mark.parametrize("kind", ["loop", "thread"])
async def test_whoever_lost_its_doorbell_makes_another(prefix: str, kind: str, how: str) -> None:
    """Otherwise it would notice each message a second late from then on."""
    layer: Any = IPCChannelLayer(prefix, receive_timeout=LONG)
    waiting: Any
    if kind == "loop":
        waits = AsyncLayer(prefix)
        waiting = asyncio.ensure_future(waits.receive_async(["a"], timeout=LONG))
    else:
        waiting = asyncio.ensure_future(asyncio.to_thread(layer.receive, ["a"], True))
    store = layer._core.attach().store
    while not (doorbells(prefix) and store.queues.find(b"a")):
        await asyncio.sleep(0.001)
    before = doorbells(prefix)
    lose_doorbell(prefix, store, how)
    if how == "removed":
        layer.send("a", {"n": 0})  # meets the doorbell that is not there; the message is found
        assert await waiting == ("a", {"n": 0})
        if kind == "loop":
            waiting = asyncio.ensure_future(waits.receive_async(["a"], timeout=LONG))
        else:
            return  # its thread may be another one next time
    while not doorbells(prefix) - before:
        assert not waiting.done()
        await asyncio.sleep(0.01)
    layer.send("a", {"n": 1})
    assert await waiting == ("a", {"n": 1})
    (made,) = doorbells(prefix) - before
    assert store.is_waiter(*map(int, made.split(".")[1:]))
    if kind == "loop":
        await waits.close()
    layer.close()


REPAIRED = {
    "the header": lambda layout: (0, H_LOCK),
    "the state": lambda layout: (S_DIRTY, PAGE // WORD),
    "all queues": lambda layout: (layout.queues.base, layout.queues.end),
    "all groups": lambda layout: (layout.groups.base, layout.groups.end),
    "all members": lambda layout: (layout.members.base, layout.members.end),
    "the log": lambda layout: (layout.log, layout.log + 8000),
    "processes": lambda layout: (layout.processes, layout.waiters),
    "waiters": lambda layout: (layout.waiters, layout.queues.base),
}


@pytest.mark.parametrize("filler", [b"\x00", b"\xff", b"\x5a"])
@pytest.mark.parametrize("region", REPAIRED)
def test_flush_mends_a_region_that_is_all_wrong(prefix: str, region: str, filler: bytes) -> None:
    """It does so for the process that flushes, and for one that attaches later."""
    first, last = REPAIRED[region](Layout(*SIZES.values()))

    def work(alive: Callable[[str], None]) -> dict[str, Any]:
        victim = Victim(prefix, random.Random(1))
        assert victim.works()
        with memory_of(prefix) as memory:
            memory[first * WORD : last * WORD] = filler * ((last - first) * WORD)
        for _ in range(30):
            victim.one_call()
            alive(region)
        victim.layer.flush()
        here = victim.works()
        alive("flushed")
        later = in_child(lambda alive: Victim(prefix, random.Random(2)).works("z!1"))
        return {"here": here, "later": later}

    assert in_child(work) == {"here": True, "later": True}


def words_of_statistics(layer: IPCChannelLayer) -> list[int]:
    """The words of the state, of a queue's row, and of its first record."""
    store = layer._core.attach().store
    row = store.queues.find(b"a")
    first = store.words[row + Q_FIRST]
    return [
        *range(S_DIRTY, S_TABLES + 3 * TABLE_WORDS),
        *range(row, row + store.layout.queues.words),
        *range(first, first + RECORD_WORDS),
    ]


def test_statistics_of_damaged_memory(prefix: str) -> None:
    """They are partly read without the lock. Whatever is there, they are figures or an error."""
    values = [0, 1, 5, 1 << 31, 1 << 40, 1 << 63, (1 << 64) - 1]
    values += [
        struct.unpack("=Q", struct.pack("=d", value))[0]
        for value in (float("nan"), float("inf"), -float("inf"), 1e300, -1e300)
    ]

    def work(alive: Callable[[str], None]) -> dict[str, int]:
        layer = IPCChannelLayer(prefix, **OPTIONS)
        for channel in ("a", "a", "b", "x!1"):
            layer.send(channel, {})
            layer.group_add("g", channel)
        layout = Layout(*SIZES.values())
        starts = (layout.queues.base, layout.groups.base, layout.members.base, layout.log)
        used = [slice(LOCK.stop, PAGE), *(slice(at * WORD, at * WORD + PAGE) for at in starts)]
        with memory_of(prefix) as memory:
            whole = [memory[part] for part in used]
        answers = {"figures": 0, "errors": 0}
        for at in words_of_statistics(layer):
            alive(f"word {at}")
            for value in values:
                with memory_of(prefix) as memory:
                    for part, content in zip(used, whole):
                        memory[part] = content
                    struct.pack_into("=Q", memory, at * WORD, value)
                for call in (layer.global_statistics, lambda: layer.channel_statistics("a")):
                    began = now()
                    try:
                        figures = call()
                    except CorruptStore:
                        answers["errors"] += 1
                    else:
                        assert len(figures) == 6
                        for name, figure in figures.items():
                            assert 0 <= figure < float("inf"), (at, value, name, figure)
                        answers["figures"] += 1
                    assert now() - began < LIMIT
        return answers

    answers = in_child(work)
    assert answers["figures"] > 1000 and answers["errors"] > 10, answers


@pytest.mark.parametrize("when", ["never", "long ago", "not a number", "at once"])
def test_upkeep_goes_on_whatever_its_time_says(prefix: str, when: str) -> None:
    """The words that say when upkeep is due are only trusted if they can be right."""
    value = {"never": 1e300, "long ago": -1e300, "not a number": float("nan"), "at once": 0.0}[when]

    def work(alive: Callable[[str], None]) -> dict[str, Any]:
        layer = IPCChannelLayer(prefix, **{**OPTIONS, "expiry": 0.05})
        layer.send("unread", {})
        with memory_of(prefix) as memory:
            for at in (S_SWEEP_AT, S_BURY_AT):
                struct.pack_into("=d", memory, at * WORD, value)
        deadline = time.monotonic() + LIVENESS / 2
        expired = 0
        while not expired and time.monotonic() < deadline:
            layer.receive(["other"])
            with memory_of(prefix) as memory:
                (expired,) = struct.unpack_from("=Q", memory, (S_DROPS + EXPIRED) * WORD)
            time.sleep(0.01)
            alive("")
        return {"expired": expired}

    assert in_child(work)["expired"] == 1


def test_a_body_that_is_altered_never_arrives(prefix: str) -> None:
    """Each byte of a body is altered in turn: the checksum covers all of a body up to 64 KiB."""

    def work(alive: Callable[[str], None]) -> dict[str, Any]:
        layer = IPCChannelLayer(prefix, **OPTIONS)
        body = bytes(range(256)) * 3
        refused = 0
        for at in range(len(body)):
            layer.flush()
            layer.send("a", {"body": body})
            with memory_of(prefix) as memory:
                place = memory.find(body[:64])
                assert place > 0
                memory[place + at] ^= 1 << at % 8
            try:
                found = layer.receive(["a"])
            except CorruptStore:
                refused += 1
            else:
                assert found == (None, None), at
            if not at % 50:
                alive("")
        return {"refused": refused, "of": len(body)}

    result = in_child(work)
    assert result["refused"] == result["of"] == 768


def unrecoverable(prefix: str) -> None:
    """Make a segment dirty, and its log impossible."""
    with memory_of(prefix) as memory:
        struct.pack_into("=I", memory, HALF_HEAD * 4, 7)
        struct.pack_into("=Q", memory, S_DIRTY * WORD, DIRTY)


def test_the_error_says_what_to_do(prefix: str) -> None:
    def work(alive: Callable[[str], None]) -> str:
        victim = Victim(prefix, random.Random(1))
        assert victim.works()
        unrecoverable(prefix)
        with pytest.raises(CorruptStore) as caught:
            victim.layer.send("a", {})
        return str(caught.value)

    text = in_child(work)
    assert "flush()" in text and "remove" in text


def test_flush_brings_back_what_recovery_gives_up_on(prefix: str) -> None:
    def work(alive: Callable[[str], None]) -> dict[str, Any]:
        victim = Victim(prefix, random.Random(1))
        assert victim.works()
        unrecoverable(prefix)
        for _ in range(2):
            with pytest.raises(CorruptStore):
                victim.layer.send("a", {})
        victim.layer.flush()
        return {"works": victim.works()}

    assert in_child(work)["works"]


def test_flush_brings_it_back_for_a_process_that_comes_later(prefix: str) -> None:
    """This is the same if the process that flushes attaches first, as after a restart, or in a
    management command."""

    def use(alive: Callable[[str], None]) -> None:
        assert Victim(prefix, random.Random(1)).works()

    def mend(alive: Callable[[str], None]) -> dict[str, Any]:
        victim = Victim(prefix, random.Random(1))
        victim.layer.flush()
        return {"works": victim.works()}

    in_child(use)
    unrecoverable(prefix)
    assert in_child(mend)["works"]


# -- at attach ------------------------------------------------------------------------------------


def whole_segment(prefix: str) -> bytes:
    """The bytes of a segment after normal use; its file is removed."""

    def use(alive: Callable[[str], None]) -> None:
        victim = Victim(prefix, random.Random(3))
        for _ in range(200):
            victim.one_call()

    in_child(use)
    with memory_of(prefix) as memory:
        content = bytes(memory)
    segment.destroy(prefix)
    return content


def attach_and_use(prefix: str, what: str, alive: Callable[[str], None]) -> dict[str, Any]:
    """Use a layer, which finds a segment at its first call."""
    alive(what)
    victim = Victim(prefix, random.Random(what))
    # What it finds may be anything, even messages that were sent long ago.
    victim.check = lambda found: None  # type: ignore[method-assign]
    for _ in range(5):
        victim.one_call()
        alive(what)
    try:
        victim.layer.flush()
    except IPCError:
        segment.destroy(prefix)
        victim.layer.close()
        victim.layer = IPCChannelLayer(prefix, **OPTIONS)
    return {"works": victim.works(), "errors": victim.errors}


def random_segments(whole: bytes) -> Iterator[tuple[str, bytes]]:
    chance = random.Random(7)
    size = len(whole)
    for length in (0, 1, WORD, PAGE - 1, PAGE, PAGE + 1, 100_000, size, size + PAGE):
        yield f"{length} random bytes", chance.randbytes(length)
        yield f"{length} zeros", bytes(length)
        magic = struct.pack("=QQQ", MAGIC, VERSION, length)[:length]
        yield f"{length} with a header", magic + chance.randbytes(length - len(magic))
    head = H_LOCK * WORD + LOCK_BYTES
    for i in range(10):
        yield f"random behind the header, {i}", whole[:head] + chance.randbytes(size - head)
    for i in range(20):
        damaged = bytearray(whole)
        for _ in range(30):
            damaged[chance.randrange(H_LOCK * WORD)] ^= 1 << chance.randrange(8)
        yield f"damaged identity, {i}", bytes(damaged)
    for length in (PAGE, size // 2, size - PAGE, size - 1):
        yield f"truncated to {length}", whole[:length]
    yield "magic missing", bytes(WORD) + whole[WORD:]
    for version in (VERSION - 1, VERSION + 1, 2**64 - 1):
        yield f"version {version}", versioned(whole, version)


def versioned(whole: bytes, version: int) -> bytes:
    at = H_VERSION * WORD
    return whole[:at] + struct.pack("=Q", version) + whole[at + WORD :]


def test_anything_found_at_attach_is_replaced_or_refused(prefix: str) -> None:
    whole = whole_segment(prefix)
    kinds = 0
    for what, content in random_segments(whole):
        write(prefix, content)
        result = in_child(lambda alive, what=what: attach_and_use(prefix, what, alive))
        assert result["works"], what
        segment.destroy(prefix)
        kinds += 1
    assert kinds > 60


REPLACED = {
    "empty": lambda whole: b"",
    "random": lambda whole: random.Random(1).randbytes(len(whole)),
    "truncated": lambda whole: whole[: len(whole) // 2],
    "half made": lambda whole: bytes(WORD) + whole[WORD:],
    "older": lambda whole: versioned(whole, VERSION - 1),
    "newer": lambda whole: versioned(whole, VERSION + 1),
}


@pytest.mark.parametrize("what", REPLACED)
def test_while_nobody_lives_it_is_replaced_with_one_log_line(
    prefix: str, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(prefix, REPLACED[what](whole_segment(prefix)))
    layer = IPCChannelLayer(prefix, **OPTIONS)
    layer.send("a", {"n": 1})
    assert layer.receive(["a"]) == ("a", {"n": 1})
    lines = [record.getMessage() for record in caplog.records if record.name == "asgi_ipc"]
    assert len(lines) == 1 and prefix in lines[0], lines
    layer.close()


@pytest.mark.parametrize("what", ["truncated", "empty", "half made", "other length"])
def test_while_others_live_it_is_refused(prefix: str, what: str) -> None:
    with attached_child(prefix):
        if what == "half made":
            with memory_of(prefix) as memory:
                memory[H_MAGIC * WORD : H_MAGIC * WORD + WORD] = bytes(WORD)
        elif what == "other length":
            with memory_of(prefix) as memory:
                struct.pack_into("=Q", memory, H_SIZE * WORD, 12345)
        else:
            size = os.stat(path_of(prefix)).st_size
            os.truncate(path_of(prefix), size // 2 if what == "truncated" else 0)
        result = in_child(lambda alive: refused(prefix))
        assert result[0] == CorruptHeader.__name__
        assert prefix in result[1] and "destroy" in result[1]
        assert os.path.exists(path_of(prefix)), "what others use was removed"


@pytest.mark.parametrize("version", [VERSION - 1, VERSION + 1])
def test_another_version_of_living_processes_is_named(prefix: str, version: int) -> None:
    with attached_child(prefix):
        with memory_of(prefix) as memory:
            struct.pack_into("=Q", memory, H_VERSION * WORD, version)
        kind, text = in_child(lambda alive: refused(prefix))
        assert kind == IncompatibleSegment.__name__
        assert f"version {version}" in text and f"version {VERSION}" in text


def test_another_machine_of_living_processes_is_named(prefix: str) -> None:
    with attached_child(prefix):
        with memory_of(prefix) as memory:
            memory[H_MACHINE * WORD] ^= 1
        kind, text = in_child(lambda alive: refused(prefix))
        assert kind == IncompatibleSegment.__name__
        assert 'lock="file"' in text


def refused(prefix: str) -> list[str]:
    try:
        IPCChannelLayer(prefix, **OPTIONS).send("a", {})
    except SegmentError as error:
        return [type(error).__name__, str(error)]
    return ["nothing", ""]


def test_sizes_in_the_header_that_contradict_each_other(prefix: str) -> None:
    """They decide where everything is. The segment is refused while other processes are alive, and
    replaced when none is."""
    with attached_child(prefix):
        with memory_of(prefix) as memory:
            memory[H_MESSAGE_MEMORY * WORD + 3] ^= 1
        kind, _ = in_child(lambda alive: refused(prefix))
        assert kind == CorruptHeader.__name__
    assert in_child(lambda alive: attach_and_use(prefix, "sizes", alive))["works"]


@pytest.mark.parametrize("mode", [0, 0o666, 0o777, 1 << 40, (1 << 64) - 1])
def test_a_mode_in_the_header_that_none_is_made_with(prefix: str, mode: int) -> None:
    """Files beside the segment get this mode, and a wrong bit must not open them to everybody."""
    with attached_child(prefix):
        with memory_of(prefix) as memory:
            struct.pack_into("=Q", memory, H_MODE * WORD, mode)
        kind, text = in_child(lambda alive: refused(prefix))
        assert kind == CorruptHeader.__name__ and "mode" in text
    assert in_child(lambda alive: attach_and_use(prefix, "mode", alive))["works"]


def test_a_segment_that_ends_before_its_mark(prefix: str) -> None:
    """The next sender refuses a mark outside the log, and does not follow it."""

    def work(alive: Callable[[str], None]) -> dict[str, Any]:
        victim = Victim(prefix, random.Random(1))
        assert victim.works()
        with memory_of(prefix) as memory:
            struct.pack_into("=Q", memory, S_MARK * WORD, 1 << 40)
        for _ in range(50):
            victim.one_call()
            alive("")
        victim.layer.flush()
        return {"works": victim.works()}

    assert in_child(work)["works"]
