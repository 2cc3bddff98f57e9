"""What is in a segment, for people and programs that watch it: snapshots, and what they say.

A snapshot is a copy (see `view`) and disturbs nobody. Its figures can be some microseconds apart;
it is taken again if a flush or a recovery came in between. A record counts if its queue still leads
to it. Must not write to a segment.
"""

from __future__ import annotations

import contextlib
import os
import struct
import time
from collections.abc import Iterator
from typing import NamedTuple

from ..attachment.process import attached_processes
from ..errors import IPCError, SegmentVanished
from ..segment.header import Header
from ..segment.lock import FileLock, machine, mutex_holder
from ..segment.opening import open_existing
from ..segment.paths import Paths, full_prefix, prefixes
from ..segment.procfs import command_line, is_stopped, printable, process_of, user_name
from ..statistics import Channel, Group, Layer, Lock, Member, Memory, Process, Rates, Stats
from ..store.layout import (
    CLEAN,
    DROP_REASONS,
    G_NAME,
    H_LOCK,
    H_LOCK_KIND,
    H_MACHINE,
    H_VERSION,
    LIVE,
    LOCK_BYTES,
    LOCK_FILE,
    M_EXPIRES,
    M_GROUP,
    M_NAME,
    M_QUEUE,
    M_QUEUE_GENERATION,
    MAX_PROCESSES,
    MAX_WAITERS,
    P_ATTACHED,
    P_GENERATION,
    P_LEFT,
    P_PID,
    P_UID,
    PAGE,
    PROCESS_WORDS,
    Q_CAPACITY,
    Q_CREATED,
    Q_DROPS,
    Q_FIRST,
    Q_MEMBERS,
    Q_NAME,
    Q_OWNER,
    Q_OWNER_GENERATION,
    Q_PENDING,
    Q_REFUSED,
    Q_SENT,
    Q_WAITERS,
    Q_WAITING,
    R_GENERATION,
    R_KEY,
    RECORD,
    RECORD_WORDS,
    S_DIRTY,
    S_DROPS,
    S_EPOCH,
    S_LIVE,
    S_LOCK_LONGEST,
    S_LOCK_WAITED,
    S_LOCK_WAITS,
    S_MOVES,
    S_PEAK,
    S_RECOVERIES,
    S_REFUSED,
    S_SEQ,
    S_SEQ_BASE,
    S_SINCE,
    T_USED,
    W_GENERATION,
    W_PROCESS,
    W_PROCESS_GENERATION,
    WAITER_SET_WORDS,
    WAITER_WORDS,
    WORD,
)
from .view import View

_TRIES = 5  # snapshots taken until one is not disturbed by a flush or a recovery
_PAUSE = 0.002  # seconds between two of them
_EXPIRED_AT_ONCE = 1000  # expired messages at the front of a queue that are told apart
_NAME_BYTES = 104


class Totals(NamedTuple):
    """What rates are the difference of."""

    at: float
    epoch: int
    sent: int
    messages: int
    refused: int
    dropped: int


