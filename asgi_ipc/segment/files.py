"""The files beside a segment: opened with exactly the wanted mode, and only if they are ours.

Two of them are locks: the flock under which everything beside a segment is created and removed, and
the byte locks that tell which processes live. This module must not open the segment itself.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import stat
import struct
import sys
import time
from collections.abc import Callable, Iterator

from .. import clock
from ..errors import ForeignSegment, LockTimeout, SegmentError
from ..store.layout import MAX_PROCESSES
from .paths import Paths
from .procfs import group_name, user_name
from .refusals import reason, told

_STANDARD = 2  # the highest descriptor of the standard streams
_TO_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_HALF_MADE = 5.0  # seconds to wait for the holder of attach.lock
_FLOCK = struct.Struct("hhqqi" if sys.platform != "darwin" else "qqihh")


class Descriptor:
    """A file descriptor that is closed when nothing refers to it any more.

    One thread may drop it while another is about to use it: the number must not mean another file
    in between.
    """

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        close(self.number)


def raise_above(fd: int) -> int:
    """Return a descriptor for the same file that is above 2, and close this one if it is not.

    Where a program has closed its standard streams, a new file takes their number, and the next
    line that somebody prints would go into it.
    """
    if fd > _STANDARD:
        return fd
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _STANDARD + 1)
    finally:
        os.close(fd)


def map_file(fd: int, size: int, prot: int = mmap.PROT_READ | mmap.PROT_WRITE) -> mmap.mmap:
    """Map a file. The mapping has a descriptor of its own, which is above 2 as well."""
    fillers: list[Descriptor] = []  # what takes the numbers up to there meanwhile
    for number in range(_STANDARD + 1):
        try:
            os.fstat(number)
        except OSError:
            fillers.append(Descriptor(os.open("/", os.O_RDONLY | os.O_CLOEXEC)))
    return mmap.mmap(fd, size, prot=prot)


def open_file(path: str, mode: int, group: int | None = None) -> int:
    """Open or create a file of ours, with exactly `mode`. Raises ForeignSegment. `group`: see
    `check_owner`; a new file gets that of its directory."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = raise_above(os.open(path, flags | os.O_CREAT | os.O_EXCL, mode))
        os.fchmod(fd, mode)  # the umask may have taken bits away
        return fd
    except FileExistsError:
        pass
    except PermissionError:
        raise _no_access(path) from None
    try:
        fd = raise_above(os.open(path, flags))
    except FileNotFoundError:
        return open_file(path, mode, group)
    except PermissionError:
        raise _no_access(path) from None
    check_owner(path, os.fstat(fd), mode, stat.S_ISREG, group)
    return fd


def _no_access(path: str) -> ForeignSegment:
    return ForeignSegment(
        f"{path} is not open to user {user_name(os.geteuid())} (uid {os.geteuid()}). "
        + foreign_remedy(path)
    )


def check_owner(
    path: str,
    status: os.stat_result,
    mode: int,
    kind: Callable[[int], bool] | None = None,
    group: int | None = None,
) -> None:
    """Refuse what another user made, unless `mode` opens the layer to a group that we share: to
    `group`, if one is named, else to one that this process is in.

    Also refuses what everybody can write, and what is not of this `kind` (`stat.S_ISREG`, say).
    Raises ForeignSegment.
    """
    ours = status.st_uid == os.geteuid() or (
        mode & 0o060 == 0o060
        and status.st_mode & 0o060 == 0o060
        and status.st_gid in ({os.getegid(), *os.getgroups()} if group is None else {group})
    )
    if not ours:
        raise ForeignSegment(
            f"{path} belongs to user {user_name(status.st_uid)} (uid {status.st_uid}, group "
            f"{group_name(status.st_gid)}, mode {status.st_mode & 0o777:#o}), and this process "
            f"runs as {user_name(os.geteuid())} (uid {os.geteuid()}). "
            + foreign_remedy(path, status.st_uid)
        )
    if kind is not None and not kind(status.st_mode):
        raise ForeignSegment(f"{path} is of another type than this package creates; remove it")
    if status.st_mode & 0o002:
        raise ForeignSegment(f"everybody can write to {path}; remove it, or correct its mode")


def foreign_remedy(path: str, uid: int | None = None) -> str:
    """What to do about something that another user made, who came first: another prefix would
    only divide the processes."""
    for there in (path, os.path.dirname(path)):
        with contextlib.suppress(OSError):
            uid = os.lstat(there).st_uid if uid is None else uid
    owner = "its owner" if uid is None else user_name(uid)
    return (
        "Run all processes of the layer as one user. If that was not meant to be "
        f"{owner}, end what {owner} runs of it, and let {owner} remove what is left (asgi-ipc "
        "destroy). To share a layer among users, give every process mode=0o660 and the same "
        "group=, of which all are members"
    )


