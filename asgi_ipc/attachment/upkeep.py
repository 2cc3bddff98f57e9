"""What the attached processes have to do about once a second: clear up after the dead, let messages
expire, free what is not used any more.

It runs inside the calls of the layers and in the safety checks of waiting receives: there is no
thread for it. This module must not know who waits or how: it asks a hub only whether its loop is
closed.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Iterable
from typing import Protocol, TypeVar

from .. import clock
from ..segment.section import Section
from ..store.groups import Groups
from ..store.layout import (
    CLEAN,
    EXPIRED,
    MAX_PROCESSES,
    MAX_WAITERS,
    P_GENERATION,
    PROCESS_WORDS,
    S_BURY_AT,
    S_COUNTER,
    S_DIRTY,
    S_LIVE,
    S_SWEEP_AT,
)
from ..store.queues import Target
from .inbox import Inbox
from .resources import Resources

CHECK_EVERY = 1.0  # seconds between two looks at the segment's name and at who lives
SWEEP_EVERY = 1.0  # seconds between two sweeps,
SWEEP_SOON = 0.1  # while messages are pending, or the last sweep found something to clear up, and
SWEEP_HURRY = 0.002  # when it left something that can be cleared up at once
TIDY_EVERY = 10.0  # seconds between two looks for the doorbells of the dead
STALE_BELL = 5.0  # seconds after which a doorbell of an earlier segment is one of the dead

T = TypeVar("T")


class Hub(Protocol):
    """The waiter of an event loop, as an attachment sees it."""

    @property
    def sleepers(self) -> int:
        """How many receives of the loop wait."""

    def closed(self) -> bool:
        """Whether the loop will never run again."""

    def retire(self) -> None:
        """Let go of the doorbell: the loop is closed."""

    def release(self) -> None:
        """Let go of the loop, if no receive of it waits: a layer is closed."""


class Departure:
    """Local parts of a queue that left messages unread until these expired: their sockets are gone,
    and their memberships are ended, a bounded number in each section."""

    def __init__(self, row: int, generation: int, local_parts: set[bytes]) -> None:
        self._of = row, generation, local_parts
        self._at = 0  # where to go on

    def end_memberships(self, groups: Groups) -> bool:
        """Inside a section: end some; False if there are more."""
        self._at = groups.discard_local(*self._of, self._at)
        return not self._at


class Upkeep:
    """The upkeep that one attachment does, and when."""

    def __init__(
        self, resources: Resources, groups: Groups, hubs: weakref.WeakKeyDictionary[object, Hub]
    ) -> None:
        self.check_at = 0.0
        self.orphans: list[tuple[int, int]] = []  # waiter ids whose thread or loop is gone
        self._resources = resources
        self._store = resources.store
        self._groups = groups
        self._hubs = hubs
        self._departures: list[Departure] = []  # whose memberships are still to be ended
        self._tidy_at = 0.0
        self._counter = 0  # as it was when `_in_use` was listed
        self._in_use: list[int] = []

    def run(self, now: float, expiry: float, section: Section) -> float:
        """Do what is due, and return when to come again."""
        store, doubles = self._store, self._store.doubles
        if self.check_due(now):
            self.check_at = now + CHECK_EVERY
            self.retire_hubs()
            self.free_orphans(section)
            self._expire_inboxes(now, section)
            # One process looks after the dead for all.
            if not now < doubles[S_BURY_AT] <= now + CHECK_EVERY:
                doubles[S_BURY_AT] = now + CHECK_EVERY
                if not self.bury_the_dead(now, expiry, section):
                    doubles[S_BURY_AT] = self.check_at = now + SWEEP_HURRY
        store.note_peak()
        if not now < doubles[S_SWEEP_AT] <= now + SWEEP_EVERY:
            doubles[S_SWEEP_AT] = now + section(self._sweep, now)
        return min(self.check_at, now + SWEEP_SOON, doubles[S_SWEEP_AT])

    def check_due(self, now: float) -> bool:
        """Whether it is time to look at the segment's name and at who lives."""
        return not now < self.check_at <= now + CHECK_EVERY

    def _sweep(self, now: float) -> float:
        """Inside a section: sweep the store. Returns the seconds until the next sweep."""
        store = self._store
        pending = store.words[S_LIVE]
        before = store.members.used, store.queues.used
        self._groups.sweep(now, 16)
        if store.sweep(now):
            return SWEEP_HURRY
        found = before != (store.members.used, store.queues.used)
        return SWEEP_SOON if pending or found else SWEEP_EVERY

    # -- waiters that are gone --------------------------------------------------------------------

    def retire_hubs(self) -> None:
        """Let go of the waiters of loops that were closed."""
        for loop in listed(self._hubs):
            hub = self._hubs.get(loop)
            if hub is not None and hub.closed():
                self._hubs.pop(loop, None)
                hub.retire()

    def free_orphans(self, section: Section) -> None:
        """Give back the waiter ids of threads and loops that ended. Bits that they left in waiter
        sets are removed by the processes that come across them."""
        while True:
            try:
                orphan = self.orphans.pop()
            except IndexError:
                return
            try:
                section(self._store.remove_waiter, *orphan)
            except BaseException:
                self.orphans.append(orphan)
                raise

    def _remove_stale_bells(self) -> None:
        """Unlink the doorbells that dead processes left behind."""
        segment = self._resources.segment
        folder, ours = segment.paths.directory, f"{segment.nonce:016x}"
        with contextlib.suppress(OSError):
            for name in os.listdir(folder):
                nonce, _, rest = name.partition(".")
                waiter_id, _, generation = rest.partition(".")
                if not (waiter_id.isdigit() and generation.isdigit()):
                    continue
                path = os.path.join(folder, name)
                if nonce == ours and int(waiter_id) < MAX_WAITERS:
                    stale = self._store.waiter_taken(int(waiter_id)) != int(generation)
                else:
                    stale = clock.of_files() - os.lstat(path).st_ctime > STALE_BELL
                if stale:
                    os.unlink(path)

    # -- the dead ---------------------------------------------------------------------------------

    def bury_the_dead(self, now: float, expiry: float, section: Section) -> bool:
        """Clear up after processes that died; False if there is more to do at once."""
        store, done = self._store, True
        for process in self._processes():
            if store.words[process + P_GENERATION] and not self._resources.is_alive(process):
                done = section(store.bury, process, now, expiry) and done
                self._tidy_at = now
        if not now < self._tidy_at <= now + TIDY_EVERY:
            self._tidy_at = now + TIDY_EVERY
            self._remove_stale_bells()
        return done

    def _processes(self) -> list[int]:
        """The rows that are in use. They are read again only after the counter advanced, as it does
        for each process that attaches: so an idle layer does almost nothing."""
        words = self._store.words
        counter = words[S_COUNTER]
        if counter != self._counter:
            # In the middle of a change a row may not be written yet: then look again next time.
            self._counter = counter if words[S_DIRTY] == CLEAN else 0
            first = self._store.layout.processes + P_GENERATION
            last = first + MAX_PROCESSES * PROCESS_WORDS
            generations = words[first:last:PROCESS_WORDS].tolist()
            row_of = self._store.process_row
            self._in_use = [row_of(index) for index, used in enumerate(generations) if used]
        return self._in_use

    # -- messages that nobody reads ---------------------------------------------------------------

    def _expire_inboxes(self, now: float, section: Section) -> None:
        """Drop what was flushed or has expired in the inboxes. A reader that left a message unread
        for its whole life is gone: end its memberships."""
        for inbox in list(self._resources.inboxes.values()):
            if inbox and not inbox.is_fresh():
                section(inbox.refresh)
            if inbox:
                section(self._drop_expired, inbox, now)
        for departure in list(self._departures):
            while not section(departure.end_memberships, self._groups):
                pass
            with contextlib.suppress(ValueError):  # another thread was quicker
                self._departures.remove(departure)

    def _drop_expired(self, inbox: Inbox, now: float) -> None:
        """Inside a section: drop what nobody read in time, and note which readers are gone."""
        expired = [local for local, _ in inbox.expire(now)]
        if not expired:
            return
        target = Target(inbox.queue.encode("ascii"))
        row = self._store.count_taken(target, EXPIRED, len(expired), expired[0])
        if row:
            gone = {local.encode("ascii") for local in expired}
            self._departures.append(Departure(row, target.generation, gone))


def listed(things: Iterable[T]) -> list[T]:
    """A list of what other threads, or finalizers, may change meanwhile."""
    while True:
        try:
            return list(things)
        except RuntimeError:
            continue