class Snapshot:
    """A copy of what changes in a segment: the state, who is attached, and the channels."""

    def __init__(self, view: View) -> None:
        """Raises SegmentVanished when the segment has been removed, CorruptStore."""
        self.view = view
        self.layout = layout = view.layout
        if view.vanished():
            raise SegmentVanished(f"the shared memory of prefix {view.prefix!r} was removed")
        for _ in range(_TRIES):
            self.header = header = view.words(0, PAGE // WORD)
            self.queues = view.table(header, layout.queues)
            self._processes = view.words(layout.processes, MAX_PROCESSES * PROCESS_WORDS)
            self._waiters = view.words(layout.waiters, MAX_WAITERS * WAITER_WORDS)
            self._rest = {
                row: self._first(row, words)
                for row, words in self.queues.items()
                if words[Q_PENDING]
            }
            after = view.words(0, PAGE // WORD)
            disturbed = header[S_DIRTY] != CLEAN and after[S_DIRTY] != CLEAN
            if not disturbed and all(header[i] == after[i] for i in (S_EPOCH, S_RECOVERIES)):
                break
            time.sleep(_PAUSE)
        self.now = time.monotonic()
        self.attached = view.attached()

    # -- the layer as a whole ---------------------------------------------------------------------

    def totals(self) -> Totals:
        header = self.header
        return Totals(
            self.now,
            header[S_EPOCH],
            header[S_SEQ] - header[S_SEQ_BASE],
            sum(count for count, _ in self._rest.values()),
            header[S_REFUSED],
            sum(header[S_DROPS : S_DROPS + len(DROP_REASONS)]),
        )

    def stats(self, before: Totals | None = None) -> Stats:
        """The layer as a whole, with its rates since `before`, or since creation or flush."""
        header, now = self.header, self.totals()
        since = _seconds(header[S_SINCE])
        if before is None or before.epoch != now.epoch:
            before = Totals(since, now.epoch, 0, 0, 0, 0)
        period = max(now.at - before.at, 1e-9)
        sent = now.sent - before.sent
        used = header[self.layout.members.state + T_USED]
        sent_at = [at for _, at in self._rest.values() if at]
        return Stats(
            prefix=self.view.prefix,
            layout_version=header[H_VERSION],
            since=max(self.now - since, 0.0),
            messages=now.messages,
            oldest=max(self.now - min(sent_at), 0.0) if sent_at else 0.0,
            sent=now.sent,
            refused=now.refused,
            dropped={reason: header[S_DROPS + place] for place, reason in enumerate(DROP_REASONS)},
            channels=header[self.layout.queues.state + T_USED],
            groups=header[self.layout.groups.state + T_USED],
            memberships=used,
            memberships_limit=self.layout.members.rows,
            processes=len(self.attached),
            memory=Memory(
                in_use=header[S_LIVE] * WORD,
                high_water=max(header[S_PEAK], header[S_LIVE]) * WORD,
                limit=self.layout.message_memory,
                reserved=self.view.reserved(),
                size=self.layout.size,
            ),
            lock=Lock(
                kind="file" if header[H_LOCK_KIND] == LOCK_FILE else "mutex",
                waits=header[S_LOCK_WAITS],
                waited=header[S_LOCK_WAITED] / 1e9,
                longest=header[S_LOCK_LONGEST] / 1e9,
                holder=self.holder(),
            ),
            recoveries=header[S_RECOVERIES],
            moves=header[S_MOVES],
            rates=Rates(
                period=period,
                sent=sent / period,
                left=max(sent - (now.messages - before.messages), 0) / period,
                refused=(now.refused - before.refused) / period,
                dropped=max(now.dropped - before.dropped, 0) / period,
            ),
        )

    def holder(self) -> int:
        """Process id of whoever holds the lock at this instant; 0 if nobody does."""
        if self.header[H_LOCK_KIND] == LOCK_FILE:
            return FileLock(self.view.paths.section_lock, lambda: -1).holder()
        if self.header[H_MACHINE] != machine():
            return 0
        thread = mutex_holder(self.view.read(H_LOCK * WORD, LOCK_BYTES))
        return (process_of(thread) or thread) if thread else 0

    # -- channels ---------------------------------------------------------------------------------

    def channels(self, before: Snapshot | None = None) -> list[Channel]:
        """Every channel, by name, with its rates since `before`, or since it came to be."""
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
        return _name(self.queues[row], Q_NAME)

    def _channel(
        self,
        row: int,
        words: memoryview[int],
        waiting: tuple[int, ...],
        before: Snapshot | None,
    ) -> Channel:
        messages, sent_at = self._rest.get(row, (0, 0.0))
        at, total, count = _seconds(words[Q_CREATED]), 0, 0
        earlier = before.queues.get(row) if before is not None else None
        if before is not None and earlier and earlier[R_GENERATION] == words[R_GENERATION]:
            at, total, count = before.now, earlier[Q_SENT], before._rest.get(row, (0, 0.0))[0]
        elif before is not None:
            at = max(at, before.now)
        period = max(self.now - at, 1e-9)
        sent = max(words[Q_SENT] - total, 0)
        owner = self._index(words[Q_OWNER], words[Q_OWNER_GENERATION])
        return Channel(
            name=_name(words, Q_NAME),
            messages=messages,
            capacity=words[Q_CAPACITY],
            oldest=max(self.now - sent_at, 0.0) if sent_at else 0.0,
            sent=words[Q_SENT],
            refused=words[Q_REFUSED],
            dropped={reason: words[Q_DROPS + place] for place, reason in enumerate(DROP_REASONS)},
            members=words[Q_MEMBERS],
            owner=0 if owner is None else self._pid(owner),
            waiting=waiting,
            sent_rate=sent / period,
            left_rate=max(sent - (messages - count), 0) / period,
        )

    def _first(self, row: int, words: memoryview[int]) -> tuple[int, float]:
        """How many messages wait in a queue, without those at its front that have expired, and
        when the oldest was sent (0.0 if that cannot be told)."""
        count, at, now = words[Q_PENDING], words[Q_FIRST], time.monotonic()
        for expired in range(min(count, _EXPIRED_AT_ONCE)):
            if not self.layout.log <= at <= self.layout.log_end - RECORD_WORDS:
                return count, 0.0
            record = self.view.read(at * WORD, RECORD.size)
            _, state, _, following, _, queue, _, expires, sent_at, _, _ = RECORD.unpack(record)
            if queue != row or state != LIVE:
                return count - expired, 0.0  # it was taken this very moment
            if expires > now:
                return count - expired, sent_at
            at = following
        return max(count - _EXPIRED_AT_ONCE, 0), 0.0

    # -- groups -----------------------------------------------------------------------------------

    def groups(self) -> list[Group]:
        """Every group, by name, and its members, by name. Read now, not with the rest."""
        header = self.view.words(0, PAGE // WORD)
        names = {
            row: _name(words, G_NAME)
            for row, words in self.view.table(header, self.layout.groups).items()
        }
        members: dict[str, list[Member]] = {name: [] for name in names.values()}
        for words in self.view.table(header, self.layout.members).values():
            expires = _seconds(words[M_EXPIRES]) - self.now
            queue = self.queues.get(words[M_QUEUE])
            gone = queue is not None and queue[R_GENERATION] != words[M_QUEUE_GENERATION]
            name = names.get(words[M_GROUP])
            if name is not None and expires > 0 and not gone:
                members[name].append(Member(_name(words, M_NAME), expires))
        return [
            Group(name, tuple(sorted(found, key=lambda member: member.channel)))
            for name, found in sorted(members.items())
            if found
        ]

    # -- processes --------------------------------------------------------------------------------

    def processes(self) -> list[Process]:
        """Who is attached, and who has died and is not cleared up yet, by process id."""
        waiting: dict[int, set[str]] = {}
        owned: dict[int, list[str]] = {}
        for row, index in self._parked():
            waiting.setdefault(index, set()).add(_name(self.queues[row], Q_NAME))
        for words in self.queues.values():
            owner = self._index(words[Q_OWNER], words[Q_OWNER_GENERATION])
            if owner is not None:
                owned.setdefault(owner, []).append(_name(words, Q_NAME))
        holder = self.holder()
        found = []
        for index in range(MAX_PROCESSES):
            words = self._process(index)
            if not words[P_GENERATION]:
                continue
            pid = self._pid(index)
            visible = index in self.attached and self.attached[index] != 0
            found.append(
                Process(
                    pid=pid,
                    command=command_line(pid) if visible else "",
                    uid=words[P_UID],
                    attached=max(self.now - _seconds(words[P_ATTACHED]), 0.0),
                    state=self._state(index, words),
                    waiting=tuple(sorted(waiting.get(index, ()))),
                    owns=tuple(sorted(owned.get(index, ()))),
                    holds_lock=bool(holder) and holder == pid and visible,
                )
            )
        return sorted(found, key=lambda process: process.pid)

    def _state(self, index: int, words: memoryview[int]) -> str:
        if index not in self.attached:
            return "left" if words[P_LEFT] else "dead"
        return "stopped" if is_stopped(self.attached[index]) else "alive"

    def _process(self, index: int) -> memoryview[int]:
        words: memoryview[int] = self._processes[
            index * PROCESS_WORDS : (index + 1) * PROCESS_WORDS
        ]
        return words

    def _pid(self, index: int) -> int:
        """The kernel's word where it has one: it is the id in this PID namespace."""
        return self.attached.get(index) or self._process(index)[P_PID]

    def _index(self, reference: int, generation: int) -> int | None:
        """The index of the process that a reference and a generation are those of."""
        index, odd = divmod(reference - self.layout.processes, PROCESS_WORDS)
        if odd or not 0 <= index < MAX_PROCESSES:
            return None
        return index if self._process(index)[P_GENERATION] == generation else None

    def _parked(self) -> Iterator[tuple[int, int]]:
        """Who waits where: (reference of a queue, index of a process)."""
        for row, words in self.queues.items():
            if not words[Q_WAITING]:
                continue
            for word in range(WAITER_SET_WORDS):
                bits = words[Q_WAITERS + word]
                while bits:
                    waiter = word << 6 | (bits & -bits).bit_length() - 1
                    bits &= bits - 1
                    at = waiter * WAITER_WORDS
                    if self._waiters[at + W_GENERATION]:
                        index = self._index(
                            self._waiters[at + W_PROCESS],
                            self._waiters[at + W_PROCESS_GENERATION],
                        )
                        if index is not None and index in self.attached:
                            yield row, index

    def waiters(self) -> int:
        """How many threads and loops can be rung."""
        return sum(1 for word in self._waiters[W_GENERATION::WAITER_WORDS].tolist() if word)


# -- all layers -----------------------------------------------------------------------------------


def layers() -> list[Layer]:
    """The layers of this machine, whoever owns them. Those that vanish meanwhile are left out."""
    found = []
    for prefix in prefixes():
        with contextlib.suppress(FileNotFoundError):
            found.append(_layer(prefix))
    return found


def _layer(prefix: str) -> Layer:
    paths = Paths(full_prefix(prefix))
    status = os.stat(paths.file, follow_symlinks=False)
    version = in_use = messages = processes = 0
    problem = ""
    try:
        opened = open_existing(paths)
        version = Header(os.pread(opened.number, PAGE, 0), status.st_size).known_version
        snapshot = Snapshot(View(prefix))
        messages, processes = snapshot.totals().messages, len(snapshot.attached)
        in_use = snapshot.header[S_LIVE] * WORD
    except FileNotFoundError:
        raise
    except IPCError as error:
        problem = str(error)
        with contextlib.suppress(OSError):
            processes = len(attached_processes(paths.members))
    return Layer(
        prefix=prefix,
        layout_version=version,
        owner=user_name(status.st_uid),
        mode=status.st_mode & 0o777,
        size=status.st_size,
        in_use=in_use,
        reserved=status.st_blocks * 512,
        messages=messages,
        processes=processes,
        problem=problem,
    )


def _name(words: memoryview[int], at: int) -> str:
    length = min(words[R_KEY] & 0xFFFFFFFF, _NAME_BYTES)
    name = words[at : at + _NAME_BYTES // WORD].tobytes()[:length].decode("ascii", "replace")
    return name if name.isprintable() else printable(name)


def _seconds(word: int) -> float:
    return float(struct.unpack("=d", struct.pack("=Q", word))[0])
