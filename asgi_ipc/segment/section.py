"""The section: the only way to run an operation on the store. It holds the lock meanwhile.

Everything here is about exceptions that a signal handler raises between any two bytecodes: no
helper releases the lock, there is no ``with`` and no ``finally``. The ``except`` may run with the
lock held, not yet held or no longer held, and does the same in each case: an error-checking mutex
answers EPERM to a thread that does not hold it. The dirty word shows what the operation left half
done.

This module must not know what an operation does, nor how a lock is made (`lock`).
"""

from __future__ import annotations

import errno
import os
import struct
import sys
import time
from collections.abc import Callable
from threading import get_native_id
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from .. import clock
from ..errors import (
    CorruptStore,
    IPCError,
    LockBusy,
    LockLost,
    LockTimeout,
    Reentered,
    SegmentError,
)
from ..store.layout import S_DIRTY, S_LOCK_LONGEST, S_LOCK_WAITED, S_LOCK_WAITS
from .lock import FileLock, Mutex
from .procfs import command_line, process_of

if TYPE_CHECKING:
    from typing_extensions import ParamSpec

    P = ParamSpec("P")

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
R = TypeVar("R")

_SPINS = 30  # tries in a row before the first sleep, about as long as a section takes
_LONGEST_SLEEP = 0.001  # seconds
# Seconds between two checks whether the holder is dead, for threads that wait longer: if a dead
# thread had the id of a thread of another process, only that process can tell, before the others
# give up.
_ASK_EVERY = 1.0

# What Python raises when a value read from memory leads outside, or cannot be a count.
OUT_OF_RANGE = (IndexError, ValueError, ArithmeticError, struct.error)

LEFT = (
    "this process has left the segment, because its interpreter is ending or the program closed "
    "the descriptors of the layer. The next call attaches again"
)


class Section(Protocol):
    """Runs ``operation(*args, **named)`` under the lock, and returns its result."""

    def __call__(self, operation: Callable[P, R], /, *args: P.args, **named: P.kwargs) -> R: ...


class SectionOfThree(Protocol):
    """The same for an operation of three arguments, which is faster."""

    def __call__(self, operation: Callable[[A, B, C], R], a: A, b: B, c: C, /) -> R: ...


class Waits(NamedTuple):
    """How long a section waits for the lock, in seconds."""

    patience: float  # in one call: then it raises LockBusy, if this is the shorter of the two,
    timeout: float  # or LockTimeout, which names the holder


def _no_renewal(holder: int) -> bool:
    return False


def make_section(
    lock: Mutex | FileLock,
    words: memoryview[int],
    recover: Callable[[], None],
    waits: Waits,
    renew: Callable[[int], bool] = _no_renewal,
) -> Section:
    """Return a section for any number of arguments; see `make_section_of_three`."""
    return spread(make_section_of_three(lock, words, recover, waits, renew))


def spread(of_three: SectionOfThree) -> Section:
    """Make a section for any number of arguments from one for three."""

    def section(operation: Callable[..., Any], /, *args: Any, **named: Any) -> Any:
        return of_three(call, operation, args, named)

    return section


def call(operation: Callable[..., Any], args: Any, named: Any) -> Any:
    """Call an operation with any number of arguments, as one of three."""
    return operation(*args, **named)


