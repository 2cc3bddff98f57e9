"""A segment in anonymous memory of one process: the engine is that of shared memory, its place is
not. Nothing is in ``/dev/shm``, and no other process takes part, not even a forked child.

Only what a segment asks of the operating system is different here: memory comes from an anonymous
`mmap`, who lives is known (this process), and a doorbell is a pipe that both its ends hold. Queues,
groups, recovery and the lock are the same code, so that a test sees the behaviour of the real
layer. The name must not contain "inmemory": Channels 1 takes such a layer for one that needs no
workers.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import sys
import tempfile
import threading
import weakref

from ..options import Options
from ..segment.cgroup import cgroup_allows
from ..segment.doorbell import Doorbell, Ringer
from ..segment.files import Descriptor, Members
from ..segment.segment import Paths, Segment, Wanted, write_header
from ..store.layout import H_LOCK, H_NONCE, LOCK_FILE, WORD, Layout

logger = logging.getLogger("asgi_ipc")


class _Pipe(Descriptor):
    """Both ends of a pipe, closed when nobody refers to it any more; `number` is the reading one.

    Whoever rings holds both: a pipe whose reader is gone would kill with SIGPIPE.
    """

    __slots__ = ("writing",)

    def __init__(self) -> None:
        reading, writing = os.pipe()
        self.writing = Descriptor(writing)
        super().__init__(reading)
        for end in (reading, writing):
            os.set_blocking(end, False)


class _Bell(Doorbell):
    """A doorbell without a name: whoever rings it is in this process."""

    def __init__(self) -> None:
        self._open: _Pipe | None = _Pipe()

    def ring(self, row: int) -> None:
        pipe = self._open
        if pipe is not None:
            with contextlib.suppress(BlockingIOError):  # full of rings: it has been told
                os.write(pipe.writing.number, row.to_bytes(4, sys.byteorder))

    def close(self) -> None:
        self._open = None


class _Ringer(Ringer):
    """Rings the bells of this process."""

    def __init__(self, bells: weakref.WeakValueDictionary[tuple[int, int], _Bell]) -> None:
        self._bells = bells

    def ring(self, waiter: int, generation: int, row: int) -> bool:
        bell = self._bells.get((waiter, generation))
        if bell is None:
            return False
        bell.ring(row)
        return True

    def forget(self, waiter: int) -> None:
        pass  # nothing is kept

    def close(self) -> None:
        pass


class _Members(Members):
    """Who lives: the attachments of this process, and nobody else."""

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
    """A segment that no other process can see. It is made empty; `exclusively` is for whoever
    attaches, who takes turns anyway (`attachment`)."""

    def __init__(self, wanted: Wanted) -> None:
        self.paths = Paths(wanted.prefix)
        # Where the kernel has no robust mutexes the lock is a file, here as well.
        self.paths.directory = self.paths.section_lock = ""
        self._remove = lambda: None
        if wanted.lock_kind == LOCK_FILE:
            file, self.paths.section_lock = tempfile.mkstemp(prefix="asgi_ipc.")
            os.close(file)
            self._remove = weakref.finalize(self, _unlink, self.paths.section_lock, os.getpid())
        self.layout = Layout(wanted.message_memory, wanted.group_memory, wanted.max_message_size)
        # A shared mapping, which a forked child has as well, and never touches. Of a private one
        # the kernel would want to be able to copy all of it, address space that is not used too.
        self.memory = mmap.mmap(-1, self.layout.size)
        self.fd = -1
        self.members = _Members()
        self.lock_kind = wanted.lock_kind
        self.mode = wanted.mode
        write_header(self.memory, self.layout, wanted, self.members.inode)
        self._header = self.memory[: H_LOCK * WORD]
        nonce = self.memory[H_NONCE * WORD : (H_NONCE + 1) * WORD]
        self.nonce = int.from_bytes(nonce, sys.byteorder)
        self._bells: weakref.WeakValueDictionary[tuple[int, int], _Bell] = (
            weakref.WeakValueDictionary()
        )

    def suits(self, wanted: Wanted) -> bool:
        """Whether it is what a layer asks for."""
        layout = self.layout
        sizes = (layout.message_memory, layout.group_memory, layout.max_message_size)
        return sizes == wanted.sizes and self.lock_kind == wanted.lock_kind

    def reserve(self, offset: int, length: int) -> bool:
        return cgroup_allows(length)

    def new_bell(self, waiter: int, generation: int) -> Doorbell:
        bell = self._bells[waiter, generation] = _Bell()
        return bell

    def ringer(self) -> Ringer:
        return _Ringer(self._bells)

    def exclusively(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def mend(self) -> None:
        pass  # nobody else can damage it

    def warn_of_mode(self, wanted: Wanted) -> None:
        pass  # nobody else can open it

    def leave(self, index: int) -> None:
        self.members.release(index)

    def vanished(self) -> bool:
        return False


def _unlink(path: str, pid: int) -> None:
    if os.getpid() == pid:  # not in a child that was forked meanwhile
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


class Home:
    """What the layers of one prefix in this process share. It lives as long as one of them."""

    def __init__(self) -> None:
        self._segment: PrivateSegment | None = None

    def attach(self, wanted: Wanted) -> tuple[Segment, int]:
        """Like `segment.attach`. Called when no other attachment to it is in use."""
        segment = self._segment
        if segment is not None and not segment.suits(wanted):
            logger.warning(
                "prefix %r: replacing a segment of this process, which has other sizes or another "
                "lock",
                wanted.prefix,
            )
            segment = None
        if segment is None:
            segment = self._segment = PrivateSegment(wanted)
        index = next(
            i for i in range(len(segment.members.claimed) + 1) if i not in segment.members.claimed
        )
        segment.members.claim(index)
        return segment, index

    def forked(self) -> None:
        """In a child: what is there belongs to the parent, whose threads may hold the lock."""
        self._segment = None


_homes: weakref.WeakValueDictionary[str, Home] = weakref.WeakValueDictionary()
_homes_lock = threading.Lock()


class InProcessOptions(Options):
    """The options of a layer that stays in this process."""

    @property
    def provider(self) -> Home:
        with _homes_lock:
            found = _homes.get(self.prefix)
            if found is None:
                found = _homes[self.prefix] = Home()
            return found


def _after_fork_in_child() -> None:
    global _homes_lock
    _homes_lock = threading.Lock()
    for home in list(_homes.values()):
        home.forked()


os.register_at_fork(after_in_child=_after_fork_in_child)
