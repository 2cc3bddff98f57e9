"""The distributed layer that somebody else wrote, as this package uses it: made from plain data,
held in one event loop, called within a time limit. Knows nothing of machines and groups.

Only what the Channels 4 contract names is called: `send`, `receive`, `new_channel`, the groups.
Three things beyond it are used where a layer has them, and done without where not:

- ``client_prefix``, a plain attribute: set to the machine's id it gives the machine one address
  for all its life, so that what waits there outlives the process that receives it;
- ``channel_capacity``, an argument of the constructor: a machine's address carries what many
  processes would have received each for itself, and gets room for it;
- ``brpop_timeout``, seconds: redis-py 8 gives up a read after five by itself, and channels_redis
  asks the server to wait just as long. Whoever waits less never loses a message to that race.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import logging
import time
from collections.abc import Mapping
from typing import Any

from .. import errors
from ..aio.loop import timeout
from ..attachment.drops import LOG_EVERY
from ..errors import InvalidOption, RemoteUnavailable
from .directory import OWN_NAMES, address_of

logger = logging.getLogger("asgi_ipc")

INBOX_CAPACITY = 10_000  # messages that may wait for one machine
_SHORT_WAIT = 2  # seconds, under redis-py's limit of 5
_RETRY_AFTER = 1.0  # seconds after a failure until the next call is let through
_CLOSING = 2.0  # seconds to close connections that may be dead


class Backend:
    """How to make the distributed layer: ``{"BACKEND": "dotted.path", "CONFIG": {…}}``."""

    def __init__(self, remote: Mapping[str, Any]) -> None:
        """Raises InvalidOption for anything that cannot be made into a layer."""
        if not isinstance(remote, Mapping) or not isinstance(remote.get("BACKEND"), str):
            raise InvalidOption(
                'remote must be a dict like {"BACKEND": "channels_redis.core.RedisChannelLayer", '
                f'"CONFIG": {{…}}}}, not {remote!r:.200}'
            )
        if unknown := set(remote) - {"BACKEND", "CONFIG"}:
            raise InvalidOption(f"remote has the unknown keys {sorted(map(str, unknown))}")
        config = remote.get("CONFIG", {})
        if not isinstance(config, Mapping):
            raise InvalidOption(f"remote['CONFIG'] must be a dict, not {config!r:.200}")
        self.path: str = remote["BACKEND"]
        self._make = _imported(self.path)
        self._config = dict(config)
        if "channel_capacity" in inspect.signature(self._make).parameters:
            # First, because the first match counts.
            given = self._config.get("channel_capacity") or {}
            self._config["channel_capacity"] = {OWN_NAMES + "*": INBOX_CAPACITY, **given}
        try:
            layer = self.open()
        except Exception as error:
            raise InvalidOption(f"remote: {self.path} cannot be made: {error}") from error
        self.named = _can_be_named(layer)
        self.group_expiry = float(self._config.get("group_expiry", 86400))
        hosts = self._config.get("hosts")
        self.shards = max(1, len(hosts)) if isinstance(hosts, (list, tuple)) else 1
        self.can_close = _closing(layer) is not None

    def open(self, machine: str = "") -> Any:
        """A new instance, with the address of `machine` if there can be one. Connects later."""
        layer = self._make(**self._config)
        if machine and self.named:
            layer.client_prefix = machine
        if isinstance(getattr(type(layer), "brpop_timeout", None), (int, float)):
            layer.brpop_timeout = min(layer.brpop_timeout, _SHORT_WAIT)
        return layer

    async def close(self, layer: Any) -> None:
        """Close the connections of an instance, if it offers that; never fails."""
        closing = _closing(layer)
        if closing is not None:
            with contextlib.suppress(Exception):
                async with timeout(_CLOSING):
                    await closing()


class Figures:
    """What became of messages between machines, in this process: counted, and losses logged."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._logged: dict[str, float] = {}
        self.counts = dict.fromkeys(
            ("group_sends_lost", "sends_failed", "relayed", "duplicates", "undeliverable"), 0
        )

    def count(self, what: str) -> None:
        self.counts[what] += 1

    def tell(self, what: str, why: str) -> None:
        """Log a loss: of each kind the first, and then one in ten seconds."""
        now = time.monotonic()
        kind = what.partition(" ")[0]
        if now - self._logged.get(kind, -LOG_EVERY) >= LOG_EVERY:
            self._logged[kind] = now
            logger.warning("prefix %r, %s: %s", self._prefix, what, why)


