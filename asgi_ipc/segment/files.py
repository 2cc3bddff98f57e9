"""The files beside a segment: opened with exactly the wanted mode, and only if they are ours.

Two of them are locks: the flock under which everything beside a segment is created and removed, and
the byte locks that tell which processes live. This module must not open the segment itself.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import stat
import struct
import sys
import time
from _thread import TIMEOUT_MAX, allocate_lock, start_new_thread
from collections.abc import Callable, Iterable, Iterator
from types import BuiltinFunctionType
from typing import Any, NamedTuple

from .. import clock
from ..errors import ForeignSegment, LockTimeout, SegmentError
from ..store import native
from ..store.layout import MAX_PROCESSES
from .paths import Paths
from .procfs import command_line, flock_holder, group_name, is_stopped, user_name
from .refusals import reason, told

_STANDARD = 2  # the highest descriptor of the standard streams
_TO_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_OF_ANOTHER_KIND = (errno.ELOOP, errno.ENXIO, errno.EISDIR)  # a link, a socket, a directory
LOST = (
    "the program closed the file descriptors of the layer (os.closerange, as to become a daemon), "
    "so other processes took this one for dead. The next call attaches again. Close them before "
    "the first call"
)
PATIENCE = 10.0  # seconds to wait for attach.lock, where no option says how long
_POLLED = 0.005  # seconds before a thread waits for it
_waiting: set[str] = set()  # the files that a thread of this process waits for
_OFD_GETLK, _OFD_SETLK = (36, 37) if sys.platform == "linux" else (0, 0)
# The answers of a kernel without such locks, and of a sandbox that forbids them.
_NO_OFD_LOCKS = (errno.EINVAL, errno.EPERM)
_STRETCHES = 1 << 40  # behind the byte locks of all processes
_FLOCK = struct.Struct("hhqqi" if sys.platform != "darwin" else "qqihh")
_FREE = struct.pack("h", fcntl.F_UNLCK)  # how the answer to F_GETLK begins on Linux: nobody has it
ANY = -1  # of a `File`: every value matches

_left_open: list[Descriptor] = []  # in a forked child
_MARK = 0x5EC7104C  # a position that no other file is at
_latest: dict[int, int] = {}  # number of a descriptor → id of the last `Descriptor` that got it


class DescriptorsLost(SegmentError):
    """The program closed descriptors of this package: the caller has to begin again."""


class File(NamedTuple):
    """What is known of an open file: its descriptor, and its status. `ANY` matches every value."""

    number: int
    inode: int
    device: int
    links: int = ANY
    size: int = ANY
    changed: int = ANY  # in nanoseconds


def file_of(number: int) -> File:
    """What is known of an open file now, except its size and when it changed."""
    status = os.fstat(number)
    return File(number, status.st_ino, status.st_dev, status.st_nlink)


def known(*files: File) -> Any:
    """Files in the form in which `are_files` takes them."""
    return _known_to_c(files) if native.LOADED else _known_to_python(files)


def _known_to_c(files: Iterable[File]) -> bytes:
    return b"".join(struct.pack("=6q", *map(_signed, file)) for file in files)


def _signed(number: int) -> int:
    """A number of 64 bits as C converts it."""
    return (number & 2**64 - 1 ^ 1 << 63) - (1 << 63)


def _known_to_python(files: Iterable[File]) -> tuple[Any, ...]:
    """For each file: what its status is from item 1 to `end`, and the rest, or None."""
    found = []
    for number, inode, device, *rest in files:
        links, size, changed = (None if each == ANY else each for each in rest)
        same = (inode, device) if links is None else (inode, device, links)
        found.append((number, 1 + len(same), same, size, changed))
    return tuple(found)


# A finalizer may call it while the interpreter takes the names of this module away.
def _are_files(files: Any, fstat: Callable[[int], os.stat_result] = os.fstat) -> bool:
    """Whether open files are what they were. `native/known.c` does the same."""
    try:
        for number, end, same, size, changed in files:
            status = fstat(number)
            if (
                status[1:end] != same
                or (size is not None and status.st_size != size)
                or (changed is not None and status.st_ctime_ns != changed)
            ):
                return False
    except OSError:
        return False
    return True


are_files: Callable[[Any], bool] = native.are_files if native.LOADED else _are_files


class Descriptor:
    """A file descriptor that is closed when nothing refers to it any more.

    One thread may drop it while another is about to use it: the number must not mean another file
    in between. A program may also close all its descriptors (``os.closerange``), and its own files
    then get these numbers. So a descriptor that is `lost` is neither used nor closed.
    """

    __slots__ = ("_closing", "_file", "number")

    def __init__(self, number: int) -> None:
        self.number = number
        self._closing = False  # while it is closed, or where an exception interrupted that
        self._file: Any = None
        _latest[number] = id(self)
        status = os.fstat(number)
        self._file = known(File(number, status.st_ino, status.st_dev))

    def lost(
        self,
        are_files: Callable[[Any], bool] = are_files,
        latest: dict[int, int] = _latest,
    ) -> bool:
        """Whether the number no longer means this file, or the descriptor is closed."""
        owner = latest.get(self.number)
        if owner != id(self) and not (owner is None and self._closing):
            return True
        return self._file is None or not are_files(self._file)

    def mark(self) -> None:
        """Set the position in a file that nobody reads or writes, for `marked`."""
        os.lseek(self.number, _MARK, os.SEEK_SET)

    def marked(self) -> bool:
        """Whether the number still means this file: the same as `lost` tells, but far faster."""
        try:
            at = os.lseek(self.number, 0, os.SEEK_CUR)
        except OSError:
            return False
        return at == _MARK and _latest.get(self.number) == id(self)

    def close(
        self, close: Callable[[int], None] = os.close, latest: dict[int, int] = _latest
    ) -> None:
        """Close it now. May be called again, even after an exception of a signal handler."""
        ours = self._file is None or not self.lost()
        if latest.get(self.number) == id(self):
            self._closing = ours
            del latest[self.number]  # before another thread can get the number
        if self._closing and ours:
            close(self.number)
        self._closing = False

    # None uses a name of this module: the interpreter may be taking it down.
    def __del__(self) -> None:
        try:
            self.close()
        except BaseException:
            self.close()
            raise


def raise_above(fd: int) -> int:
    """Return a descriptor for the same file that is above 2, and close this one if it is not.

    If a program has closed its standard streams, a new file gets one of their numbers, and the next
    line that is printed would go into it.
    """
    if fd > _STANDARD:
        return fd
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _STANDARD + 1)
    finally:
        os.close(fd)


def map_file(fd: int, size: int, prot: int = mmap.PROT_READ | mmap.PROT_WRITE) -> mmap.mmap:
    """Map a file. The mapping has its own descriptor, which is above 2 as well."""
    fillers: list[Descriptor] = []  # they occupy the numbers up to 2 meanwhile
    for number in range(_STANDARD + 1):
        try:
            os.fstat(number)
        except OSError:
            fillers.append(Descriptor(os.open("/", os.O_RDONLY | os.O_CLOEXEC)))
    return mmap.mmap(fd, size, prot=prot)


def open_file(path: str, mode: int, group: int | None = None) -> int:
    """Open or create a file of ours, with exactly `mode`. Raises ForeignSegment. `group`: see
    `check_owner`; a new file gets that of its directory."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = raise_above(os.open(path, flags, mode))
    except FileExistsError:
        pass
    except PermissionError:
        raise _no_access(path) from None
    else:
        try:
            os.fchmod(fd, mode)  # the umask may have taken bits away
        except BaseException:
            os.close(fd)
            with contextlib.suppress(OSError):
                os.unlink(path)
            raise
        return fd
    try:
        fd = open_existing_file(path)
    except FileNotFoundError:
        return open_file(path, mode, group)
    except ForeignSegment:
        raise
    except PermissionError:
        raise _no_access(path) from None
    try:
        check_owner(path, os.fstat(fd), mode, stat.S_ISREG, group)
    except BaseException:
        os.close(fd)
        raise
    return fd


