"""The layers that are measured: what each is, how it is opened, and where it runs.

To add a layer, write a function that makes it, and an entry in `CONTENDERS`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.layers import byhand, redis_server
from benchmarks.processes import OURS_FIRST, OURS_LAST

# The two contracts: `layer.receive(channels, block)` and `await layer.receive(channel)`.
BLOCKING, ASYNCIO = "blocking", "asyncio"

EXPIRY = 3600  # seconds; nothing may expire while it is measured
PAUSE = 0.01  # seconds that a worker of Channels 1 sleeps between two receives without a message

PEERS_OF_CHANNELS_1 = "channels1-peers"  # the environment in tests/environments.py

Place = Any  # where layers meet: a prefix, a folder, or queues to inherit
Connect = Callable[[Any, "tuple[str, ...]", "tuple[str, ...]"], Coroutine[Any, Any, None]]


@dataclass(frozen=True)
class Contender:
    """A channel layer.

    `store` is what it is made on: contenders with the same store and place talk to each other.
    `make(place, capacity)` opens it in this process, and `destroy(place)` removes what that left on
    the machine. A place is a prefix, or what `meet(prefix)` made of it. `connect(layer, listens,
    sends)` is for layers that have to find each other first. `needs` are the modules without which
    the layer is left out. `environment` is the one that it runs in; without a name it is this
    interpreter's.

    `ours`: this repository is about it. `local`: it works inside one process only. `floor`: it
    carries no message. `queues`: messages wait for a receiver that is not there yet, and several
    receivers may share a channel. `groups`: it has them. `slow`: it takes a millisecond for what
    takes others microseconds, so that fewer samples of it will do.
    """

    name: str
    contract: str
    store: str
    make: Callable[..., Any]
    destroy: Callable[[Place], None]
    meet: Callable[[str], Place] = str
    connect: Connect | None = None
    needs: tuple[str, ...] = ()
    environment: str = ""
    ours: bool = False
    local: bool = False
    floor: bool = False
    queues: bool = True
    groups: bool = True
    slow: bool = False

    def python(self) -> tuple[str, str]:
        """The interpreter that it runs in, and where this repository comes on its path."""
        if not self.environment:
            return sys.executable, OURS_FIRST
        return str(_environment(self.environment)), OURS_LAST

    def missing(self) -> str:
        """What it lacks here to be measured; "" if nothing."""
        if self.store == "redis" and redis_server.missing():
            return redis_server.missing()
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


def _pure(make: Callable[..., Any], prefix: str, capacity: int, **options: Any) -> Any:
    """A layer that attaches now, and does not use the compiled path."""
    from asgi_ipc.aio.session import NEVER

    layer = make(prefix, capacity, **options)
    layer._core.attach().usual = NEVER
    return layer


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


async def _subscribe(layer: Any, listens: tuple[str, ...], sends: tuple[str, ...]) -> None:
    """With pub/sub nothing is kept for a receiver that has not begun to receive."""
    for channel in listens:
        await layer._get_layer()._subscribe_to_channel(channel)


def _local_and_remote(prefix: str, capacity: int) -> Any:
    from asgi_ipc.aio import LocalAndRemoteChannelLayer

    options = {"prefix": prefix, "capacity": capacity, "expiry": EXPIRY}
    config = {"hosts": [f"redis://127.0.0.1:{redis_server.port()}"], **options}
    remote = {"BACKEND": "channels_redis.core.RedisChannelLayer", "CONFIG": config}
    return LocalAndRemoteChannelLayer(remote, options)


def _local_and_remote_destroy(prefix: str) -> None:
    _asgi_ipc_destroy(prefix)
    redis_server.forget(prefix)


_LITE = "channels.sqlite3"  # the database, in a folder
_MIGRATE = """
import django
from django.conf import settings
from django.core.management import call_command

