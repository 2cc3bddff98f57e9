"""The remote layer, a foreign channel layer, as this package uses it: made from plain data, kept in
one event loop, called within a time limit. Must not know relays or groups of machines.

It calls only what the Channels 4 contract names: `send`, `receive`, `new_channel`, the groups. It
uses three more things if a layer has them, and does without them if not:

- ``client_prefix``, a plain attribute. Set to the machine's id, it gives the machine one address
  for all its life, so that pending messages outlive the process that receives them.
- ``channel_capacity``, an argument of the constructor. A machine's address carries what many
  processes would otherwise receive separately, so it gets room for it.
- ``brpop_timeout``, in seconds. redis-py 8 gives up a read after five seconds by itself, and
  channels_redis asks the server to wait exactly as long. With a shorter wait, no message is lost in
  that race.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal, Protocol

from .. import clock, errors
from ..aio.loop import timeout
from ..base_layer import Message
from ..errors import InvalidOption, RemoteUnavailable
from .directory import OWN_NAMES, address_of
from .figures import described

INBOX_CAPACITY = 10_000  # messages that may be pending for one machine
_SHORT_WAIT = 2  # seconds, under redis-py's limit of 5
_RETRY_AFTER = 1.0  # seconds after a failure until the next call is let through
_CLOSING = 2.0  # seconds to close connections that may be dead


class RemoteLayer(Protocol):
    """Any layer for Channels 4, as this package calls it."""

    async def send(self, channel: str, message: Message) -> None: ...
    async def receive(self, channel: str) -> Message: ...
    async def new_channel(self, prefix: str = ...) -> str: ...
    async def group_add(self, group: str, channel: str) -> None: ...
    async def group_discard(self, group: str, channel: str) -> None: ...
    async def group_send(self, group: str, message: Message) -> None: ...


class Backend:
    """How to make the remote layer: ``{"BACKEND": "dotted.path", "CONFIG": {…}}``."""

    def __init__(self, remote: Mapping[str, Any]) -> None:
        """Raises InvalidOption for anything that cannot be made into a layer."""
        if not isinstance(remote, Mapping) or not isinstance(remote.get("BACKEND"), str):
            raise InvalidOption(
                'remote must be a dict like {"BACKEND": "channels_redis.core.RedisChannelLayer", '
                f'"CONFIG": {{…}}}}, not {remote!r:.200}'
            )
        if unknown := set(remote) - {"BACKEND", "CONFIG"}:
            raise InvalidOption(
                f"remote has unknown keys: {sorted(map(str, unknown))}. It takes BACKEND and CONFIG"
            )
        config = remote.get("CONFIG", {})
        if not isinstance(config, Mapping):
            raise InvalidOption(f"remote['CONFIG'] must be a dict, not {config!r:.200}")
        self.path: str = remote["BACKEND"]
        self._make = _import(self.path)
        self._config = dict(config)
        if "channel_capacity" in inspect.signature(self._make).parameters:
            # First, because the first match counts.
            given = self._config.get("channel_capacity") or {}
            self._config["channel_capacity"] = {OWN_NAMES + "*": INBOX_CAPACITY, **given}
        try:
            layer = self.open()
        except Exception as error:
            raise InvalidOption(f"remote: {self.path} cannot be created: {error}") from error
        self.named = _can_be_named(layer)
        self.group_expiry = float(self._config.get("group_expiry", 86400))
        hosts = self._config.get("hosts")
        self.shards = max(1, len(hosts)) if isinstance(hosts, (list, tuple)) else 1
        self.can_close = _close_method(layer) is not None

    def open(self, machine: str = "") -> RemoteLayer:
        """Return a new instance, with the address of `machine` if it can have one. It connects
        later."""
        layer = self._make(**self._config)
        if machine and self.named:
            layer.client_prefix = machine
        if isinstance(getattr(type(layer), "brpop_timeout", None), (int, float)):
            layer.brpop_timeout = min(layer.brpop_timeout, _SHORT_WAIT)
        remote: RemoteLayer = layer
        return remote

    async def close(self, layer: RemoteLayer) -> None:
        """Close the connections of an instance, if it can do that; never fails."""
        close = _close_method(layer)
        if close is not None:
            with contextlib.suppress(Exception):
                async with timeout(_CLOSING):
                    await close()


class Caller:
    """Calls an instance of the remote layer, for all event loops of this process.

    It belongs to the event loop in which it is made. While the layer cannot be reached, one call
    each second tries again and the others fail at once. So programs that also send within their
    machine are not delayed.
    """

    def __init__(self, backend: Backend, timeout: float) -> None:
        self.loop = asyncio.get_running_loop()
        self._backend = backend
        self._timeout = timeout
        self._layer: RemoteLayer | None = None
        self._why = ""
        self._closed_until = 0.0  # clock.monotonic(), while calls fail at once

    async def call(
        self, operation: Literal["send", "group_send"], name: str, message: Message
    ) -> None:
        """Await an operation of the layer.

        Raises ChannelFull and RemoteUnavailable, and what the layer raises for bad arguments.
        """
        now = clock.monotonic()
        if now < self._closed_until <= now + max(_RETRY_AFTER, self._timeout):
            raise RemoteUnavailable(self._why)
        if self._why:
            self._closed_until = now + self._timeout  # this call tries for all
        if self._layer is None:
            self._layer = self._backend.open()
        layer = self._layer
        try:
            async with timeout(self._timeout):
                await getattr(layer, operation)(name, message)
        except (TypeError, ValueError, AssertionError):
            self._let_through()
            raise
        except Exception as error:
            if type(error).__name__ == "ChannelFull":  # each package has its own class
                self._let_through()
                raise errors.ChannelFull(
                    f"{name!r}, the address of another machine, is at capacity in the remote "
                    "layer: that machine is off, or slower than its senders"
                ) from error
            self._why = (
                f"the remote layer ({self._backend.path}) cannot be reached: {described(error)}. "
                "This message was not sent. Messages within this machine continue"
            )
            self._closed_until = clock.monotonic() + _RETRY_AFTER
            if self._layer is layer and self._backend.can_close:
                self._layer = None
                await self._backend.close(layer)
            raise RemoteUnavailable(self._why) from error
        except BaseException:
            self._closed_until = 0.0  # cancelled: the next call tries
            raise
        self._let_through()

    def _let_through(self) -> None:
        """The layer answers: let calls through."""
        self._why, self._closed_until = "", 0.0

    async def close(self) -> None:
        """Close the connections; the next call makes new ones."""
        layer, self._layer = self._layer, None
        if layer is not None:
            await self._backend.close(layer)


def is_timeout(error: BaseException) -> bool:
    """Return whether a receive only waited too long: redis-py 8 raises then, after 5 s idle."""
    return isinstance(error, (TimeoutError, asyncio.TimeoutError)) or (
        type(error).__name__ == "TimeoutError"
    )


def _can_be_named(layer: Any) -> bool:
    """Return whether ``client_prefix`` gives a layer the address that `address_of` says."""
    if not isinstance(getattr(layer, "__dict__", {}).get("client_prefix"), str):
        return False
    before, layer.client_prefix = layer.client_prefix, "machine"
    naming = layer.new_channel(OWN_NAMES[:-1])
    try:
        naming.send(None)  # to its end: a coroutine that makes up a name never waits
    except StopIteration as finished:
        return str(finished.value).startswith(address_of("machine"))
    except Exception:
        return False
    finally:
        naming.close()
        layer.client_prefix = before
    return False


def _close_method(layer: RemoteLayer) -> Callable[[], Awaitable[object]] | None:
    for name in ("close_pools", "close"):
        if callable(getattr(type(layer), name, None)):
            found: Callable[[], Awaitable[object]] = getattr(layer, name)
            return found
    return None


def _import(path: str) -> Callable[..., Any]:
    module, _, name = path.rpartition(".")
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), name)
        return found
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidOption(f"remote: BACKEND {path!r} cannot be imported: {error}") from error