@contextlib.contextmanager
def attach_lock(
    paths: Paths, mode: int | None, timeout: float = _HALF_MADE, group: int | None = None
) -> Iterator[None]:
    """Hold the flock under which everything beside a segment is created and removed.

    Creates the directory and the file if there are none. With `mode` None it creates nothing, opens
    the file of any user, and raises FileNotFoundError. Raises LockTimeout after `timeout` seconds.
    """
    deadline = clock.monotonic() + timeout
    while True:
        try:
            if mode is None:
                opened = Descriptor(raise_above(os.open(paths.attach_lock, _TO_READ)))
            else:
                opened = Descriptor(_open_attach_lock(paths, mode, group))
        except FileNotFoundError:
            if mode is None:
                raise
            continue  # another process removed the directory in between
        try:
            try:
                while not _flocked(opened.number):
                    if clock.monotonic() > deadline:
                        raise LockTimeout(
                            f"another process has been attaching to prefix {paths.prefix!r} for "
                            f"{timeout:g} s (it holds {paths.attach_lock}). It is probably "
                            "stopped: resume it (SIGCONT) or end it"
                        )
                    time.sleep(0.001)
                # If the file was removed while we waited, this lock excludes nobody.
                ours = _is_at(opened.number, paths.attach_lock)
                if ours:
                    yield
            finally:
                # Not only closed: a child that was forked meanwhile has it open too.
                fcntl.flock(opened.number, fcntl.LOCK_UN)
        finally:
            # Again: an exception out of a signal handler may have come in between.
            fcntl.flock(opened.number, fcntl.LOCK_UN)
        if ours:
            return


def _flocked(fd: int) -> bool:
    """Try to take the flock; whether that worked."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(fd: int, path: str) -> bool:
    """Whether the open file `fd` is the one at `path`."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def _open_attach_lock(paths: Paths, mode: int, group: int | None) -> int:
    """Open or create the file, and before it the directory; leave none where the file cannot be
    made."""
    made = _make_directory(paths.directory, mode, group)
    try:
        # Told before the directory is removed: it may have taken the last inode.
        with told(f"create {paths.attach_lock}", FileNotFoundError):
            return open_file(paths.attach_lock, mode, group)
    except BaseException:
        if made:
            with contextlib.suppress(OSError):
                os.rmdir(paths.directory)
        raise


def _make_directory(path: str, mode: int, group: int | None) -> bool:
    """Make a directory, or check that the one that is there is ours. Returns whether it is new."""
    mode |= (mode & 0o444) >> 2  # who may read may also look inside
    if mode & 0o060:
        mode |= stat.S_ISGID  # files in it belong to the group, no matter who creates them
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        check_owner(path, os.lstat(path), mode, stat.S_ISDIR, group)
        return False
    except OSError as error:
        raise SegmentError(f"cannot create {path}: {reason(error)}") from error
    try:
        if group is not None:
            os.chown(path, -1, group)
        os.chmod(path, mode)  # the umask may have taken bits away
    except PermissionError:
        os.rmdir(path)
        raise ForeignSegment(
            f"user {user_name(os.geteuid())} cannot give {path} to group {group_name(group or 0)}, "
            "which the option group names, without being a member of it. Add the user to the group "
            "(usermod -a -G), and start the process anew"
        ) from None
    return True


class Members:
    """The file of byte locks; see `paths`.

    A process has one object for each file, because closing any descriptor of a file drops all locks
    that the process holds on it. Callers must take turns (`attachment`).
    """

    _open: dict[tuple[int, int], Members] = {}

    def __init__(self, fd: int, key: tuple[int, int]) -> None:
        self._fd = fd
        self._key = key
        self.inode = key[1]
        self._users = 0
        self.claimed: set[int] = set()  # held by this process, which F_GETLK does not say

    @classmethod
    def open(cls, path: str, mode: int, group: int | None = None) -> Members:
        """Open or create the file at `path`; `close` it once for each `open`."""
        try:
            found = os.stat(path, follow_symlinks=False)
            members = cls._open.get((found.st_dev, found.st_ino))
        except FileNotFoundError:
            members = None
        if members is None:
            fd = open_file(path, mode, group)
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
        """In a forked child: close the files, because the parent's locks are not its own."""
        for members in cls._open.values():
            os.close(members._fd)
        cls._open.clear()

    def claim(self, index: int) -> bool:
        """Take the byte at `index`; False if a process, or an attachment of this one, has it."""
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
        """The other processes that hold a byte."""
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
        another PID namespace. Does not create the file, and only needs to read it."""
        status = os.stat(path, follow_symlinks=False)
        members = cls._open.get((status.st_dev, status.st_ino))
        if members is not None:
            return members._holders()
        # Not attached here, so that closing the file drops no lock of this process.
        fd = raise_above(os.open(path, _TO_READ))
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
        """Whether another process holds one of the bytes. The kernel does not report our own."""
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
