"""Watches messages pass without taking any: it reads the log while others write to it.

A record stays where it was written, even after it is taken, until its place is used again. A tap
that looks often therefore sees nearly all messages. Those that came and went between two looks are
counted as missed. A record that is being overwritten no longer matches its checksum.

It reads as `view` does: it takes no lock and must not write.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from .. import clock
from ..segment.procfs import printable
from ..store import layout as at
from ..store.queues import checksum
from .view import View, name_in

_RECORDS_AT_ONCE = 2000  # records read in one look
_BYTES_AT_ONCE = 16 << 20  # bytes of them
_OLDER_AT_ONCE = 64  # records seen before, after which nothing new is expected
_NAMES_KEPT = 2000
_SEPARATOR = at.LOCAL_SEPARATOR.decode("ascii")


class Seen(NamedTuple):
    """A message as it lay in the log."""

    seq: int
    queue: str
    local_parts: tuple[str, ...]  # of a process-specific channel: the readers in that process
    sent: float  # time, CLOCK_MONOTONIC
    expires: float  # time
    pending: bool  # whether it was not taken yet
    body: bytes  # packed, maybe encrypted

    @property
    def channels(self) -> tuple[str, ...]:
        """The full names of the channels that it was for."""
        return tuple(self.queue + part for part in self.local_parts) or (self.queue,)


class Tap:
    """Follows one segment from the moment it is made."""

    def __init__(self, view: View) -> None:
        self.view = view
        self._log, self._end = view.layout.log, view.layout.log_end
        header = view.words(0, at.PAGE // at.WORD)
        self._seq = header[at.S_SEQ]
        self._next = header.cast("B").cast("I")[at.HALF_HEAD]  # where the next record should begin
        self._names: dict[int, tuple[int, str]] = {}  # row → generation, name
        self.passed = 0  # messages that were sent since it was made
        self.missed = 0  # those of them that came and went unseen

    def look(self) -> list[Seen]:
        """The messages that were sent since the last look and can still be seen, in order."""
        newest = self.view.words(at.S_SEQ, 1)[0]
        if newest == self._seq:
            return []
        header = self.view.words(0, at.PAGE // at.WORD)
        newest, tail = header[at.S_SEQ], header.cast("B").cast("I")[at.HALF_TAIL]
        found: dict[int, Seen] = {}
        budget = _Budget()
        # New records follow the last one, unless the log was empty in between: then it starts over.
        for start in dict.fromkeys((self._next, self._log, tail)):
            if len(found) == newest - self._seq:
                break
            older = 0
            for following, seen in self._walk(start, header[at.S_MARK], budget):
                if self._seq < seen.seq <= newest:
                    found[seen.seq] = seen
                    if seen.seq == newest:
                        self._next = following
                        break
                else:
                    older += 1  # moved to make room, or left from an earlier round
                    if older > _OLDER_AT_ONCE:
                        break
        self.passed += newest - self._seq
        self.missed += newest - self._seq - len(found)
        self._seq = newest
        return [found[seq] for seq in sorted(found)]

    def _walk(self, record: int, mark: int, budget: _Budget) -> Iterator[tuple[int, Seen]]:
        """The messages in whole records from `record` on, each with where the next one begins."""
        wrapped = False
        while budget.records > 0 and budget.bytes > 0:
            if record >= mark:
                if wrapped:
                    return
                record, wrapped = self._log, True
            if not self._log <= record <= self._end - at.RECORD_WORDS:
                return
            found = at.RECORD.unpack(self.view.read(record * at.WORD, at.RECORD.size))
            size, state, seq, _, _, row, length, expires, sent, parts, check = found
            if state not in (at.LIVE, at.DEAD) or size < 2 or size % 2 or record + size > self._end:
                return
            budget.records -= 1
            following = record + size
            if size < at.RECORD_WORDS or size != at.record_words(length, parts):
                record = following  # this one only fills a gap
                continue
            budget.bytes -= size * at.WORD
            rest = self.view.read(record * at.WORD + at.RECORD.size, parts + length)
            local_parts, body = rest[:parts], rest[parts:]
            if check != checksum(seq, local_parts, body):
                return  # another record is being written over it
            yield (
                following,
                Seen(
                    seq,
                    self._name(row),
                    tuple(printable(local_parts.decode("ascii", "replace")).split(_SEPARATOR))
                    if parts
                    else (),
                    sent,
                    expires,
                    state == at.LIVE and expires > clock.monotonic(),
                    body,
                ),
            )
            record = following

    def _name(self, row: int) -> str:
        """The name of a queue; looked up again if another queue got its row."""
        table = self.view.layout.queues
        if (row - table.base) % at.QUEUE_WORDS or not table.base <= row < table.end:
            return "?"
        words = self.view.words(row, at.QUEUE_WORDS)
        known = self._names.get(row)
        if known is None or known[0] != words[at.R_GENERATION]:
            if len(self._names) > _NAMES_KEPT:
                self._names.clear()
            known = self._names[row] = (words[at.R_GENERATION], name_in(words, at.Q_NAME))
        return known[1]


class _Budget:
    """What one look may still read."""

    def __init__(self) -> None:
        self.records = _RECORDS_AT_ONCE
        self.bytes = _BYTES_AT_ONCE
