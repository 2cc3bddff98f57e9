"""What people write by hand where a layer would do, in the shape of a layer: queues of
multiprocessing, ZeroMQ sockets, and, as the floor, bare FIFOs.

The FIFOs carry no message and keep no queue. A layer that wakes processes through FIFOs cannot be
faster than these; what it takes beyond them is its own work.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import shutil
import tempfile
import time
from typing import Any

from benchmarks import bells

Message = dict[str, Any]

# The channels of the workloads. A queue of multiprocessing has no name: it is made before the
# processes that use it, and they inherit it.
MANY = 8
CHANNELS = ("chat", "ping", "pong", "work", *(f"work-{number}" for number in range(MANY)))


def make_folder(prefix: str) -> str:
    """A folder for what is found by path: sockets, FIFOs."""
    return tempfile.mkdtemp(prefix=f"{prefix}-")


def remove_folder(folder: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)


# -- multiprocessing ------------------------------------------------------------------------------

CAPACITY = 1_000


def make_queues(prefix: str) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    return {channel: context.Queue(CAPACITY) for channel in CHANNELS}


class Queues:
    """multiprocessing.Queue, one for each channel: a pipe, two locks, and a thread that writes."""

    ChannelFull = queue.Full

    def __init__(self, queues: dict[str, Any]) -> None:
        self._put = {channel: made.put_nowait for channel, made in queues.items()}
        self._get = {channel: made.get for channel, made in queues.items()}

    def send(self, channel: str, message: Message) -> None:
        self._put[channel](message)

    def receive(self, channels: list[str], block: bool = False) -> tuple[str, Message]:
        channel = channels[0]
        return channel, self._get[channel]()


# -- ZeroMQ ---------------------------------------------------------------------------------------


CONNECTED_WITHIN = 10_000  # milliseconds that the first send waits for a receiver ...
CONNECTED_TOO = 0.2  # ... and seconds for all the others, of which it is not told
RECONNECT = 10  # milliseconds until a receiver tries again to connect to a sender to be


class ZmqSockets:
    """PUSH and PULL sockets over unix sockets, messages packed by msgpack.

    The sender binds: ZeroMQ then deals its messages out to the receivers in turn, whether or not
    they keep up. Several senders of one channel would need a broker.
    """

    def __init__(self, folder: str, capacity: int) -> None:
        import msgpack
        import zmq

        self.ChannelFull = zmq.Again
        self._folder = folder
        self._capacity = max(capacity, 1_000)  # its count of what is taken comes in late
        self._zmq, self._context = zmq, zmq.Context()
        self._pack, self._unpack = msgpack.packb, msgpack.unpackb
        self._senders: dict[str, Any] = {}
        self._receivers: dict[str, Any] = {}

    def _address(self, channel: str) -> str:
        return f"ipc://{self._folder}/{channel}"

    def reach(self, channel: str) -> Any:
        self._senders[channel] = made = self._context.socket(self._zmq.PUSH)
        made.setsockopt(self._zmq.SNDHWM, self._capacity)
        made.bind(self._address(channel))
        made.poll(CONNECTED_WITHIN, self._zmq.POLLOUT)
        time.sleep(CONNECTED_TOO)
        return made

    def listen(self, channel: str) -> Any:
        self._receivers[channel] = made = self._context.socket(self._zmq.PULL)
        made.setsockopt(self._zmq.RCVHWM, self._capacity)
        made.setsockopt(self._zmq.RECONNECT_IVL, RECONNECT)
        made.connect(self._address(channel))
        return made

    def send(self, channel: str, message: Message) -> None:
        made = self._senders.get(channel) or self.reach(channel)
        made.send(self._pack(message), self._zmq.NOBLOCK)

    def receive(self, channels: list[str], block: bool = False) -> tuple[str, Message]:
        channel = channels[0]
        made = self._receivers.get(channel) or self.listen(channel)
        return channel, self._unpack(made.recv())


# -- FIFOs ----------------------------------------------------------------------------------------


class _Fifos:
    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._fds: dict[str, int] = {}

    def _fd(self, channel: str) -> int:
        """Open read-write, so that neither side has to wait for the other, and no ring is lost."""
        path = os.path.join(self._folder, channel)
        try:
            os.mkfifo(path)
        except FileExistsError:
            pass
        self._fds[channel] = fd = os.open(path, os.O_RDWR)
        return fd


class BlockingFifos(_Fifos):
    """The Channels 1 contract, as far as the workloads use it, over bare FIFOs."""

    def send(self, channel: str, message: Message) -> None:
        os.write(self._fds.get(channel) or self._fd(channel), b"!")

    def receive(self, channels: list[str], block: bool = False) -> tuple[str, Message]:
        channel = channels[0]
        os.read(self._fds.get(channel) or self._fd(channel), 1)
        return channel, {}


class AsyncFifos(_Fifos):
    """The Channels 4 contract, as far as `roundtrip` uses it, over bare FIFOs.

    `receive` always waits for the event loop, also where a byte is there already: it is the floor
    for a receive that waits.
    """

    def __init__(self, folder: str) -> None:
        super().__init__(folder)
        self._waiters: dict[str, bells.LoopWaiter] = {}

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
