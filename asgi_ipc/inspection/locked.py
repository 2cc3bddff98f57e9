"""Verifying a segment from outside, under its lock if need be.

It does not attach, which would first put the store in order. The lock is held only for as long as a
copy takes, and whoever stops this process meanwhile holds up nobody for longer than
``lock_timeout``: the lock of somebody who is not attached is made anew.
"""

from __future__ import annotations

import mmap
import time

from ..segment.files import open_file
from ..segment.lock import FileLock, Mutex
from ..segment.opening import open_existing
from ..segment.section import Section, Waits, make_section
from ..store.layout import H_LOCK, HALF_HEAD, HALF_TAIL, LOCK_MUTEX, PAGE, S_MARK, T_HIGH, WORD
from ..store.store import Store
from ..store.verify import verify
from .view import View


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
    fault = view.header.sharing_fault()
    if fault is not None:
        raise fault.error_for(view.prefix)
    writable = open_existing(view.paths, write=True)
    return mmap.mmap(writable.number, size)


def _section(view: View, memory: mmap.mmap, timeout: float) -> Section:
    """`section.make_section`, without recovery."""
    words = memoryview(memory)[:PAGE].cast("Q")
    lock: Mutex | FileLock
    if view.header.lock_kind == LOCK_MUTEX:
        lock = Mutex(memory, H_LOCK * WORD)
    else:
        path, mode = view.paths.section_lock, view.header.mode
        lock = FileLock(path, lambda: open_file(path, mode))
    return make_section(lock, words, lambda: None, Waits(timeout, timeout))
