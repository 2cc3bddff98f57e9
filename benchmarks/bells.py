"""Ways to wake another process, all with one shape, so that one loop measures them all.

A `Bell` joins two processes; each of them makes its own end with its side, 0 or 1. `ring` wakes
the other side. `wait` sleeps until the other side has rung; where `fd` is given, an event loop can
watch it and call `wait` once it is readable.
"""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.processes import InheritedFd

ONE = (1).to_bytes(8, "little")  # what an eventfd takes


@dataclass(frozen=True)
class Bell:
    ring: Callable[[], object]
    wait: Callable[[], object]
    fd: int | None = None


@dataclass(frozen=True)
class Meeting:
    """Where the two sides find each other: FIFOs and sockets by path, semaphores by name."""

    directory: str
    eventfds: tuple[InheritedFd, InheritedFd] | None

    def path(self, side: int) -> str:
        return os.path.join(self.directory, str(side))

    def semaphore(self, side: int) -> str:
        return f"/{os.path.basename(self.directory)}.{side}"


@contextmanager
def meeting() -> Iterator[Meeting]:
    """A fresh place to meet; everything in it is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="bells-") as directory:
        fds: list[int] = []
        if hasattr(os, "eventfd"):
            fds = [os.eventfd(0), os.eventfd(0)]
        place = Meeting(directory, (InheritedFd(fds[0]), InheritedFd(fds[1])) if fds else None)
        try:
            yield place
        finally:
            for fd in fds:
                os.close(fd)
            _unlink_semaphores(place)


def fifo(place: Meeting, side: int) -> Bell:
    """Two FIFOs, each opened read-write, so that neither side depends on the other being there."""
    for path in (place.path(0), place.path(1)):
        try:
            os.mkfifo(path)
        except FileExistsError:
            pass
    mine, theirs = (os.open(place.path(which), os.O_RDWR) for which in (side, 1 - side))
    return Bell(partial(os.write, theirs, b"!"), partial(os.read, mine, 1), mine)


def eventfd(place: Meeting, side: int) -> Bell:
    """Two eventfds. They have no name: only a process that inherits them can take part."""
    assert place.eventfds is not None
    mine, theirs = place.eventfds[side].fd, place.eventfds[1 - side].fd
    return Bell(partial(os.write, theirs, ONE), partial(os.read, mine, 8), mine)


def datagram(place: Meeting, side: int) -> Bell:
    """Two unix datagram sockets, bound to a path."""
    mine = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    mine.bind(place.path(side))
    while not os.path.exists(place.path(1 - side)):
        time.sleep(0.001)
    mine.connect(place.path(1 - side))
    return Bell(partial(mine.send, b"!"), partial(mine.recv, 1), mine.fileno())


def semaphore(place: Meeting, side: int) -> Bell:
    """Two POSIX named semaphores. There is no descriptor for an event loop to watch."""
    import posix_ipc

    mine, theirs = (
        posix_ipc.Semaphore(place.semaphore(which), posix_ipc.O_CREAT) for which in (side, 1 - side)
    )
    return Bell(theirs.release, mine.acquire)


def semaphore_thread(place: Meeting, side: int) -> Bell:
    """The semaphores for an event loop: a thread waits, and passes each ring on to an eventfd."""
    bare = semaphore(place, side)
    fd = os.eventfd(0)

    def forward() -> None:
        while True:
            bare.wait()
            os.write(fd, ONE)

    threading.Thread(target=forward, daemon=True).start()
    return Bell(bare.ring, partial(os.read, fd, 8), fd)


def _unlink_semaphores(place: Meeting) -> None:
    try:
        import posix_ipc
    except ImportError:
        return
    for side in (0, 1):
        try:
            posix_ipc.unlink_semaphore(place.semaphore(side))
        except posix_ipc.ExistentialError:
            pass


class LoopWaiter:
    """Waits for a bell on the running event loop: a reader on its fd sets a future, no more."""

    def __init__(self, bell: Bell) -> None:
        assert bell.fd is not None
        self._drain = bell.wait
        self._loop = asyncio.get_running_loop()
        self._rung: asyncio.Future[Any] = self._loop.create_future()
        self._loop.add_reader(bell.fd, self._readable)

    def _readable(self) -> None:
        self._drain()
        self._rung.set_result(None)

    async def wait(self) -> None:
        await self._rung
        self._rung = self._loop.create_future()
