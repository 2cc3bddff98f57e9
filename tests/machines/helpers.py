"""Helpers for the tests of several machines: remote layers, and what they receive."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import Any

from ..waiting import LIVENESS

CORE = "channels_redis.core.RedisChannelLayer"
PUBSUB = "channels_redis.pubsub.RedisPubSubChannelLayer"
VALKEY_PUBSUB = "channels_valkey.pubsub.ValkeyPubSubChannelLayer"
OURS = "asgi_ipc.aio.IPCChannelLayer"  # any layer for Channels 4 will do


def redis(*servers: Any, backend: str = CORE, **config: Any) -> dict[str, Any]:
    """Return the CHANNEL_LAYERS entry of channels_redis, or of channels_valkey, over `servers`."""
    scheme = "valkey" if "valkey" in backend else "redis"
    hosts = [f"{scheme}://127.0.0.1:{server.port}/0" for server in servers]
    return {"BACKEND": backend, "CONFIG": {"hosts": hosts, **config}}


async def receive(layer: Any, channel: str) -> Any:
    return await asyncio.wait_for(layer.receive(channel), LIVENESS)


async def nothing_waits(layer: Any, channel: str) -> bool:
    """Return whether a channel is empty, once everything on its way has come: the message that is
    sent last arrives first."""
    await layer.send(channel, {"last": True})
    return bool(await receive(layer, channel) == {"last": True})


async def reaches(sender: Any, group: str, receiver: Any, channel: str) -> None:
    """Send to a group until one of these messages reaches a member on another machine."""
    token = secrets.token_hex(8)
    deadline = time.monotonic() + LIVENESS

    async def read() -> None:
        while (await receiver.receive(channel)).get("token") != token:
            pass  # a message of an earlier call, or of the test

    reading = asyncio.ensure_future(read())
    while not reading.done():
        assert time.monotonic() < deadline, f"group {group!r} does not reach {channel!r}"
        await sender.group_send(group, {"token": token})
        await asyncio.wait([reading], timeout=0.05)
    await reading
