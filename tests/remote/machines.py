"""Machines for the tests: layers under prefixes of their own, over one remote layer."""

from __future__ import annotations

from typing import Any

CORE = "channels_redis.core.RedisChannelLayer"
PUBSUB = "channels_redis.pubsub.RedisPubSubChannelLayer"


def redis(*servers: Any, backend: str = CORE, **config: Any) -> dict[str, Any]:
    """The CHANNEL_LAYERS entry of channels_redis over some servers."""
    return {"BACKEND": backend, "CONFIG": {"hosts": [one.url for one in servers], **config}}
