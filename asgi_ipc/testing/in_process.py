"""A segment in anonymous memory of one process, for tests. Nothing is in ``/dev/shm``, and no other
process takes part, not even a forked child.

Only what a segment asks of the operating system is different here: memory comes from an anonymous
`mmap`, the only process that lives is this one, and a doorbell is a pipe of which both sides have
both ends. Queues, groups, recovery and the lock are the same code, so a test sees the behaviour
of the real layer. The name must not contain "inmemory": Channels 1 assumes that such a layer needs
no workers.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import posix
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable

from ..attachment.attachment import Attachment
from ..attachment.process import notice_fork, register
from ..options import Options
from ..segment.doorbell import Doorbell, Ringer
from ..segment.files import Descriptor, Members, raise_above
from ..segment.header import format_segment
from ..segment.notes import note
from ..segment.paths import Paths
from ..segment.refusals import told
from ..segment.segment import Segment, cgroup_shortage
from ..segment.wanted import Wanted
from ..store.layout import LOCK_FILE


class _Pipe(Descriptor):
    """Both ends of a pipe, closed when nothing refers to it any more; `number` is the reading end.

    A sender has both: writing to a pipe whose reader is gone would kill it with SIGPIPE.
    """

    __slots__ = ("writing",)

    def __init__(self, reading: int, writing: int) -> None:
        self.writing = Descriptor(writing)
        super().__init__(reading)
        for end in (reading, writing):
            os.set_blocking(end, False)


class _Bell(Doorbell):
    """A doorbell without a name: only this process rings it."""

    def __init__(self) -> None:
        self._open: _Pipe | None = _Pipe(*map(raise_above, os.pipe()))

    def ring(self, row: int) -> None:
        pipe = self._open
        if pipe is not None and not pipe.writing.lost():
            with contextlib.suppress(BlockingIOError):  # full of rings: the waiter knows
                posix.write(pipe.writing.number, row.to_bytes(4, sys.byteorder))

    def close(self, unlink: object = None, getpid: object = None) -> None:
        self._open = None


class _Ringer(Ringer):
    """Rings the bells of this process."""

    def __init__(self, bells: dict[int, tuple[int, _Bell]]) -> None:
        self._bells = bells

    def ring(self, waiter_id: int, generation: int, row: int) -> bool:
        known, bell = self._bells.get(waiter_id, (0, None))
        if bell is None or known != generation:
            return False
        bell.ring(row)
        return True

    def forget(self, waiter_id: int) -> None:
        self._bells.pop(waiter_id, None)

    def close(self) -> None:
        pass


class _Members(Members):
    """The only ones that live: the attachments of this process."""

    def __init__(self) -> None:
        self.inode = 0
        self.claimed: set[int] = set()

    def claim(self, index: int) -> bool:
        self.claimed.add(index)
        return True

    def release(self, index: int) -> None:
        self.claimed.discard(index)

    def close(self) -> None:
        pass

    def pids(self) -> set[int]:
        return set()

    def held(self, index: int, count: int = 1) -> bool:
        return False


class PrivateSegment(Segment):
    """A segment that no other process can see. It is empty at first."""

    def __init__(self, wanted: Wanted) -> None:
        paths, members = Paths(wanted.prefix), _Members()
        # Where the kernel has no robust mutexes the lock is a file, here as well.
        paths.directory = paths.section_lock = ""
        self._remove = lambda: None
        if wanted.lock_kind == LOCK_FILE:
            file, paths.section_lock = tempfile.mkstemp(prefix="asgi_ipc.")
            os.close(file)
            self._remove = weakref.finalize(self, _unlink, paths.section_lock, os.getpid())
        layout = wanted.layout()
        # A shared mapping, which a forked child inherits but never touches. For a private one the
        # kernel would reserve memory to copy all of it, unused address space included.
        memory = mmap.mmap(-1, layout.size)
        header = format_segment(memory, layout, wanted, members.inode)
        super().__init__(paths, None, memory, header, members)
        self._bells: dict[int, tuple[int, _Bell]] = {}  # waiter id → generation, its bell

    def suits(self, wanted: Wanted) -> bool:
        """Whether it is what a layer asks for."""
        return self.sizes == wanted.sizes and self.lock_kind == wanted.lock_kind

    def reserve(self, offset: int, length: int) -> bool:
        self._shortage = cgroup_shortage(length)
        return not self._shortage

    def new_bell(self, waiter_id: int, generation: int) -> Doorbell:
        bell = _Bell()
        self._bells[waiter_id] = generation, bell
        return bell

    def ringer(self) -> Ringer:
        return _Ringer(self._bells)

    def exclusively(self, timeout: float) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()  # the attachments of a process take turns anyway

    def repair(self) -> None:
        pass  # nobody else can damage it

    def warn_of_mode(self, wanted: Wanted) -> None:
        pass  # nobody else can open it

    def leave(self, index: int) -> None:
        self.members.release(index)

    def vanished(self) -> bool:
        return False


def _unlink(
    path: str,
    pid: int,
    getpid: Callable[[], int] = os.getpid,
    unlink: Callable[[str], None] = os.unlink,
) -> None:
    """A finalizer, so it uses no names of this module."""
    if getpid() == pid:  # not in a child that was forked meanwhile
        try:
            unlink(path)
        except FileNotFoundError:
            pass


class InProcessProvider:
    """What the layers of one prefix in this process share. It lives as long as one of them."""

    def __init__(self) -> None:
        self._segment: PrivateSegment | None = None

    def attach(self, wanted: Wanted, timeout: float) -> tuple[Segment, int]:
        """Like `opening.attach`. Called when no other attachment to it is in use."""
        segment = self._segment
        if segment is not None and not segment.suits(wanted):
            note(
                "prefix %r: replacing a segment of this process that has other sizes or another "
                "lock",
                wanted.prefix,
            )
            segment = None
        if segment is None:
            with told(f"make a segment of prefix {wanted.prefix!r} in this process"):
                segment = self._segment = PrivateSegment(wanted)
        index = next(
            i for i in range(len(segment.members.claimed) + 1) if i not in segment.members.claimed
        )
        segment.members.claim(index)
        return segment, index

    def forked(self) -> None:
        """In a child: give up the parent's segment, whose lock the parent's threads may hold."""
        self._segment = None

    def detach(self, attachment: Attachment) -> None:
        """Do nothing, for `process.register`: layers are attached, not this."""


class _Providers:
    """The provider of each prefix."""

    def __init__(self) -> None:
        self._known: weakref.WeakValueDictionary[str, InProcessProvider] = (
            weakref.WeakValueDictionary()
        )
        self.forked()
        register(self)

    def forked(self) -> None:
        """In a child: another thread of the parent may hold the lock."""
        self._lock = threading.RLock()  # a finalizer may make a layer meanwhile

    def detach(self, attachment: Attachment) -> None:
        """Do nothing, for `process.register`."""

    def of(self, prefix: str) -> InProcessProvider:
        notice_fork()
        with self._lock:
            found = self._known.get(prefix)
            if found is None:
                found = self._known[prefix] = InProcessProvider()
                register(found)
            return found


_providers = _Providers()


class InProcessOptions(Options):
    """The options of a layer that stays in this process."""

    @property
    def provider(self) -> InProcessProvider:
        return _providers.of(self.prefix)