def open_existing_file(path: str, access: int = os.O_RDWR) -> int:
    """Open a file for reading or writing, without waiting for the other end of a FIFO. Raises
    ForeignSegment for what cannot be opened because it is no file."""
    with only_files(path):
        return raise_above(os.open(path, access | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC))


@contextlib.contextmanager
def only_files(path: str) -> Iterator[None]:
    """Raise ForeignSegment if `path` cannot be opened because it is no file."""
    try:
        yield
    except OSError as error:
        if error.errno not in _OF_ANOTHER_KIND:
            raise
        raise _of_another_kind(path) from None


def check_kind(path: str, status: os.stat_result, kind: Callable[[int], bool]) -> None:
    """Raise ForeignSegment for what is not of a `kind` (`stat.S_ISREG`, say)."""
    if not kind(status.st_mode):
        raise _of_another_kind(path)


def remove_file(path: str) -> None:
    """Remove a file, if there is one. Raises ForeignSegment for a directory."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except IsADirectoryError:
        raise _of_another_kind(path) from None


def _of_another_kind(path: str) -> ForeignSegment:
    return ForeignSegment(f"{path} is of another type than this package creates; remove it")


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
    `group`, if one is named, otherwise to one that this process is in.

    Also refuses what everybody can write, and what is not of this `kind`. Raises ForeignSegment.
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
    if kind is not None:
        check_kind(path, status, kind)
    if status.st_mode & 0o002:
        raise ForeignSegment(f"everybody can write to {path}; remove it, or correct its mode")


def foreign_remedy(path: str, uid: int | None = None) -> str:
    """What to do about something that another user made first: another prefix would only divide the
    processes."""
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
    paths: Paths, mode: int | None, timeout: float = PATIENCE, group: int | None = None
) -> Iterator[None]:
    """Hold the flock under which everything beside a segment is created and removed.

    Threads that wait get it in the order in which they came. Creates the directory and the file if
    there are none. With `mode` None it creates nothing, opens the file of any user, and raises
    FileNotFoundError. Raises LockTimeout after `timeout` seconds.
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
                if not _flocked(opened, paths.attach_lock, deadline - clock.monotonic()):
                    raise LockTimeout(_complaint(paths, timeout))
                # If the file was removed while we waited, this lock excludes nobody.
                ours = _is_at(opened.number, paths.attach_lock)
                if ours:
                    yield
            finally:
                # Not only closed: a child that was forked meanwhile has it open too.
                fcntl.flock(opened.number, fcntl.LOCK_UN)
        finally:
            # Again: an exception of a signal handler may have come in between.
            fcntl.flock(opened.number, fcntl.LOCK_UN)
        if ours:
            return


