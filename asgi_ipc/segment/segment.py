"""An open segment: its memory, and what an attached process asks the operating system for.

A segment has its full size as address space from the start, but hardly any memory. Pages are
reserved in steps, before they are touched, because tmpfs kills a process with SIGBUS if it touches
a page for which there is no memory. The same happens if the file has been cut short.

This module must not create, replace or remove a segment (`opening`), and must not know what is
stored in it.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os

from ..errors import CorruptHeader, ForeignSegment, IncompatibleSegment
from ..statistics import size
from ..store.layout import WORD
from .cgroup import full_cgroup
from .doorbell import Doorbell, Ringer, path_of
from .files import LOST, Descriptor, DescriptorsLost, Members, attach_lock, raise_above
from .header import Header
from .notes import note
from .paths import Paths
from .procfs import group_name, has_mapped, namespace
from .refusals import reason
from .shm import open_memory
from .wanted import Wanted

# A mapping has its own descriptor, which closes with it. If the program closed that descriptor, its
# number may be another file's.
_stay_mapped: list[mmap.mmap] = []


class Segment:
    """An open segment, its layout, and the files beside it."""

    # The status of the shared memory and of the file of byte locks, when `vanished` last saw them
    # at their names.
    named: tuple[os.stat_result, os.stat_result] | None = None

    def __init__(
        self,
        paths: Paths,
        opened: Descriptor | None,
        memory: mmap.mmap,
        header: Header,
        members: Members,
    ) -> None:
        """`opened`: the shared memory, which `close` closes; None if it is not shared memory."""
        self.paths = paths
        self.opened = opened
        self.fd = -1 if opened is None else opened.number
        self._left = self._closed = False
        self.memory = memory
        self.members = members
        self.layout = header.layout
        self.sizes = header.sizes
        self.nonce = header.nonce
        self.lock_kind = header.lock_kind
        self.mode = header.mode
        self._time_namespace = header.time_namespace
        self._identity = header.identity
        self._status = None if opened is None else os.fstat(self.fd)
        # What is beside it belongs to the same group, where that may open it.
        shared = self._status is not None and self.mode & 0o060
        self.group = self._status.st_gid if self._status is not None and shared else None
        self._shortage = ""

    def reserve(self, offset: int, length: int) -> bool:
        """Make bytes of the segment safe to touch; False if there is no memory for them, and then
        `shortage` says why. Raises CorruptHeader as `check_length` does."""
        self.check_length()  # the kernel would make the file longer again, with zeros in the middle
        why = "" if self._backed(offset, length) else cgroup_shortage(length)
        why = why or allocate(self.fd, offset, length)
        if why:
            self._shortage = why
        return not why

    def shortage(self) -> str:
        """Why memory was refused last, and the remedy."""
        return self._shortage or "the machine has no more shared memory"

    def _backed(self, offset: int, length: int) -> bool:
        """Whether there is memory behind some bytes already, as after a flush."""
        try:
            return os.lseek(self.fd, offset, os.SEEK_HOLE) >= offset + length
        except OSError:
            return False

    def repair(self) -> None:
        """Before a flush, under the lock: restore what the flush relies on and cannot check itself.

        That is the header, which nobody changes once it is written, and the rows of tables. Senders
        remember rows and believe what is in them, but the number of rows may be damaged.
        """
        end = len(self._identity)
        if self.memory[:end] != self._identity:
            self.memory[:end] = self._identity
        for table in (self.layout.queues, self.layout.groups, self.layout.members):
            at, end = table.base * WORD, table.end * WORD
            # Only where there is memory: the rest holds zeros, and must not be touched. Where
            # the kernel cannot tell, the flush has to believe the tables.
            with contextlib.suppress(OSError):
                while (at := os.lseek(self.fd, at, os.SEEK_DATA)) < end:
                    hole = min(os.lseek(self.fd, at, os.SEEK_HOLE), end)
                    self.memory[at:hole] = bytes(hole - at)
                    at = hole

    def warn_of_mode(self, wanted: Wanted) -> None:
        """Warn a process that asks for another mode than the segment was made with."""
        if self.mode != wanted.mode:
            note(
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
        elif wanted.group is not None and self.group not in (None, wanted.group):
            note(
                "prefix %r: the segment belongs to group %s, and this process asks for group %s, "
                "whose members have no access. To change the group, stop the processes of this "
                "prefix and remove the segment with asgi_ipc.segment.destroy()",
                wanted.prefix,
                group_name(self.group or 0),
                group_name(wanted.group),
            )

    def new_bell(self, waiter_id: int, generation: int) -> Doorbell:
        """The doorbell of a new waiter of this process."""
        path = path_of(self.paths.directory, self.nonce, waiter_id, generation)
        return Doorbell(path, self.mode)

    def ringer(self) -> Ringer:
        """What rings the waiters of this segment."""
        return Ringer(self.paths.directory, self.nonce, self.group)

    def exclusively(self, timeout: float) -> contextlib.AbstractContextManager[None]:
        """Keep other processes from creating, replacing or removing anything meanwhile, and from
        renewing the lock. Raises LockTimeout after `timeout` seconds."""
        return attach_lock(self.paths, self.mode, timeout, self.group)

    def may_be_mapped_by(self, thread: int) -> bool:
        """Whether the process of a thread may have this segment in its memory."""
        return self._status is not None and has_mapped(thread, self._status.st_ino)

    def leave(self, index: int) -> None:
        """Give a process id back, and close what is open. Called again after an error, it does the
        rest."""
        if self.lost():
            _stay_mapped.append(self.memory)
        self._left = True
        self.members.release(index)
        if not self._closed:
            self._closed = True
            self.members.close()
        self.close()

    def close(self) -> None:
        """Close the shared memory; it stays mapped."""
        if self.opened is not None:
            self.opened.close()

    def lost(self) -> bool:
        """Whether the program closed descriptors of this segment."""
        lost = self.opened is not None and (self.opened.lost() or self.members.lost())
        return lost and not self._left  # in this order: another thread may leave meanwhile

    def check_length(self) -> None:
        """Raise CorruptHeader if the segment was cut short: nobody may touch it any more. Raises
        DescriptorsLost if the program closed descriptors of it."""
        if self.opened is None or self._status is None:
            return
        if self.lost():
            raise DescriptorsLost(LOST)
        status = None
        with contextlib.suppress(OSError):  # another thread may close it at any moment, at exit
            status = os.fstat(self.fd)
        if self._left or status is None or not os.path.samestat(status, self._status):
            raise ValueError("the segment is closed")
        length = status.st_size
        if length < self._status.st_size:
            raise CorruptHeader(
                f"the segment of prefix {self.paths.prefix!r} was cut short to {length} bytes "
                "while processes used it, and its contents are lost. The kernel kills a process "
                "that touches the missing part (SIGBUS)"
            )

    def vanished(self) -> bool:
        """Whether the segment or a file beside it was removed, or replaced by another. Raises
        ForeignSegment if this process may not see that any more, and IncompatibleSegment if its
        clock is another than it was."""
        assert self._status is not None
        here = namespace("time")
        if here and self._time_namespace and here != self._time_namespace:  # 0: not known
            raise IncompatibleSegment(
                "this process has moved to another time namespace, where the clock is not that of "
                f"the segment of prefix {self.paths.prefix!r}. Move before the first call, and run "
                "all processes of a prefix in one time namespace"
            )
        try:
            members = os.stat(self.paths.members)
            if members.st_ino != self.members.inode:
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
        if not os.path.samestat(status, self._status):
            return True
        if self.paths.shows:
            self.named = status, members
        return False


def cgroup_shortage(length: int) -> str:
    """Why the memory cgroups of this process leave no room for some bytes, and the remedy; "" if
    they leave it."""
    full = full_cgroup(length)
    if full is None:
        return ""
    return (
        f"the memory limit of the cgroup {full.folder}, {size(full.limit)}, is almost used up. "
        "Raise it (docker run --memory, MemoryMax= of a systemd unit, limits.memory in "
        "Kubernetes), or lower message_memory"
    )


def allocate(fd: int, offset: int, length: int) -> str:
    """Have the kernel reserve memory for some bytes of a segment. Returns "", or why it does not,
    and the remedy."""
    try:
        os.posix_fallocate(fd, offset, length)
    except AttributeError:
        pass  # macOS: shared memory is not overcommitted
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            return reason(error)
    return ""
