"""What every channel layer has, for those who write one: names, capacities, errors, all methods.

Derive from `BaseChannelLayer` for the blocking contract of Channels 1, or from
`AsyncBaseChannelLayer` for the coroutines of Channels 4, and write the methods that are stubs here.
A stub raises NotImplementedError, which says what is missing. The layers of this package are made
in this way too. This module must not know how or where a layer keeps its messages.

::

    from asgi_ipc.base_layer import BaseChannelLayer

    class MyLayer(BaseChannelLayer):
        extensions = ["groups"]

        def send(self, channel, message):
            self.valid_channel_name(channel)
            if self.waiting(self.non_local_name(channel)) >= self.get_capacity(channel):
                raise self.ChannelFull(channel)
            ...
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Optional

from . import errors
from .names import check_channel, check_group, check_receive, split
from .options import Capacities, check_seconds

Received = tuple[Optional[str], Optional[dict[str, Any]]]


class _Common:
    """What both contracts have alike."""

    extensions: Sequence[str] = ()

    def __init__(
        self,
        expiry: float = 60,
        group_expiry: float = 86400,
        capacity: int = 100,
        channel_capacity: Mapping[str | re.Pattern[str], int] | None = None,
    ) -> None:
        """`expiry`: seconds until an unread message is dropped (M6); `group_expiry`: seconds a
        membership lasts (A5); `capacity`: messages that may wait in a channel (M7);
        `channel_capacity`: the same by name, a dict of glob or compiled re to capacity, of which
        the first match counts. Raises InvalidOption."""
        check_seconds("expiry", expiry)
        check_seconds("group_expiry", group_expiry)
        self.expiry = expiry
        self.group_expiry = group_expiry
        self.capacity = capacity
        self.channel_capacity = channel_capacity
        self._capacities = Capacities(capacity, channel_capacity)

    # -- errors -----------------------------------------------------------------------------------

    @property
    def ChannelFull(self) -> type[Exception]:
        """What `send` raises when a channel is at capacity, or there is no room (A4)."""
        return errors.ChannelFull

    @property
    def MessageTooLarge(self) -> type[Exception]:
        """What `send` raises for a message over the limit of the layer (A4)."""
        return errors.MessageTooLarge

    # -- capacities -------------------------------------------------------------------------------

    def get_capacity(self, channel: str) -> int:
        """How many messages may wait in `channel`, given by the full name that is sent to (M7).

        Those of a process-specific channel are counted together, under its `non_local_name`.
        """
        return self._capacities.of(channel)

    # -- names ------------------------------------------------------------------------------------

    def valid_channel_name(self, name: str, receive: bool = False) -> bool:
        """True, or InvalidName (a TypeError) says what is wrong with a channel name (M5).

        `receive`: the name is one to receive on, so process-specific ones end with the ``!`` (A1).
        """
        check_receive(name) if receive else check_channel(name)
        return True

    def valid_group_name(self, name: str) -> bool:
        """True, or InvalidName (a TypeError) says what is wrong with a group name (M5)."""
        check_group(name)
        return True

    def require_valid_channel_name(self, name: str, receive: bool = False) -> bool:
        """`valid_channel_name`, under the name that Channels 4 gave it."""
        return self.valid_channel_name(name, receive)

    def require_valid_group_name(self, name: str) -> bool:
        """`valid_group_name`, under the name that Channels 4 gave it."""
        return self.valid_group_name(name)

    def non_local_name(self, name: str) -> str:
        """The part of a valid channel name that stands for its queue: up to and including the
        ``!`` of a process-specific channel, else all of it (M7)."""
        return split(name)[0]

    def _missing(self, method: str) -> NotImplementedError:
        kind = type(self)
        return NotImplementedError(f"{kind.__module__}.{kind.__qualname__} has no {method}()")


class BaseChannelLayer(_Common):
    """A blocking layer of Channels 1. `send`, `receive` and `new_channel` must be written; the rest
    belongs to the extensions that `extensions` names (A4)."""

    def send(self, channel: str, message: dict[str, Any]) -> None:
        """Append `message` to `channel`, without waiting (A1, M8). Raises ChannelFull,
        MessageTooLarge."""
        raise self._missing("send")

    def receive(self, channels: Iterable[str], block: bool = False) -> Received:
        """(channel, message) from the first of `channels` that has one, or (None, None): at once,
        or with `block` after some seconds (A1, A2)."""
        raise self._missing("receive")

    def receive_many(self, channels: Iterable[str], block: bool = False) -> Received:
        """The name that `receive` had before Channels 1.0."""
        return self.receive(channels, block)

    def new_channel(self, pattern: str) -> str:
        """An unused name that begins with `pattern`, which ends in ``?`` (A3)."""
        raise self._missing("new_channel")

    # -- groups -----------------------------------------------------------------------------------

    def group_add(self, group: str, channel: str) -> None:
        """Make `channel` a member of `group`, or renew its membership (A5)."""
        raise self._missing("group_add")

    def group_discard(self, group: str, channel: str) -> None:
        """End the membership of `channel` in `group`, if there is one (A5)."""
        raise self._missing("group_discard")

    def group_channels(self, group: str) -> Iterable[str]:
        """The members of `group` (A5)."""
        raise self._missing("group_channels")

    def send_group(self, group: str, message: dict[str, Any]) -> None:
        """Send `message` to all members of `group`; never raises ChannelFull (A5, M7)."""
        raise self._missing("send_group")

    # -- the other extensions ---------------------------------------------------------------------

    def flush(self) -> None:
        """Forget all messages and groups, for every client, before it returns (A7)."""
        raise self._missing("flush")

    def global_statistics(self) -> dict[str, Any]:
        """The figures of the whole layer, under any of the six names of the contract (A8)."""
        raise self._missing("global_statistics")

    def channel_statistics(self, channel: str) -> dict[str, Any]:
        """The figures of one channel, under any of the six names of the contract (A8)."""
        raise self._missing("channel_statistics")

    def receive_twisted(self, channels: Iterable[str]) -> Any:
        """A Deferred of what `receive` gives (A9)."""
        raise self._missing("receive_twisted")

    async def receive_async(self, channels: Iterable[str]) -> Received:
        """What `receive` gives, as a coroutine (A9)."""
        raise self._missing("receive_async")

    def close(self) -> None:
        """Free what the layer holds of this process; what it has sent stays."""
        raise self._missing("close")


class AsyncBaseChannelLayer(_Common):
    """A layer of Channels 4. `send`, `receive` and `new_channel` must be written; the rest belongs
    to the extensions that `extensions` names (B2)."""

    async def send(self, channel: str, message: dict[str, Any]) -> None:
        """Append `message` to `channel`, without waiting for readers (B1, M8). Raises ChannelFull,
        MessageTooLarge."""
        raise self._missing("send")

    async def receive(self, channel: str) -> dict[str, Any]:
        """Wait for the next message of `channel` (B1). Cancelled, it has taken nothing (B4)."""
        raise self._missing("receive")

    async def receive_async(self, channels: Iterable[str]) -> Received:
        """(channel, message) from the first of `channels` that has one; (None, None) after some
        seconds (A9)."""
        raise self._missing("receive_async")

    async def new_channel(self, prefix: str = "specific") -> str:
        """A new process-specific name that begins with `prefix` (B1)."""
        raise self._missing("new_channel")

    # -- groups -----------------------------------------------------------------------------------

    async def group_add(self, group: str, channel: str) -> None:
        """Make `channel` a member of `group`, or renew its membership (B2)."""
        raise self._missing("group_add")

    async def group_discard(self, group: str, channel: str) -> None:
        """End the membership of `channel` in `group`, if there is one (B2)."""
        raise self._missing("group_discard")

    async def group_channels(self, group: str) -> Iterable[str]:
        """The members of `group`."""
        raise self._missing("group_channels")

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        """Send `message` to all members of `group`; never raises ChannelFull (B2, M7)."""
        raise self._missing("group_send")

    # -- the other extensions ---------------------------------------------------------------------

    async def flush(self) -> None:
        """Forget all messages and groups, for every client, before it returns (B2)."""
        raise self._missing("flush")

    async def global_statistics(self) -> dict[str, Any]:
        """The figures of the whole layer, under any of the six names of the contract (A8)."""
        raise self._missing("global_statistics")

    async def channel_statistics(self, channel: str) -> dict[str, Any]:
        """The figures of one channel, under any of the six names of the contract (A8)."""
        raise self._missing("channel_statistics")

    async def close(self) -> None:
        """Free what the layer holds of this process; what it has sent stays."""
        raise self._missing("close")
