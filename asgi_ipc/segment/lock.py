"""The lock of a segment, and the section: the only way to run an operation on the store.

The kernel releases the lock when its holder dies. It is a robust, error-checking, process-shared
mutex in the segment, taken through `ctypes.PyDLL`, that is without letting go of the GIL: a thread
that held the mutex and waited for the GIL would stall every other process. Where such mutexes do
not exist, and with ``lock="file"``, it is a flock.

Everything about `section` is about exceptions that a signal handler raises between any two
bytecodes: no helper releases the lock, there is no ``with`` and no ``finally``. The ``except`` may
run with the lock held, not yet held or no longer held, and does the same in each case: an
error-checking mutex answers EPERM to whoever does not hold it. What the operation left half done
is seen by the dirty word.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import sys
import threading
import time
from collections.abc import Callable
from functools import cache
from types import FrameType
from typing import Any
from zlib import crc32

from ..errors import CorruptStore, IPCError, LockBusy, LockLost, LockTimeout, Reentered
from ..store.layout import S_DIRTY, S_LOCK_LONGEST, S_LOCK_WAITED, S_LOCK_WAITS
from .files import Descriptor

_SPINS = 30  # tries in a row before the first sleep, about as long as a section takes
_LONGEST_SLEEP = 0.001  # seconds

# What Python raises when a value read from memory leads outside, or cannot be a count.
_OUT_OF_RANGE = (IndexError, ValueError, ArithmeticError, struct.error)

_PTHREAD_PROCESS_SHARED = 1
_PTHREAD_MUTEX_ROBUST = 1
_PTHREAD_MUTEX_ERRORCHECK = 2

# Where each libc keeps, in a mutex, the futex word, which holds the thread id of the holder; and
# where it notes that the mutex cannot be recovered, and how.
GLIBC = (0, 8, 0x7FFFFFFE)
MUSL = (4, 4, 0x7FFFFFFF)

_libc = ctypes.PyDLL(None)

_FUTEX, _STATE, _LOST = GLIBC if hasattr(_libc, "gnu_get_libc_version") else MUSL
_HOLDER = 0x3FFFFFFF


@cache
def robust_mutexes() -> bool:
    """Whether this platform has mutexes that the kernel releases when their holder dies."""
    return sys.platform.startswith("linux") and hasattr(_libc, "pthread_mutex_consistent")


@cache
def machine() -> int:
    """Who may touch a mutex: libc family, word size and processor in one number."""
    family = 1 if hasattr(_libc, "gnu_get_libc_version") else 2
    return family << 48 | struct.calcsize("P") << 40 | crc32(os.uname().machine.encode())


def init_mutex(memory: Any, offset: int) -> None:
    """Make a mutex at `offset`; nobody may hold or try the one that was there."""
    attributes = ctypes.create_string_buffer(64)
    mutex = ctypes.c_char.from_buffer(memory, offset)
    ctypes.memset(ctypes.addressof(mutex), 0, 64)
    for call, *arguments in (
        (_libc.pthread_mutexattr_init,),
        (_libc.pthread_mutexattr_setpshared, _PTHREAD_PROCESS_SHARED),
        (_libc.pthread_mutexattr_setrobust, _PTHREAD_MUTEX_ROBUST),
        (_libc.pthread_mutexattr_settype, _PTHREAD_MUTEX_ERRORCHECK),
    ):
        code = call(attributes, *arguments)
        if code:
            raise OSError(code, f"{call.__name__}: {os.strerror(code)}")
    code = _libc.pthread_mutex_init(ctypes.c_void_p(ctypes.addressof(mutex)), attributes)
    if code:
        raise OSError(code, f"pthread_mutex_init: {os.strerror(code)}")


class Mutex:
    """The calls of the robust mutex at `offset` of `memory`, each a bare C function of `handle`."""

    def __init__(self, memory: Any, offset: int) -> None:
        # A byref() and no argtypes: the cheapest way to hand an address to a C function.
        self.handle = ctypes.byref(ctypes.c_char.from_buffer(memory, offset))
        self.trylock = _libc["pthread_mutex_trylock"]
        self.unlock = _libc["pthread_mutex_unlock"]
        self.unlock.restype = None  # nobody asks, and every number costs
        self.consistent = _libc["pthread_mutex_consistent"]
        self._futex = ctypes.c_uint32.from_buffer(memory, offset + _FUTEX)
        self._state = ctypes.c_uint32.from_buffer(memory, offset + _STATE)

    def lost(self) -> bool:
        """Whether nobody can ever take the mutex again."""
        return bool(self._state.value & 0x7FFFFFFF == _LOST)

    def holder(self) -> int:
        """Thread id of whoever holds the mutex; 0 if nobody does."""
        return int(self._futex.value & _HOLDER)

    def mine(self) -> bool:
        """Whether the calling thread holds it."""
        return self.holder() == threading.get_native_id()


def mutex_holder(mutex: bytes) -> int:
    """Thread id in a copy of a mutex of this machine's libc; 0 if nobody held it."""
    return int.from_bytes(mutex[_FUTEX : _FUTEX + 4], sys.byteorder) & _HOLDER


