"""Doorbells: how a sender wakes a waiter. Each waiter, a thread or a loop, has a FIFO.

Waking is separate from knowing: the queue and its waiter set say *that* there is a message. The
doorbell only makes its waiter look. Each ring is the row of a queue in 4 bytes, so a loop with
thousands of tasks looks at one queue and not at all of them; 0 means all.

Why a FIFO: it has a name, so an unrelated process can open it (an eventfd has no name). It has a
descriptor, so a loop or poll can wait for it (a semaphore has no descriptor). It has permissions.
And it tells the sender when nobody reads it any more.
"""

from __future__ import annotations

import contextlib
import errno
import os
import posix  # eventlet replaces `os.read` and `os.write` by functions that wait
import signal
import stat
import struct
from array import array
from collections.abc import Callable

from ..errors import ForeignSegment
from .files import Descriptor, check_owner, raise_above
from .notes import note

# Without the enum that signal.getsignal makes of its answer, which costs more than the write.
_getsignal: Callable[[int], object] = getattr(signal, "_signal", signal).getsignal
_SIGPIPE, _SIG_IGN = int(signal.SIGPIPE), int(signal.SIG_IGN)
_pack_ring, _unpack_ring = struct.Struct("=I").pack, struct.Struct("=I").unpack

_ROOM = 4096  # bytes read at once; if there are more rings, look at everything
_READS = 16  # reads of a bell that was full: 64 KiB, as much as a FIFO holds
ALL = 0
_CLOSED = "the doorbell is closed"
# Nobody has it open, it was removed, or it never was a doorbell.
_GONE = (errno.EPIPE, errno.ENXIO, errno.ENOENT, errno.ELOOP)


def path_of(directory: str, nonce: int, waiter_id: int, generation: int) -> str:
    """The path of a waiter's doorbell, which is never used again."""
    return os.path.join(directory, f"{nonce:016x}.{waiter_id}.{generation}")


class Doorbell:
    """The receiver's end: open for reading and writing, so that it never sees an end of file."""

    def __init__(self, path: str, mode: int) -> None:
        self._path = path
        self._pid = os.getpid()
        os.mkfifo(path, mode)
        try:
            os.chmod(path, mode)  # the umask may have taken bits away
            self._open: Descriptor | None = Descriptor(
                raise_above(os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
            )
        except BaseException:
            os.unlink(path)
            raise

    def fileno(self) -> int:
        if self._open is None:
            raise ValueError(_CLOSED)
        return self._open.number

    def lost(self) -> bool:
        """Whether the program closed the descriptor, and its number may be another file's."""
        return self._open is not None and self._open.lost()

    def answer(self) -> list[int]:
        """Take all rings that have arrived; [ALL] if some may have been lost, [] for none."""
        bell = self._open  # which keeps it open, even if another thread closes this at exit
        if bell is None:
            raise ValueError(_CLOSED)
        if bell.lost():
            return [ALL]
        fd = bell.number
        try:
            read = posix.read(fd, _ROOM)
        except BlockingIOError:
            return []
        if len(read) == 4:
            return [*_unpack_ring(read)]
        if len(read) == _ROOM or len(read) % 4:
            with contextlib.suppress(BlockingIOError):
                for _ in range(_READS):  # no more: a process may write as fast as this reads
                    posix.read(fd, _ROOM)
            return [ALL]
        return list(dict.fromkeys(array("I", read)))

    def ring(self, row: int) -> None:
        """Ring this bell from a thread of the same process."""
        bell = self._open
        if bell is not None and not bell.lost():
            with contextlib.suppress(OSError):  # full of rings: the waiter knows
                posix.write(bell.number, _pack_ring(row))

    def close(
        self,
        unlink: Callable[[str], None] = os.unlink,
        getpid: Callable[[], int] = os.getpid,
    ) -> None:
        """Close the descriptor and remove the name, which in a forked child is the parent's. May be
        called twice. Uses no name of this module: a finalizer may call it while the interpreter
        takes the modules down."""
        if self._open is not None:
            self._open = None
            if self._pid != getpid():
                return
            try:
                unlink(self._path)
            except OSError:
                pass

    def forget(self) -> None:
        """In a forked child: close the descriptor and leave the name, which is the parent's."""
        self._open = None


class Ringer:
    """The senders' end, for one process: descriptors of the bells it has rung before."""

    _complained = False

    def __init__(self, directory: str, nonce: int, group: int | None = None) -> None:
        """`group`: the id of the group whose members ring each other; None: the process's own."""
        self._directory = directory
        self._nonce = nonce
        self._group = group
        self._open: dict[int, tuple[int, Descriptor]] = {}  # waiter id → generation, its bell

    def ring(self, waiter_id: int, generation: int, row: int) -> bool:
        """Wake a waiter for the queue at `row`; False if it is gone."""
        known = self._open.get(waiter_id)
        if known is None or known[0] != generation or known[1].lost():
            try:
                known = self._connect(waiter_id, generation)
            except OSError as error:
                # Out of descriptors, for example: a problem of this process, not the waiter's end.
                self._complain(error)
                return error.errno not in _GONE
            if known is None:
                return False
        try:
            if _getsignal(_SIGPIPE) == _SIG_IGN:
                posix.write(known[1].number, _pack_ring(row))
            else:
                _write_without_sigpipe(known[1].number, _pack_ring(row))
        except BlockingIOError:
            return True  # full of rings: the waiter knows
        except OSError as error:
            self._open.pop(waiter_id, None)
            return error.errno not in _GONE
        return True

    def _complain(self, error: OSError) -> None:
        if error.errno not in _GONE and not self._complained:
            self._complained = True
            note("cannot ring a doorbell, so receivers wait up to a second: %s", str(error))

    def _connect(self, waiter_id: int, generation: int) -> tuple[int, Descriptor] | None:
        self._open.pop(waiter_id, None)
        path = path_of(self._directory, self._nonce, waiter_id, generation)
        flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
        bell = Descriptor(raise_above(os.open(path, flags)))
        try:
            # Members of the group that the segment is open to ring each other.
            check_owner(path, os.fstat(bell.number), 0o660, stat.S_ISFIFO, self._group)
        except ForeignSegment as error:
            note("did not ring a doorbell: %s", str(error))
            return None
        if not generation:
            return None
        known = self._open[waiter_id] = (generation, bell)
        return known

    def forget(self, waiter_id: int) -> None:
        """Close the bell of a waiter that is known to be gone."""
        self._open.pop(waiter_id, None)

    def close(self) -> None:
        """Close all bells."""
        self._open.clear()


def _write_without_sigpipe(fd: int, data: bytes) -> None:
    """Write without the SIGPIPE by which a broken pipe would end this process."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPIPE})
    try:
        posix.write(fd, data)
    except BrokenPipeError:
        if signal.SIGPIPE not in blocked:
            signal.sigtimedwait({signal.SIGPIPE}, 0)
        raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
