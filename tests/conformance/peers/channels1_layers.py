"""Blocking layers of others: of asgiref 1.1.2, asgi_ipc 1.4.2 and asgi_redis 1.4.3. Each
environment has some of them installed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from suite import Channels1Contract, new_prefix, redis_port, whole_seconds

__all__ = ["redis_port"]


class TestAsgirefInMemory(Channels1Contract):
    @pytest.fixture
    def make_layer(self) -> Callable[..., Any]:
        from asgiref import inmemory

        # Its own default is 10, fewer than some tests send.
        return lambda **options: inmemory.ChannelLayer(**{"capacity": 100, **options})

    def make_peer(self, layer: Any) -> Any:
        return layer


class TestAsgiIpc1(Channels1Contract):
    @pytest.fixture
    def make_layer(self) -> Iterator[Callable[..., Any]]:
        import posix_ipc

        made = []

        def make(prefix: str = "", **options: Any) -> Any:
            from asgi_ipc import IPCChannelLayer

            made.append(prefix or new_prefix())
            return IPCChannelLayer(made[-1], **{"capacity": 100, **options})

        self.made = make
        yield make
        for prefix in made:
            for what in ("messages", "groups"):
                with contextlib.suppress(posix_ipc.ExistentialError):
                    posix_ipc.unlink_shared_memory(f"/{prefix}-{what}")
                with contextlib.suppress(posix_ipc.ExistentialError):
                    posix_ipc.unlink_semaphore(f"/{prefix}-{what}")

    def make_peer(self, layer: Any) -> Any:
        return self.made(layer.prefix, **self.options)


class TestAsgiRedis(Channels1Contract):
    @pytest.fixture
    def make_layer(self, redis_port: int) -> Callable[..., Any]:
        def make(prefix: str = "", **options: Any) -> Any:
            from asgi_redis import RedisChannelLayer

            prefix = prefix or new_prefix()
            where = {
                "hosts": [f"redis://127.0.0.1:{redis_port}/0"],
                "prefix": prefix,
                "stats_prefix": f"{prefix}-statistics:",
            }
            return RedisChannelLayer(**where, **whole_seconds(options))

        self.made = make
        return make

    def make_peer(self, layer: Any) -> Any:
        return self.made(layer.prefix, **self.options)
