"""The contracts of Channels 4 and of Channels 1, over channels_redis and a real server.

The suites use one machine and several clients, so their messages stay in shared memory.
test_machines.py has the tests between machines.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import pytest_asyncio

from asgi_ipc.conformance import Channels1Contract, Channels4Contract

from ..waiting import LIVENESS
from .helpers import CORE, PUBSUB, redis
from .servers import Server

pytest.importorskip("channels_redis", reason="lacking: channels_redis")


class AsyncioTwin(Channels4Contract):
    liveness = LIVENESS
    backend: str

    @property
    def ChannelFull(self) -> type[Exception]:
        return self.made[0].ChannelFull

    @property
    def MessageTooLarge(self) -> type[Exception]:
        return self.made[0].MessageTooLarge

    @pytest_asyncio.fixture
    async def make_layer(self, prefix: str, server: Server) -> AsyncIterator[Callable[..., Any]]:
        from asgi_ipc.aio import LocalAndRemoteChannelLayer

        self.made: list[Any] = []

        def make(**options: Any) -> Any:
            self.arguments = redis(server, backend=self.backend), {"prefix": prefix, **options}
            self.made.append(LocalAndRemoteChannelLayer(*self.arguments))
            return self.made[-1]

        yield make
        for layer in self.made:
            await layer.close()

    def make_peer(self, layer: Any) -> Any:
        from asgi_ipc.aio import LocalAndRemoteChannelLayer

        self.made.append(LocalAndRemoteChannelLayer(*self.arguments))
        return self.made[-1]


class TestOverCore(AsyncioTwin):
    backend = CORE


class TestOverPubSub(AsyncioTwin):
    backend = PUBSUB


class TestBlocking(Channels1Contract):
    liveness = LIVENESS

    @pytest.fixture
    def make_layer(self, prefix: str, server: Server) -> Iterator[Callable[..., Any]]:
        from asgi_ipc import LocalAndRemoteChannelLayer

        self.made: list[Any] = []

        def make(**options: Any) -> Any:
            local = {"prefix": prefix, "receive_timeout": 0.2, **options}
            self.arguments = redis(server), local
            self.made.append(LocalAndRemoteChannelLayer(*self.arguments))
            return self.made[-1]

        yield make
        for layer in self.made:
            layer.close()

    def make_peer(self, layer: Any) -> Any:
        from asgi_ipc import LocalAndRemoteChannelLayer

        self.made.append(LocalAndRemoteChannelLayer(*self.arguments))
        return self.made[-1]
