"""An open segment: its memory, and what an attached process asks the operating system for.

A segment has its full size as addresses from the start, and hardly any of it as memory: pages are
reserved in steps, before they are touched, because tmpfs kills a process with SIGBUS that touches a
page for which it has no memory.

This module must not create, replace or remove a segment (`opening`), and knows nothing of what is
stored in it.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import mmap
import os

from ..errors import ForeignSegment
from ..store.layout import WORD
from .cgroup import cgroup_allows
from .doorbell import Doorbell, Ringer, path_of
from .files import Members, attach_lock, raise_above
from .header import Header
from .paths import Paths
from .procfs import has_mapped
from .shm import open_memory
from .wanted import Wanted

logger = logging.getLogger("asgi_ipc")


class Segment:
    """An open segment, its layout, and the files beside it."""

    def __init__(
        self, paths: Paths, fd: int, memory: mmap.mmap, header: Header, members: Members
    ) -> None:
        """`fd`: of the shared memory, which `leave` closes; -1 if it is not shared memory."""
        self.paths = paths
        self.fd = fd
        self.memory = memory
        self.members = members
        self.layout = header.layout
        self.sizes = header.sizes
        self.nonce = header.nonce
        self.lock_kind = header.lock_kind
        self.mode = header.mode
        self._identity = header.identity
        self._status = os.fstat(fd) if fd >= 0 else None

    def reserve(self, offset: int, length: int) -> bool:
        """Make bytes of the segment safe to touch; False if there is no memory for them."""
        if not self._backed(offset, length) and not cgroup_allows(length):
            return False
        return allocate(self.fd, offset, length)

    def _backed(self, offset: int, length: int) -> bool:
        """Whether there is memory behind some bytes already, as after a flush."""
        try:
            return os.lseek(self.fd, offset, os.SEEK_HOLE) >= offset + length
        except OSError:
            return False

    def repair(self) -> None:
        """Before a flush, under the lock: restore what the flush relies on and cannot check itself.

        That is the header, which nobody changes once it is written. And the rows of tables, which
        may wrongly say how many they are: senders remember rows, and believe what is in them.
        """
        end = len(self._identity)
        if self.memory[:end] != self._identity:
            self.memory[:end] = self._identity
        for table in (self.layout.queues, self.layout.groups, self.layout.members):
            at, end = table.base * WORD, table.end * WORD
            # Only what has memory behind it: the rest holds zeros, and must not be touched. Where
            # the kernel cannot tell, the flush has to believe the tables.
            with contextlib.suppress(OSError):
                while (at := os.lseek(self.fd, at, os.SEEK_DATA)) < end:
                    hole = min(os.lseek(self.fd, at, os.SEEK_HOLE), end)
                    self.memory[at:hole] = bytes(hole - at)
                    at = hole

    def warn_of_mode(self, wanted: Wanted) -> None:
        """Warn a process that asks for another mode than the segment was made with."""
        if self.mode != wanted.mode:
            logger.warning(
                "prefix %r: the segment was made with mode %#o, and this process asks for %#o: %s. "
                "To change the mode, stop the processes of this prefix and remove the segment with "
                "asgi_ipc.segment.destroy()",
                wanted.prefix,
                self.mode,
                wanted.mode,
                "other users of the group still have no access"
                if wanted.mode & 0o060
                else "other users of its group can still read and change everything",
            )

    def new_bell(self, waiter_id: int, generation: int) -> Doorbell:
        """The doorbell of a new waiter of this process."""
        path = path_of(self.paths.directory, self.nonce, waiter_id, generation)
        return Doorbell(path, self.mode)

    def ringer(self) -> Ringer:
        """What rings the waiters of this segment."""
        return Ringer(self.paths.directory, self.nonce)

    def exclusively(self, timeout: float) -> contextlib.AbstractContextManager[None]:
        """Keep other processes from creating, replacing or removing anything meanwhile, and from
        renewing the lock. Raises LockTimeout after `timeout` seconds."""
        return attach_lock(self.paths, self.mode, timeout)

    def may_be_mapped_by(self, thread: int) -> bool:
        """Whether the process of a thread may have this segment in its memory."""
        return self._status is not None and has_mapped(thread, self._status.st_ino)

    def leave(self, index: int) -> None:
        """Give a process id back, and close what is open."""
        self.members.release(index)
        self.members.close()
        os.close(self.fd)

    def vanished(self) -> bool:
        """Whether the segment or a file beside it was removed, or replaced by another. Raises
        ForeignSegment if this process may not see that any more."""
        assert self._status is not None
        try:
            if os.stat(self.paths.members).st_ino != self.members.inode:
                return True
            if self.paths.shows:
                status = os.stat(self.paths.file)
            else:
                fd = raise_above(open_memory(self.paths.segment))
                status = os.fstat(fd)
                os.close(fd)
        except FileNotFoundError:
            return True
        except PermissionError:
            raise ForeignSegment(
                f"this process runs as uid {os.geteuid()} now, which has no access to the segment "
                f"of prefix {self.paths.prefix!r}. Attach with the first call after the change of "
                "user (setuid), and remove the segment that was made before it; or give every "
                "process mode=0o660 and a common group"
            ) from None
        return not os.path.samestat(status, self._status)


def allocate(fd: int, offset: int, length: int) -> bool:
    """Have the kernel put memory behind some bytes of a segment; False if it has none."""
    try:
        os.posix_fallocate(fd, offset, length)
    except AttributeError:
        pass  # macOS: shared memory is not overcommitted
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.ENOMEM):
            return False
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
    return True
