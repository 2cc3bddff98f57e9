"""A snapshot of a segment: a copy of its state, and what people and programs want to know about it.

Taking one disturbs no process (see `view`). Its parts may be some microseconds apart; it is taken
again if a flush or a recovery came in between. Must not write to a segment.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from typing import NamedTuple

from .. import clock
from ..errors import SegmentVanished
from ..names import split
from ..segment.lock import machine, mutex_holder
from ..segment.procfs import command_line, flock_holder, is_stopped, process_of
from ..statistics import (
    ENDING,
    Channel,
    Ending,
    Group,
    Lock,
    Member,
    Memory,
    Process,
    Rates,
    Stats,
)
from ..store import layout as at
from ..store import native
from ..store.front import Front, read_front
from .view import View, name_in

_TRIES = 5  # snapshots taken until one is not disturbed by a flush or a recovery
_PAUSE = 0.002  # seconds between two of them
_EMPTY = Front(0, 0.0)


class Totals(NamedTuple):
    """Figures of one moment: the rates are the differences between two of these."""

    at: float
    epoch: int
    sent: int
    pending: int
    refused: int
    dropped: int


class Snapshot:
    """A copy of what changes in a segment: the state, who is attached, and the channels."""

    def __init__(self, view: View) -> None:
        """Raises SegmentVanished if the segment has been removed, and CorruptStore."""
        self.view = view
        self.layout = layout = view.layout
        if view.vanished():
            raise SegmentVanished(f"the shared memory of prefix {view.prefix!r} was removed")
        for _ in range(_TRIES):
            self.header = header = view.words(0, at.PAGE // at.WORD)
            self.queues = view.table(header, layout.queues)
            self._processes = view.words(layout.processes, at.MAX_PROCESSES * at.PROCESS_WORDS)
            self._waiters = view.words(layout.waiters, at.MAX_WAITERS * at.WAITER_WORDS)
            self._fronts = {
                row: read_front(layout, view.read, row, words, clock.monotonic())
                for row, words in self.queues.items()
                if words[at.Q_PENDING] & at.COUNT
            }
            after = view.words(0, at.PAGE // at.WORD)
            disturbed = header[at.S_DIRTY] != at.CLEAN and after[at.S_DIRTY] != at.CLEAN
            if not disturbed and all(header[i] == after[i] for i in (at.S_EPOCH, at.S_RECOVERIES)):
                break
            time.sleep(_PAUSE)
        self.now = clock.monotonic()
        self.attached = view.attached()

    # -- the layer as a whole ---------------------------------------------------------------------

    def totals(self) -> Totals:
        header = self.header
        return Totals(
            at=self.now,
            epoch=header[at.S_EPOCH],
            sent=header[at.S_SEQ] - header[at.S_SEQ_BASE],
            pending=sum(one.pending for one in self._fronts.values()),
            refused=header[at.S_REFUSED],
            dropped=sum(header[at.S_DROPS : at.S_DROPS + len(at.DROP_REASONS)]),
        )

    def stats(self, before: Totals | None = None) -> Stats:
        """The layer as a whole. Its rates are those since `before`, or since creation or flush."""
        header, now = self.header, self.totals()
        since = _seconds(header[at.S_SINCE])
        if before is None or before.epoch != now.epoch:
            before = Totals(since, now.epoch, 0, 0, 0, 0)
        period = max(now.at - before.at, 1e-9)
        sent = now.sent - before.sent
        return Stats(
            prefix=self.view.prefix,
            layout_version=header[at.H_VERSION],
            since=max(self.now - since, 0.0),
            pending=now.pending,
            oldest=max((one.age(self.now) for one in self._fronts.values()), default=0.0),
            sent=now.sent,
            refused=now.refused,
            dropped=_dropped(header, at.S_DROPS),
            channels=header[self.layout.queues.state + at.T_USED],
            groups=header[self.layout.groups.state + at.T_USED],
            memberships=header[self.layout.members.state + at.T_USED],
            memberships_limit=self.layout.members.rows,
            abandoned=header[at.S_ABANDONED],
            processes=len(self.attached),
            memory=Memory(
                in_use=(header[at.S_LIVE] & at.COUNT) * at.WORD,
                high_water=max(header[at.S_PEAK], header[at.S_LIVE] & at.COUNT) * at.WORD,
                limit=self.layout.message_memory,
                reserved=self.view.reserved(),
                size=self.layout.size,
            ),
            lock=Lock(
                kind="file" if header[at.H_LOCK_KIND] == at.LOCK_FILE else "mutex",
                waits=header[at.S_LOCK_WAITS],
                waited=header[at.S_LOCK_WAITED] / 1e9,
                longest=header[at.S_LOCK_LONGEST] / 1e9,
                holder=self.holder(),
            ),
            recoveries=header[at.S_RECOVERIES],
            moves=header[at.S_MOVES],
            implementation=native.implementation(header[at.H_LOCK_KIND] == at.LOCK_MUTEX),
            rates=Rates(
                period=period,
                sent=sent / period,
                left=max(sent - (now.pending - before.pending), 0) / period,
                refused=(now.refused - before.refused) / period,
                dropped=max(now.dropped - before.dropped, 0) / period,
            ),
        )

    def holder(self) -> int:
        """Process id of the holder of the lock at this instant; 0 if it is free."""
        if self.header[at.H_LOCK_KIND] == at.LOCK_FILE:
            return flock_holder(self.view.paths.section_lock)
        if self.header[at.H_MACHINE] != machine():
            return 0
        thread = mutex_holder(self.view.read(at.H_LOCK * at.WORD, at.LOCK_BYTES))
        return (process_of(thread) or thread) if thread else 0

    # -- channels ---------------------------------------------------------------------------------

    def channels(self, before: Snapshot | None = None) -> list[Channel]:
        """All channels, sorted by name. Their rates are those since `before`, or since each was
        created."""
        parked: dict[int, set[int]] = {}
        for row, index in self._parked():
            parked.setdefault(row, set()).add(self._pid(index))
        return sorted(
            (
                self._channel(row, words, tuple(sorted(parked.get(row, ()))), before)
                for row, words in self.queues.items()
            ),
            key=lambda channel: channel.name,
        )

    def name(self, row: int) -> str:
        """The name of a channel by the reference of its row."""
        return name_in(self.queues[row], at.Q_NAME)

    def _channel(
        self,
        row: int,
        words: memoryview[int],
        waiting: tuple[int, ...],
        before: Snapshot | None,
    ) -> Channel:
        here = self._fronts.get(row, _EMPTY)
        since, sent_then, pending_then = _seconds(words[at.Q_CREATED]), 0, 0
        earlier = before.queues.get(row) if before is not None else None
        if before is not None and earlier and earlier[at.R_GENERATION] == words[at.R_GENERATION]:
            since, sent_then = before.now, earlier[at.Q_SENT]
            pending_then = before._fronts.get(row, _EMPTY).pending
        elif before is not None:
            since = max(since, before.now)
        period = max(self.now - since, 1e-9)
        sent = max(words[at.Q_SENT] - sent_then, 0)
        owner = self._index(words[at.Q_OWNER], words[at.Q_OWNER_GENERATION])
        return Channel(
            name=name_in(words, at.Q_NAME),
            pending=here.pending,
            capacity=words[at.Q_CAPACITY],
            oldest=here.age(self.now),
            sent=words[at.Q_SENT],
            refused=words[at.Q_REFUSED],
            dropped=_dropped(words, at.Q_DROPS),
            members=words[at.Q_MEMBERS],
            owner=0 if owner is None else self._pid(owner),
            waiting=waiting,
            sent_rate=sent / period,
            left_rate=max(sent - (here.pending - pending_then), 0) / period,
        )

    # -- groups -----------------------------------------------------------------------------------

    def groups(self) -> list[Group]:
        """All groups and their members, sorted by name. They are read now, not with the rest."""
        header = self.view.words(0, at.PAGE // at.WORD)
        names = {
            row: name_in(words, at.G_NAME)
            for row, words in self.view.table(header, self.layout.groups).items()
        }
        members: dict[str, list[Member]] = {name: [] for name in names.values()}
        for words in self.view.table(header, self.layout.members).values():
            expires = _seconds(words[at.M_EXPIRES]) - self.now
            queue = self.queues.get(words[at.M_QUEUE])
            ghost = queue is not None and queue[at.R_GENERATION] != words[at.M_QUEUE_GENERATION]
            name = names.get(words[at.M_GROUP])
            if name is not None and expires > 0 and not ghost:
                members[name].append(Member(name_in(words, at.M_NAME), expires))
        return [
            Group(name, tuple(sorted(found, key=lambda member: member.channel)))
            for name, found in sorted(members.items())
            if found
        ]

    def ending(self, group_expiry: float) -> list[Ending]:
        """The memberships of live channels that end within a tenth of `group_expiry`, in seconds,
        unless they are renewed; first those that end first.

        The segment does not hold the option `group_expiry` of its layers. No membership can have
        more left than that: if one has more than is given here, that counts instead.
        """
        live = {channel.name for channel in self.channels() if channel.owner or channel.waiting}
        found = [
            Ending(group.name, member.channel, member.expires)
            for group in self.groups()
            for member in group.members
        ]
        soon = max([group_expiry, *(each.expires for each in found)]) * ENDING
        return sorted(
            (each for each in found if each.expires < soon and split(each.channel)[0] in live),
            key=lambda each: (each.expires, each.group, each.channel),
        )

    # -- processes --------------------------------------------------------------------------------

    def processes(self) -> list[Process]:
        """The processes that are attached or not yet cleared up after, sorted by process id."""
        waiting: dict[int, set[str]] = {}
        owned: dict[int, list[str]] = {}
        for row, index in self._parked():
            waiting.setdefault(index, set()).add(self.name(row))
        for row, words in self.queues.items():
            owner = self._index(words[at.Q_OWNER], words[at.Q_OWNER_GENERATION])
            if owner is not None:
                owned.setdefault(owner, []).append(self.name(row))
        holder = self.holder()
        found = []
        for index in range(at.MAX_PROCESSES):
            words = self._process(index)
            if not words[at.P_GENERATION]:
                continue
            pid = self._pid(index)
            visible = index in self.attached and self.attached[index] != 0
            found.append(
                Process(
                    pid=pid,
                    command=command_line(pid) if visible else "",
                    uid=words[at.P_UID],
                    attached=max(self.now - _seconds(words[at.P_ATTACHED]), 0.0),
                    state=self._state(index, words),
                    waiting=tuple(sorted(waiting.get(index, ()))),
                    owns=tuple(sorted(owned.get(index, ()))),
                    holds_lock=bool(holder) and holder == pid and visible,
                )
            )
        return sorted(found, key=lambda process: process.pid)

    def idle(self) -> float:
        """Seconds since a process was seen to use the layer: it attached, left or was found
        dead, or did the upkeep that is due each second while a process sends or receives."""
        words = self._processes
        times = [self.header[at.S_SWEEP_AT], self.header[at.S_BURY_AT], self.header[at.H_CREATED]]
        for first in range(0, len(words), at.PROCESS_WORDS):
            if words[first + at.P_ATTACHED]:
                times += [words[first + at.P_ATTACHED], words[first + at.P_DEAD_SINCE]]
        # Upkeep is due in the future.
        return min(max(self.now - _seconds(time), 0.0) for time in times)

    def waiters(self) -> int:
        """How many threads and loops can be rung."""
        return sum(1 for word in self._waiters[at.W_GENERATION :: at.WAITER_WORDS].tolist() if word)

    def _state(self, index: int, words: memoryview[int]) -> str:
        if index not in self.attached:
            return "left" if words[at.P_LEFT] else "dead"
        return "stopped" if is_stopped(self.attached[index]) else "alive"

    def _process(self, index: int) -> memoryview[int]:
        words: memoryview[int] = self._processes[
            index * at.PROCESS_WORDS : (index + 1) * at.PROCESS_WORDS
        ]
        return words

    def _pid(self, index: int) -> int:
        """The process id. The kernel's is right in this PID namespace, the recorded one may not
        be."""
        return self.attached.get(index) or self._process(index)[at.P_PID]

    def _index(self, reference: int, generation: int) -> int | None:
        """The index of a process by its reference; None if its generation has passed."""
        index, odd = divmod(reference - self.layout.processes, at.PROCESS_WORDS)
        if odd or not 0 <= index < at.MAX_PROCESSES:
            return None
        return index if self._process(index)[at.P_GENERATION] == generation else None

    def _parked(self) -> Iterator[tuple[int, int]]:
        """The waiters that are parked: (reference of the queue, index of the process)."""
        for row, words in self.queues.items():
            if not words[at.Q_WAITING]:
                continue
            for word in range(at.WAITER_SET_WORDS):
                bits = words[at.Q_WAITERS + word]
                while bits:
                    waiter_id = word << 6 | (bits & -bits).bit_length() - 1
                    bits &= bits - 1
                    first = waiter_id * at.WAITER_WORDS
                    if self._waiters[first + at.W_GENERATION]:
                        index = self._index(
                            self._waiters[first + at.W_PROCESS],
                            self._waiters[first + at.W_PROCESS_GENERATION],
                        )
                        if index is not None and index in self.attached:
                            yield row, index


def _dropped(words: memoryview[int], first: int) -> dict[str, int]:
    """Messages dropped, by reason, whose counters begin at word `first`."""
    return {reason: words[first + place] for place, reason in enumerate(at.DROP_REASONS)}


def _seconds(word: int) -> float:
    """The double that a word holds."""
    return float(struct.unpack("=d", struct.pack("=Q", word))[0])