database = {"ENGINE": "django.db.backends.sqlite3", "NAME": __import__("sys").argv[1]}
settings.configure(DATABASES={"default": database}, INSTALLED_APPS=["channels_lite"])
django.setup()
call_command("migrate", verbosity=0)
"""


def _channels_lite_meet(prefix: str) -> str:
    folder = byhand.make_folder(prefix)
    subprocess.run([sys.executable, "-c", _MIGRATE, f"{folder}/{_LITE}"], check=True)
    return folder


def _channels_lite(folder: str, capacity: int) -> Any:
    from django.conf import settings

    if not settings.configured:
        settings.configure(DATABASES={})
    path = f"{folder}/{_LITE}"
    settings.DATABASES[folder] = {"ENGINE": "django.db.backends.sqlite3", "NAME": path}
    from channels_lite.layers.aio import AIOSQLiteChannelLayer

    return AIOSQLiteChannelLayer(database=folder, expiry=EXPIRY, capacity=capacity)


def _asgi_redis(prefix: str, capacity: int) -> Any:
    from asgi_redis import RedisChannelLayer

    hosts = [("127.0.0.1", redis_server.port())]
    return RedisChannelLayer(EXPIRY, hosts, prefix + ":", capacity=capacity)


def _asgi_ipc_1(prefix: str, capacity: int) -> Any:
    """Its blocking receive returned at once; programs slept, and tried again."""
    from asgi_ipc import IPCChannelLayer

    class Polling(IPCChannelLayer):
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


_ours = partial(
    Contender, store="asgi_ipc", destroy=_asgi_ipc_destroy, needs=("asgi_ipc",), ours=True
)
_ours_pure = partial(_ours, needs=("asgi_ipc._native",))
_redis = partial(Contender, store="redis", destroy=redis_server.forget, slow=True)
_by_hand = partial(Contender, meet=byhand.make_folder, destroy=byhand.remove_folder, groups=False)

IN_MEMORY = "InMemory"  # what `pair` compares with

_CONTENDERS = (
    _ours("asgi_ipc-blocking", BLOCKING, make=_asgi_ipc_blocking),
    _ours("asgi_ipc-asyncio", ASYNCIO, make=_asgi_ipc_asyncio),
    # Where the compiled path is not in use, the rows above are of pure Python.
    _ours_pure("asgi_ipc-blocking-pure", BLOCKING, make=partial(_pure, _asgi_ipc_blocking)),
    _ours_pure("asgi_ipc-asyncio-pure", ASYNCIO, make=partial(_pure, _asgi_ipc_asyncio)),
    Contender(
        IN_MEMORY, ASYNCIO, "memory", _in_memory, lambda _: None, needs=("channels",), local=True
    ),
    _redis("channels_redis", ASYNCIO, make=_channels_redis, needs=("channels_redis",)),
    _redis(
        "channels_redis-pubsub",
        ASYNCIO,
        make=_channels_redis_pubsub,
        connect=_subscribe,
        needs=("channels_redis",),
        queues=False,
    ),
    Contender(
        "channels-lite",
        ASYNCIO,
        "channels-lite",
        _channels_lite,
        byhand.remove_folder,
        meet=_channels_lite_meet,
        needs=("channels_lite", "aiosqlite"),
        slow=True,
    ),
    _redis("asgi_redis-1.4.3", BLOCKING, make=_asgi_redis, environment=PEERS_OF_CHANNELS_1),
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
        lambda queues, _: byhand.Queues(queues),
        lambda _: None,
        meet=byhand.make_queues,
        groups=False,
    ),
    _by_hand(
        "zmq-ipc",
        BLOCKING,
        "zmq",
        byhand.ZmqSockets,
        connect=byhand.ZmqSockets.connect,
        needs=("zmq", "msgpack"),
    ),
    _by_hand(
        "FIFO-blocking",
        BLOCKING,
        "fifo",
        lambda folder, _: byhand.BlockingFifos(folder),
        floor=True,
    ),
    _by_hand(
        "FIFO-asyncio", ASYNCIO, "fifo", lambda folder, _: byhand.AsyncFifos(folder), floor=True
    ),
)
CONTENDERS = {one.name: one for one in _CONTENDERS}

# Our layers without `spin`, as they are where messages come slowly: a receiver sleeps.
ASLEEP = {
    one.name: replace(one, name=f"{one.name}-asleep", make=partial(one.make, spin=0))
    for one in _CONTENDERS
    if one.ours
}

LOCAL_AND_REMOTE = _ours(
    "local-and-remote", ASYNCIO, make=_local_and_remote, destroy=_local_and_remote_destroy
)


def with_asleep(contenders: list[Contender]) -> list[Contender]:
    """These contenders, each of ours followed by the one that sleeps."""
    found = []
    for one in contenders:
        found += [one, ASLEEP[one.name]] if one.ours else [one]
    return found


def contender(name: str) -> Contender:
    """The one of that name, including those asleep and the one for several machines."""
    known = [*_CONTENDERS, *ASLEEP.values(), LOCAL_AND_REMOTE]
    return next(one for one in known if one.name == name)


def floor_of(contract: str) -> Contender:
    """The bare FIFOs that a layer of this contract is compared with."""
    return next(one for one in _CONTENDERS if one.floor and one.contract == contract)


def new_prefix(name: str) -> str:
    """A prefix that nobody else uses."""
    return f"benchmark-{os.getpid()}-{name}"
