"""The shared memory of a prefix: made, attached to, healed and removed. With `lock` and `doorbell`
the only file that talks to the operating system.

Beside the segment lies a directory with

- ``attach.lock``: whoever creates, heals or removes anything holds a flock on it;
- ``members``: each attached process holds an fcntl lock on the byte at the offset of its id. That
  is the kernel's word on who lives: it ends with the process, however that ends, it is not
  inherited by a fork, and it is right across PID namespaces;
- ``section.lock``: the lock itself where the ``lock="file"`` option is used;
- the doorbells of those who wait.

A segment has its full size as addresses from the start, and hardly any of it as memory: pages are
reserved in steps, before they are touched, because tmpfs kills with SIGBUS whoever touches a page
that it has no memory for.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import mmap
import os
import re
import stat
import sys
import time
from collections.abc import Iterator
from hashlib import sha256
from typing import Any, NamedTuple

import posix_ipc

from ..errors import (
    CorruptHeader,
    ForeignSegment,
    IncompatibleSegment,
    InvalidOption,
    LimitReached,
    LockTimeout,
    NoSuchLayer,
    SegmentError,
)
from ..options import MODES
from ..store.layout import (
    FIRST_MARK,
    H_CREATED,
    H_GROUP_MEMORY,
    H_LOCK,
    H_LOCK_KIND,
    H_MACHINE,
    H_MAGIC,
    H_MAX_MESSAGE,
    H_MEMBERS,
    H_MESSAGE_MEMORY,
    H_MODE,
    H_NONCE,
    H_PID_NS,
    H_SIZE,
    H_TIME_NS,
    H_VERSION,
    LOCK_FILE,
    LOCK_MUTEX,
    MAGIC,
    MAX_PROCESSES,
    PAGE,
    PROCESS_WORDS,
    VERSION,
    WORD,
    Layout,
)
from ..store.store import Store
from .cgroup import cgroup_allows
from .doorbell import Doorbell, Ringer, path_of
from .files import Descriptor, Members, check_owner, open_file
from .lock import init_mutex, machine, robust_mutexes

logger = logging.getLogger("asgi_ipc")

SHM = "/dev/shm"  # where Linux shows its segments as files
MAX_PREFIX = 100
SUFFIX = "ASGI_IPC_PREFIX_SUFFIX"  # environment variable, see `full_prefix`
_HALF_MADE = 5.0  # seconds to wait for whoever holds attach.lock


class Wanted(NamedTuple):
    """What a layer asks of its segment."""

    prefix: str
    message_memory: int
    group_memory: int
    max_message_size: int
    mode: int
    lock: str
    # Who makes the segment where it is not shared memory: an object with a method `attach` like the
    # function below. Layers with the same provider share a segment.
    provider: Any = None

    @property
    def sizes(self) -> tuple[int, int, int]:
        return self.message_memory, self.group_memory, self.max_message_size

    @property
    def lock_kind(self) -> int:
        return LOCK_FILE if self.lock == "file" or not robust_mutexes() else LOCK_MUTEX


def full_prefix(prefix: str) -> str:
    """The prefix under which shared memory is looked for: with what the environment adds to it.

    Tests set the variable, for themselves and for every process that they start, so that nothing of
    them can reach the layers of a program that runs with the same settings.
    """
    return prefix + os.environ.get(SUFFIX, "")


class Paths:
    """The names that follow from a prefix."""

    def __init__(self, prefix: str) -> None:
        if not isinstance(prefix, str) or not re.fullmatch(r"[a-zA-Z0-9._-]+", prefix):
            raise InvalidOption(
                f"prefix {prefix!r:.120} must be a str of ASCII letters, digits, '-', '_' and '.'"
            )
        if prefix.endswith(".d"):
            raise InvalidOption(
                f"prefix {prefix!r:.120} ends in '.d', as the directory beside the segment of "
                "another prefix does; choose another"
            )
        if len(prefix) > MAX_PREFIX:
            raise InvalidOption(
                f"prefix {prefix!r:.120} has {len(prefix)} characters; {MAX_PREFIX} are allowed"
            )
        name = f"asgi_ipc.{prefix}"
        # macOS allows 31 characters in the name of a segment, and shows it nowhere as a file.
        self.shows = os.path.isdir(SHM)
        if not self.shows:
            name = f"asgi_ipc.{sha256(prefix.encode()).hexdigest()[:16]}"
        self.prefix = prefix
        self.segment = f"/{name}"
        self.directory = os.path.join(SHM if self.shows else "/tmp", f"{name}.d")
        self.attach_lock = os.path.join(self.directory, "attach.lock")
        self.section_lock = os.path.join(self.directory, "section.lock")
        self.members = os.path.join(self.directory, "members")


class Segment:
    """An open segment: its memory, its layout, and the files beside it."""

    def __init__(
        self, paths: Paths, shm: Any, memory: mmap.mmap, layout: Layout, members: Members
    ) -> None:
        self.paths = paths
        self.memory = memory
        self.layout = layout
        self.fd: int = shm.fd
        self.members = members
        self.nonce = _word(memory, H_NONCE)
        self.lock_kind = _word(memory, H_LOCK_KIND)
        self.mode = _word(memory, H_MODE)
        self._header = bytes(memory[: H_LOCK * WORD])  # as it was when it was looked at
        status = os.fstat(self.fd)
        self._identity = (status.st_dev, status.st_ino)

    def reserve(self, offset: int, length: int) -> bool:
        """Make bytes of the segment safe to touch; False if there is no memory for them."""
        if not self._backed(offset, length) and not cgroup_allows(length):
            return False
        return _allocate(self.fd, offset, length)

    def _backed(self, offset: int, length: int) -> bool:
        """Whether there is memory behind some bytes already, as after a flush."""
        try:
            return os.lseek(self.fd, offset, os.SEEK_HOLE) >= offset + length
        except OSError:
            return False

    def mend(self) -> None:
        """Before a flush, under the lock: put right what that relies on and cannot know itself.

        The header, which nobody changes once it is written. And rows of tables whose own word on
        how many there are may be wrong: senders remember rows, and believe what still stands there.
        """
        if self.memory[: H_LOCK * WORD] != self._header:
            self.memory[: H_LOCK * WORD] = self._header
        for table in (self.layout.queues, self.layout.groups, self.layout.members):
            at, end = table.base * WORD, table.end * WORD
            # Only what has memory behind it: the rest holds zeros, and must not be touched. Where
            # that cannot be asked, the tables' own word has to do.
            with contextlib.suppress(OSError):
                while (at := os.lseek(self.fd, at, os.SEEK_DATA)) < end:
                    hole = min(os.lseek(self.fd, at, os.SEEK_HOLE), end)
                    self.memory[at:hole] = bytes(hole - at)
                    at = hole

    def warn_of_mode(self, wanted: Wanted) -> None:
        """Tell whoever asks for another mode than that which the segment was made with."""
        if self.mode != wanted.mode:
            logger.warning(
                "prefix %r: the segment was made with mode %#o, and this process asks for %#o: %s. "
                "To change it stop the processes of this prefix and remove it with "
                "asgi_ipc.segment.destroy()",
                wanted.prefix,
                self.mode,
                wanted.mode,
                "other users of the group are still shut out"
                if wanted.mode & 0o060
                else "other users of its group can still read and change everything",
            )

    def new_bell(self, waiter: int, generation: int) -> Doorbell:
        """The doorbell of a new waiter of this process."""
        return Doorbell(path_of(self.paths.directory, self.nonce, waiter, generation), self.mode)

    def ringer(self) -> Ringer:
        """What rings the waiters of this segment."""
        return Ringer(self.paths.directory, self.nonce)

    def exclusively(self) -> contextlib.AbstractContextManager[None]:
        """Nobody else makes, heals or removes anything meanwhile."""
        return attach_lock(self.paths, self.mode)

    def leave(self, index: int) -> None:
        """Give a process id back, and close what is open."""
        self.members.release(index)
        self.members.close()
        os.close(self.fd)

    def vanished(self) -> bool:
        """Whether this segment or what stands beside it was removed, or is another's by now."""
        try:
            if os.stat(self.paths.members).st_ino != self.members.inode:
                return True
            if self.paths.shows:
                status = os.stat(SHM + self.paths.segment)
            else:
                shm = posix_ipc.SharedMemory(self.paths.segment)
                status = os.fstat(shm.fd)
                os.close(shm.fd)
        except (FileNotFoundError, posix_ipc.ExistentialError):
            return True
        return (status.st_dev, status.st_ino) != self._identity