class FileLock:
    """The same calls over a flock: one descriptor for each thread, made when first used."""

    def __init__(self, path: str, open_file: Callable[[], int]) -> None:
        self.handle = path
        self._open = open_file
        self._local = threading.local()

    def trylock(self, handle: object) -> int:
        local = self._local
        if getattr(local, "inside", False):
            return errno.EDEADLK
        try:
            opened = local.opened
        except AttributeError:
            opened = local.opened = Descriptor(self._open())
        local.inside = True  # before it is: a signal handler in between must not come in too
        try:
            fcntl.flock(opened.number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            local.inside = False
            return errno.EBUSY
        return 0

    def unlock(self, handle: object) -> int:
        self._local.inside = False
        opened = getattr(self._local, "opened", None)
        if opened is not None:
            fcntl.flock(opened.number, fcntl.LOCK_UN)
        return 0

    def consistent(self, handle: object) -> int:
        return 0

    def mine(self) -> bool:
        return False  # `trylock` says so itself

    def holder(self) -> int:
        """Process id of whoever holds the flock; 0 if nobody does or it cannot be told."""
        try:
            wanted = os.stat(str(self.handle)).st_ino
            with open("/proc/locks") as file:
                for line in file:
                    parts = line.split()
                    if parts[1] == "FLOCK" and parts[5].endswith(f":{wanted}"):
                        return int(parts[4])
        except (OSError, IndexError, ValueError):
            pass
        return 0

    def close(self) -> None:
        """Close the descriptors of all threads."""
        self._local = threading.local()


Section = Callable[..., Any]


def make_section(*args: Any) -> Section:
    """Return ``section(operation, *args)``: `make_section_of_three` for any number of arguments."""
    return spread(make_section_of_three(*args))


def spread(of_three: Section) -> Section:
    """A section for any number of arguments out of one for three."""

    def section(operation: Callable[..., Any], *args: Any, **named: Any) -> Any:
        return of_three(_call, operation, args, named)

    return section


def _call(operation: Callable[..., Any], args: Any, named: Any) -> Any:
    return operation(*args, **named)


def make_section_of_three(
    lock: Mutex | FileLock,
    words: memoryview[int],
    recover: Callable[[], None],
    patience: float,
    renew: Callable[[int], bool],
    timeout: float,
) -> Section:
    """Return ``section(operation, a, b, c)``, which runs an operation of the store under the lock.
    Of just three arguments because `put` and `take` are called through it: to hand on any number
    takes a tenth of what a whole section costs.

    `recover` is called, under the lock, when the store is dirty. The lock is waited for `patience`
    seconds, then LockBusy is raised if that is less than `timeout`, else LockTimeout, which names
    the holder. `renew(holder)` makes the lock anew if its holder is dead after all, and says so.
    """
    trylock, unlock, consistent, handle = lock.trylock, lock.unlock, lock.consistent, lock.handle

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
            # Where `mine` is not set yet the lock may still be, unless an outer section has it.
            if not isinstance(error, LockLost) and (mine or not _nested(sys._getframe(), handle)):
                consistent(handle)
                unlock(handle)
            if isinstance(error, _OUT_OF_RANGE) and not isinstance(error, IPCError):
                raise CorruptStore(
                    f"the shared memory holds bytes that cannot be right ({error})"
                ) from error
            raise
        return result

    def acquire(code: int) -> None:
        """Go on after a first try that failed with `code`, until the lock is held."""
        began = time.monotonic()
        deadline = began + patience
        tries, pause = 0, 0.0
        if code == errno.EBUSY and lock.mine():
            code = errno.EDEADLK  # which is what glibc says; musl does not
        while code:
            if code == errno.EOWNERDEAD:
                consistent(handle)  # it is ours; what its last holder left shows in the dirty word
                return
            if code == errno.EDEADLK:
                if _nested(sys._getframe(1), handle):
                    raise Reentered(
                        "the layer was called from inside one of its own calls, by a signal "
                        "handler or __del__ of this thread. Set a flag there, or use a thread"
                    )
                return  # an earlier call lost track of it: it is ours all the same
            tries += 1
            if code == errno.ENOTRECOVERABLE:
                if not renew(0):
                    raise LockLost("the lock of the segment cannot be recovered or made anew")
            elif code != errno.EBUSY:
                raise OSError(code, f"the lock of the segment: {os.strerror(code)}")
            elif tries > _SPINS:
                if time.monotonic() >= deadline:
                    holder = lock.holder()
                    if not holder:  # it was let go this very moment: one more try
                        code = trylock(handle)
                        if code != errno.EBUSY:
                            continue
                    if not holder or not renew(holder):
                        if patience < timeout:
                            raise LockBusy(holder)
                        raise LockTimeout(complaint(holder, timeout))
                time.sleep(pause)
                pause = min(pause + 0.0001, _LONGEST_SLEEP)
            code = trylock(handle)
        if tries > _SPINS:  # it slept: for `inspection` to read
            waited = int((time.monotonic() - began) * 1e9)
            words[S_LOCK_WAITS] += 1
            words[S_LOCK_WAITED] += waited
            if waited > words[S_LOCK_LONGEST]:
                words[S_LOCK_LONGEST] = waited

    return section


def _nested(frame: FrameType, handle: object) -> bool:
    """Whether the section that runs in `frame` was called from inside another for this lock."""
    code = frame.f_code
    outer = frame.f_back
    while outer is not None:
        if outer.f_code is code and outer.f_locals.get("handle") is handle:
            return True
        outer = outer.f_back
    return False


def complaint(holder: int, timeout: float) -> str:
    """What to tell a user whose call gave up on the lock."""
    if not holder:
        return f"the lock was not to be had for {timeout:g} s; nobody seems to hold it for long"
    pid = process_of(holder) or holder
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            name = file.read().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        name = "unknown"
    return (
        f"process {pid} ({name:.100}) has held the lock for {timeout:g} s without moving: it is "
        "probably stopped (SIGSTOP, a debugger). Let it go on (SIGCONT) or end it; the others "
        "then go on by themselves"
    )


def process_of(thread: int) -> int:
    """Process id of a thread id; 0 if there is no such thread."""
    try:
        with open(f"/proc/{thread}/status") as file:
            for line in file:
                if line.startswith("Tgid:"):
                    return int(line.split()[1])
    except (OSError, ValueError):
        pass
    return 0
