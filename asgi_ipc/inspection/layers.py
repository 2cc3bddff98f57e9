"""The list of the layers on this machine. Must not attach to any of them, or fail because of one
that it cannot read."""

from __future__ import annotations

import contextlib
import os

from ..attachment.process import attached_processes
from ..errors import IPCError
from ..segment.header import Header
from ..segment.opening import open_existing
from ..segment.paths import Paths, full_prefix, prefixes
from ..segment.procfs import user_name
from ..statistics import Layer
from ..store import layout as at
from .snapshot import Snapshot
from .view import View


def layers() -> list[Layer]:
    """The layers of this machine, of all users. Layers that vanish meanwhile are left out."""
    found = []
    for prefix in prefixes():
        with contextlib.suppress(FileNotFoundError):
            found.append(_layer(prefix))
    return found


def _layer(prefix: str) -> Layer:
    paths = Paths(full_prefix(prefix))
    status = os.stat(paths.file, follow_symlinks=False)
    version = in_use = pending = 0
    processes: int | None
    problem = ""
    try:
        opened = open_existing(paths)
        version = Header(os.pread(opened.number, at.PAGE, 0), status.st_size).known_version
        snapshot = Snapshot(View(prefix))
        pending, processes = snapshot.totals().pending, len(snapshot.attached)
        in_use = (snapshot.header[at.S_LIVE] & at.COUNT) * at.WORD
    except FileNotFoundError:
        raise
    except IPCError as error:
        problem = str(error)
        processes = _attached(paths)
    return Layer(
        prefix=prefix,
        layout_version=version,
        owner=user_name(status.st_uid),
        mode=oct(status.st_mode & 0o777),
        size=status.st_size,
        in_use=in_use,
        reserved=status.st_blocks * 512,
        pending=pending,
        processes=processes,
        problem=problem,
    )


def _attached(paths: Paths) -> int | None:
    """How many processes are attached; None if this user may not know."""
    try:
        return len(attached_processes(paths.members))
    except FileNotFoundError:
        return 0
    except OSError:
        return None