def _allocate(fd: int, offset: int, length: int) -> bool:
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


def attach(wanted: Wanted) -> tuple[Segment, int]:
    """Open the segment of a prefix, made or mended first if need be, and claim a process id.

    Returns the segment and the index whose byte this process now holds. Raises
    IncompatibleSegment, ForeignSegment, or SegmentError when shared memory cannot be used at all.
    """
    paths = Paths(wanted.prefix)
    with attach_lock(paths, wanted.mode):
        members = Members.open(paths.members, wanted.mode)
        opened = None
        try:
            alive = bool(members.claimed) or members.held(0, MAX_PROCESSES)
            segment = _open(paths, wanted, alive, members) or _create(paths, wanted, members)
            segment.warn_of_mode(wanted)
            if not alive and segment.lock_kind == LOCK_MUTEX:
                # Nobody else is attached, so nobody holds it: whatever it was left as is over.
                init_mutex(segment.memory, H_LOCK * WORD)
            opened = segment.fd
            for index in range(MAX_PROCESSES):
                row = segment.layout.processes + index * PROCESS_WORDS
                if not _word(segment.memory, row) and members.claim(index):
                    return segment, index
            for index in range(MAX_PROCESSES):
                if members.claim(index):
                    return segment, index
            raise LimitReached(
                f"{MAX_PROCESSES} processes are attached to prefix {wanted.prefix!r}, which is the "
                "limit; use several prefixes"
            )
        except BaseException:
            members.close()
            if opened is not None:
                os.close(opened)
            raise


