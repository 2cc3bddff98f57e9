"""The channel layer of Channels 1: a blocking facade over the asynchronous core.

A receive that has to wait sleeps in the kernel (`aio.thread`). There is no event loop in its path.

Codes in parentheses, such as (A1), name the rules of the contracts in docs/conformance.rst.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from . import clock
from .aio.membership import Membership, nothing_came
from .aio.operations import Core
from .aio.receiving import listed
from .aio.thread import BLOCKING, finished
from .attachment.attachment import Inherited
from .attachment.process import notice_fork
from .base_layer import BaseChannelLayer
from .errors import InvalidName, LockTimeout
from .names import check_channel
from .native import LOADED as COMPILED
from .options import Options, waiting_time
from .segment.notes import tell
from .statistics import Stats

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from .options import LayerOptions

SPECIFIC = "specific!"  # what new_channel makes without an argument


class IPCChannelLayer(BaseChannelLayer):
    """A channel layer over shared memory, blocking, for Channels 1 and plain threads.

    Every process of the machine that names the same `prefix` exchanges messages with the others,
    asyncio ones (`asgi_ipc.aio.IPCChannelLayer`) included. `asgi_ipc.options.Options` lists the
    options. One layer may be used from many threads.
    """

    _options_class = Options

    def __init__(self, prefix: str = "asgi", **options: Unpack[LayerOptions]) -> None:
        """Raises InvalidOption. Shared memory is attached to by the first call."""
        self._options = read = self._options_class.read(prefix, options)
        super().__init__(read.expiry, read.group_expiry, read.capacity, read.channel_capacity)
        self._core = Core(read)
        self._loops: Core | None = None
        self._receive_timeout = read.receive_timeout
        self.prefix = prefix
        self.extensions = ["groups", "flush", "statistics", "async", "asyncio"]
        if importlib.util.find_spec("twisted") is not None:
            self.extensions.insert(3, "twisted")

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy, and what is unpickled in another process, is a new layer with these options, its
        keys included."""
        return self._options.again(type(self))

    # -- channels ---------------------------------------------------------------------------------

    def send(self, channel: str, message: dict[str, Any], timeout: float | None = None) -> None:
        """Send `message` to `channel`. Without a `timeout` it never waits for readers (A1, M8).

        Raises ChannelFull at capacity or when memory is used up; with a `timeout` in seconds, if
        there was no room within that time. 0 is at once. While others wait for room, what becomes
        free is theirs. Also raises MessageTooLarge, InvalidName, InvalidMessage, NotAChannel. If it
        raises, nothing was sent.
        """
        if timeout is None:
            self._core.send(channel, message)
            return
        seconds = waiting_time(timeout)
        deadline = clock.monotonic() + seconds
        if seconds <= 0:
            self._core.send(channel, message)
            return
        while True:
            try:
                if not self._core.send_if_room(channel, message):
                    finished(self._core.send_when_room(channel, message, deadline, BLOCKING))
                return
            except Inherited:
                pass  # a child that was forked meanwhile attaches again

    def receive(
        self, channels: Iterable[str], block: bool = False, timeout: float | None = None
    ) -> tuple[str | None, dict[str, Any] | None]:
        """Return (channel, message) from the first of `channels` that has a message (A1).

        If none has, return (None, None): at once, or with `block` after `timeout` seconds, by
        default ``receive_timeout`` (A2). Name process-specific channels up to the ``!``, or in full
        if `new_channel` made the name; the full name is returned. Raises InvalidName, NotOwner.
        """
        core = self._core
        session = core.session or core.attach()
        if COMPILED and (done := session.usual.receive(channels)):
            found = core.unpacked(session, done)
            if found is not None:
                return found
        sources, spent = None, 0.0
        if type(channels) is not list:
            channels = listed(channels)
        try:
            # The usual case, as `core.sources` has it: one channel that is known already.
            if len(channels) == 1:
                sources = session.sources[channels[0]]
        except (KeyError, TypeError):
            pass  # not looked up yet, or no name
        try:
            try:
                found = core.glance(session, sources) if sources is not None else None
                if found is not None:
                    return found
                sources = sources or core.sources(session, channels)
                if not sources:
                    return None, None
                if not block:
                    return core.take(session, sources) or (None, None)
            except LockTimeout:
                if not block:
                    raise
                assert sources is not None  # a glance met a busy lock
                spent = self._options.lock_timeout
            except ValueError as error:
                raise session.attachment.explain(error) from None
            deadline = clock.monotonic() + self._seconds(timeout) - spent
            return finished(core.receive(session, sources, deadline, BLOCKING)) or (None, None)
        except Inherited:
            return self.receive(channels, block, timeout)

    def _seconds(self, timeout: float | None) -> float:
        return waiting_time(self._receive_timeout if timeout is None else timeout)

    async def receive_async(
        self, channels: Iterable[str]
    ) -> tuple[str | None, dict[str, Any] | None]:
        """`receive` with ``block=True`` as a coroutine, on whatever asyncio loop runs it (A9)."""
        from .aio.loop import ASYNCIO

        deadline = clock.monotonic() + self._seconds(None)
        return await self._for_loops.receive_from(channels, deadline, ASYNCIO)

    def receive_twisted(self, channels: Iterable[str]) -> Any:
        """`receive` with ``block=True`` as a Deferred, driven by the reactor's readers (A9)."""
        from .aio.reactor import receive

        return receive(self._for_loops, channels, self._seconds(None))

    @property
    def _for_loops(self) -> Core:
        """The core for event loops, which a busy lock must not hold up. It receives on the names
        that `new_channel` made."""
        notice_fork()
        core = self._loops = self._loops or Core.for_loops(self._options)
        core.own = self._core.own
        return core

    def new_channel(self, pattern: str = SPECIFIC) -> str:
        """Return an unused name for `pattern`, which ends in ``?`` (A3).

        Without an argument, return the name of a new process-specific channel: only this process
        receives on it, through this layer, and its memberships end with the process. Raises
        InvalidName.
        """
        if type(pattern) is str and pattern == SPECIFIC:
            return self._core.new_channel("specific")
        if not issubclass(type(pattern), str) or not pattern.endswith("?"):
            raise InvalidName(
                f"new_channel takes a pattern that ends in '?', not {pattern!r}. For a name with "
                "'!', which only this process receives on, call it without an argument"
            )
        return check_channel(pattern + os.urandom(8).hex())

    # -- groups -----------------------------------------------------------------------------------

    def group_add(self, group: str, channel: str) -> None:
        """Add `channel` to `group`, or renew its membership for ``group_expiry`` seconds (A5)."""
        self._core.group_add(group, channel)

    def group_discard(self, group: str, channel: str) -> None:
        """Remove `channel` from `group`; it need not be a member (A5)."""
        self._core.group_discard(group, channel)

    def group_channels(self, group: str) -> list[str]:
        """The members of `group` whose readers live (A5)."""
        return self._core.group_channels(group)

    def send_group(self, group: str, message: dict[str, Any]) -> None:
        """Send `message` to every member of `group`, except those whose channel is full (A5,
        M7)."""
        self._core.group_send(group, message)

    def subscribe(self, *groups: str) -> Subscription:
        """Return a subscription to `groups`, which is joined while a block lasts: ``with
        layer.subscribe("news") as events: for event in events:``. Publish to it by `send_group`.
        Raises InvalidName."""
        return Subscription(self, self._core, groups)

    # -- the rest ---------------------------------------------------------------------------------

    def flush(self) -> None:
        """Forget all messages and groups, of every process (A7)."""
        self._core.flush()

    def global_statistics(self) -> dict[str, Any]:
        """The figures of the statistics extension for the whole layer (A8)."""
        return self._core.global_statistics()

    def channel_statistics(self, channel: str) -> dict[str, Any]:
        """The figures of the statistics extension for one channel (A8)."""
        return self._core.channel_statistics(channel)

    def stats(self) -> Stats:
        """All figures of the layer: see `asgi_ipc.statistics.Stats`. Takes no lock and disturbs
        nobody. Rates are counted since the last call that is at least a second ago."""
        return self._core.stats()

    def close(self) -> None:
        """Free the descriptors and the memory map that this layer holds. Nothing is removed from
        shared memory, and the next call attaches again."""
        notice_fork()
        self._core.detach()
        if self._loops is not None:
            self._loops.detach()
        tell()

    def __repr__(self) -> str:
        return f"<{type(self).__module__}.{type(self).__name__} prefix={self.prefix!r}>"


