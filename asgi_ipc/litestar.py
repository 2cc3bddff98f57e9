"""A backend for Litestar's channels plugin that reaches all processes of one machine. Must not keep
a history: Litestar's Redis backend for pub/sub keeps none either.

Litestar's own memory backend reaches only its own process. This one makes each Litestar channel a
group of a layer. Each process with subscribers is a member, and gets an event once for all of them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterable
from hashlib import sha256
from typing import TYPE_CHECKING

from litestar.channels.backends.base import ChannelsBackend

from .aio import IPCChannelLayer
from .errors import InvalidName, IPCError, NotSubscribed, SegmentVanished
from .names import check_group

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .options import LayerOptions

logger = logging.getLogger("asgi_ipc")

_PAUSE = 1.0  # seconds until a stream that failed continues


class IPCChannelsBackend(ChannelsBackend):
    """Events of ``litestar.channels.ChannelsPlugin`` over shared memory.

    Applications with the same `prefix` exchange events. The other options are those of
    `asgi_ipc.aio.IPCChannelLayer`. ``capacity`` is how many events may be pending for one process;
    further events are dropped, counted and logged.
    """

    def __init__(self, prefix: str = "litestar", **options: Unpack[LayerOptions]) -> None:
        """Raises InvalidOption."""
        self._layer = IPCChannelLayer(prefix, **options)
        self._subscription = self._layer.subscribe()
        self._channels: set[str] = set()
        self._lost = 0

    @property
    def lost(self) -> int:
        """The number of events that this process could not publish. Each was logged."""
        return self._lost

    @property
    def gaps(self) -> int:
        """The number of times that this process may have missed events: see
        `asgi_ipc.aio.subscription.Subscription.gaps`."""
        return self._subscription.gaps

    async def on_startup(self) -> None:
        """Begin to receive; the plugin calls this."""
        self._subscription = self._layer.subscribe()
        await self._subscription.__aenter__()

    async def on_shutdown(self) -> None:
        """Leave all groups, and free what the layer uses; the plugin calls this."""
        self._channels.clear()
        await self._subscription.__aexit__()
        await self._layer.close()

    async def publish(self, data: bytes, channels: Iterable[str]) -> None:
        """Send `data` to the subscribers of `channels`, in all processes.

        An event that cannot be sent is logged, and counted as `lost`: the plugin publishes all
        events in one task, which an error would end.
        """
        for channel in channels:
            event = {"channel": channel, "data": data}
            try:
                try:
                    await self._layer.group_send(_group(channel), event)
                except SegmentVanished:
                    await self._layer.group_send(_group(channel), event)  # which attaches again
            except (IPCError, OSError) as error:
                self._lost += 1
                logger.error(
                    "prefix %r: an event of Litestar's channel %r was lost: %s",
                    self._layer.prefix,
                    channel,
                    error,
                )

    async def subscribe(self, channels: Iterable[str]) -> None:
        """Make `stream_events` yield the events of `channels`. Raises LimitReached."""
        names = list(channels)
        await self._subscription.join(*map(_group, names))
        self._channels.update(names)

    async def unsubscribe(self, channels: Iterable[str]) -> None:
        """Make `stream_events` yield no more events of `channels`."""
        # After the shutdown there is none left.
        names = self._channels.intersection(channels)
        self._channels -= names
        if names:
            await self._subscription.leave(*map(_group, names))

    async def stream_events(self) -> AsyncGenerator[tuple[str, bytes], None]:
        """Yield (channel, data) of each event of a subscribed channel, as it comes."""
        while True:
            try:
                async for event in self._subscription:
                    channel, data = event.get("channel"), event.get("data")
                    # An event that was sent before an unsubscribe may come after it.
                    if channel in self._channels and isinstance(data, bytes):
                        yield channel, data
            except NotSubscribed:
                return  # shut down
            except (IPCError, OSError) as error:
                # The plugin streams in one task, which must not end.
                logger.error(
                    "prefix %r: Litestar receives no events, and tries again in %g s: %s",
                    self._layer.prefix,
                    _PAUSE,
                    error,
                )
                await asyncio.sleep(_PAUSE)

    async def get_history(self, channel: str, limit: int | None = None) -> list[bytes]:
        """Raise NotImplementedError: there is no history."""
        raise NotImplementedError("the shared-memory backend keeps no history")


def _group(channel: str) -> str:
    """Return the group of a Litestar channel, which may have any name; a group may not."""
    try:
        return check_group(f"litestar.{channel}")
    except InvalidName:
        return f"litestar-{sha256(channel.encode()).hexdigest()}"
