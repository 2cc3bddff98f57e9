"""Watches messages pass, without taking any: a reader of the log that runs beside its users.

A record stays where it was written, also when it has been taken, until its place is used again. So
whoever looks often enough sees nearly all of them; those that came and went between two looks are
counted and not seen. A record that is being overwritten does not bear its checksum any more.

It reads like `view` does: no lock is taken and nothing is written.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

from ..segment.procfs import printable
from ..store.layout import (
    DEAD,
    H_NONCE,
    HALF_HEAD,
    HALF_TAIL,
    LIVE,
    LOCAL_SEPARATOR,
    PAGE,
    Q_NAME,
    QUEUE_WORDS,
    R_GENERATION,
    R_KEY,
    RECORD,
    RECORD_WORDS,
    S_MARK,
    S_SEQ,
    WORD,
    record_words,
)
from ..store.queues import checksum
from .view import View

_AT_ONCE = 2000  # records looked at in one look
_OLDER_AT_ONCE = 64  # records that were seen before, after which nothing new is expected
_BYTES_AT_ONCE = 16 << 20  # bytes of them
_SEPARATOR = LOCAL_SEPARATOR.decode("ascii")


class Seen(NamedTuple):
    """A message as it lay in the log."""

    seq: int
    queue: str
    local_parts: tuple[str, ...]  # of a process-specific channel: whom in that process it is for
    sent: float  # time, CLOCK_MONOTONIC
    expires: float  # time
    waiting: bool  # whether nobody had taken it yet
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
        header = view.words(0, PAGE // WORD)
        self._nonce = header[H_NONCE]
        self._seq = header[S_SEQ]
        self._next = header.cast("B").cast("I")[HALF_HEAD]  # where the next record should begin
        self._names: dict[int, tuple[int, str]] = {}  # row → generation, name
        self.passed = 0  # messages that were sent since it was made
        self.missed = 0  # those of them that came and went unseen

    def look(self) -> list[Seen]:
        """The messages that were sent since the last look, in order, as far as they can be seen."""
        newest = self.view.words(S_SEQ, 1)[0]
        if newest == self._seq:
            return []
        header = self.view.words(0, PAGE // WORD)
        halves = header.cast("B").cast("I")
        newest, mark = header[S_SEQ], header[S_MARK]
        found: dict[int, Seen] = {}
        budget = [_AT_ONCE, _BYTES_AT_ONCE]
        # The next ones follow the last one, unless the log was empty in between, and began anew.
        for start in dict.fromkeys((self._next, self._log, halves[HALF_TAIL])):
            if len(found) == newest - self._seq:
                break
            older = 0
            for at, size, seen in self._walk(start, mark, budget):
                if self._seq < seen.seq <= newest:
                    found[seen.seq] = seen
                    if seen.seq == newest:
                        self._next = at + size
                        break
                else:
                    older += 1  # moved to make room, or left from an earlier round
                    if older > _OLDER_AT_ONCE:
                        break
        self.passed += newest - self._seq
        self.missed += newest - self._seq - len(found)
        self._seq = newest
        return [found[seq] for seq in sorted(found)]

    def _walk(self, at: int, mark: int, budget: list[int]) -> Iterator[tuple[int, int, Seen]]:
        """The whole records from `at` on: where, words, message."""
        turned = False
        while budget[0] > 0 and budget[1] > 0:
            if at >= mark:
                if turned:
                    return
                at, turned = self._log, True
            if not self._log <= at <= self._end - RECORD_WORDS:
                return
            head = self.view.read(at * WORD, RECORD.size)
            size, state, seq, _, _, row, length, expires, sent, parts, check = RECORD.unpack(head)
            if state not in (LIVE, DEAD) or size < 2 or size % 2 or at + size > self._end:
                return
            budget[0] -= 1
            if size < RECORD_WORDS or size != record_words(length, parts):
                at += size  # it fills a gap
                continue
            budget[1] -= size * WORD
            rest = self.view.read(at * WORD + RECORD.size, parts + length)
            local_parts, body = rest[:parts], rest[parts:]
            if check != checksum(seq, local_parts, body):
                return  # another is being written over it
            yield (
                at,
                size,
                Seen(
                    seq,
                    self._name(row),
                    tuple(printable(local_parts.decode("ascii", "replace")).split(_SEPARATOR))
                    if parts
                    else (),
                    sent,
                    expires,
                    state == LIVE and expires > time.monotonic(),
                    body,
                ),
            )
            at += size

    def _name(self, row: int) -> str:
        """The name of a queue; looked up again if another took its row."""
        table = self.view.layout.queues
        if (row - table.base) % QUEUE_WORDS or not table.base <= row < table.end:
            return "?"
        words = self.view.words(row, QUEUE_WORDS)
        known = self._names.get(row)
        if known is None or known[0] != words[R_GENERATION]:
            name = words[Q_NAME:].tobytes()[: words[R_KEY] & 0xFF].decode("ascii", "replace")
            name = printable(name)
            if len(self._names) > _AT_ONCE:
                self._names.clear()
            known = self._names[row] = (words[R_GENERATION], name)
        return known[1]
