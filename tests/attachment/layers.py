"""Small layers of one prefix, and what can be seen of them from outside. Linux only."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import pytest

import asgi_ipc
import asgi_ipc.aio
from asgi_ipc.segment.lock import robust_mutexes
from asgi_ipc.store.layout import (
    H_GROUP_MEMORY,
    H_MAX_MESSAGE,
    H_MESSAGE_MEMORY,
    P_GENERATION,
    P_PID,
    Layout,
)
from asgi_ipc.store.store import Store

from ..unit.support import KIB

SHM = Path("/dev/shm")
NOTHING = (None, None)
SOON = 10.0  # seconds, ten times those within which a process notices

LOCKS = [
    pytest.param(
        "mutex",
        marks=pytest.mark.skipif(not robust_mutexes(), reason="lacking: robust mutexes"),
    ),
    "file",
]


class Make:
    """Makes small layers of one prefix."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.made: list[Any] = []

    def __call__(self, cls: Any = asgi_ipc.IPCChannelLayer, **options: Any) -> Any:
        defaults = {
            "message_memory": 256 * KIB,
            "group_memory": 64 * KIB,
            "max_message_size": 4 * KIB,
            "receive_timeout": 0.2,
        }
        self.made.append(cls(self.prefix, **{**defaults, **options}))
        return self.made[-1]

    def asyncio(self, **options: Any) -> Any:
        return self(asgi_ipc.aio.IPCChannelLayer, **options)

    def drop(self) -> None:
        """Let go of all layers, without closing them."""
        self.made.clear()
        gc.collect()

    def look(self) -> Store:
        """A copy of what the segment holds now."""
        memory = bytearray((SHM / f"asgi_ipc.{self.prefix}").read_bytes())
        words = memoryview(memory).cast("Q")
        sizes = [words[at] for at in (H_MESSAGE_MEMORY, H_GROUP_MEMORY, H_MAX_MESSAGE)]
        words.release()
        return Store(memory, Layout(*sizes))

    def processes(self) -> list[int]:
        """The pids of the processes whose rows are in use."""
        store = self.look()
        rows = [store.process_row(index) for index in range(64)]
        return [store.words[row + P_PID] for row in rows if store.words[row + P_GENERATION]]

    def descriptors(self) -> list[str]:
        """What this process has open of the segment and the files beside it."""
        found = []
        for number in os.listdir("/proc/self/fd"):
            try:
                target = os.readlink(f"/proc/self/fd/{number}")
            except OSError:
                continue
            if f"asgi_ipc.{self.prefix}" in target:
                found.append(target)
        return sorted(found)

    def bells(self) -> list[str]:
        """The names of all doorbells, of every process."""
        folder = SHM / f"asgi_ipc.{self.prefix}.d"
        return sorted(path.name for path in folder.glob("*") if path.is_fifo())

    def remove_segment(self) -> None:
        """Do what systemd or somebody's rm does."""
        (SHM / f"asgi_ipc.{self.prefix}").unlink()
