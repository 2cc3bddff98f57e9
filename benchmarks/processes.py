"""Child processes for the benchmarks: in any interpreter, pinned to cores, ended in any case.

`multiprocessing` does not make them, because it wants one Python for all. A peer that needs an
older Python, and packages of its time, is measured in the same run. A child imports this
repository and executes calls, one after another. Functions, arguments and results travel as
pickles.
"""

from __future__ import annotations

import ctypes
import math
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable
from multiprocessing import popen_spawn_posix, reduction
from multiprocessing.connection import Connection
from multiprocessing.context import set_spawning_popen
from pathlib import Path
from typing import Any, NamedTuple

REPOSITORY = str(Path(__file__).resolve().parent.parent)
PR_SET_PDEATHSIG = 1

# This repository goes before everything that is installed where its own package is measured, and
# behind it where another package of the same name is.
OURS_FIRST, OURS_LAST = "first", "last"
BOOT = (
    "import sys; place, fd, cores, repository = sys.argv[1:5];"
    "sys.path.insert(0 if place == 'first' else len(sys.path), repository);"
    "from benchmarks.processes import serve; serve(int(fd), cores)"
)

Cores = frozenset[int]


class ChildFailed(Exception):
    """A child raised, died, or took too long; carries its traceback where there is one."""


class ChildDied(ChildFailed):
    """A child ended before it had a result."""


class Usage(NamedTuple):
    """Of all threads of a process, counted by the kernel. Linux only."""

    spent: int  # nanoseconds on a core
    times: int  # how often put on one

    @classmethod
    def of(cls, pid: int) -> Usage:
        spent = times = 0
        for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            on_core, _, slices = map(int, path.read_text().split())
            spent += on_core
            times += slices
        return cls(spent, times)


def spent(pids: Iterable[int]) -> float:
    """Seconds that processes have spent on a core; nan where the kernel does not say."""
    if not os.path.exists("/proc/self/schedstat"):
        return math.nan
    return sum(Usage.of(pid).spent for pid in pids) / 1e9


class _Inheritance:
    """Answers what `multiprocessing` asks while it pickles a queue: how to hand on a descriptor."""

    DupFd = popen_spawn_posix._DupFd

    def __init__(self) -> None:
        self.fds: list[int] = []

    def duplicate_for_child(self, fd: int) -> int:
        self.fds.append(fd)
        return fd


class Child:
    """One process, which starts with its first call. Without cores it is not pinned."""

    def __init__(self, python: str, place: str, cores: Cores) -> None:
        self._command = [python, "-c", BOOT, place]
        self._cores = ",".join(map(str, sorted(cores)))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def begin(self, target: Callable[..., object], *args: object) -> None:
        """Start `target(*args)` there, both picklable.

        Only the arguments of the first call can contain queues of multiprocessing.
        """
        inheritance = _Inheritance()
        set_spawning_popen(inheritance)  # type: ignore[arg-type]
        try:
            call = bytes(reduction.ForkingPickler.dumps((target, args), protocol=4))
        finally:
            set_spawning_popen(None)
        if self._process is None:
            self._start(inheritance.fds)
        self._pipe.send_bytes(call)

    def _start(self, fds: list[int]) -> None:
        ours, theirs = socket.socketpair()
        # PYTHONPATH would put one package of a name before all others.
        inherited = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        with theirs:
            self._process = subprocess.Popen(
                [*self._command, str(theirs.fileno()), self._cores, REPOSITORY],
                pass_fds=[theirs.fileno(), *fds],
                stdin=subprocess.DEVNULL,
                env=inherited,
                cwd="/",  # the current folder is on the path of a program given by -c
            )
        self._pipe = Connection(ours.detach())

    def result(self, timeout: float = 120) -> Any:
        """What the call returned, within `timeout` seconds; `ChildFailed` if it did not."""
        if not self._pipe.poll(timeout):
            raise ChildFailed(f"process {self.pid}: no result within {timeout} seconds")
        try:
            succeeded, value = self._pipe.recv()
        except (EOFError, ConnectionError):
            assert self._process is not None
            code = self._process.wait(5)
            raise ChildDied(f"process {self.pid} ended with {code} and no result") from None
        if not succeeded:
            raise ChildFailed(f"process {self.pid} raised:\n{value}")
        return value

    def end(self) -> None:
        """Kill the process if it still runs, and reap it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._pipe.close()


def serve(fd: int, cores: str) -> None:
    """The life of a child: execute what comes, until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and ends its children
    if sys.platform == "linux":  # ... and if the parent is killed, the kernel ends them
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    pin(frozenset(map(int, filter(None, cores.split(",")))))
    pipe = Connection(fd)
    while True:
        try:
            call = pipe.recv_bytes()
        except (EOFError, ConnectionError):
            return
        try:
            target, args = reduction.ForkingPickler.loads(call)
            answer = (True, target(*args))
        except BaseException:
            answer = (False, traceback.format_exc())
        pipe.send_bytes(reduction.ForkingPickler.dumps(answer, protocol=4))


def pin(cores: Cores) -> None:
    """Keep this process on these cores. Without any it stays where the scheduler puts it."""
    if cores:
        os.sched_setaffinity(0, cores)


def pinnings() -> dict[str, tuple[Cores, Cores]]:
    """The ways to place two processes here: name -> the cores of the one, and of the other."""
    ways: dict[str, tuple[Cores, Cores]] = {}
    if hasattr(os, "sched_getaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        one = frozenset(cores[:1])
        ways["one core"] = (one, one)
        if len(cores) > 1:
            ways["two cores"] = (one, frozenset(cores[1:2]))
    ways["unpinned"] = (frozenset(), frozenset())
    return ways
