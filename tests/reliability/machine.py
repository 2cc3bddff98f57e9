"""The compiled path, one machine instruction at a time: what it leaves if it is killed.

A forked process makes one call, traced by ptrace while it holds the lock. `States` notes each state
of the memory that another process could find, and recovers every one of them. `kill_at` kills the
process at one of its instructions.

    python -m tests.reliability.machine 500     does the histories 0 to 499
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import random
import signal
import struct
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from asgi_ipc import clock
from asgi_ipc.aio.source import Source
from asgi_ipc.codec import Codec
from asgi_ipc.segment.lock import init_mutex
from asgi_ipc.store import native
from asgi_ipc.store.layout import (
    H_LOCK,
    Q_OWED,
    Q_QUICK,
    Q_RUNG,
    Q_WAITING,
    S_DIRTY,
    WAITER_SET_WORDS,
    WORD,
)
from asgi_ipc.store.queues import Target
from asgi_ipc.store.store import Store
from asgi_ipc.store.wakes import LEAVING, WOKEN

from ..compiling import shared_object
from ..unit.support import Contents, contents, small_layout
from . import test_torn_writes as torn

SOURCE = Path(__file__).with_name("machine_steps.c")
ENDED, FAILED = -1, -2
ROOM = 100  # states of one call
KIB = 1024


@cache
def tracer() -> Any:
    """The functions of machine_steps.c; skips the test where processes cannot be traced."""
    if platform.machine() != "x86_64" or sys.platform != "linux":
        pytest.skip("lacking: Linux on x86-64")
    with tempfile.TemporaryDirectory() as folder:
        found = ctypes.PyDLL(str(shared_object(Path(folder) / "steps.so", [SOURCE], "-O2")))
    found.step.restype = ctypes.c_long
    found.step.argtypes = (
        *(ctypes.c_int, ctypes.c_void_p, ctypes.c_long, ctypes.c_void_p, ctypes.c_size_t),
        *(ctypes.c_void_p, ctypes.c_long, ctypes.POINTER(ctypes.c_long)),
    )
    found.run_to.argtypes = (ctypes.c_int, ctypes.c_uint64)
    return found


@cache
def trylock() -> int:
    """The address of `pthread_mutex_trylock`, by which the compiled path begins."""
    function = ctypes.PyDLL(None).pthread_mutex_trylock
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def traced(call: Callable[[], Any], prepare: Callable[[], Any] = lambda: None) -> int:
    """Fork a process that does what is to be prepared, stops itself, and makes `call` once it is
    let go. Returns its pid."""
    tools = tracer()
    pid = os.fork()
    if pid:
        _, status = os.waitpid(pid, os.WUNTRACED)
        if not os.WIFSTOPPED(status):
            pytest.skip("lacking: the right to trace processes")
        return pid
    code = 1
    try:
        prepare()
        if tools.trace_me() == 0:
            os.kill(os.getpid(), signal.SIGSTOP)
            call()
            code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def steps_of(pid: int, futex: int, most: int = -1) -> int:
    """Step a traced process while it has the lock, at most `most` instructions. Returns their
    number; ENDED if it never took it."""
    tools = tracer()
    if tools.run_to(pid, trylock()) != 0:
        return ENDED
    found = ctypes.c_long()
    return int(tools.step(pid, futex, most, None, 0, None, 0, found))


def finish(pid: int, kill: bool) -> int:
    """End a traced process: its exit code, or minus the signal."""
    return int(tracer().finish(pid, kill))


# -- every state of the memory --------------------------------------------------------------------


class Ground:
    """A segment in shared memory of this process and its children, without anything around it."""

    def __init__(self) -> None:
        self.layout = small_layout(message_memory=16 * KIB, group_memory=4_000, queues=12)
        self.memory = mmap.mmap(-1, self.layout.size)
        init_mutex(self.memory, H_LOCK * WORD)
        self.store: Any = Store(self.memory, self.layout)
        self.store.format(self.layout.log + 8 * KIB // WORD, torn.NOW)
        self.encode = Codec().encode
        self.targets: dict[str, Target] = {}
        self.sources: dict[str, list[Source]] = {}
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        log = self.layout.log, self.layout.log_end, self.layout.max_live
        queues = self.layout.queues.base, self.layout.queues.end
        due = bytearray(struct.pack("d", float("inf")))
        compiled = native.Memory(self.memory, self.store.turn, due, vars(clock), *queues, *log)
        self.usual = native.Usual(
            compiled,
            self.targets,
            self.sources,
            {},
            self.layout.max_message_size,
        )

    def target(self, name: str) -> Target:
        """Where to send, as a layer remembers it."""
        if name not in self.targets:
            queue, mark, local = name.partition("!")
            target = Target((queue + mark).encode(), local.encode(), 1000, 1e6)
            self.store.bind(target, torn.NOW)
            self.targets[name] = target
        return self.targets[name]

    def source(self, name: str) -> Source:
        if name not in self.sources:
            source = Source(name, None)
            self.store.bind(source.target, torn.NOW)
            self.sources[name] = [source]
        return self.sources[name][0]

    def states(self, call: Callable[[], Any]) -> tuple[list[bytes], int]:
        """Every state of the memory from before `call` to after it, as others find it, and the
        number of instructions with the lock."""
        tools = tracer()
        first, size = S_DIRTY * WORD, len(self.memory) - S_DIRTY * WORD
        room = mmap.mmap(-1, size * (ROOM + 1))
        room[size * ROOM :] = self.memory[first:]
        place = ctypes.addressof(ctypes.c_char.from_buffer(room))
        pid = traced(call)
        assert tools.run_to(pid, trylock()) == 0, "it did not take the lock"
        found = ctypes.c_long()
        futex = self.address + H_LOCK * WORD
        count = tools.step(pid, futex, -1, self.address + first, size, place, ROOM, found)
        assert count > 0, count
        code = finish(pid, False)
        assert code == 0, f"the process ended with {code}"
        head = bytes(self.memory[:first])
        return [head + room[size * i : size * (i + 1)] for i in range(found.value)], count


NAMES = ["a", "b", "c", "x!1", "x!22"]
RECEIVED = NAMES[:3]
WAITERS = [1, 2, 63, 64, 700, 1087]


def some_message(rng: random.Random) -> dict[str, Any]:
    return {"id": rng.randrange(1000), "body": rng.randbytes(rng.choice([0, 10, 60, 300, 900]))}


def history(number: int) -> Counter[str]:
    """A random history by the Python code, and then one call of the compiled path, of which every
    state is recovered. Raises AssertionError; returns what was done."""
    rng = random.Random(number)
    ground = Ground()
    store, now = ground.store, torn.NOW
    for name in NAMES[:3]:
        ground.source(name)
    for name in NAMES:
        ground.target(name)
    for _ in range(rng.randrange(40)):
        name = rng.choice(NAMES)
        if rng.randrange(5) < 3:
            store.put(ground.target(name), ground.encode(some_message(rng)), now)
        else:
            store.take(ground.target(rng.choice(RECEIVED)), now)
    name, message = rng.choice(NAMES), some_message(rng)
    what = rng.choice(["send", "send", "receive", "take", "park"])
    if what != "send":
        name = rng.choice(RECEIVED)
    row = ground.target(name).row
    for _ in range(rng.choice([0, 0, 1, 1, 2, 5])):
        store.park(row, rng.choice(WAITERS))
    store.doubles[row + Q_RUNG] = rng.choice([0.0, now - 1, now])
    store.words[row + Q_QUICK], store.words[row + Q_OWED] = rng.randrange(2), rng.randrange(2)
    if what == "park":
        while store.take(ground.target(name), now) is not None:
            pass
    elif what != "send":
        store.put(ground.target(name), ground.encode(message), now)
    waiter_id = rng.choice(WAITERS) + rng.choice([0, WOKEN, WOKEN + LEAVING])
    source = ground.source(name)
    source.target.taken = rng.choice([0.0, now])
    done = {
        "send": lambda: ground.usual.send(name, message),
        "receive": lambda: ground.usual.receive([name]),
        "take": lambda: ground.usual.take(source, waiter_id),
        "park": lambda: ground.usual.take(source, waiter_id) is False,
    }[what]
    waiters = slice((row + Q_WAITING) * WORD, (row + Q_WAITING + 1 + WAITER_SET_WORDS) * WORD)
    before = contents(store).living(torn.LATER)
    image = bytes(ground.memory)
    try:
        with mock.patch.object(clock, "monotonic", lambda: now):
            states, count = ground.states(lambda: done() or os._exit(9))
    except AssertionError as error:
        if "ended with 9" in str(error) or str(error).startswith("it did not take the lock"):
            return Counter({"not usual": 1})
        raise
    after = contents(store).living(torn.LATER)
    case = torn.Case(lambda: store, lambda store: None)
    for at, state in enumerate([image, *states]):
        wrong = recovered(state, ground, before, after, case)
        assert not wrong, f"history {number}, {what} {name}, state {at} of {len(states)}: {wrong}"
    picked = what != "park" and image[waiters] != bytes(states[-1])[waiters]
    return Counter({what: 1, "picked": picked, "states": len(states), "instructions": count})


def recovered(
    state: bytes, ground: Ground, before: Contents, after: Contents, case: torn.Case
) -> str:
    """What is wrong with a state of the memory after its recovery; "" for nothing."""
    try:
        return torn.check(bytearray(state), ground.layout, before, after, case)
    except Exception as error:
        return repr(error)


def histories(numbers: range) -> Counter[str]:
    """What was done in all of these histories."""
    done: Counter[str] = Counter()
    for number in numbers:
        done += history(number)
    return done


if __name__ == "__main__":
    print(dict(histories(range(int(sys.argv[1])))))