class Subscription:
    """The messages of some groups, while a block lasts; made by ``layer.subscribe``::

        with layer.subscribe("news", "weather") as events:
            for event in events:
                ...

    The groups are joined when the block is entered, and left when it ends, however it ends. Within
    the block the memberships are renewed at half of ``group_expiry``: while `get` or the loop
    waits, and by each of these calls. A program that does neither for longer than ``group_expiry``
    misses messages, which is noticed by the next call. Messages that come while nobody reads wait,
    up to the ``capacity`` of the layer.

    If the shared memory is removed, or flushed, the subscription joins its groups again as soon as
    it is read. Messages of the meantime are lost: that is logged, and counted in `gaps`. In a
    forked child it joins for itself, when it is first used there.

    Several threads may read one subscription; each message goes to one of them.
    """

    def __init__(
        self,
        layer: BaseChannelLayer,
        core: Core,
        groups: Iterable[str],
        begin: Callable[[], None] = lambda: None,
    ) -> None:
        self._membership = Membership(layer, core, BLOCKING, groups, begin)

    @property
    def groups(self) -> list[str]:
        """The groups that it is subscribed to."""
        return list(self._membership.groups.copy())

    @property
    def gaps(self) -> int:
        """How many times messages may have been missed: the memory was removed or flushed, the
        layer closed, or the membership ended because it was renewed too late."""
        return self._membership.gaps

    def get(self, timeout: float | None = None) -> dict[str, Any]:
        """Wait for the next message, and return it.

        If none comes within `timeout` seconds, raise TimeoutError. None waits for ever; 0 takes
        only what is there. Raises NotSubscribed outside the block.
        """
        deadline = None if timeout is None else clock.monotonic() + waiting_time(timeout)
        found = finished(self._membership.receive(deadline))
        if found is None:
            raise nothing_came(self._membership, timeout)
        return found

    def join(self, *groups: str) -> None:
        """Subscribe to more groups: to all of them, or to none if it raises. Raises InvalidName,
        LimitReached, NotSubscribed."""
        finished(self._membership.join(groups))

    def leave(self, *groups: str) -> None:
        """End the subscription to some of the groups. What they were sent before may still come.
        Raises InvalidName, NotSubscribed."""
        finished(self._membership.leave(groups))

    def __enter__(self) -> Self:
        """Join the groups. If it raises (LimitReached, SegmentError), none is joined."""
        finished(self._membership.enter())
        return self

    def __exit__(self, *exc_info: object) -> None:
        finished(self._membership.end())

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> dict[str, Any]:
        return self.get()
