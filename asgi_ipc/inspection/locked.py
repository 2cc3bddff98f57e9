"""Verifies a segment from outside, under its lock if need be.

Must not attach, because that would first recover the store. The lock is held only for as long as
one copy takes. If this process is stopped meanwhile, it delays others by at most ``lock_timeout``:
they renew a lock whose holder is not attached.
"""

from __future__ import annotations

import mmap
import sys

from .. import clock
from ..segment.lock import open_lock
from ..segment.opening import open_existing
from ..segment.section import Section, Waits, make_section
from ..store import layout as at
from ..store.store import Store
from ..store.verify import verify
from .view import View

# A segment may be larger than the memory of the machine, and most of it holds nothing. Not every
# `mmap` has the name; the number is that of Linux on x86 and ARM.
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


def complaints(view: View, timeout: float) -> list[str]:
    """The invariants that a segment violates, in words; [] if all hold. Changes nothing.

    It verifies a copy that is made without the lock. Damage shows there too, but under traffic such
    a copy is not of one moment. So if an invariant does not hold, it verifies another copy, made
    under the lock. Only then it may raise LockTimeout, after `timeout` seconds, or
    IncompatibleSegment if this process must not take the lock.
    """
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE
    store = Store(mmap.mmap(-1, view.layout.size, flags), view.layout)
    try:
        found = verify(store, _copy(view, store))
        if found:
            section = _section(view, _open(view), timeout)
            found = verify(store, section(_copy, view, store))
        return found
    finally:
        store.close()


def _copy(view: View, store: Store) -> float:
    """Copy everything that `verify` reads. Returns the time of the copy."""
    layout, target = view.layout, memoryview(store.buffer)
    state = view.words(0, at.PAGE // at.WORD)
    halves = state.cast("B").cast("I")
    parts = [(0, layout.fixed_bytes // at.WORD)]
    for table in (layout.queues, layout.groups, layout.members):
        rows = min(state[table.state + at.T_HIGH], table.rows)
        parts.append((table.base, table.base + rows * table.words))
    head, tail, mark = halves[at.HALF_HEAD], halves[at.HALF_TAIL], state[at.S_MARK]
    parts += [(tail, head)] if tail <= head else [(layout.log, head), (tail, mark)]
    for start, end in parts:
        if 0 <= start <= end <= layout.log_end:  # or `verify` says what is wrong with it
            view.read_into(target[start * at.WORD : end * at.WORD], start * at.WORD)
    return clock.monotonic()


def _open(view: View) -> mmap.mmap:
    """Map the header of a segment for writing. It is unmapped when nothing refers to it."""
    fault = view.header.sharing_fault()
    if fault is not None:
        raise fault.error_for(view.prefix)
    writable = open_existing(view.paths, write=True)
    return mmap.mmap(writable.number, at.PAGE)


def _section(view: View, memory: mmap.mmap, timeout: float) -> Section:
    """`section.make_section`, without recovery."""
    words = memoryview(memory)[: at.PAGE].cast("Q")
    header = view.header
    lock = open_lock(header.lock_kind, memory, view.paths.section_lock, header.mode)
    return make_section(lock, words, lambda: None, Waits(timeout, timeout))
