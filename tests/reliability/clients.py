"""A client of each layer, with the same calls: victims, and those who look at what they left."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import asgi_ipc
import asgi_ipc.aio
from asgi_ipc.aio import session
from asgi_ipc.attachment import upkeep
from asgi_ipc.store.layout import CLEAN, S_BURY_AT, S_DIRTY, S_SWEEP_AT
from asgi_ipc.store.store import Store

NEVER = 3600.0  # seconds until the next upkeep of a process that has none


class Blocking:
    """A client of the blocking layer, with the calls that scenarios are made of."""

    def __init__(self, prefix: str, **options: Any) -> None:
        self.layer: Any = self.new_layer(prefix, options)

    def new_layer(self, prefix: str, options: dict[str, Any]) -> Any:
        return asgi_ipc.IPCChannelLayer(prefix, **{"receive_timeout": 0.005, **options})

    def do(self, result: Any) -> Any:
        return result

    @property
    def core(self) -> Any:
        return self.layer._core

    @property
    def session(self) -> Any:
        return self.core.session or self.core.attach()

    @property
    def store(self) -> Store:
        return self.session.store

    def dirty(self) -> bool:
        """Whether somebody is in the middle of a change, as far as this client can see."""
        session = self.core.session
        return session is not None and session.store.words[S_DIRTY] != CLEAN

    def send(self, channel: str, message: dict[str, Any]) -> None:
        self.do(self.layer.send(channel, message))

    def send_or_wait(self, channel: str, message: dict[str, Any], timeout: float) -> None:
        self.do(self.layer.send(channel, message, timeout=timeout))

    def receive(self, *channels: str) -> Any:
        """What is there: (channel, message) or (None, None)."""
        return self.layer.receive(channels)

    def wait(self, *channels: str) -> Any:
        """The same, waiting for ``receive_timeout``."""
        return self.layer.receive(channels, block=True)

    def group_add(self, group: str, channel: str) -> None:
        self.do(self.layer.group_add(group, channel))

    def group_discard(self, group: str, channel: str) -> None:
        self.do(self.layer.group_discard(group, channel))

    def group_channels(self, group: str) -> list[str]:
        return self.do(self.layer.group_channels(group))

    def group_send(self, group: str, message: dict[str, Any]) -> None:
        self.layer.send_group(group, message)

    def flush(self) -> None:
        self.do(self.layer.flush())

    def close(self) -> None:
        self.do(self.layer.close())

    def idle(self) -> None:
        """Attach, and see to it that no upkeep comes in between; after `without_upkeep`."""
        session, later = self.session, time.monotonic() + NEVER
        session.attachment.upkeep.check_at = session.attachment.due = later
        session.store.doubles[S_BURY_AT] = session.store.doubles[S_SWEEP_AT] = later

    def drain(self, channel: str) -> list[Any]:
        found = []
        while True:
            name, message = self.receive(channel)
            if name is None:
                return found
            found.append((name, message["id"]))


class Asyncio(Blocking):
    """A client of the asyncio layer: each call in a new event loop, as `async_to_sync` does it."""

    def new_layer(self, prefix: str, options: dict[str, Any]) -> Any:
        return asgi_ipc.aio.IPCChannelLayer(prefix, **{"receive_timeout": 0.005, **options})

    def do(self, result: Any) -> Any:
        loop = asyncio.new_event_loop()
        try:
            return loop.run_until_complete(result)
        finally:
            for task in asyncio.all_tasks(loop):
                task.cancel()
            loop.run_until_complete(asyncio.sleep(0))
            loop.close()

    def receive(self, *channels: str) -> Any:
        return self.do(self.layer.receive_async(channels, timeout=0))

    def wait(self, *channels: str) -> Any:
        return self.do(self.layer.receive_async(channels))

    def group_send(self, group: str, message: dict[str, Any]) -> None:
        self.do(self.layer.group_send(group, message))


CLIENTS = {"blocking": Blocking, "asyncio": Asyncio}


def without_compiled() -> None:
    """For the rest of this process: what is counted are bytecodes, and the compiled path has none.
    `test_native_death` has the deaths of that."""
    session.usual = lambda *_: session.NEVER


def without_upkeep() -> None:
    """For the rest of this process: what is due later than usual is not taken for damage."""
    upkeep.CHECK_EVERY = upkeep.SWEEP_EVERY = NEVER
