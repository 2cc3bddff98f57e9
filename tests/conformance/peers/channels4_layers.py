"""Asynchronous layers of others: of Channels and of channels_redis."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from suite import Channels4Contract, new_prefix, redis_port, whole_seconds

__all__ = ["redis_port"]


class TestInMemory(Channels4Contract):
    liveness = 5.0
    granularity = 1.0

    @pytest.fixture
    def make_layer(self) -> Callable[..., Any]:
        from channels.layers import InMemoryChannelLayer

        return InMemoryChannelLayer

    def make_peer(self, layer: Any) -> Any:
        return layer


class RedisContract(Channels4Contract):
    layer_class: str
    granularity = 1.0

    @pytest.fixture
    def make_layer(self, redis_port: int) -> Callable[..., Any]:
        def make(prefix: str = "", **options: Any) -> Any:
            from channels_redis import core, pubsub

            layer_class = getattr(core, self.layer_class, None) or getattr(pubsub, self.layer_class)
            prefix = prefix or new_prefix()
            hosts = [f"redis://127.0.0.1:{redis_port}"]
            return layer_class(hosts=hosts, prefix=prefix, **whole_seconds(options))

        self.made = make
        return make

    def make_peer(self, layer: Any) -> Any:
        return self.made(layer.prefix, **self.options)


class TestRedisCore(RedisContract):
    layer_class = "RedisChannelLayer"


class TestRedisPubSub(RedisContract):
    liveness = 1.0  # it drops messages sent before the first receive: many tests wait in vain
    layer_class = "RedisPubSubChannelLayer"
