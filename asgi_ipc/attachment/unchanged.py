"""Whether the look that each waiter takes once a second would find nothing new.

A process that only waits wakes once a second, and by then nothing that it needs is in a cache of
the processor. The cost of the look depends on how much code and data it touches. So one function
asks what has to be asked each second, and compares it with what the last whole look saw. If
anything is different, or only a whole look can tell, the answer is no.

On the compiled path a thread stays in C from one such look to the next (`dozing`).

Removing, renaming or replacing a file changes its number of links or the time of its last change
(ctime). So the status of an open file says whether its name still means it. That is much cheaper
than looking the name up.

This module must change nothing except when the next looks are due.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from .. import clock
from ..segment.files import File, are_files, file_of, known
from ..segment.identity import Word
from ..store.layout import (
    CLEAN,
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
from .resources import Resources
from .upkeep import CHECK_EVERY, SWEEP_EVERY, SWEEP_SOON, Hub, Upkeep
from .weak import WeakKeys

# Seconds between two whole looks. These also see that a directory was moved, that something was
# mounted over it, and that the process moved to another time namespace whose clock is nearly the
# same.
WHOLE_EVERY = 60.0
# Seconds that the sweep of a store may be overdue that has neither messages nor members of groups:
# then all that it does is to reclaim rows of queues, which are a minute old at least.
SWEPT_WITHIN = WHOLE_EVERY
# Seconds after which a later change of a file has another time: the kernel's clock for files has
# steps of up to 10 ms.
_TELLS = 0.1
MEMBERS = S_TABLES + 2 * TABLE_WORDS + T_USED  # how many there are


class Held(NamedTuple):
    """What belongs to a waiter, as `Unchanged.held` made it: its doorbell, and its row."""

    bell: Any
    words: Any


def _named(number: int, status: os.stat_result) -> File:
    size, changed = status.st_size, status.st_ctime_ns
    return File(number, status.st_ino, status.st_dev, status.st_nlink, size, changed)


def _same(
    words: memoryview[int],
    files: Any,
    bell: Any,
    expected: tuple[tuple[int, int], ...],
    user: int,
    are_files: Callable[[Any], bool] = are_files,
    geteuid: Callable[[], int] = os.geteuid,
) -> bool:
    """Whether open files, words of the memory and the user are those that are known. The compiled
    path does the same. Raises ValueError if the segment was left."""
    if not are_files(files + bell):
        return False  # first: reading the memory of a file that was cut short ends the process
    for at, value in expected:
        if words[at] != value:
            return False
    return geteuid() == user


class Unchanged:
    """Of one attachment: `note` after each whole look, and `holds` in place of one."""

    __slots__ = (
        "_doubles",
        "_dropped",
        "_doze",
        "_due",
        "_empty",
        "_files",
        "_inboxes",
        "_loops",
        "_members",
        "_others",
        "_resources",
        "_same",
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
        compiled = resources.compiled
        self._same: Callable[..., bool] = (
            partial(_same, self._words) if compiled is None else compiled.holds
        )
        self._doze: Callable[..., float | None] | None = compiled and compiled.doze
        # Where anything is in one of these, a thread does not stay in C.
        self._empty = upkeep.orphans, self._dropped, self._loops, self._inboxes
        self._files, self._user = known(), 0
        # The other processes, for `_all_live` and for C, and the counter when they were listed. In
        # one assignment: two threads may look at once.
        self._others: tuple[int, list[bytes], bytes] = 0, [], b""
        self._members = -1
        self._until = 0.0

    @property
    def can_doze(self) -> bool:
        """Whether there is the compiled path."""
        return self._doze is not None

    def held(self, bell: int, row: int, generation: int) -> Held:
        """What belongs to a waiter: the descriptor of its doorbell, its row and its generation."""
        words = (row + W_GENERATION, generation), (row + W_TAKEN, generation), (S_DIRTY, CLEAN)
        return Held(
            known(file_of(bell)),
            words
            if self._resources.compiled is None
            else b"".join(struct.pack("=2Q", *word) for word in words),
        )

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
        self._others = 0, [], b""
        self._files = known(_named(segment.fd, file), _named(segment.members.fileno(), members))
        self._user, self._members = os.geteuid(), segment.members.fileno()
        self._upkeep.looks[0] = now
        self._until = min(now + WHOLE_EVERY, self._upkeep.ending_at)

    def _list_others(self) -> None:
        """What to ask the kernel about each other process: whether it holds its byte lock."""
        words, first = self._words, self._resources.store.layout.processes
        counter = words[S_COUNTER]
        if words[S_DIRTY] != CLEAN:
            counter = 0  # a row may not be written yet: list them again next time
        indices = [
            (row - first) // PROCESS_WORDS
            for row in self._upkeep.processes()
            if row != self._resources.process and words[row + P_GENERATION]
        ]
        questions = list(map(self._resources.segment.members.question, indices))
        self._others = counter, questions, struct.pack(f"={len(indices)}Q", *indices)

    def holds(self, held: Held, hubs: int) -> float:
        """The time if nothing is new, and then the next looks are postponed; otherwise 0.0.

        `hubs`: how many loops of this process are known to run. Raises ValueError if the segment
        was left meanwhile.
        """
        now, due = clock.monotonic(), self._due
        # A fork wipes `due`. A jump of the clock may mean that it is another one.
        was = due[()]
        if not was or not 0 <= now - self._upkeep.looks[0] < 2 * CHECK_EVERY or now > self._until:
            return 0.0
        if not self._same(self._files, held.bell, held.words, self._user):
            return 0.0
        upkeep = self._upkeep
        if upkeep.orphans or self._dropped or len(self._loops) > hubs:
            return 0.0
        if self._inboxes:
            for inbox in list(self._inboxes.values()):
                if not inbox.rests(now):
                    return 0.0
        words, doubles = self._words, self._doubles
        late = 0.0 if words[S_LIVE] or words[MEMBERS] else SWEPT_WITHIN
        if not now - late < doubles[S_SWEEP_AT] <= now + SWEEP_EVERY:
            return 0.0
        if upkeep.bury_due(now) and not self._all_live(now):
            return 0.0
        upkeep.looks[0], upkeep.check_at = now, now + CHECK_EVERY
        if due[()] == was:  # else a fork wiped it meanwhile, or another thread is to be noticed
            due[()] = now + SWEEP_SOON
        return now

    def dozing(self, held: Held, bell: int, sources: list[Any]) -> Callable[[float], float | None]:
        """A call that sleeps until the doorbell rings or some seconds are over. It looks once a
        second, and does not come back while a look finds nothing new. `bell`: its descriptor.
        `sources`: of queues that are not process-specific. A message there is new, too.

        The call returns None if it rang, and 0.0 if all seconds are over. Otherwise only `holds`
        can tell whether something is new: then it returns the seconds that were left before the
        last of them began. Only for the compiled path.
        """
        assert self._doze is not None
        counter, _, indices = self._others
        return partial(
            self._doze,
            sources,
            bell,
            *held,
            self._upkeep.looks,
            self._empty,
            self._files,
            self._user,
            self._until,
            self._members,
            indices,
            counter,
            self._upkeep.tidy_at,
        )

    def _all_live(self, now: float) -> bool:
        """Check, for all processes, whether all of them live; see `Upkeep.run`."""
        if not now < self._upkeep.tidy_at:
            return False
        if self._words[S_COUNTER] != self._others[0]:
            self._list_others()
        if not self._resources.segment.members.all_held(self._others[1]):
            return False
        self._doubles[S_BURY_AT] = now + CHECK_EVERY
        return True