class Caller:
    """Makes calls on an instance of the distributed layer, for all of this process's loops.

    Lives in one event loop. While the layer cannot be reached calls fail at once, but for one
    each second that tries again: whoever talks to this machine as well is not held up.
    """

    def __init__(self, backend: Backend, timeout: float) -> None:
        self._backend = backend
        self._timeout = timeout
        self._layer: Any = None
        self._why = ""
        self._closed_until = 0.0  # time.monotonic(), while calls fail at once

    async def call(self, operation: str, *args: Any) -> Any:
        """Await an operation of the layer.

        Raises ChannelFull, RemoteUnavailable, and what says that the arguments are wrong.
        """
        now = time.monotonic()
        if now < self._closed_until:
            raise RemoteUnavailable(self._why)
        if self._why:
            self._closed_until = now + self._timeout  # this call tries for all
        if self._layer is None:
            self._layer = self._backend.open()
        layer = self._layer
        try:
            async with timeout(self._timeout):
                result = await getattr(layer, operation)(*args)
        except (TypeError, ValueError, AssertionError):
            self.reached()
            raise
        except Exception as error:
            if type(error).__name__ == "ChannelFull":  # each package has a class of its own
                self.reached()
                raise errors.ChannelFull(
                    f"{args[0]!r}, the address of another machine, is at its capacity in the "
                    "remote layer: that machine is slower than its senders, or off"
                ) from error
            self._why = (
                f"the remote layer ({self._backend.path}) cannot be reached: {described(error)}. "
                "Messages on this machine go on; this one was not sent"
            )
            self._closed_until = time.monotonic() + _RETRY_AFTER
            if self._layer is layer and self._backend.can_close:
                self._layer = None
                await self._backend.close(layer)
            raise RemoteUnavailable(self._why) from error
        except BaseException:
            self._closed_until = 0.0  # cancelled: the next one tries
            raise
        self.reached()
        return result

    def reached(self) -> None:
        """The layer answers: let calls through."""
        self._why, self._closed_until = "", 0.0

    async def close(self) -> None:
        """Close the connections; the next call makes new ones."""
        layer, self._layer = self._layer, None
        if layer is not None:
            await self._backend.close(layer)


def described(error: BaseException) -> str:
    """An error in one line, also where it has no text."""
    return f"{type(error).__name__}: {error}".rstrip(": .")


def is_timeout(error: BaseException) -> bool:
    """Whether a receive merely found nothing for long: redis-py 8 raises then, after 5 s idle."""
    return isinstance(error, (TimeoutError, asyncio.TimeoutError)) or (
        type(error).__name__ == "TimeoutError"
    )


def _can_be_named(layer: Any) -> bool:
    """Whether setting ``client_prefix`` gives a layer the address that `address_of` says."""
    if not isinstance(getattr(layer, "__dict__", {}).get("client_prefix"), str):
        return False
    before, layer.client_prefix = layer.client_prefix, "machine"
    naming = layer.new_channel(OWN_NAMES[:-1])
    try:
        naming.send(None)  # to its end: what makes up a name has nothing to wait for
    except StopIteration as finished:
        return str(finished.value).startswith(address_of("machine"))
    except Exception:
        return False
    finally:
        naming.close()
        layer.client_prefix = before
    return False


def _closing(layer: Any) -> Any:
    for name in ("close_pools", "close"):
        if callable(getattr(type(layer), name, None)):
            return getattr(layer, name)
    return None


def _imported(path: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InvalidOption(f"remote: BACKEND {path!r} cannot be imported: {error}") from error
