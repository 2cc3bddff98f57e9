"""Shared memory as a whole: created, attached to, replaced when stale, opened to read, removed.

Everything that changes names happens under the flock of `files.attach_lock`. This module must not
touch what is stored in a segment, except in one that it has just created.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from itertools import chain

from ..errors import ForeignSegment, LimitReached, NoSuchLayer, SegmentError
from ..store.layout import (
    FIRST_MARK,
    H_LOCK,
    LOCK_BYTES,
    LOCK_MUTEX,
    MAX_PROCESSES,
    P_GENERATION,
    PAGE,
    PROCESS_WORDS,
    WORD,
)
from .files import (
    PATIENCE,
    Descriptor,
    Members,
    attach_lock,
    check_kind,
    check_owner,
    foreign_remedy,
    map_file,
    only_files,
    raise_above,
    remove_file,
)
from .header import Header, format_segment
from .lock import init_mutex, mutex_holder
from .notes import note
from .paths import Paths, full_prefix, prefixes
from .procfs import is_dead, user_name
from .refusals import MISSING, reason, told
from .segment import Segment, allocate
from .shm import create_memory, open_memory, unlink_memory
from .wanted import Wanted

_NAMED, _LISTED = 3, 10  # prefixes that an error names: those that look like the given one, or any
_IN_ORDER = 8  # free ids that a process tries, from the lowest on, before it begins elsewhere


# -- attaching ------------------------------------------------------------------------------------


def attach(wanted: Wanted, timeout: float = PATIENCE) -> tuple[Segment, int]:
    """Open the segment of a prefix and claim a process id; create or replace it first if needed.

    Returns the segment and the index whose byte this process now holds. Raises LockTimeout if
    others attach for `timeout` seconds, IncompatibleSegment, ForeignSegment, CorruptHeader, or
    SegmentError when shared memory cannot be used at all.
    """
    paths = Paths(wanted.prefix)
    if paths.lacking:
        raise SegmentError(MISSING)
    doing = f"attach to the segment of prefix {paths.prefix!r}"
    with told(doing), attach_lock(paths, wanted.mode, timeout, wanted.group):
        return _attach(paths, wanted, doing)


def _attach(paths: Paths, wanted: Wanted, doing: str) -> tuple[Segment, int]:
    """`attach`, under the flock. If it fails and nobody uses what is there, it leaves nothing."""
    segment, members, unused = None, None, not os.path.exists(paths.members)
    try:
        with told(doing):  # before there is room again: the error says what was missing
            members = Members.open(paths.members, wanted.mode, wanted.group)
            alive = bool(members.claimed) or members.held(0, MAX_PROCESSES)
            segment = _open(paths, wanted, members, alive)
            unused = segment is None and not alive
            segment = segment or _create(paths, wanted, members)
            segment.warn_of_mode(wanted)
            if not alive and segment.lock_kind == LOCK_MUTEX and not _held(segment):
                # Nobody else is attached, so nobody holds it, whatever state it was left in.
                init_mutex(segment.memory, H_LOCK * WORD)
            return segment, _claim_index(segment)
    except BaseException:
        if members is not None:
            members.close()
        if segment is not None:
            segment.close()
        elif unused:
            _clear(paths)
        raise


def _held(segment: Segment) -> bool:
    """Whether a living thread may hold the mutex, in a process that lost its byte lock, for example
    because the program closed its descriptors."""
    holder = mutex_holder(segment.memory[H_LOCK * WORD : H_LOCK * WORD + LOCK_BYTES])
    return holder != 0 and not is_dead(holder) and segment.may_be_mapped_by(holder)


def _claim_index(segment: Segment) -> int:
    """Claim a process id: one whose row is free, otherwise one of a process that died.

    Processes that start at once may have claimed an id and not made its row yet. So after a few ids
    that are taken, each process continues somewhere else.
    """
    first = segment.layout.processes + P_GENERATION
    rows = memoryview(segment.memory).cast("Q")[first : first + MAX_PROCESSES * PROCESS_WORDS]
    used = rows[::PROCESS_WORDS].tolist()
    free = [index for index, generation in enumerate(used) if not generation]
    elsewhere = free[os.getpid() % MAX_PROCESSES :]
    for index in chain(free[:_IN_ORDER], elsewhere, free, range(MAX_PROCESSES)):
        if segment.members.claim(index):
            return index
    raise LimitReached(
        f"{MAX_PROCESSES} processes are attached to prefix {segment.paths.prefix!r}, which is the "
        "limit; use several prefixes"
    )


def _open(paths: Paths, wanted: Wanted, members: Members, alive: bool) -> Segment | None:
    """Open the segment if it exists and can be used.

    If it cannot, and no process is `alive` in it, it is stale: then remove it and return None.
    """
    try:
        opened = Descriptor(_open_shared(paths, True, foreign_remedy(paths.file)))
    except FileNotFoundError:
        return None
    try:
        fd = opened.number
        status = os.fstat(fd)
        name = f"the segment of prefix {paths.prefix!r}"
        check_owner(name, status, wanted.mode, group=wanted.group)
        header = Header(_first_page(fd, status.st_size), status.st_size)
        fault = header.attach_fault(wanted, members.inode)
        if fault is not None:
            if alive:
                raise fault.error_for(paths.prefix)
            stale = fault.reason
        elif header.of_an_earlier_boot and not alive:
            stale = "was made before the machine was last started, or before its clock went back"
        elif header.sizes != wanted.sizes:
            stale = f"has other sizes: {header.sizes}"
        else:
            stale = ""
        if alive or not stale:
            if stale:
                note("prefix %r: the live segment %s; they hold for all", paths.prefix, stale)
            return Segment(paths, opened, map_file(fd, header.size), header, members)
        note(
            "prefix %r: replacing a stale segment, which no process uses and which %s",
            paths.prefix,
            stale,
        )
        _unlink(paths)
    except BaseException:
        opened.close()
        raise
    opened.close()
    return None


def _first_page(fd: int, size: int) -> bytes:
    """A copy of the first page of a segment; shorter if the segment is. macOS cannot pread it."""
    if not size:
        return b""
    with map_file(fd, min(size, PAGE)) as page:
        return page[:]


def _create(paths: Paths, wanted: Wanted, members: Members) -> Segment:
    layout = wanted.layout()
    try:
        opened = Descriptor(raise_above(create_memory(paths.segment, wanted.mode, layout.size)))
    except OSError as error:
        raise SegmentError(
            f"cannot create shared memory of {layout.size} bytes for prefix {paths.prefix!r}: "
            f"{reason(error)}"
        ) from error
    try:
        fd = opened.number
        os.fchmod(fd, wanted.mode)
        if wanted.mode & 0o060:
            with contextlib.suppress(PermissionError):
                os.fchown(fd, -1, os.stat(paths.directory).st_gid)
        memory = map_file(fd, layout.size)
        why = allocate(fd, 0, layout.fixed_bytes) or allocate(fd, layout.log * WORD, FIRST_MARK)
        if why:
            raise SegmentError(f"no room for the segment of prefix {paths.prefix!r}: {why}")
        header = format_segment(memory, layout, wanted, members.inode)
        return Segment(paths, opened, memory, header, members)
    except BaseException:
        opened.close()
        _unlink(paths)
        raise


# -- reading without attaching --------------------------------------------------------------------


def open_existing(paths: Paths, write: bool = False) -> Descriptor:
    """Open a segment without attaching: creates and replaces nothing. It may be another user's.

    Raises NoSuchLayer, which names the layers that exist, and ForeignSegment if this process may
    not read it (or, with `write`, write to it).
    """
    with told(f"open the segment of prefix {paths.prefix!r}"):
        return _open_existing(paths, write)


def _open_existing(paths: Paths, write: bool) -> Descriptor:
    try:
        return Descriptor(_open_shared(paths, write, "Run this as its owner or as root"))
    except FileNotFoundError:
        raise NoSuchLayer(
            f"there is no layer with prefix {paths.prefix!r} on this machine; "
            + _others(paths.prefix)
        ) from None


def _others(prefix: str) -> str:
    """The prefixes that exist: those that look like this one, or all of them, if they are few."""
    from difflib import get_close_matches

    there = prefixes()
    lower = get_close_matches(prefix.lower(), {one.lower() for one in there}, _NAMED)
    near = [one for like in lower for one in there if one.lower() == like]
    near += [one for one in there if one not in near and (one in prefix or prefix in one)]
    if near:
        return f"did you mean {' or '.join(map(repr, near[:_NAMED]))}?"
    if not there:
        return "there are no layers at all"
    more = f" and {len(there) - _LISTED} more" if len(there) > _LISTED else ""
    return f"there are: {', '.join(there[:_LISTED])}{more}"


def _open_shared(paths: Paths, write: bool, advice: str) -> int:
    """Open the shared memory. Raises FileNotFoundError; and ForeignSegment for what is no shared
    memory or, with `advice`, for that of another user."""
    try:
        with only_files(paths.file):
            fd = raise_above(open_memory(paths.segment, write))
    except ForeignSegment:
        raise
    except PermissionError:
        raise ForeignSegment(
            f"the segment of prefix {paths.prefix!r} belongs to another user, and is not open to "
            f"{user_name(os.geteuid())}. {advice}"
        ) from None
    try:
        if paths.shows:
            check_kind(paths.file, os.fstat(fd), stat.S_ISREG)
        return fd
    except BaseException:
        os.close(fd)
        raise


# -- removing -------------------------------------------------------------------------------------


def destroy(prefix: str) -> bool:
    """Remove the segment of `prefix` and the files beside it. True if there was anything.

    Processes that are attached notice within a second, and raise SegmentVanished.
    """
    with told(f"remove the segment of prefix {prefix!r}"):
        return remove(Paths(full_prefix(prefix)))


def remove_unless(paths: Paths, in_use: Callable[[Paths], object]) -> bool:
    """Remove the same unless it is `in_use`, which is asked while nobody can attach. Return whether
    it was removed. Raises ForeignSegment."""
    with told(f"remove the segment of prefix {paths.prefix!r}"), attach_lock(paths, 0o600):
        if in_use(paths):
            return False
        check_owner(paths.directory, os.lstat(paths.directory), 0o600, stat.S_ISDIR)
        _unlink(paths)
        _clear(paths)
    return True


def remove(paths: Paths) -> bool:
    """`destroy`, given the paths."""
    found = _unlink(paths)
    if not os.path.isdir(paths.directory):
        return found
    with attach_lock(paths, 0o600):
        _unlink(paths)
        check_owner(paths.directory, os.lstat(paths.directory), 0o600, stat.S_ISDIR)
        _clear(paths)
    return True


def _clear(paths: Paths) -> None:
    """Remove the directory beside a segment, and what is in it. Under the flock, whose file goes
    last: until then nobody makes another. Needs no descriptor unless there is more than usual."""
    last = os.path.basename(paths.attach_lock)
    names = {os.path.basename(path) for path in (paths.members, paths.section_lock)}
    with contextlib.suppress(OSError):
        names.update(os.listdir(paths.directory))
    for name in (*(names - {last}), last):
        remove_file(os.path.join(paths.directory, name))
    with contextlib.suppress(OSError):
        os.rmdir(paths.directory)


def _unlink(paths: Paths) -> bool:
    """Remove a segment's name. True if it existed. Raises ForeignSegment."""
    try:
        unlink_memory(paths.segment)
    except FileNotFoundError:
        return False
    except PermissionError:
        raise ForeignSegment(
            f"the segment of prefix {paths.prefix!r} belongs to another user, and only that user "
            "can remove it"
        ) from None
    except IsADirectoryError:
        check_kind(paths.file, os.lstat(paths.file), stat.S_ISREG)
        raise
    return True
