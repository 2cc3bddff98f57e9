"""What people write by hand where a layer would do, in the shape of a layer: queues of
multiprocessing, ZeroMQ sockets, and, as the floor, bare FIFOs.

The FIFOs carry no message and keep no queue. A layer that wakes processes through FIFOs cannot be
faster than these. What it takes beyond them is its own work.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import queue
import shutil
import tempfile
import time
from collections.abc import Callable
from typing import Any

from benchmarks.layers.contracts import Message

# The channels of the workloads. A queue of multiprocessing has no name: it is made before the
# processes that use it, and they inherit it.
CHANNELS = ("chat", "ping", "pong", "work")
CAPACITY = 1_000


def make_folder(prefix: str) -> str:
    """A folder for what is found by path: sockets, FIFOs."""
    return tempfile.mkdtemp(prefix=f"{prefix}-")


def remove_folder(folder: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def make_queues(prefix: str) -> dict[str, multiprocessing.Queue[Message]]:
    context = multiprocessing.get_context("spawn")
    return {channel: context.Queue(CAPACITY) for channel in CHANNELS}


class Queues:
    """multiprocessing.Queue, one for each channel: a pipe, two locks, and a thread that writes."""

    ChannelFull = queue.Full

    def __init__(self, queues: dict[str, multiprocessing.Queue[Message]]) -> None:
        self._put = {channel: made.put_nowait for channel, made in queues.items()}
        self._get = {channel: made.get for channel, made in queues.items()}

    def send(self, channel: str, message: Message) -> None:
        self._put[channel](message)

    def receive(self, channels: list[str], block: bool = False) -> tuple[str, Message]:
        channel = channels[0]
        return channel, self._get[channel]()


class ZmqSockets:
    """PUSH and PULL sockets over unix sockets, messages packed by msgpack.

    The sender binds: ZeroMQ then deals its messages out to the receivers in turn, whether or not
    they keep up. Several senders of one channel would need a broker.
    """

    _CONNECTED = 10_000  # milliseconds that a sender waits for a first receiver ...
    _CONNECTED_TOO = 0.2  # ... and seconds for the others, which ZeroMQ does not report
    _RECONNECT = 10  # milliseconds until a receiver tries again to connect to its sender

    def __init__(self, folder: str, capacity: int) -> None:
        import msgpack
        import zmq

        self.ChannelFull = zmq.Again
        self._folder = folder
        self._capacity = max(capacity, CAPACITY)  # it learns late what receivers have taken
        self._zmq, self._context = zmq, zmq.Context()
        self._pack, self._unpack = msgpack.packb, msgpack.unpackb
        self._senders: dict[str, Any] = {}
        self._receivers: dict[str, Any] = {}

    async def connect(self, listens: tuple[str, ...], sends: tuple[str, ...]) -> None:
        """Connect the sockets before anything is measured."""
        for channel in listens:
            self._listen(channel)
        for channel in sends:
            self._reach(channel)

    def _address(self, channel: str) -> str:
        return f"ipc://{self._folder}/{channel}"

    def _reach(self, channel: str) -> Any:
        self._senders[channel] = made = self._context.socket(self._zmq.PUSH)
        made.setsockopt(self._zmq.SNDHWM, self._capacity)
        made.bind(self._address(channel))
        made.poll(self._CONNECTED, self._zmq.POLLOUT)
        time.sleep(self._CONNECTED_TOO)
        return made

    def _listen(self, channel: str) -> Any:
        self._receivers[channel] = made = self._context.socket(self._zmq.PULL)
        made.setsockopt(self._zmq.RCVHWM, self._capacity)
        made.setsockopt(self._zmq.RECONNECT_IVL, self._RECONNECT)
        made.connect(self._address(channel))
        return made

    def send(self, channel: str, message: Message) -> None:
        made = self._senders.get(channel) or self._reach(channel)
        made.send(self._pack(message), self._zmq.NOBLOCK)

    def receive(self, channels: list[str], block: bool = False) -> tuple[str, Message]:
        channel = channels[0]
        made = self._receivers.get(channel) or self._listen(channel)
        return channel, self._unpack(made.recv())


class BlockingFifos:
    """The Channels 1 contract, as far as the workloads use it, over bare FIFOs."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._fds: dict[str, int] = {}

    def _fd(self, channel: str) -> int:
        """Open for both, so that neither side waits for the other, and no ring is lost."""
        path = os.path.join(self._folder, channel)
        try:
            os.mkfifo(path)
        except FileExistsError:
            pass
        self._fds[channel] = fd = os.open(path, os.O_RDWR)
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

    def __init__(self, folder: str) -> None:
        self._fifos = BlockingFifos(folder)
        self._waits: dict[str, LoopWait] = {}

    async def send(self, channel: str, message: Message) -> None:
        self._fifos.send(channel, message)

    async def receive(self, channel: str) -> Message:
        wait = self._waits.get(channel)
        if wait is None:
            fd = self._fifos._fd(channel)
            self._waits[channel] = wait = LoopWait(fd, lambda: os.read(fd, 1))
        await wait()
        return {}


class LoopWait:
    """Waits on the running event loop for a descriptor: its reader sets a future, no more."""

    def __init__(self, fd: int, drain: Callable[[], object]) -> None:
        self._drain = drain
        self._loop = asyncio.get_running_loop()
        self._rung: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(fd, self._readable)

    def _readable(self) -> None:
        self._drain()
        self._rung.set_result(None)

    async def __call__(self) -> None:
        await self._rung
        self._rung = self._loop.create_future()
