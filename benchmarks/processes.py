"""Child processes for the benchmarks: spawned, pinned to cores, and ended whatever happens."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any

SPAWN = multiprocessing.get_context("spawn")
PR_SET_PDEATHSIG = 1

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


class Child:
    """One running process; `result` is what its target returned."""

    def __init__(self, target: Callable[..., Any], args: tuple[Any, ...], cores: Cores) -> None:
        self._pipe, theirs = SPAWN.Pipe(duplex=False)
        self.process = SPAWN.Process(target=_main, args=(theirs, cores, target, args), daemon=True)
        self.process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def result(self, timeout: float = 120) -> Any:
        """Wait up to `timeout` seconds for the target to return; `ChildFailed` if it does not."""
        if not self._pipe.poll(timeout):
            raise ChildFailed(f"process {self.pid}: no result within {timeout} seconds")
        try:
            succeeded, value = self._pipe.recv()
        except EOFError:
            self.process.join(5)
            code = self.process.exitcode
            raise ChildFailed(f"process {self.pid} ended with {code} and no result") from None
        if not succeeded:
            raise ChildFailed(f"process {self.pid} raised:\n{value}")
        return value

    def end(self) -> None:
        """Kill the process if it still runs, and reap it."""
        if self.process.exitcode is None:
            self.process.join(0.2)
        if self.process.exitcode is None:
            self.process.kill()
        self.process.join()
        self._pipe.close()


class Children:
    """`with Children() as children:` no process that was started inside outlives the block."""

    def __init__(self) -> None:
        self._started: list[Child] = []

    def start(self, target: Callable[..., Any], *args: Any, cores: Cores = frozenset()) -> Child:
        """Run `target(*args)`, both picklable, in a new process; no cores: not pinned."""
        child = Child(target, args, cores)
        self._started.append(child)
        return child

    def __enter__(self) -> Children:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._started:
            child.end()


def _main(
    pipe: Connection, cores: Cores, target: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and ends its children
    if sys.platform == "linux":  # ... and if the parent is killed, the kernel ends them
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if cores:
        os.sched_setaffinity(0, cores)
    try:
        pipe.send((True, target(*args)))
    except BaseException:
        pipe.send((False, traceback.format_exc()))


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