def prefixes() -> list[str]:
    """The prefixes that have a segment on this machine, whoever owns them, in order of their names.

    Where the environment adds something to prefixes: those that have it, and without it. Empty on
    macOS, which does not list its shared memory.
    """
    found = []
    suffix = os.environ.get(SUFFIX, "")
    with contextlib.suppress(OSError), os.scandir(SHM) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith("asgi_ipc.") and name.endswith(suffix):
                prefix = name[len("asgi_ipc.") : len(name) - len(suffix)]
                with contextlib.suppress(InvalidOption, OSError):
                    if entry.is_file(follow_symlinks=False):
                        found.append(Paths(prefix).prefix)
    return sorted(found)


def look(paths: Paths, write: bool = False) -> int:
    """A descriptor of a segment that is there, to look at; the caller closes it.

    Not what attaching is: nothing is made or mended, and whose it is does not matter. Raises
    NoSuchLayer, which names the layers that there are, and ForeignSegment where reading (or, with
    `write`, writing) is not allowed.
    """
    try:
        fd: int = posix_ipc.SharedMemory(paths.segment, read_only=not write).fd
    except posix_ipc.ExistentialError:
        others = ", ".join(prefixes())
        raise NoSuchLayer(
            f"there is no layer with prefix {paths.prefix!r} on this machine; "
            + (f"there are: {others}" if others else "there is none at all")
        ) from None
    except posix_ipc.PermissionsError:
        raise ForeignSegment(
            f"the segment of prefix {paths.prefix!r} belongs to another user: run this as its "
            "owner or as root"
        ) from None
    return fd


def destroy(prefix: str) -> bool:
    """Remove the segment of `prefix` and the files beside it. True if there was anything.

    Processes that are attached notice within a second, and say so.
    """
    return remove(Paths(full_prefix(prefix)))


def remove(paths: Paths) -> bool:
    """`destroy` for names that are known in full."""
    found = _unlink(paths)
    if not os.path.isdir(paths.directory):
        return found
    with attach_lock(paths, 0o600):
        _unlink(paths)
        check_owner(paths.directory, os.lstat(paths.directory), 0o600, stat.S_ISDIR)
        for name in os.listdir(paths.directory):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(paths.directory, name))
        with contextlib.suppress(OSError):
            os.rmdir(paths.directory)
    return True


def _unlink(paths: Paths) -> bool:
    """Remove a segment's name. True if it was there. Raises ForeignSegment."""
    try:
        posix_ipc.unlink_shared_memory(paths.segment)
    except posix_ipc.ExistentialError:
        return False
    except posix_ipc.PermissionsError:
        raise ForeignSegment(
            f"the segment of prefix {paths.prefix!r} belongs to another user, who alone can remove "
            "it"
        ) from None
    return True


