"""The layers that are measured, and how a workload opens one and runs its loop on it.

To add a layer: a function that makes it, and an entry in `CONTENDERS`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from benchmarks.layers import floors

# The two contracts: `layer.receive(channels, block)` and `await layer.receive(channel)`.
BLOCKING = "blocking"
ASYNCIO = "asyncio"

EXPIRY = 3600  # seconds; nothing may expire while it is measured


@dataclass(frozen=True)
class Contender:
    """A channel layer.

    `store` is what it is made on: contenders with the same store and prefix talk to each other.
    `make(prefix, capacity)` opens it in this process, `destroy(prefix)` removes what that left on
    the machine. `local` ones work inside one process only. A `floor` carries no message.
    """

    name: str
    contract: str
    store: str
    make: Callable[[str, int], Any]
    destroy: Callable[[str], None]
    needs: str = ""
    local: bool = False
    floor: bool = False

    def missing(self) -> bool:
        """Whether the module that it needs cannot be imported here."""
        return bool(self.needs) and find_spec(self.needs) is None


@dataclass(frozen=True)
class Role:
    """One process's part of a workload, once for each contract; called with the layer first."""

    blocking: Callable[..., Any]
    asyncio: Callable[..., Coroutine[Any, Any, Any]]


def _asgi_ipc_blocking(prefix: str, capacity: int) -> Any:
    from asgi_ipc import IPCChannelLayer

    return IPCChannelLayer(prefix, expiry=EXPIRY, capacity=capacity)


def _asgi_ipc_asyncio(prefix: str, capacity: int) -> Any:
    from asgi_ipc.aio import IPCChannelLayer

    return IPCChannelLayer(prefix=prefix, expiry=EXPIRY, capacity=capacity)


def _asgi_ipc_destroy(prefix: str) -> None:
    from asgi_ipc import segment

    segment.destroy(prefix)


def _in_memory(prefix: str, capacity: int) -> Any:
    from channels.layers import InMemoryChannelLayer

    return InMemoryChannelLayer(expiry=EXPIRY, capacity=capacity)


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
            needs="asgi_ipc",
        ),
        Contender(
            "asgi_ipc-asyncio",
            ASYNCIO,
            "asgi_ipc",
            _asgi_ipc_asyncio,
            _asgi_ipc_destroy,
            needs="asgi_ipc",
        ),
        Contender(
            IN_MEMORY,
            ASYNCIO,
            "memory",
            _in_memory,
            lambda prefix: None,
            needs="channels",
            local=True,
        ),
        Contender(
            "FIFO-blocking",
            BLOCKING,
            "fifo",
            lambda prefix, capacity: floors.BlockingFifos(prefix),
            floors.destroy,
            floor=True,
        ),
        Contender(
            "FIFO-asyncio",
            ASYNCIO,
            "fifo",
            lambda prefix, capacity: floors.AsyncFifos(prefix),
            floors.destroy,
            floor=True,
        ),
    )
}


def floor_of(contract: str) -> Contender:
    """The bare FIFOs that a layer of this contract is compared with."""
    return next(one for one in CONTENDERS.values() if one.floor and one.contract == contract)


@contextmanager
def prefix_for(contender: Contender) -> Iterator[str]:
    """A prefix that nobody else uses; what was made under it is removed at the end."""
    prefix = f"bench-{os.getpid()}-{contender.name}"
    try:
        yield prefix
    finally:
        contender.destroy(prefix)


def new_loop(kind: str) -> asyncio.AbstractEventLoop:
    """An event loop of the given kind: "asyncio" or "uvloop"."""
    if kind == "uvloop":
        import uvloop

        made: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        return made
    return asyncio.new_event_loop()


class Player:
    """Plays roles on layers in this process; the asyncio ones all on one event loop."""

    def __init__(self, loop: str) -> None:
        self._loop = new_loop(loop)

    def play(self, contender: Contender, role: Role, layer: Any, *args: Any) -> Any:
        """Run the role's loop for the layer's contract to its end, and return what it returns."""
        if contender.contract == BLOCKING:
            return role.blocking(layer, *args)
        return self._loop.run_until_complete(role.asyncio(layer, *args))


def play(name: str, loop: str, prefix: str, capacity: int, role: Role, *args: Any) -> Any:
    """The same as the whole life of a child process: open the layer, play one role, end."""
    contender = CONTENDERS[name]
    return Player(loop).play(contender, role, contender.make(prefix, capacity), *args)
