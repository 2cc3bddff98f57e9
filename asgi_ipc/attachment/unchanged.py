"""Whether the look that each waiter takes once a second would find nothing new.

A process that only waits wakes once a second, and by then nothing that it needs is in a cache of
the processor. What the look costs is how much code and data it touches. So this asks, in one
function, what has to be asked each second, and compares it with what the last whole look saw. Where
anything is different, or only a whole look can tell, the answer is no.

Whoever removes, renames or replaces a file changes its number of links or the time of its last
change (ctime). So the status of an open file says whether its name still means it, which is much
cheaper than to look the name up.

This module must not change anything but when the next looks are due.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from fcntl import F_GETLK, F_UNLCK, fcntl
from typing import Any, NamedTuple

from .. import clock
from ..segment.identity import Word
from ..segment.notes import waiting as untold
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
from .inbox import Inbox
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
_FREE = struct.pack("h", F_UNLCK)  # how the answer to F_GETLK begins where nobody has a lock


class Held(NamedTuple):
    """What a waiter has of its own: its doorbell, and its row in the segment."""

    bell: int  # its descriptor,
    file: tuple[int, ...]  # and the `IDENTITY` of its file
    row: int
    generation: int


# In the status of a file: inode, device, number of links; for the segment, owner, group, size.
IDENTITY, _SEGMENT = slice(1, 4), slice(1, 7)


class Unchanged:
    """Of one attachment: `note` after each whole look, and `holds` in place of one."""

    __slots__ = (
        "_counter",
        "_doubles",
        "_dropped",
        "_due",
        "_hubs",
        "_inboxes",
        "_last",
        "_members",
        "_members_changed",
        "_members_fd",
        "_others",
        "_resources",
        "_segment",
        "_segment_changed",
        "_segment_fd",
        "_until",
        "_upkeep",
        "_user",
        "_words",
    )

    def __init__(
        self, resources: Resources, upkeep: Upkeep, hubs: WeakKeys[object, Hub], due: Word
    ) -> None:
        self._resources, self._upkeep, self._hubs, self._due = resources, upkeep, hubs, due
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
        self._segment_fd, self._members_fd = segment.fd, segment.members.fileno()
        self._segment, self._segment_changed = file[_SEGMENT], file.st_ctime_ns
        self._members, self._members_changed = members[IDENTITY], members.st_ctime_ns
        self._user = os.geteuid()
        self._last, self._until = now, now + WHOLE_EVERY

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
        fstat: Callable[[int], Any] = os.fstat,
        geteuid: Callable[[], int] = os.geteuid,
    ) -> float:
        """The time if nothing is new, and then the next looks are put off; else 0.0. `hubs`: how
        many loops of this process are known to run. Raises ValueError if the segment was left
        meanwhile."""
        now = clock.monotonic()
        # A fork wipes `due`. A jump of the clock may mean that it is another one.
        if not self._due[()] or not 0 <= now - self._last < 2 * CHECK_EVERY or now > self._until:
            return 0.0
        bell_fd, bell, row, generation = held
        words, upkeep = self._words, self._upkeep
        try:
            status = fstat(self._segment_fd)
            if status[1:7] != self._segment or status.st_ctime_ns != self._segment_changed:
                return 0.0
            status = fstat(self._members_fd)
            if status[1:4] != self._members or status.st_ctime_ns != self._members_changed:
                return 0.0
            if fstat(bell_fd)[1:4] != bell:
                return 0.0
        except OSError:
            return 0.0
        if (
            words[row + W_GENERATION] != generation
            or words[row + W_TAKEN] != generation
            or words[S_DIRTY]
            or geteuid() != self._user
            or upkeep.orphans
            or upkeep.departures
            or self._dropped
            or untold
            or len(self._hubs) > hubs
            or not now < upkeep.ending_at
            or (self._inboxes and not all(map(Inbox.rests, self._inboxes.values())))
        ):
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
        """Look for all processes whether all of them live; see `Upkeep.run`."""
        if not now < self._upkeep.tidy_at:
            return False
        if self._words[S_COUNTER] != self._counter:
            self._list_others()
        for question in self._others:
            if fcntl(self._members_fd, F_GETLK, question)[:2] == _FREE:
                return False
        self._doubles[S_BURY_AT] = now + CHECK_EVERY
        return True
