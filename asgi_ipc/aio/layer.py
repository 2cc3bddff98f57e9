"""The channel layer of Channels 4, and of any asyncio program: coroutines over the operations.

Only `receive` and `receive_async` wait for messages. The other coroutines do their work at once.
They suspend only if the lock stays busy for 20 ms, so that they do not block their loop.

Codes in parentheses, such as (B1), name the rules of the contracts in docs/conformance.rst.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from .. import clock, errors
from ..attachment.attachment import Inherited
from ..attachment.process import notice_fork
from ..base_layer import AsyncBaseChannelLayer
from ..errors import InvalidName, LockBusy, NotOwner
from ..names import check_channel
from ..options import Options, waiting_time
from ..segment.notes import tell
from ..segment.section import complaint
from ..statistics import Stats
from ..store.native import LOADED as COMPILED
from .fanout import Broadcast
from .loop import ASYNCIO, nap, pause, running_loop
from .operations import Core
from .session import Session
from .source import Source
from .subscription import Subscription

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..options import LayerOptions

Answer = TypeVar("Answer")


class OfTheOption:
    """Stands for ``receive_timeout`` if no timeout is given."""

    def __repr__(self) -> str:
        return "receive_timeout"


OF_THE_OPTION = OfTheOption()


class IPCChannelLayer(AsyncBaseChannelLayer):
    """A channel layer over shared memory, for asyncio.

    All processes of the machine with the same `prefix` exchange messages, including blocking ones
    (`asgi_ipc.IPCChannelLayer`). `asgi_ipc.options.Options` lists the options.

    Any number of event loops and threads may use one layer, at once or one after another.
    """

    _options_class = Options

    def __init__(self, prefix: str = "asgi", **options: Unpack[LayerOptions]) -> None:
        """Raises InvalidOption. The first call attaches to shared memory."""
        self._options = read = self._options_class.read(prefix, options)
        super().__init__(read.expiry, read.group_expiry, read.capacity, read.channel_capacity)
        self._core = Core.for_loops(read)
        self.extensions = ["groups", "flush", "statistics", "asyncio"]
        self.prefix = prefix

    @property
    def client_prefix(self) -> str:
        """The part of a name that only this layer's process-specific channels have."""
        notice_fork()
        return self._core.client_prefix

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy, or a layer that is unpickled in another process, is a new layer with these
        options, including the keys."""
        return self._options.again(type(self))

    # -- channels ---------------------------------------------------------------------------------

    async def send(
        self, channel: str, message: dict[str, Any], timeout: float | None = None
    ) -> None:
        """Send `message` to `channel`. Without a `timeout` it never waits for readers (B1, M8).

        Raises ChannelFull if the channel is at capacity or the memory is used up. With a `timeout`
        in seconds it first waits that long for room; 0 does not wait. Room that becomes free
        belongs to the senders that wait. Also raises MessageTooLarge, InvalidName, InvalidMessage,
        NotAChannel. If it raises or is cancelled, nothing was sent.
        """
        if timeout is not None and (seconds := waiting_time(timeout)) > 0:
            await self._send_when_room(channel, message, clock.monotonic() + seconds)
            return
        try:
            self._core.send(channel, message)
        except LockBusy:
            await self._patiently(self._core.send, channel, message)

    async def _send_when_room(self, channel: str, message: dict[str, Any], deadline: float) -> None:
        core = self._core
        while True:
            try:
                if not await self._patiently(core.send_if_room, channel, message):
                    await core.send_when_room(channel, message, deadline, ASYNCIO)
                return
            except Inherited:
                pass  # a child that was forked meanwhile attaches again
            except LockBusy:
                pass  # at the deadline. Nothing was sent: the next try waits for the lock

    async def receive(self, channel: str, timeout: float | None = None) -> dict[str, Any]:
        """Wait for the next message of `channel` and return it (B1).

        If no message comes within `timeout` seconds, raise the built-in TimeoutError. (Before
        Python 3.11, asyncio.TimeoutError is another class, which does not catch it.) None waits
        without a limit; 0 takes only a pending message.

        If it is cancelled, or its time runs out, it has taken nothing (B4). Raises InvalidName, and
        NotOwner (an AssertionError) for a process-specific channel of another layer or process.
        """
        deadline = None if timeout is None else clock.monotonic() + waiting_time(timeout)
        core = self._core
        session = core.session or await self._attached(channel, timeout, deadline)
        if COMPILED:
            found = session.usual.receive_exact(channel)
            if type(found) is dict:
                return found
            if found is not None and (found := core.unpacked(session, found)) is not None:
                return found[1]
        try:
            sources = session.exact_sources[channel]
        except (KeyError, TypeError):
            sources = self._exact(session, channel)
        try:
            try:
                found = core.glance(session, sources)
                if found is None and deadline is None:
                    source = sources[0]
                    inbox, box = source.inbox, source.box
                    while (sleep := nap(session, source, core.spin)) is not None:
                        assert inbox is not None
                        try:
                            if inbox.join_at(box, sleep) is False:
                                await sleep.future
                            message = core.take_own(session, source, box, sleep)
                        finally:
                            inbox.part_from(box, sleep)
                            sleep.hub.sleepers -= 1
                        if message is not None:
                            return message
                        box = source.box
            except LockBusy:
                found = None
            except ValueError as error:
                raise session.attachment.explain(error) from None
            if found is None:
                found = await core.receive(session, sources, deadline, ASYNCIO)
                if found is None:
                    raise self._nothing_came(channel, timeout)
        except Inherited:
            left = None if deadline is None else deadline - clock.monotonic()
            return await self.receive(channel, left)
        return found[1]  # type: ignore[no-any-return]

    async def _attached(
        self, channel: str, timeout: float | None, deadline: float | None
    ) -> Session:
        """Attach, for a receive on `channel` that ends at `deadline`."""
        session = await self._core.ride_out(ASYNCIO, deadline, self._core.attach)
        if session is None:
            raise self._nothing_came(channel, timeout)
        return session

    def _nothing_came(self, channel: str, timeout: float | None) -> TimeoutError:
        return TimeoutError(
            f"no message came on channel {channel!r} of prefix {self.prefix!r} within {timeout:g} s"
        )

    def _exact(self, session: Session, channel: str) -> list[Source]:
        if isinstance(channel, (list, tuple, set)):
            raise InvalidName("receive takes the name of one channel; receive_async takes several")
        channel = check_channel(channel)
        if "!" in channel and self._core.own not in channel:
            raise NotOwner(
                f"channel {channel!r} does not belong to this layer: its process-specific "
                f"channels contain {self._core.own!r}. await new_channel() makes one"
            )
        return self._core.exact_source(session, channel)

    async def receive_async(
        self, channels: Iterable[str], timeout: float | None | OfTheOption = OF_THE_OPTION
    ) -> tuple[str | None, dict[str, Any] | None]:
        """Return (channel, message) from the first of `channels` that has a message (A9).

        `timeout` is in seconds, by default ``receive_timeout``. None waits without a limit. When
        the time runs out the result is (None, None). Name process-specific channels up to the
        ``!``, or in full if `new_channel` made the name. The result has the full name. Raises
        InvalidName, NotOwner.
        """
        seconds = self._options.receive_timeout if timeout is OF_THE_OPTION else timeout
        deadline = None if seconds is None else clock.monotonic() + waiting_time(seconds)
        return await self._core.receive_from(channels, deadline, ASYNCIO)

    async def new_channel(self, prefix: str = "specific") -> str:
        """Return the name of a new process-specific channel of this layer (B1)."""
        if "?" in f"{prefix}":
            raise InvalidName(
                "new_channel makes process-specific channels, and takes the part before the '!', "
                f"not {prefix!r}. For a single-reader channel, make a name: 'reply?' + "
                "secrets.token_hex(8)"
            )
        return self._core.new_channel(prefix)

    # -- groups -----------------------------------------------------------------------------------

    async def group_add(self, group: str, channel: str) -> None:
        """Add `channel` to `group`, or renew its membership for ``group_expiry`` seconds (B2)."""
        await self._patiently(self._core.group_add, group, channel)

    async def group_discard(self, group: str, channel: str) -> None:
        """Remove `channel` from `group`; no error if it is not a member (B2)."""
        await self._patiently(self._core.group_discard, group, channel)

    async def group_channels(self, group: str) -> list[str]:
        """Return the members of `group` whose processes live (A5)."""
        return await self._patiently(self._core.group_channels, group)

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        """Send `message` to every member of `group`, except those whose channel is full (B2,
        M7)."""
        progress = Broadcast(turns=True)
        await self._patiently(self._core.group_send, group, message, progress)
        while not progress.is_done():
            await pause(0)  # a loop that sends to itself: its receivers get a turn
            await self._patiently(self._core.group_send, group, message, progress)

    def subscribe(self, *groups: str) -> Subscription:
        """Return a subscription to `groups`, for a block: ``async with layer.subscribe("news") as
        events: async for event in events:``. `group_send` publishes to it. Raises InvalidName."""
        return Subscription(self, self._core, groups)

    # -- the rest ---------------------------------------------------------------------------------

    async def flush(self) -> None:
        """Delete all messages and groups, for every process (A7)."""
        await self._patiently(self._core.flush)

    async def global_statistics(self) -> dict[str, Any]:
        """Return the figures of the statistics extension for the whole layer (A8)."""
        return await self._patiently(self._core.global_statistics)

    async def channel_statistics(self, channel: str) -> dict[str, Any]:
        """Return the figures of the statistics extension for one channel (A8)."""
        return await self._patiently(self._core.channel_statistics, channel)

    async def stats(self) -> Stats:
        """Return all figures of the layer: see `asgi_ipc.statistics.Stats`. It takes no lock. Rates
        cover the time since the last call that is at least a second old."""
        return await self._patiently(self._core.stats)

    async def close(self) -> None:
        """Free the descriptors and the memory map that this layer holds. Nothing is removed from
        shared memory, and the next call attaches again."""
        notice_fork()
        session = self._core.session
        if session is not None:
            waiter = session.attachment.hubs.get(running_loop())
            if waiter is not None:
                waiter.release()
            session = None
        self._core.detach()
        tell()

    close_pools = close

    def __repr__(self) -> str:
        return f"<{type(self).__module__}.{type(self).__name__} prefix={self.prefix!r}>"

    async def _patiently(self, call: Callable[..., Answer], *args: Any) -> Answer:
        """Run `call`, and let the loop continue between tries while the lock is busy."""
        timeout = self._options.lock_timeout
        deadline = clock.monotonic() + timeout
        while True:
            try:
                return call(*args)
            except LockBusy as error:
                if clock.monotonic() >= deadline:
                    raise errors.LockTimeout(complaint(error.holder, timeout)) from None
                await pause(0.001)