def make_section_of_three(
    lock: Mutex | FileLock,
    words: memoryview[int],
    recover: Callable[[], None],
    waits: Waits,
    renew: Callable[[int], bool] = _no_renewal,
) -> SectionOfThree:
    """Return ``section(operation, a, b, c)``, which runs an operation of the store under the lock.

    It takes exactly three arguments because `put` and `take` are called through it. Passing on any
    number of arguments would take a tenth of the time of a whole section.

    `words` are those of the segment. `recover` is called, under the lock, when the store is dirty.
    `renew(holder)` frees the lock if its holder is dead after all, and says whether to try again;
    `holder` 0 means that the lock cannot be recovered.
    """
    trylock, unlock, consistent, handle = lock.trylock, lock.unlock, lock.consistent, lock.handle
    patience, timeout = waits

    def section(operation: Callable[..., Any], a: Any, b: Any, c: Any) -> Any:
        mine = False
        try:
            code = trylock(handle)
            if code:
                acquire(code)
            mine = True
            if words[S_DIRTY]:
                recover()
            result = operation(a, b, c)
            unlock(handle)
        except BaseException as error:
            # A lost mutex must not even be unlocked: glibc takes this thread for its holder, and
            # crashes.
            # Where `mine` is not set yet, the lock may still be ours, unless an outer section has
            # it, or a dead thread that had the id of this one.
            if not isinstance(error, LockLost) and (
                mine or (not _nested(sys._getframe(), lock) and lock.held_by(get_native_id()))
            ):
                consistent(handle)
                unlock(handle)
            if isinstance(error, OUT_OF_RANGE) and not isinstance(error, IPCError):
                if _released(words):
                    raise SegmentError(LEFT) from None
                raise CorruptStore(
                    f"the shared memory holds impossible values ({error})"
                ) from error
            raise
        return result

    def acquire(code: int) -> None:
        """Go on after a first try that failed with `code`, until the lock is held."""
        began = clock.monotonic()
        deadline = began + patience
        tries, pause, slept, ask_at = 0, 0.0, 0.0, _ASK_EVERY
        if code == errno.EBUSY and lock.mine():
            code = errno.EDEADLK  # as glibc says; musl does not
        while code:
            if code == errno.EOWNERDEAD:
                consistent(handle)  # it is ours; the dirty word shows what its last holder left
                return
            if code == errno.EDEADLK:
                if _nested(sys._getframe(1), lock):
                    raise Reentered(
                        "the layer was called from inside one of its own calls, by a signal "
                        "handler or __del__ of this thread. Set a flag there, or call from another "
                        "thread"
                    )
                if lock.held_by(get_native_id()):
                    return  # an earlier call lost track of it: it is ours anyway
                # A thread whose death was not reported had the id that this one has now.
                if renew(lock.holder()):
                    code = trylock(handle)
                    continue
                code = errno.EBUSY
            tries += 1
            if code == errno.ENOTRECOVERABLE:
                if not renew(0):
                    raise LockLost("the lock of the segment can be neither recovered nor renewed")
            elif code != errno.EBUSY:
                raise SegmentError(f"cannot take the lock of the segment: {os.strerror(code)}")
            elif tries > _SPINS:
                if clock.monotonic() >= deadline or slept > patience:
                    holder = lock.holder()
                    if not holder:  # it was just released: one more try
                        code = trylock(handle)
                        if code != errno.EBUSY:
                            continue
                    if not holder or not renew(holder):
                        if patience < timeout:
                            raise LockBusy(holder)
                        raise LockTimeout(complaint(holder, timeout))
                elif slept > ask_at:
                    ask_at = slept + _ASK_EVERY
                    holder = lock.holder()
                    if holder and renew(holder):
                        code = trylock(handle)
                        continue
                time.sleep(pause)
                slept += pause  # it ends, even if the clock stands still
                pause = min(pause + 0.0001, _LONGEST_SLEEP)
            code = trylock(handle)
        if tries > _SPINS:  # it slept; `inspection` reads these
            waited = int((clock.monotonic() - began) * 1e9)
            words[S_LOCK_WAITS] += 1
            words[S_LOCK_WAITED] += waited
            if waited > words[S_LOCK_LONGEST]:
                words[S_LOCK_LONGEST] = waited

    return section


def _released(words: memoryview[int]) -> bool:
    """Whether this process has left the segment: an error then says nothing about its memory."""
    try:
        return len(words) < 0
    except ValueError:
        return True


def _nested(frame: FrameType, lock: Mutex | FileLock) -> bool:
    """Whether the section that runs in `frame` was called from inside another for this lock, or
    from one of another copy of this package, whose locks tell nothing here."""
    code = frame.f_code
    outer = frame.f_back
    while outer is not None:
        if outer.f_code == code and (
            outer.f_code is not code or lock.same(outer.f_locals.get("lock"))
        ):
            return True
        outer = outer.f_back
    return False


def complaint(holder: int, timeout: float) -> str:
    """Tell a user why a call gave up on the lock. `holder`: its process or thread id; 0 for none"""
    if not holder:
        return (
            f"the lock was not free within {timeout:g} s, although nobody seems to hold it for "
            "long: the machine may be overloaded"
        )
    pid = process_of(holder) or holder
    name = command_line(pid) or "unknown"
    return (
        f"process {pid} ({name:.100}) has held the lock for {timeout:g} s without progress: it is "
        "probably stopped (SIGSTOP, a debugger). Resume it (SIGCONT) or end it; the other "
        "processes then continue by themselves"
    )
