"""The base classes for channel layers: names, capacities, errors, and a stub for each method.

To write a channel layer, derive it from `BaseChannelLayer` (the blocking contract of Channels 1) or
from `AsyncBaseChannelLayer` (the coroutines of Channels 4), and override the stubs. A stub that you
do not override raises NotImplementedError, which names it. The layers of this package derive from
these classes too. This module must not know how or where a layer keeps its messages.

The two contracts have different names for some methods. Both base classes know both names, so that
code may use either. Override the first; the alias calls it:

======================= ====================== ==============================
base class              method                 alias
======================= ====================== ==============================
`BaseChannelLayer`      ``send_group``         ``group_send``
`BaseChannelLayer`      ``receive``            ``receive_many``
`AsyncBaseChannelLayer` ``group_send``         ``send_group``
both                    ``valid_channel_name`` ``require_valid_channel_name``
both                    ``valid_group_name``   ``require_valid_group_name``
======================= ====================== ==============================

Marks such as (A1), (B4) and (M7) name sentences of the contracts: A of Channels 1, B of Channels 4,
M of both. `asgi_ipc.conformance` has a test for each.

::

    from asgi_ipc.base_layer import BaseChannelLayer

    class MyLayer(BaseChannelLayer):
        extensions = ["groups"]

        def send(self, channel, message):
            self.valid_channel_name(channel)
            if self.pending(self.non_local_name(channel)) >= self.get_capacity(channel):
                raise self.ChannelFull(channel)
            ...
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Optional

from . import errors
from .names import check_channel, check_group, check_receive, split
from .options import Capacities, check_seconds

if TYPE_CHECKING:
    from typing_extensions import Self

Message = dict[str, Any]
Received = tuple[Optional[str], Optional[Message]]  # the channel and the message, or twice None


class _Common:
    """What both contracts have in common."""

    extensions: Sequence[str] = ()

    def __init__(
        self,
        expiry: float = 60,
        group_expiry: float = 86400,
        capacity: int = 100,
        channel_capacity: Mapping[str | re.Pattern[str], int] | None = None,
    ) -> None:
        """`expiry`: seconds until an unread message is dropped (M6); `group_expiry`: seconds that a
        membership lasts (A5); `capacity`: messages that may be pending in a channel (M7);
        `channel_capacity`: a dict that maps channel names, as glob or compiled re, to capacities;
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
        """What `send` raises if a channel is at capacity, or memory is used up (A4)."""
        return errors.ChannelFull

    @property
    def MessageTooLarge(self) -> type[Exception]:
        """What `send` raises for a message that is larger than the layer allows (A4)."""
        return errors.MessageTooLarge

    # -- capacities -------------------------------------------------------------------------------

    def get_capacity(self, channel: str) -> int:
        """Return how many messages may be pending in `channel`, by the full name of a send (M7).

        Process-specific channels with the same `non_local_name` share one capacity.
        """
        return self._capacities.of(channel)

    # -- names ------------------------------------------------------------------------------------

    def valid_channel_name(self, name: str, receive: bool = False) -> bool:
        """Return True, or raise InvalidName (a TypeError) for a bad channel name (M5).

        `receive`: whether the name is to receive on; then process-specific names end with ``!``
        (A1).
        """
        check_receive(name) if receive else check_channel(name)
        return True

    def valid_group_name(self, name: str) -> bool:
        """Return True, or raise InvalidName (a TypeError) for a bad group name (M5)."""
        check_group(name)
        return True

    def require_valid_channel_name(self, name: str, receive: bool = False) -> bool:
        """Do the same as `valid_channel_name`; this is its name in Channels 4."""
        return self.valid_channel_name(name, receive)

    def require_valid_group_name(self, name: str) -> bool:
        """Do the same as `valid_group_name`; this is its name in Channels 4."""
        return self.valid_group_name(name)

    def non_local_name(self, name: str) -> str:
        """Return the part of a valid channel name that names its queue: up to and including the
        ``!`` for a process-specific channel, else all of it (M7)."""
        return split(name)[0]

    def _missing(self, method: str) -> NotImplementedError:
        kind = type(self)
        return NotImplementedError(f"{kind.__module__}.{kind.__qualname__} has no {method}()")