@contextlib.contextmanager
def attach_lock(paths: Paths, mode: int, timeout: float = _HALF_MADE) -> Iterator[None]:
    """Hold the flock under which everything beside a segment is made and removed."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            _make_directory(paths.directory, mode)
            opened = Descriptor(open_file(paths.attach_lock, mode))
        except FileNotFoundError:
            continue  # somebody removed the directory in between
        try:
            try:
                while not _flocked(opened.number):
                    if time.monotonic() > deadline:
                        raise LockTimeout(
                            f"another process has been attaching to prefix {paths.prefix!r} for "
                            f"{timeout:g} s (it holds {paths.attach_lock}): is it stopped?"
                        )
                    time.sleep(0.001)
                # Who waited for a lock whose file was removed meanwhile holds nothing.
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


def _make_directory(path: str, mode: int) -> None:
    mode |= (mode & 0o444) >> 2  # who may read may also look inside
    if mode & 0o060:
        mode |= stat.S_ISGID  # what is made inside belongs to the group, whoever makes it
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        check_owner(path, os.lstat(path), mode, stat.S_ISDIR)
        return
    except OSError as error:
        raise SegmentError(f"cannot make {path}: {error.strerror}") from error
    os.chmod(path, mode)  # whatever the umask


def _open(paths: Paths, wanted: Wanted, alive: bool, members: Members) -> Segment | None:
    """Attach to the segment if it is there and usable; remove it and return None if it is stale."""
    try:
        shm = posix_ipc.SharedMemory(paths.segment)  # never with a size: that would resize it
    except posix_ipc.ExistentialError:
        return None
    except posix_ipc.PermissionsError:
        raise ForeignSegment(
            f"the segment of prefix {paths.prefix!r} belongs to another user; choose another prefix"
        ) from None
    try:
        status = os.fstat(shm.fd)
        check_owner(f"the segment of prefix {paths.prefix!r}", status, wanted.mode, _any_kind)
        stale, memory = _examine(paths, wanted, shm.fd, status.st_size, members)
        if memory is not None and not (stale and not alive):
            if stale:
                raise IncompatibleSegment(stale)
            return _checked(paths, wanted, shm, memory, alive, members)
        if alive:
            raise CorruptHeader(
                f"the segment of prefix {paths.prefix!r} is {stale}, and processes are attached"
            )
    except BaseException:
        os.close(shm.fd)
        raise
    logger.warning("prefix %r: replacing a stale segment (%s)", paths.prefix, stale)
    os.close(shm.fd)
    _unlink(paths)
    return None


def _any_kind(mode: int) -> bool:
    return True


def _examine(
    paths: Paths, wanted: Wanted, fd: int, size: int, members: Members
) -> tuple[str, mmap.mmap | None]:
    """Look at the header: ("", memory) if it is usable, else why not, with the memory if it is
    at least one of ours."""
    if size < PAGE:
        return "too short to be one of ours", None
    memory = mmap.mmap(fd, size)
    if _word(memory, H_MAGIC) != MAGIC:
        return "not one of ours, or was never finished", None
    prefix = f"prefix {paths.prefix!r}"
    if (version := _word(memory, H_VERSION)) != VERSION:
        return (
            f"{prefix}: the live segment has layout version {version}, this package has version "
            f"{VERSION}. Stop the processes of one of the two, or give them different prefixes",
            memory,
        )
    if _word(memory, H_SIZE) != size:
        return "of another length than its header says", None
    if _word(memory, H_MODE) not in MODES:
        return "with a mode that none is made with", None
    if _word(memory, H_MEMBERS) != members.inode:
        return "without the files that stood beside it", None
    pid_ns, time_ns, kind = (_word(memory, at) for at in (H_PID_NS, H_TIME_NS, H_LOCK_KIND))
    share = "run all of them in one (docker run --pid=container:…)"
    if time_ns != namespace("time"):
        return f"{prefix}: the live segment was made in another time namespace; {share}", memory
    if kind != wanted.lock_kind:
        used, ours = ('"file"', '"mutex"') if kind == LOCK_FILE else ('"mutex"', '"file"')
        return (
            f"{prefix}: the live segment uses lock={used}, this process wants lock={ours}; give "
            "all of them the same",
            memory,
        )
    if kind == LOCK_MUTEX and pid_ns != namespace("pid"):
        return (
            f"{prefix}: the live segment was made in another PID namespace, where thread ids mean "
            f'other threads; {share}, or give all of them lock="file"',
            memory,
        )
    if kind == LOCK_MUTEX and _word(memory, H_MACHINE) != machine():
        return (
            f"{prefix}: the live segment was made with another libc or word size; give all "
            'processes lock="file", or the same libc',
            memory,
        )
    return "", memory


def _checked(
    paths: Paths, wanted: Wanted, shm: Any, memory: mmap.mmap, alive: bool, members: Members
) -> Segment | None:
    """The segment, if its sizes agree with themselves and, while nobody else lives, with ours."""
    sizes = tuple(_word(memory, at) for at in (H_MESSAGE_MEMORY, H_GROUP_MEMORY, H_MAX_MESSAGE))
    ours = (wanted.message_memory, wanted.group_memory, wanted.max_message_size)
    layout = Layout(*sizes) if max(sizes) <= len(memory) else None
    if layout is None or layout.size != len(memory):
        if alive:
            raise CorruptHeader(f"the header of prefix {paths.prefix!r} contradicts itself")
        sizes = ()
    if layout is not None and sizes == ours:
        return Segment(paths, shm, memory, layout, members)
    described = "message_memory %d, group_memory %d, max_message_size %d"
    if not alive:
        logger.warning(
            f"prefix %r: replacing a segment of other sizes ({described})",
            paths.prefix,
            *(sizes or (0, 0, 0)),
        )
        os.close(shm.fd)
        _unlink(paths)
        return None
    assert layout is not None
    logger.warning(
        f"prefix %r: the live segment has other sizes ({described}); they hold for all",
        paths.prefix,
        *sizes,
    )
    return Segment(paths, shm, memory, layout, members)


def _create(paths: Paths, wanted: Wanted, members: Members) -> Segment:
    layout = Layout(wanted.message_memory, wanted.group_memory, wanted.max_message_size)
    try:
        shm = posix_ipc.SharedMemory(
            paths.segment, posix_ipc.O_CREX, mode=wanted.mode, size=layout.size
        )
    except OSError as error:
        raise SegmentError(f"cannot make shared memory of {layout.size} bytes: {error}") from error
    try:
        os.fchmod(shm.fd, wanted.mode)
        if wanted.mode & 0o060:
            with contextlib.suppress(PermissionError):
                os.fchown(shm.fd, -1, os.stat(paths.directory).st_gid)
        memory = mmap.mmap(shm.fd, layout.size)
        first = _allocate(shm.fd, 0, layout.fixed_bytes)
        if not first or not _allocate(shm.fd, layout.log * WORD, FIRST_MARK):
            raise SegmentError(
                f"no room for a segment in {SHM}. Make it larger (Docker: --shm-size) or free some "
                "of it"
            )
        write_header(memory, layout, wanted, members.inode)
        return Segment(paths, shm, memory, layout, members)
    except BaseException:
        os.close(shm.fd)
        _unlink(paths)
        raise


def write_header(memory: mmap.mmap, layout: Layout, wanted: Wanted, members: int) -> None:
    """Make zeroed memory an empty segment; `members` is the inode of the file of byte locks."""
    store = Store(memory, layout)
    store.format(layout.log + FIRST_MARK // WORD, time.monotonic())
    words = store.words
    for at, value in (
        (H_VERSION, VERSION),
        (H_SIZE, layout.size),
        (H_NONCE, int.from_bytes(os.urandom(8), "little")),
        (H_MACHINE, machine()),
        (H_PID_NS, namespace("pid")),
        (H_TIME_NS, namespace("time")),
        (H_LOCK_KIND, wanted.lock_kind),
        (H_MESSAGE_MEMORY, wanted.message_memory),
        (H_GROUP_MEMORY, wanted.group_memory),
        (H_MAX_MESSAGE, wanted.max_message_size),
        (H_MODE, wanted.mode),
        (H_MEMBERS, members),
    ):
        words[at] = value
    store.doubles[H_CREATED] = time.monotonic()
    if wanted.lock_kind == LOCK_MUTEX:
        init_mutex(memory, H_LOCK * WORD)
    words[H_MAGIC] = MAGIC
    store.close()


def namespace(kind: str) -> int:
    """Inode of the namespace that this process is in; 0 where there are none."""
    try:
        return os.stat(f"/proc/self/ns/{kind}").st_ino
    except OSError:
        return 0


def _word(memory: mmap.mmap, at: int) -> int:
    return int.from_bytes(memory[at * WORD : at * WORD + WORD], sys.byteorder)
