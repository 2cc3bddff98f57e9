"""What the attached processes have to do about once a second: clear up after the dead, let messages
expire, free what is not used any more.

It runs inside the calls of the layers and in the safety checks of waiting receives: there is no
thread for it. This module must not know what waits or how: it asks a hub only whether its loop is
closed.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
from typing import Protocol

from .. import clock
from ..segment.section import Section
from ..statistics import ENDING
from ..store.groups import Groups
from ..store.layout import (
    CLEAN,
    EXPIRED,
    MAX_PROCESSES,
    MAX_WAITERS,
    P_GENERATION,
    PROCESS_WORDS,
    Q_MEMBERS,
    S_ABANDONED,
    S_BURY_AT,
    S_COUNTER,
    S_DIRTY,
    S_LIVE,
    S_SWEEP_AT,
    WORD,
)
from ..store.queues import Target
from .inbox import Inbox
from .resources import Resources
from .suspects import PATIENCE
from .weak import WeakKeys

logger = logging.getLogger("asgi_ipc")

CHECK_EVERY = 1.0  # seconds between two looks at the segment's name and at which processes live
SWEEP_EVERY = 1.0  # seconds between two sweeps,
SWEEP_SOON = 0.1  # while messages are pending, or the last sweep found something to clear up, and
SWEEP_HURRY = 0.002  # when it left something that can be cleared up at once
# Seconds between two looks for the doorbells of the dead, besides the one when a process has died.
# Each needs a whole look (`unchanged`), and a process takes one of these a minute anyway.
TIDY_EVERY = 60.0
STALE_BELL = 5.0  # seconds after which a doorbell of an earlier segment is one of the dead


class Hub(Protocol):
    """The waiter of an event loop, as an attachment sees it."""

    @property
    def sleepers(self) -> int:
        """How many receives of the loop wait."""

    def closed(self) -> bool:
        """Whether the loop will never run again."""

    def drains(self, queue: str) -> bool:
        """Whether receives of the loop wait at a process-specific queue."""

    def retire(self) -> None:
        """Release the doorbell: the loop is closed."""

    def release(self) -> None:
        """Release the loop, if no receive of it waits: a layer is closed."""


class Departure:
    """Channels of one queue that are abandoned: their memberships are ended, a bounded number in
    each section, except those of a channel on which something is received meanwhile."""

    def __init__(self, inbox: Inbox, target: Target, abandoned: dict[bytes, int]) -> None:
        self.ended = 0  # memberships
        self.inbox = inbox
        self.first = inbox.queue + next(iter(abandoned)).decode("ascii")  # of the channels
        self._target = target
        self._abandoned = abandoned
        self._at = 0  # where to continue

    def end_memberships(self, groups: Groups) -> bool:
        """Inside a section: end some; False if there are more."""
        words, target = groups.store.words, self._target
        before = words[S_ABANDONED]
        self._at = groups.abandon(target.row, target.generation, self._counter_of, self._at)
        self.ended += words[S_ABANDONED] - before
        return not self._at

    def end(self) -> None:
        """All are ended: a channel that is in a group again may become suspect again."""
        for local in self._abandoned:
            if self._counter_of(local):
                self.inbox.suspects.pop(local.decode("ascii"), None)

    def _counter_of(self, local: bytes) -> int:
        """The counter when a channel became suspect; 0 if it is not abandoned."""
        counter = self._abandoned.get(local, 0)
        suspicion = self.inbox.suspects.get(local.decode("ascii")) if counter else None
        return counter if suspicion is not None and suspicion[1] == counter else 0


class Upkeep:
    """The upkeep that one attachment does, and when."""

    def __init__(self, resources: Resources, groups: Groups, hubs: WeakKeys[object, Hub]) -> None:
        # When a look last found nothing wrong, and `check_at`. The compiled path writes both, too.
        self.looks: memoryview[float] = memoryview(bytearray(2 * WORD)).cast("d")
        # Those of the layers that share the attachment. Not only the shortest: two layers that
        # attach at once would each replace what the other has set.
        self.group_expiries: dict[float, None] = {}
        self.orphans: list[tuple[int, int]] = []  # waiter ids whose thread or loop is gone
        self._resources = resources
        self._store = resources.store
        self._groups = groups
        self._hubs = hubs
        self._departures: list[Departure] = []  # whose memberships are still to be ended
        self._expiry = 0.0  # the longest of the layers that share the attachment
        self.tidy_at = 0.0
        self.ending_at = 0.0  # when to look for memberships that end soon
        # The rows of processes that are in use, and the counter when they were listed. In one
        # assignment: two threads may do the upkeep at once.
        self._in_use: tuple[int, list[int]] = 0, []

    @property
    def check_at(self) -> float:
        """When to look at the segment's name and at which processes live."""
        return self.looks[1]

    @check_at.setter
    def check_at(self, value: float) -> None:
        self.looks[1] = value

    def run(self, now: float, expiry: float, section: Section) -> float:
        """Do what is due, and return when to come again."""
        store, doubles = self._store, self._store.doubles
        if self.check_due(now):
            self.check_at = now + CHECK_EVERY
            self.retire_hubs()
            self.free_orphans(section)
            self._expiry = max(self._expiry, expiry)
            self._expire_inboxes(now, section)
            self._name_ending(now, section)
            # One process looks after the dead for all.
            if self.bury_due(now):
                doubles[S_BURY_AT] = now + CHECK_EVERY
                if not self.bury_the_dead(now, expiry, section):
                    doubles[S_BURY_AT] = self.check_at = now + SWEEP_HURRY
        store.note_peak()
        if not now < doubles[S_SWEEP_AT] <= now + SWEEP_EVERY:
            doubles[S_SWEEP_AT] = now + section(self._sweep, now)
        return min(self.check_at, now + SWEEP_SOON, doubles[S_SWEEP_AT])

    def check_due(self, now: float) -> bool:
        """Whether it is time to look at the segment's name and at which processes live."""
        return not now < self.check_at <= now + CHECK_EVERY

    def bury_due(self, now: float) -> bool:
        """Whether it is time for this process to look after the dead. It is a little early: the
        look at the deadline of a receive comes after less than a second. Otherwise another process
        would have to do it in between, and would need a whole look for that."""
        return not now + SWEEP_SOON < self._store.doubles[S_BURY_AT] <= now + CHECK_EVERY

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
        """Release the waiters of loops that were closed."""
        for loop, hub in self._hubs.items():
            if hub.closed() and self._hubs.pop(loop) is not None:  # else another thread does it
                hub.retire()

    def free_orphans(self, section: Section) -> None:
        """Give back the waiter ids of threads and loops that ended. Bits that they left in waiter
        sets are removed by the processes that find them."""
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
        for process in self.processes():
            if store.words[process + P_GENERATION] and not self._resources.is_alive(process):
                done = section(store.bury, process, now, expiry) and done
                self.tidy_at = now
        if not now < self.tidy_at <= now + TIDY_EVERY:
            self.tidy_at = now + TIDY_EVERY
            self._remove_stale_bells()
        return done

    def processes(self) -> list[int]:
        """The rows that are in use. They are read again only after the counter advanced, as it does
        for each process that attaches: so an idle layer does almost nothing."""
        words = self._store.words
        counter, (known, in_use) = words[S_COUNTER], self._in_use
        if counter != known:
            # In the middle of a change a row may not be written yet: then look again next time.
            known = counter if words[S_DIRTY] == CLEAN else 0
            first = self._store.layout.processes + P_GENERATION
            last = first + MAX_PROCESSES * PROCESS_WORDS
            generations = words[first:last:PROCESS_WORDS].tolist()
            row_of = self._store.process_row
            in_use = [row_of(index) for index, used in enumerate(generations) if used]
            self._in_use = known, in_use
        return in_use

    # -- messages that nobody reads ---------------------------------------------------------------

    def _expire_inboxes(self, now: float, section: Section) -> None:
        """Drop what was flushed or has expired in the inboxes, and end the memberships of channels
        that are abandoned."""
        for inbox in self._resources.inboxes.copy().values():
            if (inbox or inbox.suspects) and not inbox.is_fresh():
                section(inbox.refresh)
            # Two threads that look at once must not count the same time twice.
            section(self._look_at, inbox, now)
            if inbox:
                section(self.drop_expired, inbox, now)
            # Those that an interruption left are done first: these would be the same.
            if inbox.suspects and not any(each.inbox is inbox for each in self._departures):
                self._abandon(inbox, section)
        for departure in self._departures.copy():
            while not section(departure.end_memberships, self._groups):
                pass
            try:
                self._departures.remove(departure)
            except ValueError:
                continue  # another thread was quicker
            departure.end()
            if departure.ended:
                self._tell(departure)

    def _look_at(self, inbox: Inbox, now: float) -> None:
        """Inside a section."""
        inbox.suspects.look(now, self._expiry, CHECK_EVERY)
        inbox.tidy()

    def drop_expired(self, inbox: Inbox, now: float) -> None:
        """Inside a section: drop what nobody read in time. Its channels become suspect, if they can
        be members and this process is the one that receives on them."""
        store = self._store
        expired = [local for local, _ in inbox.expire(now)]
        if not expired:
            return
        target = Target(inbox.queue.encode("ascii"))
        row = store.count_taken(target, EXPIRED, len(expired), expired[0])
        if row and store.words[row + Q_MEMBERS] and store.owner(row) == self._resources.process:
            inbox.suspects.add(expired, store.words[S_COUNTER])

    def _abandon(self, inbox: Inbox, section: Section) -> None:
        """Note which channels of a queue are abandoned, and that their memberships are to end."""
        abandoned = inbox.suspects.abandoned(self._expiry)
        if abandoned:
            target = Target(inbox.queue.encode("ascii"))
            if section(self._store.find, target):
                self._departures.append(Departure(inbox, target, abandoned))
            else:
                inbox.suspects.clear()  # a queue without a row has no members

    # -- memberships that nobody renews -----------------------------------------------------------

    def _name_ending(self, now: float, section: Section) -> None:
        """Log which memberships of this process's channels end soon, unless they are renewed."""
        group_expiry = min(self.group_expiries.copy(), default=math.inf)
        every = max(group_expiry * ENDING / 2, CHECK_EVERY)
        if every == math.inf or now < self.ending_at <= now + every:
            return
        self.ending_at = now + every
        soon = group_expiry * ENDING
        found: dict[tuple[str, str], None] = {}
        for inbox in list(self._resources.inboxes.values()):
            target = Target(inbox.queue.encode("ascii"))
            if not section(self._owns, target):
                continue
            member = 0
            while True:
                ending, member = section(
                    self._groups.ending, target.row, target.generation, now, now + soon, member
                )
                found.update(dict.fromkeys(ending))
                if not member:
                    break
        if found:
            group, channel = next(iter(found))
            logger.warning(
                "prefix %r, group %r: the membership of channel %r ends within %g s, a tenth of "
                "group_expiry, unless it is renewed. Memberships of this process that do: %d. "
                "Renew each with group_add(group, channel), best at half of group_expiry",
                self._resources.prefix,
                group,
                channel,
                soon,
                len(found),
            )

    def _owns(self, target: Target) -> bool:
        """Inside a section: whether this process receives on a queue that has members."""
        store = self._store
        row = store.find(target)
        return (
            row != 0
            and store.words[row + Q_MEMBERS] > 0
            and store.owner(row) == self._resources.process
        )

    def _tell(self, departure: Departure) -> None:
        """Log what was abandoned. Not inside a section: log handlers may do anything."""
        logger.warning(
            "prefix %r, channel %r: abandoned. Nothing was received on it for %g s after a message "
            "for it had expired, although its process lives. Memberships that were ended, of this "
            "and other abandoned channels: %d. Call group_discard when a consumer ends; if "
            "handlers take so long, raise expiry",
            self._resources.prefix,
            departure.first,
            PATIENCE * self._expiry,
            departure.ended,
        )
