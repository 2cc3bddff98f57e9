"""The list of the layers on this machine. Must not attach to any of them, or fail because of one
that it cannot read."""

from __future__ import annotations

import contextlib
import os
import sys

from ..errors import IPCError
from ..segment.files import Descriptor
from ..segment.procfs import user_name
from ..segment.segment import SHM, Paths, full_prefix, look, prefixes
from ..statistics import Layer
from ..store import layout as at
from .snapshot import Snapshot
from .view import View, attached_to


def layers() -> list[Layer]:
    """The layers of this machine, of all users. Layers that vanish meanwhile are left out."""
    found = []
    for prefix in prefixes():
        with contextlib.suppress(FileNotFoundError):
            found.append(_layer(prefix))
    return found


def _layer(prefix: str) -> Layer:
    paths = Paths(full_prefix(prefix))
    status = os.stat(f"{SHM}{paths.segment}", follow_symlinks=False)
    version = in_use = pending = processes = 0
    problem = ""
    try:
        opened = Descriptor(look(paths))
        head = os.pread(opened.number, 2 * at.WORD, 0)
        if len(head) == 2 * at.WORD and int.from_bytes(head[: at.WORD], sys.byteorder) == at.MAGIC:
            version = int.from_bytes(head[at.WORD :], sys.byteorder)
        snapshot = Snapshot(View(prefix))
        pending, processes = snapshot.totals().pending, len(snapshot.attached)
        in_use = snapshot.header[at.S_LIVE] * at.WORD
    except FileNotFoundError:
        raise
    except IPCError as error:
        problem = str(error)
        processes = len(attached_to(paths))
    return Layer(
        prefix=prefix,
        layout_version=version,
        owner=user_name(status.st_uid),
        mode=status.st_mode & 0o777,
        size=status.st_size,
        in_use=in_use,
        reserved=status.st_blocks * 512,
        pending=pending,
        processes=processes,
        problem=problem,
    )
