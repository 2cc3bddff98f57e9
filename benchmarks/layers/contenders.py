"""The layers that are measured: what each is, how it is opened, and where it runs.

To add a layer: a function that makes it, and an entry in `CONTENDERS`.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.layers import byhand, redis_server
from benchmarks.processes import OURS_FIRST, OURS_LAST

# The two contracts: `layer.receive(channels, block)` and `await layer.receive(channel)`.
BLOCKING = "blocking"
ASYNCIO = "asyncio"

EXPIRY = 3600  # seconds; nothing may expire while it is measured
PAUSE = 0.01  # seconds that a worker of Channels 1 sleeps between two receives without a message

PEERS_OF_CHANNELS_1 = "channels1-peers"  # the environment in tests/environments.py


@dataclass(frozen=True)
class Contender:
    """A channel layer.

    `store` is what it is made on: contenders with the same store and place talk to each other.
    `make(place, capacity)` opens it in this process, `destroy(place)` removes what that left on
    the machine; a place is a prefix, or what `meet(prefix)` made of it. `needs`: modules without
    which it is left out. `environment` is the one that it runs in; if none is named, this very
    interpreter's.

    `ours`: it is what this repository is about. `local`: it works inside one process only. `floor`:
    it carries no message. `queues`: messages wait for a receiver that is not there yet, and several
    receivers may share a channel. `groups`: it has them. `connects`: its two ends have to find each
    other first. `slow`: it takes a millisecond for what takes others microseconds, so that fewer
    samples of it will do.
    """

    name: str
    contract: str
    store: str
    make: Callable[[Any, int], Any]
    destroy: Callable[[Any], None]
    meet: Callable[[str], Any] = str
    needs: tuple[str, ...] = ()
    environment: str = ""
    ours: bool = False
    local: bool = False
    floor: bool = False
    queues: bool = True
    groups: bool = True
    connects: bool = False
    slow: bool = False

    def python(self) -> tuple[str, str]:
        """The interpreter that it runs in, and where our repository stands on its path."""
        if not self.environment:
            return sys.executable, OURS_FIRST
        return str(_environment(self.environment)), OURS_LAST

    def missing(self) -> str:
        """What it lacks here to be measured; "" if nothing."""
        if self.store == "redis" and shutil.which("redis-server") is None:
            return "redis-server is not installed (on Debian: apt-get install redis-server)"
        if self.environment:
            try:
                _environment(self.environment)
            except LookupError as error:
                return str(error)
            return ""
        absent = [module for module in self.needs if find_spec(module) is None]
        return f"not installed: {', '.join(absent)} (make bench installs all)" if absent else ""


@cache
def _environment(name: str) -> Path:
    from tests import environments

    return environments.build(name)


def _asgi_ipc_blocking(prefix: str, capacity: int, **options: Any) -> Any:
    from asgi_ipc import IPCChannelLayer

    return IPCChannelLayer(prefix, expiry=EXPIRY, capacity=capacity, **options)


def _asgi_ipc_asyncio(prefix: str, capacity: int, **options: Any) -> Any:
    from asgi_ipc.aio import IPCChannelLayer

    return IPCChannelLayer(prefix=prefix, expiry=EXPIRY, capacity=capacity, **options)


def _asgi_ipc_destroy(prefix: str) -> None:
    from asgi_ipc import segment

    segment.destroy(prefix)


def _in_memory(prefix: str, capacity: int) -> Any:
    from channels.layers import InMemoryChannelLayer

    return InMemoryChannelLayer(expiry=EXPIRY, capacity=capacity)


def _channels_redis(prefix: str, capacity: int) -> Any:
    from channels_redis.core import RedisChannelLayer

    hosts = [("127.0.0.1", redis_server.port())]
    return RedisChannelLayer(hosts, prefix=prefix, expiry=EXPIRY, capacity=capacity)


def _channels_redis_pubsub(prefix: str, capacity: int) -> Any:
    from channels_redis.pubsub import RedisPubSubChannelLayer

    return RedisPubSubChannelLayer(hosts=[("127.0.0.1", redis_server.port())], prefix=prefix)


def _asgi_redis(prefix: str, capacity: int) -> Any:
    from asgi_redis import RedisChannelLayer

    hosts = [("127.0.0.1", redis_server.port())]
    return RedisChannelLayer(EXPIRY, hosts, prefix + ":", capacity=capacity)


def _asgi_ipc_1(prefix: str, capacity: int) -> Any:
    """Its blocking receive returned at once; whoever called it slept, and tried again."""
    from asgi_ipc import IPCChannelLayer

    class Polling(IPCChannelLayer):  # type: ignore[misc]
        def receive(self, channels: Any, block: bool = False) -> Any:
            found = super().receive(channels)
            while block and found[0] is None:
                time.sleep(PAUSE)
                found = super().receive(channels)
            return found

    return Polling(prefix, expiry=EXPIRY, capacity=capacity)


def _asgi_ipc_1_destroy(prefix: str) -> None:
    for path in Path("/dev/shm").glob(f"*{prefix}-*"):
        path.unlink()


IN_MEMORY = "InMemory"  # what `pair` compares with

CONTENDERS = {
    contender.name: contender
    for contender in (
        Contender(
            "asgi_ipc-blocking",
            BLOCKING,
            "asgi_ipc",
            _asgi_ipc_blocking,
            _asgi_ipc_destroy,
            needs=("asgi_ipc",),
            ours=True,
        ),
        Contender(
            "asgi_ipc-asyncio",
            ASYNCIO,
            "asgi_ipc",
            _asgi_ipc_asyncio,
            _asgi_ipc_destroy,
            needs=("asgi_ipc",),
            ours=True,
        ),
        Contender(
            IN_MEMORY,
            ASYNCIO,
            "memory",
            _in_memory,
            lambda prefix: None,
            needs=("channels",),
            local=True,
        ),
        Contender(
            "channels_redis",
            ASYNCIO,
            "redis",
            _channels_redis,
            redis_server.forget,
            needs=("channels_redis",),
            slow=True,
        ),
        Contender(
            "channels_redis-pubsub",
            ASYNCIO,
            "redis",
            _channels_redis_pubsub,
            redis_server.forget,
            needs=("channels_redis",),
            queues=False,
            slow=True,
        ),
        Contender(
            "asgi_redis-1.4.3",
            BLOCKING,
            "redis",
            _asgi_redis,
            redis_server.forget,
            environment=PEERS_OF_CHANNELS_1,
            slow=True,
        ),
        Contender(
            "asgi_ipc-1.4.2",
            BLOCKING,
            "asgi_ipc 1",
            _asgi_ipc_1,
            _asgi_ipc_1_destroy,
            environment=PEERS_OF_CHANNELS_1,
            slow=True,
        ),
        Contender(
            "multiprocessing.Queue",
            BLOCKING,
            "multiprocessing",
            lambda queues, capacity: byhand.Queues(queues),
            lambda queues: None,
            meet=byhand.make_queues,
            groups=False,
        ),
        Contender(
            "zmq-ipc",
            BLOCKING,
            "zmq",
            byhand.ZmqSockets,
            byhand.remove_folder,
            meet=byhand.make_folder,
            needs=("zmq", "msgpack"),
            groups=False,
            connects=True,
        ),
        Contender(
            "FIFO-blocking",
            BLOCKING,
            "fifo",
            lambda folder, capacity: byhand.BlockingFifos(folder),
            byhand.remove_folder,
            meet=byhand.make_folder,
            floor=True,
            groups=False,
        ),
        Contender(
            "FIFO-asyncio",
            ASYNCIO,
            "fifo",
            lambda folder, capacity: byhand.AsyncFifos(folder),
            byhand.remove_folder,
            meet=byhand.make_folder,
            floor=True,
            groups=False,
        ),
    )
}


# Our layers without `spin`, as they are where messages come slowly: who waits sleeps.
ASLEEP = {
    one.name: replace(one, name=f"{one.name}-asleep", make=partial(one.make, spin=0))
    for one in CONTENDERS.values()
    if one.ours
}


def with_asleep(contenders: list[Contender]) -> list[Contender]:
    """These, each of ours followed by its like that sleeps."""
    found = []
    for one in contenders:
        found += [one, ASLEEP[one.name]] if one.ours else [one]
    return found


def contender(name: str) -> Contender:
    """The one of that name, those asleep included."""
    return next(one for one in [*CONTENDERS.values(), *ASLEEP.values()] if one.name == name)


def floor_of(contract: str) -> Contender:
    """The bare FIFOs that a layer of this contract is compared with."""
    return next(one for one in CONTENDERS.values() if one.floor and one.contract == contract)


def new_prefix(name: str) -> str:
    """A prefix that nobody else uses."""
    return f"benchmark-{os.getpid()}-{name}"
