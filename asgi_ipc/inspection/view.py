"""A segment that is open for looking: read without being attached to it.

It writes nothing and takes no lock: the running processes do not notice (`locked` has what does).
What it reads is copied out with `pread`, which also touches no memory that the segment has not
reserved. Single words are whole, because each is stored at once; a row counts if it bears the same
generation in two readings, because no generation is given twice.
"""

from __future__ import annotations

import mmap
import os
from typing import Any

from ..attachment.attachment import Attachment
from ..attachment.process import attached_processes
from ..errors import CorruptStore, IPCError
from ..segment.header import Header
from ..segment.opening import open_existing
from ..segment.paths import Paths, full_prefix
from ..store.layout import PAGE, R_GENERATION, S_MARK, T_HIGH, T_RESERVED, WORD, TableMap

_ROWS_AT_ONCE = 1024


class View:
    """A segment that is open for looking. Raises NoSuchLayer, ForeignSegment, IncompatibleSegment
    (another layout version) or CorruptStore."""

    def __init__(self, prefix: str, attachment: Attachment | None = None) -> None:
        """`prefix` as the processes give it. Of an `attachment` of this process: what that has
        open, be it shared memory or not."""
        self.prefix = prefix
        self._segment = attachment.segment if attachment is not None else None
        self._memory: mmap.mmap | None = None  # instead of the descriptor
        if self._segment is None:
            self.paths = Paths(full_prefix(prefix))
            self._descriptor = open_existing(self.paths)
            self.fd = self._descriptor.number
        else:
            self.paths = self._segment.paths
            self.fd = self._segment.fd
        if self.fd < 0:
            assert self._segment is not None
            self._memory = self._segment.memory
            self.size = len(self._memory)
        else:
            status = os.fstat(self.fd)
            self.size = status.st_size
            self._inode = status.st_ino
            if not self.paths.shows:  # macOS cannot pread shared memory
                self._memory = mmap.mmap(self.fd, self.size, prot=mmap.PROT_READ)
        self.header = Header(self.read(0, PAGE), self.size)
        fault = self.header.fault()
        if fault is not None:
            raise fault.error_for(prefix)
        self.layout = self.header.layout

    def read(self, offset: int, length: int) -> bytes:
        """A copy of bytes of the segment; shorter where it ends."""
        if self._memory is not None:
            return self._memory[offset : offset + length]
        return os.pread(self.fd, length, offset)

    def read_into(self, target: memoryview[int], offset: int) -> None:
        """Fill `target` with bytes of the segment, as far as there are any."""
        if self._memory is not None:
            read = self._memory[offset : offset + len(target)]
            target[: len(read)] = read
            return
        done = 0
        while done < len(target):
            count = os.preadv(self.fd, [target[done:]], offset + done)
            if not count:
                return
            done += count

    def words(self, first: int, count: int) -> memoryview[int]:
        """A copy of words of the segment."""
        read = self.read(first * WORD, count * WORD)
        if len(read) != count * WORD:
            raise CorruptStore(f"the segment of prefix {self.prefix!r} was cut short")
        return memoryview(read).cast("Q")

    def vanished(self) -> bool:
        """Whether the segment was removed, or replaced by another."""
        if self._segment is not None:
            return self._segment.vanished()
        try:
            other = open_existing(self.paths)
        except IPCError:
            return True
        return os.fstat(other.number).st_ino != self._inode

    def reserved(self) -> int:
        """Bytes of the machine's memory that the segment has taken."""
        if self.fd >= 0:
            return os.fstat(self.fd).st_blocks * 512
        header, layout = self.words(0, PAGE // WORD), self.layout
        tables = (layout.queues, layout.groups, layout.members)
        log: int = (header[S_MARK] - layout.log) * WORD
        return layout.fixed_bytes + sum(header[one.state + T_RESERVED] for one in tables) + log

    def options(self) -> dict[str, Any]:
        """The constructor options of a layer that agrees with this segment."""
        header = self.header
        return {**header.sizes._asdict(), "mode": header.mode, "lock": header.lock}

    def attached(self) -> dict[int, int]:
        """Who is attached: index → process id, 0 for a process of another PID namespace."""
        if self._segment is not None and self.fd < 0:
            return dict.fromkeys(self._segment.members.claimed, os.getpid())
        try:
            return attached_processes(self.paths.members)
        except OSError:
            return {}

    def table(self, header: memoryview[int], table: TableMap) -> dict[int, memoryview[int]]:
        """A copy of the rows in use: reference → its words."""
        high, width = header[table.state + T_HIGH], table.words
        reserved = header[table.state + T_RESERVED]
        # Whoever made it might claim any number; what is not there need not be read.
        there = self.reserved() if self._memory is None else self.size
        if high > table.rows or high * width * WORD > reserved or reserved > there:
            raise CorruptStore(f"the tables of prefix {self.prefix!r} contradict themselves")
        found = {}
        for first in range(0, high, _ROWS_AT_ONCE):
            rows = min(_ROWS_AT_ONCE, high - first)
            base = table.base + first * width
            words, again = self.words(base, rows * width), self.words(base, rows * width)
            before = words[R_GENERATION::width].tolist()
            after = again[R_GENERATION::width].tolist()
            for i, generation in enumerate(before):
                if generation and generation == after[i]:
                    found[base + i * width] = words[i * width : (i + 1) * width]
        return found
