"""A backend for Litestar's channels plugin that reaches all processes of one machine. Must not keep
a history: Litestar's Redis backend for pub/sub keeps none either.

Litestar's own memory backend reaches only its own process. This one makes each Litestar channel a
group of a layer. Each process with subscribers is a member, and gets an event once for all of them.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from hashlib import sha256
from typing import TYPE_CHECKING

from litestar.channels.backends.base import ChannelsBackend

from . import clock
from .aio import IPCChannelLayer
from .errors import InvalidName
from .names import check_group

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .options import LayerOptions


class IPCChannelsBackend(ChannelsBackend):
    """Events of ``litestar.channels.ChannelsPlugin`` over shared memory.

    Applications with the same `prefix` exchange events. The other options are those of
    `asgi_ipc.aio.IPCChannelLayer`. ``capacity`` is how many events may be pending for one process;
    further events are dropped, counted and logged.
    """

    def __init__(self, prefix: str = "litestar", **options: Unpack[LayerOptions]) -> None:
        """Raises InvalidOption."""
        self._layer = IPCChannelLayer(prefix, **options)
        self._subscribed: set[str] = set()
        self._channel = ""  # of this process, in the layer
        self._renew_at = 0.0

    async def on_startup(self) -> None:
        """Make the channel of this process; the plugin calls this."""
        self._channel = await self._layer.new_channel("litestar")
        self._renew_at = clock.monotonic() + self._layer.group_expiry / 2

    async def on_shutdown(self) -> None:
        """Leave all groups, and free what the layer uses; the plugin calls this."""
        await self.unsubscribe(list(self._subscribed))
        await self._layer.close()

    async def publish(self, data: bytes, channels: Iterable[str]) -> None:
        """Send `data` to the subscribers of `channels`, in all processes."""
        for channel in channels:
            await self._layer.group_send(_group(channel), {"channel": channel, "data": data})

    async def subscribe(self, channels: Iterable[str]) -> None:
        """Make `stream_events` yield the events of `channels`. Raises LimitReached."""
        for channel in channels:
            await self._layer.group_add(_group(channel), self._channel)
            self._subscribed.add(channel)

    async def unsubscribe(self, channels: Iterable[str]) -> None:
        """Make `stream_events` yield no more events of `channels`."""
        for channel in list(channels):
            self._subscribed.discard(channel)
            await self._layer.group_discard(_group(channel), self._channel)

    async def stream_events(self) -> AsyncGenerator[tuple[str, bytes], None]:
        """Yield (channel, data) of each event of a subscribed channel, as it comes."""
        while True:
            now, half = clock.monotonic(), self._layer.group_expiry / 2
            if not now < self._renew_at <= now + half:
                # A membership ends group_expiry seconds after its last add.
                await self.subscribe(list(self._subscribed))
                self._renew_at = clock.monotonic() + half
            queue = self._channel.partition("!")[0] + "!"
            seconds = max(self._renew_at - clock.monotonic(), 0.0)
            _, event = await self._layer.receive_async([queue], timeout=seconds)
            if event is None:
                continue
            # An event that was sent before an unsubscribe may come after it.
            if event["channel"] in self._subscribed:
                yield event["channel"], event["data"]

    async def get_history(self, channel: str, limit: int | None = None) -> list[bytes]:
        """Raise NotImplementedError: there is no history."""
        raise NotImplementedError("the shared-memory backend keeps no history")


def _group(channel: str) -> str:
    """Return the group of a Litestar channel, which may have any name; a group may not."""
    try:
        return check_group(f"litestar.{channel}")
    except InvalidName:
        return f"litestar-{sha256(channel.encode()).hexdigest()}"
