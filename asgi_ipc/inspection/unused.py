"""The layers that no process is attached to, and since when. It only looks."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass

from ..errors import IPCError
from ..segment.paths import Paths, full_prefix, prefixes, remains
from .snapshot import Snapshot
from .view import View, attached_to


@dataclass(frozen=True)
class Unused:
    """A layer without processes, or what is left of one."""

    prefix: str
    uid: int  # of its owner
    reserved: int  # bytes of the machine's memory
    pending: int | None  # messages; None if they cannot be read
    idle: float  # seconds since a process used it, as far as that can be seen


def unused() -> list[Unused]:
    """The layers of this machine that no process is attached to, sorted by prefix; and directories
    that lie beside no segment. It leaves out layers for which this user cannot tell."""
    found = []
    for prefix in sorted({*prefixes(), *remains()}):
        with contextlib.suppress(OSError, IPCError):  # removed meanwhile, or not for this user
            paths = Paths(full_prefix(prefix))
            # It tells who is attached.
            if os.path.lexists(paths.file) and not os.access(paths.members, os.R_OK):
                continue
            if not attached_to(paths):
                found.append(_look(prefix, paths))
    return found


def _look(prefix: str, paths: Paths) -> Unused:
    status = [os.lstat(path) for path in (paths.directory, paths.file) if os.path.lexists(path)]
    used = max(one.st_mtime for one in status)
    idle = max(time.time() - used, 0.0)
    pending: int | None = None
    with contextlib.suppress(IPCError):
        snapshot = Snapshot(View(prefix))
        pending, idle = snapshot.totals().pending, min(idle, snapshot.idle())
    return Unused(prefix, status[-1].st_uid, status[-1].st_blocks * 512, pending, idle)
