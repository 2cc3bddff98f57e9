"""Whether the memory cgroup of this process, by which containers are limited, has room left.

It only reads what the kernel shows: it must not know what the memory is for.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

_MARGIN = 16 << 20  # bytes that stay free; in a small cgroup, a tenth of its limit


def cgroup_allows(length: int) -> bool:
    """Whether the memory cgroup has room for `length` more bytes and a margin.

    A cgroup refuses nothing, unlike tmpfs: it sends the OOM killer, so one has to ask first.
    """
    for limit_file, used_file in _cgroup_files():
        try:
            with open(limit_file) as file:
                limit = file.read().strip()
            if limit == "max" or int(limit) >= 1 << 60:
                continue
            with open(used_file) as file:
                free = int(limit) - int(file.read()) + _reclaimable(os.path.dirname(used_file))
        except (OSError, ValueError):
            continue
        if free - min(_MARGIN, int(limit) // 10) < length:
            return False
    return True


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


def _reclaimable(folder: str) -> int:
    """Bytes of page cache that the kernel gives up before it kills."""
    with (
        contextlib.suppress(OSError, ValueError),
        open(os.path.join(folder, "memory.stat")) as file,
    ):
        for line in file:
            name, _, value = line.partition(" ")
            if name == "inactive_file":
                return int(value)
    return 0
