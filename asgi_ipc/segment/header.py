"""The header of a segment: how it is written, and the one check of it for all that open one.

The creator of a segment writes the header once; its magic word comes last and publishes the
segment. This module works on memory and on copies of it: it must not open or remove anything.
"""

from __future__ import annotations

import mmap
import os
from typing import NamedTuple

from .. import clock
from ..errors import CorruptHeader, IncompatibleSegment, SegmentError
from ..options import MODES
from ..store import layout as at
from ..store.store import Store
from .lock import init_mutex, machine
from .procfs import namespace
from .wanted import Sizes, Wanted

_ONE_NAMESPACE = (
    "Run all processes of a prefix in one (docker exec, docker run --pid=container:NAME)"
)


class Fault(NamedTuple):
    """Why a segment cannot be used."""

    error: type[SegmentError]
    reason: str  # continues "the segment of prefix ..."
    remedy: str = ""

    def error_for(self, prefix: str) -> SegmentError:
        """The error to raise for the segment of `prefix`."""
        remedy = f". {self.remedy}" if self.remedy else ""
        return self.error(f"the segment of prefix {prefix!r} {self.reason}{remedy}")


class Header:
    """A copy of what a header says, and whether that is possible."""

    def __init__(self, page: bytes, size: int) -> None:
        """`page`: the first page of the segment, or the part that exists; `size`: its bytes."""
        page = page[: at.PAGE].ljust(at.PAGE, b"\0")
        words = memoryview(page).cast("Q")
        self.identity = page[: at.H_LOCK * at.WORD]  # the bytes that nobody changes
        self.size = size
        self.magic = words[at.H_MAGIC]
        self.version = words[at.H_VERSION]
        self.said_size = words[at.H_SIZE]
        self.nonce = words[at.H_NONCE]
        self.machine = words[at.H_MACHINE]
        self.pid_namespace = words[at.H_PID_NS]
        self.time_namespace = words[at.H_TIME_NS]
        self.lock_kind = words[at.H_LOCK_KIND]
        self.sizes = Sizes(
            words[at.H_MESSAGE_MEMORY], words[at.H_GROUP_MEMORY], words[at.H_MAX_MESSAGE]
        )
        self.mode = words[at.H_MODE]
        self.members = words[at.H_MEMBERS]
        self.created: float = memoryview(page).cast("d")[at.H_CREATED]

    @property
    def lock(self) -> str:
        """The ``lock`` option of the layers that use the segment."""
        return "file" if self.lock_kind == at.LOCK_FILE else "mutex"

    @property
    def known_version(self) -> int:
        """The layout version; 0 if this package did not make the segment."""
        return self.version if self.magic == at.MAGIC else 0

    @property
    def layout(self) -> at.Layout:
        """The layout of the segment, if the header has no `fault`."""
        return at.Layout(*self.sizes)

    @property
    def of_an_earlier_boot(self) -> bool:
        """Whether the clock restarted since the segment was made: its times mean nothing now."""
        return not self.created <= clock.monotonic()

    def fault(self) -> Fault | None:
        """Why this package cannot read the segment."""
        if self.size < at.PAGE:
            return Fault(CorruptHeader, "is too short to be one of this package")
        if self.magic != at.MAGIC:
            return Fault(CorruptHeader, "was not made by this package, or was never finished")
        if self.version != at.VERSION:
            return Fault(
                IncompatibleSegment,
                f"has layout version {self.version}, and this package has version {at.VERSION}",
                "Use the asgi-ipc of the processes that made it, or another prefix",
            )
        whole = max(self.sizes) <= self.size  # otherwise the layout would have absurd numbers
        if not (whole and self.layout.size == self.said_size == self.size):
            return Fault(CorruptHeader, "has a header that contradicts itself")
        if self.mode not in MODES:
            return Fault(CorruptHeader, f"has a mode that no segment is made with ({self.mode:#o})")
        return None

    def sharing_fault(self) -> Fault | None:
        """Why this process cannot share the clock and the lock of the segment."""
        if self.time_namespace != namespace("time"):
            return Fault(IncompatibleSegment, "was made in another time namespace", _ONE_NAMESPACE)
        if self.lock_kind != at.LOCK_MUTEX:
            return None
        if self.pid_namespace != namespace("pid"):
            return Fault(
                IncompatibleSegment,
                "was made in another PID namespace, where thread ids mean other threads",
                f'{_ONE_NAMESPACE}, or give all of them lock="file"',
            )
        if self.machine != machine():
            return Fault(
                IncompatibleSegment,
                "was made with another libc or word size",
                'Use the same libc in all processes of a prefix, or give all of them lock="file"',
            )
        return None

    def attach_fault(self, wanted: Wanted, members: int) -> Fault | None:
        """Why this process cannot attach. `members`: the inode of the file of byte locks."""
        fault = self.fault()
        if fault is not None:
            return fault
        if self.members != members:
            return Fault(CorruptHeader, "was made with a file of byte locks that was removed")
        if self.lock_kind != wanted.lock_kind:
            ours = "mutex" if self.lock == "file" else "file"
            return Fault(
                IncompatibleSegment,
                f'uses lock="{self.lock}", and this process asks for lock="{ours}"',
                "Give all processes of a prefix the same",
            )
        return self.sharing_fault()


def format_segment(memory: mmap.mmap, layout: at.Layout, wanted: Wanted, members: int) -> Header:
    """Make zeroed memory an empty segment, its store included, and publish it.

    `members`: the inode of the file of byte locks. The first pages of the log are reserved.
    """
    now = clock.monotonic()
    store = Store(memory, layout)
    store.format(layout.log + at.FIRST_MARK // at.WORD, now)
    words = store.words
    words[at.H_VERSION] = at.VERSION
    words[at.H_SIZE] = layout.size
    words[at.H_NONCE] = int.from_bytes(os.urandom(8), "little")
    words[at.H_MACHINE] = machine()
    words[at.H_PID_NS] = namespace("pid")
    words[at.H_TIME_NS] = namespace("time")
    words[at.H_LOCK_KIND] = wanted.lock_kind
    words[at.H_MESSAGE_MEMORY] = layout.message_memory
    words[at.H_GROUP_MEMORY] = layout.group_memory
    words[at.H_MAX_MESSAGE] = layout.max_message_size
    words[at.H_MODE] = wanted.mode
    words[at.H_MEMBERS] = members
    store.doubles[at.H_CREATED] = now
    if wanted.lock_kind == at.LOCK_MUTEX:
        init_mutex(memory, at.H_LOCK * at.WORD)
    words[at.H_MAGIC] = at.MAGIC
    store.close()
    return Header(memory[: at.PAGE], layout.size)
