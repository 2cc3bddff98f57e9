"""Verifies a segment from outside, under its lock if need be.

Must not attach, because that would first recover the store. The lock is held only for as long as
one copy takes. If this process is stopped meanwhile, it delays others by at most ``lock_timeout``:
they renew a lock whose holder is not attached.
"""

from __future__ import annotations

import mmap
import time

from ..errors import IncompatibleSegment
from ..segment.files import Descriptor, open_file
from ..segment.lock import FileLock, Mutex, Section, machine, make_section
from ..segment.segment import look, namespace
from ..store import layout as at
from ..store.store import Store
from ..store.verify import verify
from .view import View


def foreign_lock(header: memoryview[int]) -> str:
    """Why this process must not touch the lock of a segment, with the remedy; "" if it may."""
    if header[at.H_TIME_NS] != namespace("time"):
        return "it was made in another time namespace: run this in the namespace of its processes"
    if header[at.H_LOCK_KIND] == at.LOCK_MUTEX:
        if header[at.H_PID_NS] != namespace("pid"):
            return (
                "it was made in another PID namespace: run this in the namespace of its processes "
                "(docker exec), or share that namespace (docker run --pid=container:...), or give "
                'all of its processes lock="file"'
            )
        if header[at.H_MACHINE] != machine():
            return (
                "it was made with another libc or word size: run the asgi-ipc that its processes "
                'use, or give all of them lock="file"'
            )
    return ""


def complaints(view: View, timeout: float) -> list[str]:
    """The invariants that a segment violates, in words; [] if all hold. Changes nothing.

    It verifies a copy that is made without the lock. Damage shows there too, but under traffic such
    a copy is not of one moment. So if an invariant does not hold, it verifies another copy, made
    under the lock. Only then it may raise LockTimeout, after `timeout` seconds, or
    IncompatibleSegment if this process must not take the lock.
    """
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
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
    return time.monotonic()


def _open(view: View) -> mmap.mmap:
    """Map the header of a segment for writing. It is unmapped when nothing refers to it."""
    header = view.words(0, at.PAGE // at.WORD)
    reason = foreign_lock(header)
    if reason:
        raise IncompatibleSegment(f"the lock of prefix {view.prefix!r} cannot be taken: {reason}")
    writable = Descriptor(look(view.paths, write=True))
    return mmap.mmap(writable.number, at.PAGE)


def _section(view: View, memory: mmap.mmap, timeout: float) -> Section:
    """`lock.make_section`, without recovery."""
    words = memoryview(memory)[: at.PAGE].cast("Q")
    lock: Mutex | FileLock
    if words[at.H_LOCK_KIND] == at.LOCK_MUTEX:
        lock = Mutex(memory, at.H_LOCK * at.WORD)
    else:
        path, mode = view.paths.section_lock, words[at.H_MODE]
        lock = FileLock(path, lambda: open_file(path, mode))
    return make_section(lock, words, lambda: None, timeout, lambda holder: False, timeout)
