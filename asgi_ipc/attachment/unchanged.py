"""Whether the look that each waiter takes once a second would find nothing new.

A process that only waits wakes once a second, and by then nothing that it needs is in a cache of
the processor. The cost of the look depends on how much code and data it touches. So one function
asks what has to be asked each second, and compares it with what the last whole look saw. If
anything is different, or only a whole look can tell, the answer is no.

Removing, renaming or replacing a file changes its number of links or the time of its last change
(ctime). So the status of an open file says whether its name still means it. That is much cheaper
than looking the name up.

This module must change nothing except when the next looks are due.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

from .. import clock
from ..segment.identity import Word
from ..store.layout import (
    P_GENERATION,
    PROCESS_WORDS,
    S_BURY_AT,
    S_COUNTER,
    S_DIRTY,
    S_LIVE,
    S_SWEEP_AT,
    S_TABLES,
    T_USED,
    TABLE_WORDS,
    W_GENERATION,
    W_TAKEN,
)
from ..store.native import LOADED
from ..store.native import are_files as native_are_files
from .resources import Resources
from .upkeep import CHECK_EVERY, SWEEP_EVERY, Hub, Upkeep
from .weak import WeakKeys

# Seconds between two whole looks. These also see that a directory was moved, that something was
# mounted over it, and that the process moved to another time namespace whose clock is nearly the
# same.
WHOLE_EVERY = 60.0
# Seconds that the sweep of a store may be overdue that has neither messages nor members of groups:
# then all that it does is to reclaim rows of queues, which are a minute old at least.
SWEPT_WITHIN = 10.0
# Seconds after which a later change of a file has another time: the kernel's clock for files has
# steps of up to 10 ms.
_TELLS = 0.1
_MEMBERS = S_TABLES + 2 * TABLE_WORDS + T_USED  # how many there are


ANY = -1


class File(NamedTuple):
    """What is known of an open file: its descriptor, and its status."""

    number: int
    inode: int
    device: int
    links: int
    size: int = ANY
    changed: int = ANY  # in nanoseconds


class Held(NamedTuple):
    """What belongs to a waiter: its doorbell, and its row in the segment."""

    bell: Any  # a `File`, as `known` made it
    row: int
    generation: int


def known(*files: File) -> Any:
    """Files in the form in which `are_files` takes them."""
    if LOADED:
        return b"".join(struct.pack("=6q", *map(_signed, file)) for file in files)
    return files


def _signed(number: int) -> int:
    """A number of 64 bits as C converts it."""
    return (number & 2**64 - 1 ^ 1 << 63) - (1 << 63)


def _are_files(files: tuple[File, ...]) -> bool:
    """Whether open files are what they were. `native/files.c` does the same."""
    for number, inode, device, links, size, changed in files:
        try:
            status = os.fstat(number)
        except OSError:
            return False
        if (
            status[1:4] != (inode, device, links)
            or size not in (ANY, status.st_size)
            or changed not in (ANY, status.st_ctime_ns)
        ):
            return False
    return True


are_files: Callable[[Any], bool] = native_are_files if LOADED else _are_files


def file_of(number: int) -> File:
    """What is known of an open file now, except its size and when it changed."""
    status = os.fstat(number)
    return File(number, status.st_ino, status.st_dev, status.st_nlink)


def _named(number: int, status: os.stat_result) -> File:
    size, changed = status.st_size, status.st_ctime_ns
    return File(number, status.st_ino, status.st_dev, status.st_nlink, size, changed)


class Unchanged:
    """Of one attachment: `note` after each whole look, and `holds` in place of one."""

    __slots__ = (
        "_counter",
        "_doubles",
        "_dropped",
        "_files",
        "_due",
        "_inboxes",
        "_last",
        "_loops",
        "_others",
        "_resources",
        "_until",
        "_upkeep",
        "_user",
        "_words",
    )

    def __init__(
        self, resources: Resources, upkeep: Upkeep, hubs: WeakKeys[object, Hub], due: Word
    ) -> None:
        self._resources, self._upkeep, self._due = resources, upkeep, due
        self._loops = hubs.entries
        self._words, self._doubles = resources.store.words, resources.store.doubles
        self._inboxes, self._dropped = resources.inboxes, resources.store.dropped
        self._others: list[bytes] = []
        self._last = self._until = 0.0

    def note(self, now: float) -> None:
        """A whole look has found nothing wrong."""
        self._until = 0.0
        segment = self._resources.segment
        if segment.named is None:
            return  # not known by files
        file, members = segment.named
        newest = max(file.st_ctime, members.st_ctime)
        if not newest < clock.of_files() - _TELLS:
            return
        self._counter = 0
        self._files = known(_named(segment.fd, file), _named(segment.members.fileno(), members))
        self._user = os.geteuid()
        self._last, self._until = now, min(now + WHOLE_EVERY, self._upkeep.ending_at)

    def _list_others(self) -> None:
        """What to ask the kernel about each other process: whether it holds its byte lock."""
        words, first = self._words, self._resources.store.layout.processes
        self._counter = words[S_COUNTER]
        self._others = [
            self._resources.segment.members.question((row - first) // PROCESS_WORDS)
            for row in self._upkeep.processes()
            if row != self._resources.process and words[row + P_GENERATION]
        ]

    def holds(
        self,
        held: Held,
        hubs: int,
        are_files: Callable[[Any], bool] = are_files,
        geteuid: Callable[[], int] = os.geteuid,
    ) -> float:
        """The time if nothing is new, and then the next looks are postponed; otherwise 0.0.

        `hubs`: how many loops of this process are known to run. Raises ValueError if the segment
        was left meanwhile.
        """
        now = clock.monotonic()
        # A fork wipes `due`. A jump of the clock may mean that it is another one.
        if not self._due[()] or not 0 <= now - self._last < 2 * CHECK_EVERY or now > self._until:
            return 0.0
        bell, row, generation = held
        if not (are_files(self._files) and are_files(bell)):
            return 0.0
        words, upkeep = self._words, self._upkeep
        if (
            words[row + W_GENERATION] != generation
            or words[row + W_TAKEN] != generation
            or words[S_DIRTY]
            or geteuid() != self._user
            or upkeep.orphans
            or self._dropped
            or len(self._loops) > hubs
        ):
            return 0.0
        if self._inboxes:
            for inbox in list(self._inboxes.values()):
                if not inbox.rests(now):
                    return 0.0
        doubles = self._doubles
        late = 0.0 if words[S_LIVE] or words[_MEMBERS] else SWEPT_WITHIN
        if not now - late < doubles[S_SWEEP_AT] <= now + SWEEP_EVERY:
            return 0.0
        if not now < doubles[S_BURY_AT] <= now + CHECK_EVERY and not self._all_live(now):
            return 0.0
        self._last = now
        upkeep.check_at = now + CHECK_EVERY
        return now

    def _all_live(self, now: float) -> bool:
        """Check, for all processes, whether all of them live; see `Upkeep.run`."""
        if not now < self._upkeep.tidy_at:
            return False
        if self._words[S_COUNTER] != self._counter:
            self._list_others()
        if not self._resources.segment.members.all_held(self._others):
            return False
        self._doubles[S_BURY_AT] = now + CHECK_EVERY
        return True
