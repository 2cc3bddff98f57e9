"""Verifying a segment from outside, under its lock if need be.

It does not attach, which would first put the store in order. The lock is held only for as long as a
copy takes, and whoever stops this process meanwhile holds up nobody for longer than
``lock_timeout``: the lock of somebody who is not attached is made anew.
"""

from __future__ import annotations

import mmap
import time
from typing import Any

from ..errors import IncompatibleSegment
from ..segment.files import Descriptor, open_file
from ..segment.lock import FileLock, Mutex, Section, machine, make_section
from ..segment.segment import look, namespace
from ..store.layout import (
    H_LOCK,
    H_LOCK_KIND,
    H_MACHINE,
    H_PID_NS,
    H_TIME_NS,
    HALF_HEAD,
    HALF_TAIL,
    LOCK_MUTEX,
    PAGE,
    S_MARK,
    T_HIGH,
    WORD,
)
from ..store.store import Store
from ..store.verify import verify
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


def complaints(view: View, timeout: float) -> list[str]:
    """What is wrong with a segment, in words; [] when all is well. Changes nothing.

    Looks at a copy that was made without the lock. Damage shows there too, but under traffic a copy
    is not of one moment: if there is anything to complain of, another is made under the lock. Then
    it raises LockTimeout after `timeout` seconds, and IncompatibleSegment where the lock must not
    be touched.
    """
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    store = Store(mmap.mmap(-1, view.layout.size, flags), view.layout)
    try:
        found = verify(store, _copy(view, store))
        if found:
            section = _section(view, _open(view, PAGE), timeout)
            found = verify(store, section(_copy, view, store))
        return found
    finally:
        store.close()


def _copy(view: View, store: Store) -> float:
    """Copy all that `verify` looks at. Returns the time of that."""
    layout, target = view.layout, memoryview(store.buffer)
    state = view.words(0, PAGE // WORD)
    halves = state.cast("B").cast("I")
    parts = [(0, layout.fixed_bytes // WORD)]
    for table in (layout.queues, layout.groups, layout.members):
        rows = min(state[table.state + T_HIGH], table.rows)
        parts.append((table.base, table.base + rows * table.words))
    head, tail, mark = halves[HALF_HEAD], halves[HALF_TAIL], state[S_MARK]
    parts += [(tail, head)] if tail <= head else [(layout.log, head), (tail, mark)]
    for start, end in parts:
        if 0 <= start <= end <= layout.log_end:  # or `verify` says what is wrong with it
            view.read_into(target[start * WORD : end * WORD], start * WORD)
    return time.monotonic()


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
        path, mode = view.paths.section_lock, view.options()["mode"]
        lock = FileLock(path, lambda: open_file(path, mode))
    return make_section(lock, words, lambda: None, timeout, lambda holder: False, timeout)
