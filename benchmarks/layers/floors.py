"""The floors: bare FIFOs in the shape of a channel layer, one FIFO for each channel.

They carry no message and keep no queue. A layer that wakes processes through FIFOs cannot be faster
than these; what it takes beyond them is its own work.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from typing import Any

from benchmarks import bells

Message = dict[str, Any]


def _directory(prefix: str) -> str:
    return os.path.join(tempfile.gettempdir(), f"floor-{prefix}")


def _open(prefix: str, channel: str) -> int:
    """Read-write, so that neither side has to wait for the other, and a ring is never lost."""
    path = os.path.join(_directory(prefix), channel)
    os.makedirs(_directory(prefix), exist_ok=True)
    try:
        os.mkfifo(path)
    except FileExistsError:
        pass
    return os.open(path, os.O_RDWR)


def destroy(prefix: str) -> None:
    """Remove the FIFOs of a prefix."""
    shutil.rmtree(_directory(prefix), ignore_errors=True)


class BlockingFifos:
    """The Channels 1 contract, as far as the workloads use it, over bare FIFOs."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._fds: dict[str, int] = {}

    def _fd(self, channel: str) -> int:
        self._fds[channel] = fd = _open(self._prefix, channel)
        return fd

    def send(self, channel: str, message: Message) -> None:
        os.write(self._fds.get(channel) or self._fd(channel), b"!")

    def receive(self, channels: list[str], block: bool = False) -> tuple[str, Message]:
        channel = channels[0]
        os.read(self._fds.get(channel) or self._fd(channel), 1)
        return channel, {}


class AsyncFifos:
    """The Channels 4 contract, as far as `roundtrip` uses it, over bare FIFOs.

    `receive` always waits for the event loop, also where a byte is there already: it is the floor
    for a receive that waits.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._fds: dict[str, int] = {}
        self._waiters: dict[str, bells.LoopWaiter] = {}

    def _fd(self, channel: str) -> int:
        self._fds[channel] = fd = _open(self._prefix, channel)
        return fd

    def _waiter(self, channel: str) -> bells.LoopWaiter:
        fd = self._fd(channel)
        bell = bells.Bell(ring=lambda: None, wait=lambda: os.read(fd, 1), fd=fd)
        self._waiters[channel] = waiter = bells.LoopWaiter(bell)
        return waiter

    async def send(self, channel: str, message: Message) -> None:
        os.write(self._fds.get(channel) or self._fd(channel), b"!")

    async def receive(self, channel: str) -> Message:
        await (self._waiters.get(channel) or self._waiter(channel)).wait()
        return {}
