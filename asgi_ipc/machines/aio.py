"""The asyncio layer over several machines: decides which way a message goes. Must not send to other
machines itself: `gateway` does that.

Messages within a machine go through shared memory, the others over an existing layer. A normal
channel belongs to the machine where it is used, a process-specific or single-reader channel to its
home (the machine where it is received), a group to all machines. Receiving is always local: the
relay of the machine puts what comes from elsewhere into shared memory.

Marks such as (A1), (B4) and (M7) name sentences of the contracts: see `asgi_ipc.conformance`.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Iterable

from .. import clock, errors
from ..aio.layer import OF_THE_OPTION, IPCChannelLayer, OfTheOption
from ..aio.session import Session
from ..aio.subscription import Subscription
from ..base_layer import AsyncBaseChannelLayer, Message, Received
from ..errors import NotOwner
from ..names import check_channel
from ..options import waiting_time
from ..statistics import UNREAD_AFTER, Stats
from .backend import Backend
from .base import LocalAndRemote, Settings
from .directory import (
    attach,
    directory_group,
    has_home,
    home_in,
    machine_id,
    machine_in_name,
    unread_channels,
)
from .gateway import Gateway


class LocalAndRemoteChannelLayer(LocalAndRemote, AsyncBaseChannelLayer):
    """A channel layer over shared memory on each machine, and over another layer between machines.

    All processes of a machine use the same ``local["prefix"]``; all machines use the same remote
    layer.
    """

    def _set_up(self, settings: Settings) -> IPCChannelLayer:
        self._local = IPCChannelLayer(**settings.local)
        self._gateway = Gateway(
            Backend(settings.remote), self._local, settings.local, settings.remote_timeout
        )
        # A layer that is dropped without close() leaves no thread behind.
        self._finalizer = weakref.finalize(self, self._gateway.stop, wait=False)
        self._finalizer.atexit = False  # `loop_thread` stops it then, and waits
        # What names of this machine contain, while it is attached in this session. In one
        # assignment: other threads read it.
        self._here: tuple[Session | None, str] = None, "?!"
        return self._local

    @property
    def client_prefix(self) -> str:
        """The part of a name that only this layer's process-specific channels have."""
        return self._local.client_prefix

    # -- channels ---------------------------------------------------------------------------------

    async def send(self, channel: str, message: Message, timeout: float | None = None) -> None:
        """Send `message` to `channel`, on this machine or another (B1).

        A send within this machine never waits (M8). With a `timeout` in seconds it waits for
        room (see `asgi_ipc.aio.IPCChannelLayer.send`). A send to another machine hands the message
        to the remote layer, which cannot wait for room: `timeout` is checked, but has no effect.
        Raises ChannelFull, MessageTooLarge, InvalidName, InvalidMessage, NotAChannel; for another
        machine also RemoteUnavailable, after at most ``remote_timeout`` seconds. If it raises,
        nothing was sent.
        """
        if timeout is not None:
            waiting_time(timeout)
        session, mark = self._here
        if not has_home(channel) or (mark in channel and self._local._core.session is session):
            await self._local.send(channel, message, timeout)
            return
        message = self._converted(message)
        fields = {"channel": channel, "message": message}
        home, own = await self._find_home(channel)
        if home and home != own:
            self._check(channel, message)
            await self._gateway.send_to_machine(home, "send", fields)
            return
        await self._local.send(channel, message, timeout)
        if not home:
            # As far as this machine knows, nobody has received there yet: the home may be anywhere.
            # The home answers to the relay here; from then on it alone gets what is sent.
            await self._gateway.be_reachable(await attach(self._local))
            await self._gateway.send_to_reader("ask", fields)

    async def receive(self, channel: str, timeout: float | None = None) -> Message:
        """Return the next message of `channel`, waiting for it (B1).

        If none comes within `timeout` seconds, raise TimeoutError, the built-in one (see
        `asgi_ipc.aio.IPCChannelLayer.receive`). A receive that is cancelled, or whose time runs
        out, takes nothing (B4). The first receive on a channel with a ``?`` also tells the other
        machines, for which it may need up to twice ``remote_timeout``. Raises InvalidName, and
        NotOwner, an AssertionError, for a process-specific channel of another layer or process.
        """
        self._gateway.serve()
        if has_home(channel) and "?" in channel:
            begun = clock.monotonic()
            await self._register_readers([channel])
            if timeout is not None:
                timeout -= clock.monotonic() - begun
        return await self._local.receive(channel, timeout)

    async def receive_async(
        self, channels: Iterable[str], timeout: float | None | OfTheOption = OF_THE_OPTION
    ) -> Received:
        """Return (channel, message) from the first of `channels` that has a message (A9).

        `timeout` and errors are those of `asgi_ipc.aio.IPCChannelLayer.receive_async`.
        """
        self._gateway.serve()
        if not isinstance(channels, (str, bytes)):
            channels = list(channels)
            await self._register_readers(channels)
        return await self._local.receive_async(channels, timeout)

    async def _register_readers(self, channels: list[str]) -> None:
        """Tell the other machines which channels are received here, where the name does not."""
        for channel in channels:
            check_channel(channel)
            if "!" not in channel and "?" not in channel:
                continue
            session = await attach(self._local)
            home = machine_in_name(channel)
            if not home:
                await self._gateway.register_reader(session, channel)
            elif home != machine_id(session):
                raise NotOwner(
                    f"channel {channel!r} was made on another machine, and only that machine can "
                    "receive on it. new_channel() makes a name for this machine"
                )

    async def new_channel(self, prefix: str = "specific") -> str:
        """Return the name of a new process-specific channel, which contains this machine (B1)."""
        session = await attach(self._local)
        name = await self._local.new_channel(f"{prefix}.m{machine_id(session)}")
        await self._be_reachable()
        return name

    async def _be_reachable(self) -> None:
        """Have this machine get what others send to a new name that contains it."""
        if not self._gateway.backend.named:
            # Others reach this machine as a group: make sure, once, that the relay is in it.
            await self._gateway.be_reachable(await attach(self._local))
        else:
            self._gateway.serve()

    # -- groups -----------------------------------------------------------------------------------

    async def group_add(self, group: str, channel: str) -> None:
        """Add `channel` to `group`, or renew its membership (B2).

        When it returns, other machines reach the channel through the group. If the remote layer is
        away, they reach it once that layer is back. A channel of another machine is added on that
        machine; this raises RemoteUnavailable if that fails. A normal channel is a member on this
        machine.
        """
        await self._change_membership("add", group, channel)

    async def group_discard(self, group: str, channel: str) -> None:
        """Remove `channel` from `group`; no error if it is not a member (B2)."""
        await self._change_membership("discard", group, channel)

    async def _change_membership(self, what: str, group: str, channel: str) -> None:
        fields = {"group": group, "channel": channel}
        marked = has_home(channel)
        home, own = await self._find_home(channel) if marked else ("", "")
        if home and home != own:
            self._local.require_valid_group_name(group)
            await self._gateway.send_to_machine(home, what, fields)
            return
        if what == "add":
            await self._local.group_add(group, channel)
            await self._gateway.join(await attach(self._local), group)
        else:
            await self._local.group_discard(group, channel)
        if marked and not home:
            await self._gateway.send_to_reader(what, fields)

    async def group_channels(self, group: str) -> list[str]:
        """Return the members of `group` on this machine whose readers are alive (A5)."""
        return await self._local.group_channels(group)

    async def group_send(self, group: str, message: Message) -> None:
        """Send `message` to every member of `group`, on all machines (B2, M7).

        Full channels are skipped. If the remote layer is away, only the members on this machine get
        the message; the loss is counted and logged.
        """
        message = self._converted(message)
        await self._local.group_send(group, message)
        await self._gateway.send_to_group(group, message)

    def subscribe(self, *groups: str) -> Subscription:
        """Return a subscription to `groups`, on all machines: see
        `asgi_ipc.aio.IPCChannelLayer.subscribe`. Raises InvalidName."""
        return Subscription(self, self._local._core, groups, self._gateway.serve)

    # -- the rest ---------------------------------------------------------------------------------

    async def flush(self) -> None:
        """Remove all messages and groups of this machine, and tell the other machines to (A7).

        When it returns, this machine is empty; the others are empty when the message reaches them.
        If it raises RemoteUnavailable, this machine is empty.
        """
        await self._local.flush()
        await self._gateway.ask({"do": "flush"})

    async def global_statistics(self) -> dict[str, float]:
        """Return the figures of the statistics extension for this machine (A8)."""
        return await self._local.global_statistics()

    async def channel_statistics(self, channel: str) -> dict[str, float]:
        """Return the figures of the statistics extension for a channel on this machine (A8)."""
        return await self._local.channel_statistics(channel)

    async def stats(self) -> Stats:
        """Return all figures of this machine's layer: see `asgi_ipc.statistics.Stats`."""
        return await self._local.stats()

    async def unread_channels(self, seconds: float = UNREAD_AFTER) -> list[str]:
        """Return the normal channels of this machine with a message that has been pending for
        `seconds`, and without a waiting receiver. Each machine needs a worker for each of them."""
        return unread_channels(await attach(self._local), seconds)

    async def close(self) -> None:
        """Free what this layer uses of the process: descriptors, memory, connections and its
        thread. Nothing is removed, and the next call attaches and connects again."""
        await asyncio.to_thread(self._gateway.stop)
        await self._local.close()

    close_pools = close

    # -- inside -----------------------------------------------------------------------------------

    async def _find_home(self, channel: str) -> tuple[str, str]:
        """Return the home of a channel with a ``!`` or ``?``, "" if unknown; and this machine."""
        check_channel(channel)
        session = await attach(self._local)
        own = machine_id(session)
        self._here = session, f"m{own}."
        home = machine_in_name(channel)
        if not home:
            home = home_in(await self._local.group_channels(directory_group(channel)))
        return home, own

    def _converted(self, message: Message) -> Message:
        """Return `message` as both layers can send it: with the option ``default``, the remote
        layer gets no value that it cannot pack."""
        if self._local._options.default is None:
            return message
        return self._local._core.codec.plain(message)

    def _check(self, channel: str, message: Message) -> None:
        """Check a message for another machine by the rules of this one."""
        core = self._local._core
        size = len(core.codec.encode(message))
        if size > core.max_message_size:
            raise errors.MessageTooLarge(core._too_large(channel, size))
