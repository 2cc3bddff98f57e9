"""Whether the memory cgroup of this process, by which containers are limited, has room left.

It only reads what the kernel shows: it must not know what the memory is for.

Unlike tmpfs, a cgroup does not refuse memory: it starts the OOM killer, so the package has to check
first. But before that the kernel reclaims memory: what it can take back is not used up. It keeps as
many files in the page cache as the limit allows, and each file that is read again counts as active.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import NamedTuple

_MARGIN = 16 << 20  # bytes that stay free; in a small cgroup, a tenth of its limit


class FullCgroup(NamedTuple):
    """A cgroup that leaves too little room."""

    folder: str
    limit: int  # bytes


def full_cgroup(length: int) -> FullCgroup | None:
    """The memory cgroup that has no room for `length` more bytes and a margin; None if all have."""
    for limit_file, used_file in _cgroup_files():
        try:
            with open(limit_file) as file:
                limit = file.read().strip()
            if limit == "max" or int(limit) >= 1 << 60:
                continue
            margin = min(_MARGIN, int(limit) // 10)
            folder = os.path.dirname(used_file)
            with open(used_file) as file:
                free = int(limit) - int(file.read()) + _reclaimable(folder, margin)
        except (OSError, ValueError):
            continue
        if free - margin < length:
            return FullCgroup(folder, int(limit))
    return None


def _cgroup_files() -> Iterator[tuple[str, str]]:
    """The files with the limit and the use of each cgroup that this process is in, innermost first.

    Both versions of cgroups.
    """
    try:
        with open("/proc/self/cgroup") as file:
            lines = [line.strip().split(":", 2) for line in file]
    except OSError:
        return
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if controllers == "":
            root, names = "/sys/fs/cgroup", ("memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            root = "/sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        else:
            continue
        while True:
            folder = root + path.rstrip("/")
            yield os.path.join(folder, names[0]), os.path.join(folder, names[1])
            if path in ("/", ""):
                break
            path = os.path.dirname(path)


def _reclaimable(folder: str, margin: int) -> int:
    """Bytes that the kernel takes back before it kills: page cache and slabs. Of active files and
    of slabs, half is left out, but at most the margin, as in the kernel's own MemAvailable:
    programs run from there."""
    found: dict[str, int] = {}
    with (
        contextlib.suppress(OSError, ValueError),
        open(os.path.join(folder, "memory.stat")) as file,
    ):
        for line in file:
            name, _, value = line.partition(" ")
            found[name] = int(value)

    def counted(name: str) -> int:
        # In version 1 the plain figure is without the cgroups inside, which the limit counts.
        return found.get(f"total_{name}", found.get(name, 0))

    free = counted("inactive_file")
    for part in map(counted, ("active_file", "slab_reclaimable")):
        free += part - min(part // 2, margin)
    return free
