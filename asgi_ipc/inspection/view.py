"""A segment that is open for reading, by a process that is not attached to it.

Must not write or take the lock (`locked` does that): the running processes do not notice it. It
copies with `pread`, which touches no memory that the segment has not reserved. Single words are
whole, because each is written by one store. A row counts if two readings of it show the same
generation, because no generation is used twice.
"""

from __future__ import annotations

import mmap
import os
from typing import Any

from ..attachment.attachment import Attachment
from ..attachment.process import attached_processes
from ..errors import CorruptStore, IPCError
from ..segment.files import map_file
from ..segment.header import Header
from ..segment.opening import open_existing
from ..segment.paths import Paths, full_prefix
from ..segment.procfs import printable
from ..segment.refusals import told
from ..store import layout as at

_ROWS_AT_ONCE = 1024


class View:
    """A segment that is open for reading. Raises NoSuchLayer, ForeignSegment, IncompatibleSegment
    (another layout version) or CorruptStore."""

    def __init__(self, prefix: str, attachment: Attachment | None = None) -> None:
        """`prefix` as the processes give it. With an `attachment` of this process: the segment that
        it has open, whether that is shared memory or not."""
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
                self._memory = map_file(self.fd, self.size, mmap.PROT_READ)
        self.header = Header(self.read(0, at.PAGE), self.size)
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
        """Fill `target` with bytes of the segment, up to where that ends."""
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
        read = self.read(first * at.WORD, count * at.WORD)
        if len(read) != count * at.WORD:
            raise CorruptStore(f"the segment of prefix {self.prefix!r} was cut short")
        return memoryview(read).cast("Q")

    def vanished(self) -> bool:
        """Whether the segment was removed, or replaced by another, or the program closed its
        descriptor."""
        if self._segment is not None:
            return self._segment.lost() or self._segment.vanished()
        if self._descriptor.lost():
            return True
        try:
            other = open_existing(self.paths)
        except IPCError:
            return True
        return os.fstat(other.number).st_ino != self._inode

    def reserved(self) -> int:
        """Bytes of the machine's memory that the segment has taken."""
        if self.fd >= 0:
            return os.fstat(self.fd).st_blocks * 512
        header, layout = self.words(0, at.PAGE // at.WORD), self.layout
        tables = (layout.queues, layout.groups, layout.members)
        log: int = (header[at.S_MARK] - layout.log) * at.WORD
        return layout.fixed_bytes + sum(header[one.state + at.T_RESERVED] for one in tables) + log

    def options(self) -> dict[str, Any]:
        """The constructor options of a layer that fits this segment."""
        header = self.header
        options = {**header.sizes._asdict(), "mode": header.mode, "lock": header.lock}
        if self.fd >= 0 and header.mode & 0o060:
            options["group"] = os.fstat(self.fd).st_gid
        return options

    def attached(self) -> dict[int, int]:
        """Who is attached: index → process id, 0 for a process of another PID namespace."""
        if self._segment is not None and self.fd < 0:
            return dict.fromkeys(self._segment.members.claimed, os.getpid())
        return attached_to(self.paths)

    def table(self, header: memoryview[int], table: at.TableMap) -> dict[int, memoryview[int]]:
        """A copy of the rows in use: reference → words."""
        high, width = header[table.state + at.T_HIGH], table.words
        reserved = header[table.state + at.T_RESERVED]
        # The header might claim any number. What is not reserved is not read.
        there = self.reserved() if self._memory is None else self.size
        if high > table.rows or high * width * at.WORD > reserved or reserved > there:
            raise CorruptStore(f"the tables of prefix {self.prefix!r} contradict themselves")
        found = {}
        for first in range(0, high, _ROWS_AT_ONCE):
            rows = min(_ROWS_AT_ONCE, high - first)
            base = table.base + first * width
            words, again = self.words(base, rows * width), self.words(base, rows * width)
            before = words[at.R_GENERATION :: width].tolist()
            after = again[at.R_GENERATION :: width].tolist()
            for i, generation in enumerate(before):
                if generation and generation == after[i]:
                    found[base + i * width] = words[i * width : (i + 1) * width]
        return found


def attached_to(paths: Paths) -> dict[int, int]:
    """Who is attached to the segment at `paths`: index → process id, 0 for a process of another PID
    namespace. Empty if this user may not know. Raises SegmentError if the system refuses to say."""
    try:
        with told("see which processes are attached", FileNotFoundError, PermissionError):
            return attached_processes(paths.members)
    except (FileNotFoundError, PermissionError):
        return {}


def name_in(row: memoryview[int], first: int) -> str:
    """The name in a copy of a table's row, which begins at word `first`. It is safe to print."""
    length = min(row[at.R_KEY] & 0xFFFFFFFF, at.NAME_WORDS * at.WORD)
    name = row[first : first + at.NAME_WORDS].tobytes()[:length].decode("ascii", "replace")
    return name if name.isprintable() else printable(name)