class BaseChannelLayer(_Common):
    """A blocking layer of Channels 1. Override `send`, `receive` and `new_channel`; the other
    methods belong to the extensions that `extensions` names (A4)."""

    def send(self, channel: str, message: Message) -> None:
        """Append `message` to `channel`, without waiting (A1, M8). Raises ChannelFull,
        MessageTooLarge."""
        raise self._missing("send")

    def receive(self, channels: Iterable[str], block: bool = False) -> Received:
        """Return (channel, message) from the first of `channels` that has a message, or
        (None, None): at once, or with `block` after some seconds (A1, A2)."""
        raise self._missing("receive")

    def receive_many(self, channels: Iterable[str], block: bool = False) -> Received:
        """Do the same as `receive`; this was its name before Channels 1.0."""
        return self.receive(channels, block)

    def messages(self, channel: str) -> Iterator[Message]:
        """Return an iterator that yields the messages of `channel` as they come, and never ends.

        It calls `receive`, and takes a message only when it is asked for the next one. Raises
        InvalidName; the iterator raises what `receive` raises.
        """
        self.valid_channel_name(channel)
        return _Messages(self, channel)

    def new_channel(self, pattern: str) -> str:
        """Return an unused name that begins with `pattern`, which ends in ``?`` (A3)."""
        raise self._missing("new_channel")

    # -- groups -----------------------------------------------------------------------------------

    def group_add(self, group: str, channel: str) -> None:
        """Make `channel` a member of `group`, or renew its membership (A5)."""
        raise self._missing("group_add")

    def group_discard(self, group: str, channel: str) -> None:
        """End the membership of `channel` in `group`, if there is one (A5)."""
        raise self._missing("group_discard")

    def group_channels(self, group: str) -> Iterable[str]:
        """Return the members of `group` (A5)."""
        raise self._missing("group_channels")

    def send_group(self, group: str, message: Message) -> None:
        """Send `message` to all members of `group`; never raises ChannelFull (A5, M7)."""
        raise self._missing("send_group")

    def group_send(self, group: str, message: Message) -> None:
        """Do the same as `send_group`; this is its name in Channels 4."""
        self.send_group(group, message)

    # -- the other extensions ---------------------------------------------------------------------

    def flush(self) -> None:
        """Remove all messages and groups, for every client, before it returns (A7)."""
        raise self._missing("flush")

    def global_statistics(self) -> dict[str, float]:
        """Return figures of the whole layer, under any of the six names of the contract (A8)."""
        raise self._missing("global_statistics")

    def channel_statistics(self, channel: str) -> dict[str, float]:
        """Return figures of one channel, under any of the six names of the contract (A8)."""
        raise self._missing("channel_statistics")

    def receive_twisted(self, channels: Iterable[str]) -> object:
        """Return a Deferred that fires with what `receive` returns (A9)."""
        raise self._missing("receive_twisted")

    async def receive_async(self, channels: Iterable[str]) -> Received:
        """Do the same as `receive` with ``block=True``, as a coroutine (A9)."""
        raise self._missing("receive_async")

    def close(self) -> None:
        """Free what the layer uses of this process; messages that it sent stay."""
        raise self._missing("close")

    def __enter__(self) -> Self:
        """``with layer:`` closes the layer at the end of the block."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class _Messages:
    """The messages of a blocking layer. Not a generator: one that a thread waits in cannot be
    shared with others, and ends for good at the first error."""

    def __init__(self, layer: BaseChannelLayer, channel: str) -> None:
        self._layer = layer
        self._channels = [channel]

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Message:
        while True:
            _, message = self._layer.receive(self._channels, block=True)
            if message is not None:
                return message


class AsyncBaseChannelLayer(_Common):
    """A layer of Channels 4. Override `send`, `receive` and `new_channel`; the other methods belong
    to the extensions that `extensions` names (B2)."""

    async def send(self, channel: str, message: Message) -> None:
        """Append `message` to `channel`, without waiting for readers (B1, M8). Raises ChannelFull,
        MessageTooLarge."""
        raise self._missing("send")

    async def receive(self, channel: str) -> Message:
        """Wait for the next message of `channel` (B1). A cancelled receive takes nothing (B4)."""
        raise self._missing("receive")

    async def receive_async(self, channels: Iterable[str]) -> Received:
        """Return (channel, message) from the first of `channels` that has a message, or
        (None, None) after some seconds (A9)."""
        raise self._missing("receive_async")

    def messages(self, channel: str) -> AsyncIterator[Message]:
        """Return an iterator that yields the messages of `channel` as they come, and never ends.

        It calls `receive`, and takes a message only when it is asked for the next one. Raises
        InvalidName; the iterator raises what `receive` raises.
        """
        self.valid_channel_name(channel)
        return _AsyncMessages(self, channel)

    async def new_channel(self, prefix: str = "specific") -> str:
        """Return a new process-specific name that begins with `prefix` (B1)."""
        raise self._missing("new_channel")

    # -- groups -----------------------------------------------------------------------------------

    async def group_add(self, group: str, channel: str) -> None:
        """Make `channel` a member of `group`, or renew its membership (B2)."""
        raise self._missing("group_add")

    async def group_discard(self, group: str, channel: str) -> None:
        """End the membership of `channel` in `group`, if there is one (B2)."""
        raise self._missing("group_discard")

    async def group_channels(self, group: str) -> Iterable[str]:
        """Return the members of `group`."""
        raise self._missing("group_channels")

    async def group_send(self, group: str, message: Message) -> None:
        """Send `message` to all members of `group`; never raises ChannelFull (B2, M7)."""
        raise self._missing("group_send")

    async def send_group(self, group: str, message: Message) -> None:
        """Do the same as `group_send`; this is its name in Channels 1."""
        await self.group_send(group, message)

    # -- the other extensions ---------------------------------------------------------------------

    async def flush(self) -> None:
        """Remove all messages and groups, for every client, before it returns (B2)."""
        raise self._missing("flush")

    async def global_statistics(self) -> dict[str, float]:
        """Return figures of the whole layer, under any of the six names of the contract (A8)."""
        raise self._missing("global_statistics")

    async def channel_statistics(self, channel: str) -> dict[str, float]:
        """Return figures of one channel, under any of the six names of the contract (A8)."""
        raise self._missing("channel_statistics")

    async def close(self) -> None:
        """Free what the layer uses of this process; messages that it sent stay."""
        raise self._missing("close")

    async def __aenter__(self) -> Self:
        """``async with layer:`` closes the layer at the end of the block."""
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()


class _AsyncMessages:
    """The messages of an asyncio layer. Not a generator: one that is left early waits for the loop
    to close it, and one that is cancelled ends for good."""

    def __init__(self, layer: AsyncBaseChannelLayer, channel: str) -> None:
        self._layer = layer
        self._channel = channel

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        return await self._layer.receive(self._channel)
