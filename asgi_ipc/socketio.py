"""Client managers for python-socketio and Flask-SocketIO, so that several processes of one machine
need no message queue server. Must not know what the events mean.

The managers of the other processes get what one process emits by a subscription, as the same JSON
that the library's own managers publish. As with the library's Redis manager, room memberships stay
in the process of their client, and sessions are not shared at all.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

from socketio.async_pubsub_manager import AsyncPubSubManager
from socketio.pubsub_manager import PubSubManager

from .aio import IPCChannelLayer as AsyncioLayer
from .errors import InvalidOption, IPCError, SegmentVanished
from .names import check_group
from .sync import IPCChannelLayer as BlockingLayer

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .options import LayerOptions

_CAPACITY = 10_000  # events that may be pending for one process
_PAUSE = 1.0  # seconds until a subscription that failed is tried again

# This tells whether a library of green threads has replaced the function that a receive waits in.
_PATCHED = {
    "gevent": ("gevent.monkey", "is_module_patched"),
    "gevent_uwsgi": ("gevent.monkey", "is_module_patched"),
    "eventlet": ("eventlet.patcher", "is_monkey_patched"),
}


class IPCManager(PubSubManager):  # type: ignore[misc]
    """A client manager for ``socketio.Server`` and for Flask-SocketIO, in threads or with gevent or
    eventlet::

        server = socketio.Server(client_manager=IPCManager())
        socketio = SocketIO(app, client_manager=IPCManager())

    Processes with the same `prefix` and `channel` emit to each other's clients. With `write_only`,
    a process that is not a server can emit, too:
    ``IPCManager(write_only=True).emit("news", {"number": 1})``.

    `logger` and `json` are those of the library's own managers, and `options` those of
    `asgi_ipc.IPCChannelLayer`. ``capacity``, here 10,000, is how many events may be pending for one
    process; further ones are dropped for that process, counted and logged.
    """

    name = "asgi_ipc"

    def __init__(
        self,
        prefix: str = "socketio",
        channel: str = "socketio",
        write_only: bool = False,
        logger: Any = None,
        json: Any = None,
        **options: Unpack[LayerOptions],
    ) -> None:
        """Raises InvalidOption, InvalidName."""
        _check(channel, write_only)
        super().__init__(channel, write_only, logger, json)
        options.setdefault("capacity", _CAPACITY)
        self._layer = BlockingLayer(prefix, **options)

    def initialize(self) -> None:
        """Begin to receive; the server calls this with its first request."""
        mode = self.server.async_mode
        if mode in _PATCHED:
            module, function = _PATCHED[mode]
            if not getattr(importlib.import_module(module), function)("select"):
                raise RuntimeError(
                    f"asgi_ipc would block all green threads: call {mode.partition('_')[0]}'s "
                    "monkey patching, with select, before all other imports"
                )
        super().initialize()

    def _publish(self, data: dict[str, Any]) -> None:
        event = {"json": self.json.dumps(data)}
        try:
            self._layer.send_group(self.channel, event)
        except SegmentVanished:
            self._layer.send_group(self.channel, event)  # which attaches again

    def _listen(self) -> Iterator[Any]:
        while True:
            try:
                with self._layer.subscribe(self.channel) as events:
                    for event in events:
                        yield event.get("json")
            except (IPCError, OSError) as error:
                _tell(self, error)
            self.server.sleep(_PAUSE)


class AsyncIPCManager(AsyncPubSubManager):  # type: ignore[misc]
    """A client manager for ``socketio.AsyncServer``, on asyncio::

        server = socketio.AsyncServer(async_mode="asgi", client_manager=AsyncIPCManager())

    The arguments are those of `IPCManager`, with which it exchanges events.
    """

    name = "asgi_ipc.aio"

    def __init__(
        self,
        prefix: str = "socketio",
        channel: str = "socketio",
        write_only: bool = False,
        logger: Any = None,
        json: Any = None,
        **options: Unpack[LayerOptions],
    ) -> None:
        """Raises InvalidOption, InvalidName."""
        _check(channel, write_only)
        super().__init__(channel, write_only, logger, json)
        options.setdefault("capacity", _CAPACITY)
        self._layer = AsyncioLayer(prefix, **options)

    async def _publish(self, data: dict[str, Any]) -> None:
        event = {"json": self.json.dumps(data)}
        try:
            await self._layer.group_send(self.channel, event)
        except SegmentVanished:
            await self._layer.group_send(self.channel, event)  # which attaches again

    async def _listen(self) -> AsyncIterator[Any]:
        while True:
            try:
                async with self._layer.subscribe(self.channel) as events:
                    async for event in events:
                        yield event.get("json")
            except (IPCError, OSError) as error:
                _tell(self, error)
            await asyncio.sleep(_PAUSE)


def _check(channel: object, write_only: object) -> None:
    check_group(channel)
    if type(write_only) is not bool:
        raise InvalidOption(f"write_only must be True or False, not {write_only!r}")


def _tell(manager: Any, error: Exception) -> None:
    manager._get_logger().error(
        "%s: receives no events of other processes, and tries again in %g s: %s",
        manager.name,
        _PAUSE,
        error,
    )
