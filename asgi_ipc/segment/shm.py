"""Shared memory by name: opened, created and removed. Nothing else in the package does that.

posix_ipc does it where it is installed. Elsewhere on Linux this uses the file in ``/dev/shm``, as
``shm_open`` of glibc and of musl does: posix_ipc has no wheel for every Python, and building it
needs a compiler. Both ways lead to the same memory. On Linux, posix_ipc never opens an existing
object here: it would wait if somebody had put a FIFO there.

A free-threaded Python does not import posix_ipc, which would turn the GIL on.

Errors are those of the operating system: FileNotFoundError, FileExistsError, PermissionError, or
another OSError. This module must not judge what it opens: `opening` does.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import Any

from .paths import SHM

_LINUX = sys.platform.startswith("linux")


def _library() -> Any:
    """Return posix_ipc; None to do without."""
    # Whether the GIL is on right now says nothing: another import turns it on for a moment.
    if _LINUX and "t" in sys.abiflags:
        return None
    try:
        import posix_ipc
    except ImportError:
        if _LINUX:
            return None
        raise  # elsewhere, nothing else can open shared memory by its name
    return posix_ipc


_posix_ipc = _library()


def open_memory(name: str, write: bool = True) -> int:
    """Open the shared memory `name` ("/name") and return its descriptor.

    Raises FileNotFoundError if there is none.
    """
    if _LINUX:
        return _open_file(name, os.O_RDWR if write else os.O_RDONLY)
    with _as_os_error(name, errno.ENOENT):
        # Never with a size: that would resize it.
        return int(_posix_ipc.SharedMemory(name, read_only=not write).fd)


def create_memory(name: str, mode: int, size: int) -> int:
    """Create shared memory of `size` bytes and return its descriptor. The umask may take bits of
    `mode` away.

    Raises FileExistsError if the name is taken. An error leaves nothing behind.
    """
    if _posix_ipc is not None:
        with _as_os_error(name, errno.EEXIST):
            made = _posix_ipc.SharedMemory(name, _posix_ipc.O_CREX, mode=mode, size=size)
            return int(made.fd)
    fd = _open_file(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
    try:
        os.ftruncate(fd, size)
    except BaseException:
        os.close(fd)
        unlink_memory(name)
        raise
    return fd


def unlink_memory(name: str) -> None:
    """Remove the name; a process that has the memory open keeps it.

    Raises FileNotFoundError if there is no such name.
    """
    if _posix_ipc is None:
        os.unlink(SHM + name)
        return
    with _as_os_error(name, errno.ENOENT):
        _posix_ipc.unlink_shared_memory(name)


def _open_file(name: str, flags: int, mode: int = 0) -> int:
    # O_NONBLOCK: because of FIFOs, too.
    return os.open(SHM + name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, mode)


@contextlib.contextmanager
def _as_os_error(name: str, existential: int) -> Iterator[None]:
    """Turn the errors of posix_ipc into those of the operating system. `existential`: the number
    of the one that it calls ExistentialError."""
    try:
        yield
        return
    except _posix_ipc.ExistentialError:
        code, text = existential, os.strerror(existential)
    except _posix_ipc.PermissionsError:
        code, text = errno.EACCES, os.strerror(errno.EACCES)
    except ValueError as error:  # a size or a name that the system refuses
        code = errno.EFBIG if "size" in str(error) else errno.EINVAL
        text = str(error)
    raise OSError(code, text, name)