def _flocked(opened: Descriptor, path: str, seconds: float) -> bool:
    """Take the flock on the file at `path` within `seconds`; return whether that worked."""
    began, waited = clock.monotonic(), 0.0
    # Under gevent or eventlet a "thread" that blocks stops all others.
    threads = isinstance(start_new_thread, BuiltinFunctionType)
    while True:
        try:
            fcntl.flock(opened.number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            pass
        if waited >= seconds:
            return False
        pause = 0.001
        if waited >= _POLLED:
            if threads and path not in _waiting:
                try:
                    return _flocked_by_a_thread(opened, path, seconds - waited)
                except RuntimeError:
                    threads = False  # this process may not start one
            pause = 0.02
        time.sleep(pause)
        # The time slept counts, even if the clock stands still.
        waited = max(waited + pause, clock.monotonic() - began)


def _flocked_by_a_thread(opened: Descriptor, path: str, seconds: float) -> bool:
    """Have a thread wait in the kernel, which wakes one process after the other, in the order in
    which they came. A thread that gets the lock too late releases it at once. Until then the next
    calls for the same file poll, so there is never more than one such thread."""
    decided: dict[str, bool] = {}  # by what came first: the thread, or the end of the time
    done = allocate_lock()
    done.acquire()

    def wait() -> None:
        try:
            fcntl.flock(opened.number, fcntl.LOCK_EX)
            if not decided.setdefault("in time", True):
                fcntl.flock(opened.number, fcntl.LOCK_UN)
        except OSError:
            decided.setdefault("in time", False)
        finally:
            _waiting.discard(path)
            done.release()

    _waiting.add(path)
    try:
        start_new_thread(wait, ())
    except BaseException:
        _waiting.discard(path)
        raise
    try:
        done.acquire(timeout=min(seconds, TIMEOUT_MAX))
    finally:
        in_time = decided.setdefault("in time", False)
    return in_time


def _complaint(paths: Paths, timeout: float) -> str:
    """Tell a user which process holds the flock that others did not get."""
    pid = flock_holder(paths.attach_lock)
    if not pid:
        who = "processes that cannot be seen from here held it. Look for one that is stopped"
    else:
        who = f"process {pid} ({command_line(pid)[:100] or 'unknown'}) holds it"
        if is_stopped(pid):
            who += f", and is stopped: resume it (kill -CONT {pid}) or end it"
    return (
        f"{paths.attach_lock} was not free within {timeout:g} s, and every process that attaches "
        f"to prefix {paths.prefix!r} must hold it: {who}. If many processes start at once, give "
        "them a higher lock_timeout"
    )


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
        # Explained before the directory is removed: it may have taken the last inode.
        with told(f"create {paths.attach_lock}", FileNotFoundError):
            return open_file(paths.attach_lock, mode, group)
    except BaseException:
        if made:
            with contextlib.suppress(OSError):
                os.rmdir(paths.directory)
        raise


def _make_directory(path: str, mode: int, group: int | None) -> bool:
    """Make a directory, or check that the one that is there is ours. Returns whether it is new."""
    mode |= (mode & 0o444) >> 2  # a user who may read may also look inside
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
    except OSError as error:
        os.rmdir(path)
        if group is None:
            raise SegmentError(f"cannot create {path}: {reason(error)}") from error
        raise ForeignSegment(
            f"user {user_name(os.geteuid())} cannot give {path} to group {group_name(group or 0)}, "
            "which the option group names, without being a member of it. Add the user to the group "
            "(usermod -a -G), and restart the process"
        ) from None
    return True


class Members:
    """The file of byte locks; see `paths`.

    The kernel does not report a process its own fcntl locks, and closing any descriptor of the file
    drops all of them. So there is one object for each file, and callers must take turns
    (`attachment`).

    A process may also have several copies of this package: in sub-interpreters, or imported twice.
    They know nothing of each other. So each claim is also a lock that belongs to the open file
    (OFD), on a byte far behind the others, in a stretch that only this process uses. These locks
    are reported, and closing another descriptor does not drop them. Other processes use only the
    fcntl locks, because a fork inherits the OFD locks. A copy that closes the file holds the whole
    stretch meanwhile, so that no other copy can make a claim. If another copy has a claim, it
    leaves the file open. Without OFD locks (macOS), a process must have only one copy.
    """

    _open: dict[tuple[int, int], Members] = {}

    def __init__(self, fd: int) -> None:
        status = os.fstat(fd)
        self._file = Descriptor(fd)
        self._fd = fd
        self._key = status.st_dev, status.st_ino
        self.inode = status.st_ino
        self._pid = os.getpid()
        self._users = 0
        self.claimed: set[int] = set()  # held by this copy in this process

    @classmethod
    def open(cls, path: str, mode: int, group: int | None = None) -> Members:
        """Open or create the file at `path`; `close` it once for each `open`."""
        return cls._known(path) or cls(open_file(path, mode, group))._use()

    @classmethod
    def _known(cls, path: str) -> Members | None:
        """The object for the file at `path`, if there is one, with one more user."""
        try:
            found = os.stat(path, follow_symlinks=False)
        except FileNotFoundError:
            return None
        members = cls._open.get((found.st_dev, found.st_ino))
        return members._use() if members and not members.lost() else None

    def _use(self) -> Members:
        self._open[self._key] = self
        self._users += 1
        return self

    def lost(self) -> bool:
        """Whether the program closed the file, and all locks are gone."""
        return self._file.lost()

    def close(self) -> None:
        self._users -= 1
        self._close_unused()

    @classmethod
    def _close_unused(cls) -> None:
        """Close files that this copy no longer uses, and in which no other copy has a claim.
        Another copy may have had one when the last user here left."""
        for key, members in list(cls._open.items()):
            if not members._users and (
                members.lost() or members._mark(fcntl.F_RDLCK, 0, MAX_PROCESSES)
            ):
                members._file.close()  # first: it holds the stretch, and may be interrupted
                del cls._open[key]

    @classmethod
    def forget_all(cls) -> bool:
        """In a forked child: close the files, because the parent's locks are not its own. Returns
        whether this is the only copy of the package that used them, there and here."""
        alone = True
        for members in cls._open.values():
            if members.lost():
                continue
            here = members._elsewhere()  # a copy that noticed the fork before this one did
            alone = alone and not here and not members._elsewhere(pid=members._pid)
            if here:
                _left_open.append(members._file)  # to close it would drop that copy's locks
            else:
                members._file.close()
        cls._open.clear()
        return alone

    def claim(self, index: int) -> bool:
        """Take the byte at `index`; False if a process, or an attachment of this one, has it."""
        if index in self.claimed:
            return False
        tries = 0
        while not self._mark(fcntl.F_WRLCK, index):
            if self._elsewhere(index) or tries > 1000:
                return False
            tries += 1
            time.sleep(0.001)  # another copy is closing the file
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, index)
        except (BlockingIOError, PermissionError):
            self._mark(fcntl.F_UNLCK, index)
            return False
        self.claimed.add(index)
        return True

    def fileno(self) -> int:
        return self._fd

    def question(self, index: int) -> bytes:
        """What `all_held` asks about the byte at `index`. Linux only."""
        return _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, index, 1, 0)

    def all_held(self, questions: list[bytes]) -> bool:
        """Whether other processes hold all of these bytes."""
        for question in questions:
            if fcntl.fcntl(self._fd, fcntl.F_GETLK, question)[:2] == _FREE:
                return False
        return True

    def release(self, index: int) -> None:
        self.claimed.discard(index)
        if not self.lost():
            fcntl.lockf(self._fd, fcntl.LOCK_UN, 1, index)
            self._mark(fcntl.F_UNLCK, index)

    def pids(self) -> set[int]:
        """The other processes that hold a byte."""
        return {pid for _, pid in self._locks(fcntl.F_GETLK)}

    @classmethod
    def glance(cls, path: str) -> dict[int, int]:
        """The holder of each byte, including this process: index → process id, 0 for a process of
        another PID namespace. Does not create the file, and only needs to read it."""
        members = cls._known(path)
        if members is None:
            try:  # as `open` does, which uses the same object if it has to stay
                fd = os.open(path, _TO_READ | os.O_RDWR)
            except OSError:
                fd = os.open(path, _TO_READ)
            members = cls(raise_above(fd))._use()
        try:
            found = dict.fromkeys(members.claimed, os.getpid())
            for indices, _ in members._locks(_OFD_GETLK, _stretch(os.getpid())):
                found.update(dict.fromkeys(indices, os.getpid()))
            for indices, pid in members._locks(fcntl.F_GETLK):
                found.update(dict.fromkeys(indices, max(pid, 0)))
            return found
        finally:
            members.close()

    def held(self, index: int, count: int = 1) -> bool:
        """Whether another process holds one of the bytes, or another copy of this package in this
        process. Claims of this copy are not reported."""
        kind = self._ask(fcntl.F_GETLK, index, count)[0]
        return kind != fcntl.F_UNLCK or self._elsewhere(index, count)

    def _elsewhere(self, index: int = 0, count: int = 0, pid: int = 0) -> bool:
        """Whether another copy in this process, or in that of `pid`, has claimed one of the bytes;
        by default of all."""
        first = _stretch(pid or os.getpid()) + index
        return self._ask(_OFD_GETLK, first, count or MAX_PROCESSES)[0] != fcntl.F_UNLCK

    def _mark(self, kind: int, index: int, count: int = 1) -> bool:
        """Lock bytes of this process's stretch; False if another copy has one."""
        first = _stretch(os.getpid()) + index
        try:
            if _OFD_SETLK:
                fcntl.fcntl(self._fd, _OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, first, count, 0))
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            if error.errno not in _NO_OFD_LOCKS:
                raise
        return True

    def _locks(self, command: int, base: int = 0) -> Iterator[tuple[range, int]]:
        """The locks of others on the bytes from `base` on: (indices, process id), in any order. The
        kernel tells of one lock that is there, not of the one at the lowest byte."""
        gaps = [(0, MAX_PROCESSES)]
        while gaps:
            at, end = gaps.pop()
            kind, start, length, pid = self._ask(command, base + at, end - at)
            if kind != fcntl.F_UNLCK:
                first, last = max(start - base, at), min(start - base + max(length, 1), end)
                yield range(first, last), pid
                gaps += [gap for gap in ((at, first), (last, end)) if gap[0] < gap[1]]

    def _ask(self, command: int, index: int, count: int) -> tuple[int, int, int, int]:
        """A lock of others on some bytes: (kind, start, length, pid). A copy that closes the file
        is not reported."""
        kind, start, length, pid = fcntl.F_UNLCK, 0, 0, 0
        if self.lost():
            # The file that has its number now would say that nobody lives.
            raise DescriptorsLost(LOST)
        if sys.platform == "darwin":
            if command == fcntl.F_GETLK:
                ask = _FLOCK.pack(index, count, 0, fcntl.F_RDLCK, os.SEEK_SET)
                start, length, pid, kind, _ = _FLOCK.unpack(fcntl.fcntl(self._fd, command, ask))
        else:
            ask = _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, index, count, 0)
            try:
                kind, _, start, length, pid = _FLOCK.unpack(fcntl.fcntl(self._fd, command, ask))
            except OSError as error:
                if error.errno not in _NO_OFD_LOCKS or command != _OFD_GETLK:
                    raise
        return kind, start, length, pid


def _stretch(pid: int) -> int:
    """Where the bytes begin that tell the copies of this package in a process from each other."""
    return _STRETCHES + pid * MAX_PROCESSES
