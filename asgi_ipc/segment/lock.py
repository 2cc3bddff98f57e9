"""The lock of a segment: one that the kernel releases when its holder dies.

It is a robust, error-checking, process-shared mutex in the segment, taken through `ctypes.PyDLL`,
which does not release the interpreter. A thread that released it, got the mutex and then waited for
the GIL, or for the end of a garbage collection that stops all threads, would stall every other
process. Where such mutexes do not exist, and with ``lock="file"``, it is a flock.

Both locks have the same calls. Only `section` may take and release them.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import struct
import sys
import threading
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any
from zlib import crc32

from ..errors import SegmentError
from ..store.layout import H_LOCK, LOCK_BYTES, LOCK_MUTEX, WORD
from .files import Descriptor, open_file
from .procfs import flock_holder, mapped_at
from .refusals import reason, told

_PTHREAD_PROCESS_SHARED = 1
_PTHREAD_MUTEX_ROBUST = 1
_PTHREAD_MUTEX_ERRORCHECK = 2

# Where each libc keeps, in a mutex, the futex word, which holds the thread id of the holder; and
# where it notes that the mutex cannot be recovered, and how.
GLIBC = (0, 8, 0x7FFFFFFE)
MUSL = (4, 4, 0x7FFFFFFF)

# The number of the system call that tells where a thread has its list of robust mutexes.
_GET_ROBUST_LIST = {"x86_64": 274, "aarch64": 100}.get(os.uname().machine, 0)
_LISTED = 1000  # mutexes of one thread that are looked at
_ADDRESSES = struct.Struct("PlP")  # head of the list: first entry, where its futex is, pending

has_gil: Callable[[], bool] = getattr(sys, "_is_gil_enabled", lambda: True)

_libc = ctypes.PyDLL(None)

_FUTEX, _STATE, _LOST = GLIBC if hasattr(_libc, "gnu_get_libc_version") else MUSL
_HOLDER, _OWNER_DIED, _WAITED_FOR = 0x3FFFFFFF, 0x40000000, 0x80000000  # in the futex word


def _one_gil() -> bool:
    """Whether at most one thread of this process is in Python: it has a GIL, and no interpreter has
    its own GIL."""
    if not has_gil():
        return False
    try:
        interpreters: Any = import_module("_interpreters")
    except ImportError:  # before Python 3.13, where those with their own GIL have no ctypes
        return True
    try:
        found = [interpreters.get_config(each[0]).gil for each in interpreters.list_all()]
    except Exception:  # one of them ended meanwhile
        return False
    return found.count("own") == 1


@cache
def robust_mutexes() -> bool:
    """Whether this platform has mutexes that the kernel releases when their holder dies."""
    return sys.platform.startswith("linux") and hasattr(_libc, "pthread_mutex_consistent")


@cache
def machine() -> int:
    """Return libc family, word size and processor as one number: only equals share a mutex."""
    family = 1 if hasattr(_libc, "gnu_get_libc_version") else 2
    return family << 48 | struct.calcsize("P") << 40 | crc32(os.uname().machine.encode())


def init_mutex(memory: mmap.mmap, offset: int) -> None:
    """Make a mutex at `offset`. No thread may hold or try the one that was there before."""
    attributes = ctypes.create_string_buffer(64)
    mutex = ctypes.create_string_buffer(LOCK_BYTES)
    for call, *arguments in (
        (_libc.pthread_mutexattr_init,),
        (_libc.pthread_mutexattr_setpshared, _PTHREAD_PROCESS_SHARED),
        (_libc.pthread_mutexattr_setrobust, _PTHREAD_MUTEX_ROBUST),
        (_libc.pthread_mutexattr_settype, _PTHREAD_MUTEX_ERRORCHECK),
    ):
        code = call(attributes, *arguments)
        if code:
            raise OSError(code, f"{call.__name__}: {os.strerror(code)}")
    code = _libc.pthread_mutex_init(mutex, attributes)
    if code:
        raise OSError(code, f"pthread_mutex_init: {os.strerror(code)}")
    memory[offset : offset + LOCK_BYTES] = mutex.raw


class Mutex:
    """The calls of the robust mutex at `offset` of `memory`, each a bare C function of `handle`."""

    def __init__(self, memory: mmap.mmap, offset: int) -> None:
        # A byref() and no argtypes: the cheapest way to hand an address to a C function.
        self.handle = ctypes.byref(ctypes.c_char.from_buffer(memory, offset))
        self.trylock = _libc["pthread_mutex_trylock"]
        self.unlock = _libc["pthread_mutex_unlock"]
        self.unlock.restype = None  # the result is not needed, and making an int of it takes time
        self.consistent = _libc["pthread_mutex_consistent"]
        self._futex = ctypes.c_uint32.from_buffer(memory, offset + _FUTEX)
        self._state = ctypes.c_uint32.from_buffer(memory, offset + _STATE)

    def lost(self) -> bool:
        """Whether nobody can take the mutex any more."""
        return bool(self._state.value & 0x7FFFFFFF == _LOST)

    def held_by(self, thread: int) -> bool:
        """Whether a thread of this process, which the futex word names, holds the mutex. It does
        not if a dead thread had the same id. True if that is unknown.

        The kernel has the answer: the list of mutexes that it releases when the thread ends. No
        other thread takes or releases one meanwhile, because that is done with the GIL held.
        Without a GIL, or with several, only the caller itself can be asked.

        The thread may have taken it at another address: this process may have mapped the segment
        more than once (another copy of the package, `verify`, an attachment that it left at exit).
        """
        if thread != threading.get_native_id() and not _one_gil():
            return True
        head, size = ctypes.c_size_t(), ctypes.c_size_t()
        ask = (thread, ctypes.byref(head), ctypes.byref(size))
        if not _GET_ROBUST_LIST or _libc.syscall(_GET_ROBUST_LIST, *ask):
            return True
        if not head.value:
            return False
        try:
            with open("/proc/self/mem", "rb", buffering=0) as memory:
                read = os.pread(memory.fileno(), _ADDRESSES.size, head.value)
                entry, offset, pending = _ADDRESSES.unpack(read)
                if pending and self._is_at(pending + offset):
                    return True
                for _ in range(_LISTED):
                    if entry == head.value:
                        return False
                    at = entry & ~1  # a mark of the kernel's
                    if self._is_at(at + offset):
                        return True
                    (entry,) = struct.unpack("P", os.pread(memory.fileno(), 8, at))
        except (OSError, OverflowError, struct.error):
            pass
        return True

    def same(self, other: object) -> bool:
        """Whether `other` is the same mutex, perhaps mapped at another address."""
        return isinstance(other, Mutex) and self._is_at(ctypes.addressof(other._futex))

    def _is_at(self, address: int) -> bool:
        """Whether the futex word is also at an address of this process."""
        ours = ctypes.addressof(self._futex)
        if address == ours:
            return True
        place = mapped_at(ours, address)
        return place[0] is not None and place[0] == place[1]

    # Others try the mutex meanwhile. So neither of these two makes it new: after each store, a try
    # of another thread is as right as it was before.

    def report_death(self, holder: int) -> None:
        """Do what the kernel does when the holder of a mutex dies, if that still names `holder`.
        The thread that held it must be dead, and one caller at a time may do this."""
        word = self._futex.value
        if word & _HOLDER == holder:
            self._futex.value = word & _WAITED_FOR | _OWNER_DIED

    def restore(self) -> None:
        """Let others take a mutex that is lost, as an error told the calling thread."""
        if self.lost():
            mine = self.mine()  # glibc names the thread whose try failed, and refuses all others
            self._state.value = 0
            if mine:
                self._futex.value = 0

    def holder(self) -> int:
        """Thread id of the holder; 0 if there is none."""
        return int(self._futex.value & _HOLDER)

    def mine(self) -> bool:
        """Whether the calling thread holds it."""
        return self.holder() == threading.get_native_id()

    def close(self) -> None:
        pass  # it is part of the segment's memory


def mutex_holder(mutex: bytes) -> int:
    """Thread id of the holder in a copy of a mutex of this machine's libc; 0 for none."""
    return int.from_bytes(mutex[_FUTEX : _FUTEX + 4], sys.byteorder) & _HOLDER


