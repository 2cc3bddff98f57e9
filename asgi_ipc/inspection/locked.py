"""Verifies a segment from outside, under its lock if needed.

Must not attach, because that would first recover the store. The lock is held only for as long as
one copy takes. The flock of processes that attach is held with it: such a process makes the lock
new if nobody is attached, and would not know of this process.
"""

from __future__ import annotations

import math
import mmap
import sys
import time

from .. import clock
from ..errors import CorruptStore, LockBusy, LockTimeout, SegmentVanished
from ..segment.files import attach_lock, map_file
from ..segment.lock import open_lock
from ..segment.opening import open_existing
from ..segment.refusals import told
from ..segment.section import OUT_OF_RANGE, Section, Waits, complaint, make_section
from ..store import layout as at
from ..store.recovery import recover
from ..store.store import Store
from ..store.verify import INTERRUPTED, verify
from .view import View

_STRETCH = 0.02  # seconds in a row that it waits for the lock
# A segment may be larger than the memory of the machine, and most of it holds nothing. Not every
# `mmap` has the name; the number is that of Linux on x86 and ARM.
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


def complaints(view: View, timeout: float) -> list[str]:
    """The invariants that a segment violates, in words; [] if all hold. Changes nothing.

    It verifies a copy that is made without the lock. Damage shows there too, but under traffic such
    a copy is not of one moment. So if an invariant does not hold, it verifies another copy, made
    under the lock. Only then it may raise LockTimeout, after `timeout` seconds, IncompatibleSegment
    if this process must not take the lock, or SegmentVanished. If that copy shows no more than an
    interrupted call, it also recovers the copy and verifies it again.
    """
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE
    with told(f"copy the segment of prefix {view.prefix!r}"):
        store = Store(mmap.mmap(-1, view.layout.size, flags), view.layout)
    try:
        found = verify(store, _copy(view, store))
        if found:
            now = _copy_under_lock(view, store, timeout)
            found = verify(store, now)
            if found and not damage(found):
                found += _after_recovery(store, now)
        return found
    finally:
        store.close()


def damage(found: list[str]) -> list[str]:
    """Those of the `complaints` that are damage. An interrupted call is not: the next call recovers
    the store. A flush would delete all that it holds."""
    return [one for one in found if not one.startswith(INTERRUPTED)]


def _after_recovery(store: Store, now: float) -> list[str]:
    """Recover a copy, as the next call would do with the store. Returns what it leaves wrong."""
    try:
        recover(store, now)
    except (CorruptStore, *OUT_OF_RANGE) as error:
        return [f"the store cannot be recovered: {error.args[0]}"]
    return verify(store, now)


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


def _copy_under_lock(view: View, store: Store, timeout: float) -> float:
    """`_copy` under the lock, for which it waits in stretches: others attach in between."""
    deadline = clock.monotonic() + timeout
    section = _section(view, _open(view))
    while True:
        try:
            with attach_lock(view.paths, None, max(deadline - clock.monotonic(), 0.0)):
                return section(_copy, view, store)
        except LockBusy as error:
            if clock.monotonic() >= deadline:
                raise LockTimeout(complaint(error.holder, timeout)) from None
            time.sleep(0.001)
        except FileNotFoundError as error:
            raise SegmentVanished(
                f"{error.filename}, which belongs to prefix {view.prefix!r}, was removed. If "
                "processes use the segment, they make a new one with their next call"
            ) from None


def _open(view: View) -> mmap.mmap:
    """Map the header of a segment for writing. It is unmapped when nothing refers to it."""
    fault = view.header.sharing_fault()
    if fault is not None:
        raise fault.error_for(view.prefix)
    writable = open_existing(view.paths, write=True)
    return map_file(writable.number, at.PAGE)


def _section(view: View, memory: mmap.mmap) -> Section:
    """`section.make_section`, without recovery."""
    words = memoryview(memory)[: at.PAGE].cast("Q")
    header = view.header
    lock = open_lock(header.lock_kind, memory, view.paths.section_lock, header.mode)
    return make_section(lock, words, lambda: None, Waits(_STRETCH, math.inf))
