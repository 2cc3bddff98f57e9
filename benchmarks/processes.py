"""Child processes for the benchmarks: in any interpreter, pinned to cores, ended whatever happens.

A child is not made by `multiprocessing`, because that wants one Python for all: a peer that needs
an older one, and packages of its time, is measured in the same run. A child imports this repository
and executes calls, one after another; functions, arguments and results travel as pickles.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from multiprocessing import popen_spawn_posix, reduction
from multiprocessing.connection import Connection
from multiprocessing.context import set_spawning_popen
from pathlib import Path
from typing import Any

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


class InheritedFd:
    """A descriptor without a name (an eventfd): handed to a child when the child is started."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __reduce__(self) -> tuple[Callable[..., InheritedFd], tuple[Any]]:
        return _inherited, (reduction.DupFd(self.fd),)


def _inherited(duplicate: Any) -> InheritedFd:
    return InheritedFd(duplicate.detach())


class _Inheritance:
    """What `multiprocessing` asks, while it pickles a queue or a descriptor, how to hand it on."""

    DupFd = popen_spawn_posix._DupFd

    def __init__(self) -> None:
        self.fds: list[int] = []

    def duplicate_for_child(self, fd: int) -> int:
        self.fds.append(fd)
        return fd


class Child:
    """One running process. `call` runs a function there; `begin` and `result` are its halves."""

    def __init__(self, python: str, place: str, cores: Cores) -> None:
        self._command = [python, "-c", BOOT, place]
        self._cores = ",".join(map(str, sorted(cores)))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def begin(self, target: Callable[..., Any], *args: Any) -> None:
        """Start `target(*args)` there, both picklable. The first call starts the process.

        Queues of multiprocessing and descriptors can only be among the arguments of the first.
        """
        inheritance = _Inheritance()
        set_spawning_popen(inheritance)
        try:
            call = bytes(reduction.ForkingPickler.dumps((target, args), protocol=4))
        finally:
            set_spawning_popen(None)
        if self._process is None:
            self._start(inheritance.fds)
        self._pipe.send_bytes(call)

    def _start(self, fds: list[int]) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [*self._command, str(theirs.fileno()), self._cores, REPOSITORY],
                pass_fds=[theirs.fileno(), *fds],
                stdin=subprocess.DEVNULL,
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
            raise ChildFailed(f"process {self.pid} ended with {code} and no result") from None
        if not succeeded:
            raise ChildFailed(f"process {self.pid} raised:\n{value}")
        return value

    def call(self, target: Callable[..., Any], *args: Any, timeout: float = 120) -> Any:
        """Run `target(*args)` there and return its result; `ChildFailed` if it raises."""
        self.begin(target, *args)
        return self.result(timeout)

    def end(self) -> None:
        """Kill the process if it still runs, and reap it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._pipe.close()


class Children:
    """`with Children() as children:` no process that was started inside outlives the block."""

    def __init__(self) -> None:
        self._made: list[Child] = []

    def child(
        self, cores: Cores = frozenset(), python: str = sys.executable, place: str = OURS_FIRST
    ) -> Child:
        """A process that starts with its first call; no cores: not pinned."""
        made = Child(python, place, cores)
        self._made.append(made)
        return made

    def start(self, target: Callable[..., Any], *args: Any, cores: Cores = frozenset()) -> Child:
        """A process that runs `target(*args)`."""
        made = self.child(cores)
        made.begin(target, *args)
        return made

    def __enter__(self) -> Children:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._made:
            child.end()


def serve(fd: int, cores: str) -> None:
    """The life of a child: execute what comes, until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and ends its children
    if sys.platform == "linux":  # ... and if the parent is killed, the kernel ends them
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if cores:
        os.sched_setaffinity(0, set(map(int, cores.split(","))))
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
