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
from .aio.membership import Membership, Subscribed, nothing_came
from .aio.operations import Core
from .aio.receiving import listed
from .aio.thread import BLOCKING, finished, quiet_waiter
from .attachment.attachment import Inherited
from .attachment.process import notice_fork
from .base_layer import BaseChannelLayer
from .errors import InvalidName, LockTimeout
from .names import check_channel
from .options import Options, waiting_time
from .segment.notes import tell
from .statistics import Stats
from .store.native import LOADED as COMPILED

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from .options import LayerOptions

SPECIFIC = "specific!"  # what new_channel makes without an argument


class IPCChannelLayer(BaseChannelLayer):
    """A channel layer over shared memory, blocking, for Channels 1 and plain threads.

    All processes of the machine with the same `prefix` exchange messages, including those with
    asyncio (`asgi_ipc.aio.IPCChannelLayer`). `asgi_ipc.options.Options` lists the options. Many
    threads may use one layer.
    """

    _options_class = Options

    def __init__(self, prefix: str = "asgi", **options: Unpack[LayerOptions]) -> None:
        """Raises InvalidOption. The first call attaches to shared memory."""
        self._options = read = self._options_class.read(prefix, options)
        super().__init__(read.expiry, read.group_expiry, read.capacity, read.channel_capacity)
        self._core = Core(read)
        self._loops: Core | None = None
        self._receive_timeout = waiting_time(read.receive_timeout)
        self.prefix = prefix
        self.extensions = ["groups", "flush", "statistics", "async", "asyncio"]
        if importlib.util.find_spec("twisted") is not None:
            self.extensions.insert(3, "twisted")

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy, or a layer that is unpickled in another process, is a new layer with these
        options, including the keys."""
        return self._options.again(type(self))

    # -- channels ---------------------------------------------------------------------------------

    def send(self, channel: str, message: dict[str, Any], timeout: float | None = None) -> None:
        """Send `message` to `channel`. Without a `timeout` it never waits for readers (A1, M8).

        Raises ChannelFull if the channel is at capacity or the memory is used up. With a `timeout`
        in seconds it first waits that long for room; 0 does not wait. Room that becomes free
        belongs to the senders that wait. Also raises MessageTooLarge, InvalidName, InvalidMessage,
        NotAChannel. If it raises, nothing was sent.
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

        If there is none, return (None, None): at once, or with `block` after `timeout` seconds, by
        default ``receive_timeout`` (A2). Name process-specific channels up to the ``!``, or in full
        if `new_channel` made the name. The result has the full name. Raises InvalidName, NotOwner.
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
            pass  # not looked up yet, or not a name
        try:
            try:
                if block and sources is not None:
                    waiter = quiet_waiter(session, sources)
                    if waiter is not None:
                        seconds = self._seconds(timeout)
                        return waiter.listen(core, session, sources, seconds) or (None, None)
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
        return self._receive_timeout if timeout is None else waiting_time(timeout)

    async def receive_async(
        self, channels: Iterable[str]
    ) -> tuple[str | None, dict[str, Any] | None]:
        """Do the same as `receive` with ``block=True``, as a coroutine on the running loop (A9)."""
        from .aio.loop import ASYNCIO

        deadline = clock.monotonic() + self._seconds(None)
        return await self._for_loops.receive_from(channels, deadline, ASYNCIO)

    def receive_twisted(self, channels: Iterable[str]) -> Any:
        """Do the same as `receive` with ``block=True``, as a Deferred of the reactor (A9)."""
        from .aio.reactor import receive

        return receive(self._for_loops, channels, self._seconds(None))

    @property
    def _for_loops(self) -> Core:
        """The core for event loops, which a busy lock must not block. It receives on the names that
        `new_channel` made."""
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
        """Remove `channel` from `group`; no error if it is not a member (A5)."""
        self._core.group_discard(group, channel)

    def group_channels(self, group: str) -> list[str]:
        """Return the members of `group` whose processes live (A5)."""
        return self._core.group_channels(group)

    def send_group(self, group: str, message: dict[str, Any]) -> None:
        """Send `message` to every member of `group`, except those whose channel is full (A5,
        M7)."""
        self._core.group_send(group, message)

    def subscribe(self, *groups: str) -> Subscription:
        """Return a subscription to `groups`, for a block: ``with layer.subscribe("news") as events:
        for event in events:``. `send_group` publishes to it. Raises InvalidName."""
        return Subscription(self, self._core, groups)

    # -- the rest ---------------------------------------------------------------------------------

    def flush(self) -> None:
        """Delete all messages and groups, for every process (A7)."""
        self._core.flush()

    def global_statistics(self) -> dict[str, Any]:
        """Return the figures of the statistics extension for the whole layer (A8)."""
        return self._core.global_statistics()

    def channel_statistics(self, channel: str) -> dict[str, Any]:
        """Return the figures of the statistics extension for one channel (A8)."""
        return self._core.channel_statistics(channel)

    def stats(self) -> Stats:
        """Return all figures of the layer: see `asgi_ipc.statistics.Stats`. It takes no lock. Rates
        cover the time since the last call that is at least a second old."""
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


class Subscription(Subscribed):
    """The messages of some groups, for the duration of a block. ``layer.subscribe`` returns it::

        with layer.subscribe("news", "weather") as events:
            for event in events:
                ...

    It joins the groups when the block is entered, and leaves them when the block ends in any way.
    Within the block it renews the memberships at half of ``group_expiry``: while `get` or the loop
    waits, and in each of these calls. A program that does neither for longer than ``group_expiry``
    misses messages; the next call notices that. Messages that come while no thread reads wait, up
    to the ``capacity`` of the layer.

    If the shared memory is removed or flushed, the subscription joins its groups again at the next
    read. Messages sent in between are lost; that is logged, and counted in `gaps`. In a forked
    child it joins on its own when it is first used there.

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

    def get(self, timeout: float | None = None) -> dict[str, Any]:
        """Wait for the next message, and return it.

        If none comes within `timeout` seconds, raise TimeoutError. None waits without a limit; 0
        takes only a pending message. Raises NotSubscribed outside the block.
        """
        deadline = None if timeout is None else clock.monotonic() + waiting_time(timeout)
        found = finished(self._membership.receive(deadline))
        if found is None:
            raise nothing_came(self._membership, timeout)
        return found

    def join(self, *groups: str) -> None:
        """Join more groups: all of them, or none if it raises. Raises InvalidName, LimitReached,
        NotSubscribed."""
        finished(self._membership.join(groups))

    def leave(self, *groups: str) -> None:
        """Leave some of the groups. Messages that were sent to them before may still come. Raises
        InvalidName, NotSubscribed."""
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
