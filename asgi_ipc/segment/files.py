"""Files beside a segment: opened with exactly the mode that was asked for, and only if they are
ours. And the byte locks that tell which processes live."""

from __future__ import annotations

import fcntl
import os
import stat
import struct
import sys
from collections.abc import Callable
from typing import Any

from ..errors import ForeignSegment
from ..store.layout import MAX_PROCESSES

_FLOCK = struct.Struct("hhqqi" if sys.platform != "darwin" else "qqihh")


class Descriptor:
    """A file descriptor that is closed when nobody refers to it any more.

    One thread may drop it while another is about to use it: the number must not come to mean
    another file in between.
    """

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        close(self.number)


def open_file(path: str, mode: int) -> int:
    """Open or create a file of ours, with exactly `mode`, whatever the umask."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, mode)
        os.fchmod(fd, mode)  # whatever the umask
        return fd
    except FileExistsError:
        pass
    try:
        fd = os.open(path, flags)
    except FileNotFoundError:
        return open_file(path, mode)
    except PermissionError as error:
        raise ForeignSegment(f"{path} cannot be opened: {error.strerror}") from None
    check_owner(path, os.fstat(fd), mode, stat.S_ISREG)
    return fd


def check_owner(path: str, status: os.stat_result, mode: int, kind: Any) -> None:
    """Refuse what somebody else made, unless `mode` opens the layer to a group that we share."""
    ours = status.st_uid == os.geteuid() or (
        mode & 0o060 == 0o060
        and status.st_mode & 0o060 == 0o060
        and status.st_gid in {os.getegid(), *os.getgroups()}
    )
    if not ours:
        raise ForeignSegment(
            f"{path} belongs to uid {status.st_uid}, and this process runs as uid {os.geteuid()}. "
            "Another user made it: choose another prefix, or, to share it with a group, give every "
            "process mode=0o660 and a common group"
        )
    if not kind(status.st_mode):
        raise ForeignSegment(f"{path} is not what this package makes there; remove it")
    if status.st_mode & 0o002:
        raise ForeignSegment(f"{path} can be written by everybody; remove it, or mend its mode")


class Members:
    """The file of byte locks. One object for a process and file, because closing any descriptor
    of a file drops all locks that the process holds on it. Callers take turns (`attachment`)."""

    _open: dict[tuple[int, int], Members] = {}

    def __init__(self, fd: int, key: tuple[int, int]) -> None:
        self._fd = fd
        self._key = key
        self.inode = key[1]
        self._users = 0
        self.claimed: set[int] = set()  # what this process holds, which F_GETLK does not tell it

    @classmethod
    def open(cls, path: str, mode: int) -> Members:
        try:
            found = os.stat(path, follow_symlinks=False)
            members = cls._open.get((found.st_dev, found.st_ino))
        except FileNotFoundError:
            members = None
        if members is None:
            fd = open_file(path, mode)
            made = os.fstat(fd)
            members = cls(fd, (made.st_dev, made.st_ino))
            cls._open[members._key] = members
        members._users += 1
        return members

    def close(self) -> None:
        self._users -= 1
        if not self._users and self._open.pop(self._key, None) is self:
            os.close(self._fd)

    @classmethod
    def forget_all(cls) -> None:
        """In a forked child: its parent's locks are not its own."""
        for members in cls._open.values():
            os.close(members._fd)
        cls._open.clear()

    def claim(self, index: int) -> bool:
        if index in self.claimed:
            return False
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, index)
        except (BlockingIOError, PermissionError):
            return False
        self.claimed.add(index)
        return True

    def release(self, index: int) -> None:
        self.claimed.discard(index)
        fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, index)

    def pids(self) -> set[int]:
        """The processes that hold a byte, but for this one."""
        found: set[int] = set()
        at, end = 0, MAX_PROCESSES
        while at < end:
            kind, start, length, pid = self._ask(at, end - at)
            if kind == fcntl.F_UNLCK:
                break
            found.add(pid)
            at = start + max(length, 1)
        return found

    @classmethod
    def glance(cls, path: str) -> dict[int, int]:
        """Who holds which byte, this process included: index → process id, 0 for a process of
        another PID namespace. Neither makes the file nor needs the right to write it."""
        status = os.stat(path, follow_symlinks=False)
        members = cls._open.get((status.st_dev, status.st_ino))
        if members is not None:
            return members._holders()
        # Not attached here, so that closing the file drops no lock of this process.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return cls(fd, (status.st_dev, status.st_ino))._holders()
        finally:
            os.close(fd)

    def _holders(self) -> dict[int, int]:
        found = dict.fromkeys(self.claimed, os.getpid())
        at = 0
        while at < MAX_PROCESSES:
            kind, start, length, pid = self._ask(at, MAX_PROCESSES - at)
            if kind == fcntl.F_UNLCK:
                break
            end = start + max(length, 1)
            found.update(dict.fromkeys(range(max(start, at), min(end, MAX_PROCESSES)), max(pid, 0)))
            at = end
        return found

    def held(self, index: int, count: int = 1) -> bool:
        """Whether another process holds one of the bytes. Its own a process never sees held."""
        return self._ask(index, count)[0] != fcntl.F_UNLCK

    def _ask(self, index: int, count: int) -> tuple[int, int, int, int]:
        """The first lock of another process on some bytes: (kind, start, length, pid)."""
        if sys.platform == "darwin":
            ask = _FLOCK.pack(index, count, 0, fcntl.F_WRLCK, os.SEEK_SET)
            start, length, pid, kind, _ = _FLOCK.unpack(fcntl.fcntl(self._fd, fcntl.F_GETLK, ask))
        else:
            ask = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, index, count, 0)
            kind, _, start, length, pid = _FLOCK.unpack(fcntl.fcntl(self._fd, fcntl.F_GETLK, ask))
        return kind, start, length, pid
