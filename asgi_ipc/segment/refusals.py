"""What the operating system refuses, in words: what is missing, and the remedy.

Every system call that a user's call leads to ends here if it fails in a way that its caller does
not expect. So only errors of this package are raised.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from ..errors import IPCError, SegmentError
from .paths import SHM
from .procfs import user_name

FULL = f"{SHM} is full. Enlarge it (docker run --shm-size=...), or free some of it"
NO_INODES = (
    f"{SHM} has no inodes left. Remove files there that no program uses, or allow more (mount -o "
    f"remount,nr_inodes=... {SHM})"
)
MISSING = (
    f"there is no {SHM}, in which Linux keeps shared memory. Mount a tmpfs there, with mode 1777 "
    "(a chroot or sandbox: bind the host's)"
)
READ_ONLY = (
    f"{SHM} is read-only. Mount it writable (mount -o remount,rw {SHM}; for a container, a "
    "tmpfs of its own)"
)

_WHY = {
    errno.ENOMEM: (
        "this process may not use that much address space, or the machine has no more memory, or "
        "(with vm.overcommit_memory=2) promises no more. Raise that limit (ulimit -v, LimitAS= in "
        "its systemd unit, vm.overcommit_ratio), or lower message_memory and group_memory"
    ),
    errno.EFBIG: (
        "this process may not make such large files. Raise its limit (ulimit -f, or LimitFSIZE= in "
        "its systemd unit), or lower message_memory and group_memory"
    ),
    errno.EMFILE: (
        "this process has as many files open as it may. Raise its limit (ulimit -n, or "
        "LimitNOFILE= in its systemd unit), or close some"
    ),
    errno.ENFILE: (
        "the machine has as many files open as it may. Raise fs.file-max (sysctl), or end the "
        "program that opens most of them"
    ),
    errno.EDQUOT: f"the quota of {SHM} is used up. Raise it, or free some of it",
    errno.EROFS: READ_ONLY,
    errno.EPERM: (
        "the call is not permitted. A sandbox may forbid it: allow it there (docker run "
        "--security-opt seccomp=..., SystemCallFilter= in its systemd unit)"
    ),
}

# What posix_ipc says in words only.
_POSIX_IPC = {
    "This process already has the maximum number of files open": errno.EMFILE,
    "The system limit on the total number of open files has been reached": errno.ENFILE,
}


def reason(error: OSError | ValueError) -> str:
    """Why the system refused something, and the remedy."""
    number = getattr(error, "errno", None) or _POSIX_IPC.get(str(error), 0)
    if number == errno.ENOSPC:
        return NO_INODES if _no_inodes() else FULL
    if number in (errno.ENOENT, errno.ENOTDIR) and not os.path.isdir(SHM):
        return MISSING
    if number == errno.EACCES:
        return (
            f"{os.strerror(number)}: user {user_name(os.geteuid())} may not write there. The mode "
            f"of {SHM} is normally 1777"
        )
    # A mapping that is larger than its file, which could not be made large enough.
    if isinstance(error, ValueError):
        return f"{error}. {_WHY[errno.EFBIG]}"
    return _WHY.get(number) or os.strerror(number) if number else str(error)


def _no_inodes() -> bool:
    try:
        status = os.statvfs(SHM)
    except OSError:
        return False
    return bool(status.f_files and not status.f_favail)


@contextlib.contextmanager
def told(doing: str, *others: type[OSError]) -> Iterator[None]:
    """Raise SegmentError, with the reason and the remedy, if the system refuses what the block asks
    of it. `doing` completes "cannot ...". Errors of this package pass, and `others`."""
    try:
        yield
    except IPCError:
        raise
    except others:
        raise
    except (OSError, ValueError) as error:
        raise SegmentError(f"cannot {doing}: {reason(error)}") from error