class FileLock:
    """The same calls over a flock: one descriptor for each thread, opened when first used.

    The file at `path` is created with `mode`.
    """

    def __init__(self, path: str, mode: int, group: int | None = None) -> None:
        self.handle = path
        self._mode = mode
        self._group = group
        self._local = threading.local()

    def trylock(self, handle: object) -> int:
        local = self._local
        if getattr(local, "inside", False):
            return errno.EDEADLK
        opened = getattr(local, "opened", None)
        if opened is None or not opened.marked():
            with told(f"open the lock {self.handle}"):
                opened = Descriptor(open_file(self.handle, self._mode, self._group))
                opened.mark()
                local.opened = opened
        local.inside = True  # before it is true: a signal handler in between must not enter as well
        try:
            fcntl.flock(opened.number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            local.inside = False
            return errno.EBUSY
        except OSError as error:  # no room for a lock, or a file system without them
            local.inside = False
            raise SegmentError(f"cannot take the lock {self.handle}: {reason(error)}") from error
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

    def held_by(self, thread: int) -> bool:
        return True  # the kernel releases it in any case

    def same(self, other: object) -> bool:
        """Whether `other` is on the same file."""
        return isinstance(other, FileLock) and other.handle == self.handle

    def holder(self) -> int:
        """Process id of the holder; 0 if there is none or it is unknown."""
        return flock_holder(self.handle)

    def close(self) -> None:
        """Close the descriptors of all threads."""
        self._local = threading.local()


def open_lock(
    kind: int, memory: mmap.mmap, path: str, mode: int, group: int | None = None
) -> Mutex | FileLock:
    """The lock of a segment, by its kind: the mutex in its memory, or the file at `path`."""
    if kind == LOCK_MUTEX:
        return Mutex(memory, H_LOCK * WORD)
    return FileLock(path, mode, group)
