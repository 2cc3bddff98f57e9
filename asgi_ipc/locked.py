"""What is done to a segment from outside under its lock: a copy for `verify`, and a flush.

Neither attaches, which would first put the store in order and fail where that cannot be done. The
lock is held only for as long as the work itself takes, and whoever stops this process meanwhile
holds up nobody for longer than ``lock_timeout``: the lock of somebody who is not attached is made
anew.
"""

from __future__ import annotations

import mmap
import os
import time
from typing import Any

from . import recovery
from .attachment import ring_all
from .doorbell import Ringer
from .errors import IncompatibleSegment
from .files import Descriptor
from .layout import (
    H_LOCK,
    H_LOCK_KIND,
    H_MACHINE,
    H_NONCE,
    H_PID_NS,
    H_TIME_NS,
    LOCK_MUTEX,
    PAGE,
    S_MARK,
    T_HIGH,
    WORD,
)
from .lock import FileLock, Mutex, Section, machine, make_section
from .segment import look, namespace
from .store import Store
from .view import View


def foreign_lock(header: memoryview[int]) -> str:
    """Why this process must not touch the lock of a segment, with the remedy; "" if it may."""
    if header[H_TIME_NS] != namespace("time"):
        return "it was made in another time namespace: run this in the one of its processes"
    if header[H_LOCK_KIND] == LOCK_MUTEX:
        if header[H_PID_NS] != namespace("pid"):
            return (
                "it was made in another PID namespace: run this in the one of its processes "
                "(docker exec), or share that with docker run --pid=container:..., or give all of "
                'its processes lock="file"'
            )
        if header[H_MACHINE] != machine():
            return (
                "it was made with another libc or word size: run the asgi-ipc of its processes, "
                'or give all of them lock="file"'
            )
    return ""


def copy(view: View, timeout: float) -> tuple[Store, float]:
    """A store on a copy of the segment that was made under its lock, and the time of that.

    What it is copied to has been touched before, so that the lock is not held for page faults.
    Nothing is changed, also if the store is dirty. Raises LockTimeout after `timeout` seconds, and
    IncompatibleSegment where the lock must not be touched.
    """
    layout = view.layout
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    copied = mmap.mmap(-1, layout.size, flags)

    def copy_all() -> float:
        state = view.words(0, PAGE // WORD)
        parts = [(0, layout.fixed_bytes // WORD)]
        for table in (layout.queues, layout.groups, layout.members):
            rows = min(state[table.state + T_HIGH], table.rows)
            parts.append((table.base, table.base + rows * table.words))
        parts.append((layout.log, min(max(state[S_MARK], layout.log), layout.log_end)))
        for start, end in parts:
            read = view.read(start * WORD, (end - start) * WORD)
            copied[start * WORD : start * WORD + len(read)] = read
        return time.monotonic()

    section = _section(view, _open(view, PAGE), timeout)
    copy_all()
    copied_at: float = section(copy_all)
    return Store(copied, layout), copied_at


def flush(view: View, timeout: float) -> None:
    """Forget all messages and groups, whatever state the store is in, and wake everybody.

    Raises LockTimeout after `timeout` seconds, and IncompatibleSegment where the lock must not be
    touched.
    """
    memory = _open(view, view.size)
    store = Store(memory, view.layout)
    _section(view, memory, timeout)(recovery.flush, store, time.monotonic())
    ringer = Ringer(view.paths.directory, store.words[H_NONCE])
    ring_all(store, ringer)
    ringer.close()
    store.close()


def _open(view: View, size: int) -> mmap.mmap:
    """The first bytes of a segment, to write to. It is unmapped when nobody refers to it."""
    header = view.words(0, PAGE // WORD)
    reason = foreign_lock(header)
    if reason:
        raise IncompatibleSegment(f"the lock of prefix {view.prefix!r} cannot be taken: {reason}")
    writable = Descriptor(look(view.paths, write=True))
    return mmap.mmap(writable.number, size)


def _section(view: View, memory: Any, timeout: float) -> Section:
    """`lock.make_section`, without recovery."""
    words = memoryview(memory)[:PAGE].cast("Q")
    lock: Mutex | FileLock
    if words[H_LOCK_KIND] == LOCK_MUTEX:
        lock = Mutex(memory, H_LOCK * WORD)
    else:
        path = view.paths.section_lock
        lock = FileLock(path, lambda: os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC))
    return make_section(lock, words, lambda: None, timeout, lambda holder: False, timeout)
