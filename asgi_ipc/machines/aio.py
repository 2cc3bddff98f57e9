"""Several machines: what is local stays in shared memory, the rest goes over an existing layer.

Normal channels belong to the machine they are used on; a process-specific or single-reader channel
to the machine where it is read; a group to all machines. Receiving is always local: what comes from
elsewhere is put into shared memory by the relay of the machine (`relay`). This class only decides
which way a message goes.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

from .. import errors
from ..aio.layer import _MISSING, IPCChannelLayer
from ..aio.session import Session
from ..base_layer import AsyncBaseChannelLayer
from ..errors import InvalidOption, NotOwner
from ..names import check_channel
from ..statistics import UNREAD_AFTER, Stats
from .directory import attached, carried, home_group, home_in, machine_id, unread_channels
from .distributed import Backend
from .remote import Remote


class LocalAndRemoteChannelLayer(AsyncBaseChannelLayer):
    """A channel layer over shared memory on each machine, and over `remote` between machines.

    `remote` is the ``CHANNEL_LAYERS`` entry of any layer for Channels 4, as plain data; `local`
    are the options of `asgi_ipc.aio.IPCChannelLayer`. All processes of a machine name the same
    ``local["prefix"]``; all machines use the same remote layer.
    """

    def __init__(
        self,
        remote: Mapping[str, Any],
        local: Mapping[str, Any] | None = None,
        remote_timeout: float = 5,
    ) -> None:
        """`remote_timeout`: seconds until a call on the remote layer counts as failed.

        Raises InvalidOption. Neither memory nor servers are touched before the first call.
        """
        if (
            isinstance(remote_timeout, bool)
            or not isinstance(remote_timeout, (int, float))
            or not 0 < remote_timeout < float("inf")
        ):
            raise InvalidOption(
                f"remote_timeout must be a positive number of seconds, not {remote_timeout!r}"
            )
        options = local_options(local)
        self._local = ipc = IPCChannelLayer(**options)
        super().__init__(ipc.expiry, ipc.group_expiry, ipc.capacity, ipc.channel_capacity)
        self._remote = Remote(Backend(remote), ipc, options, remote_timeout)
        # A layer that is merely dropped leaves no thread behind.
        self._finalizer = weakref.finalize(self, self._remote.stop, wait=False)
        self._finalizer.atexit = False  # `loop_thread` sees to that, and waits
        # What names of this machine contain, as long as it is attached like that.
        self._known: Session | None = None
        self._here = "?!"
        self.extensions = list(ipc.extensions)
        self.prefix = ipc.prefix

    @property
    def client_prefix(self) -> str:
        """What tells this layer's process-specific channels from all others."""
        return self._local.client_prefix

    # -- channels ---------------------------------------------------------------------------------

    async def send(self, channel: str, message: dict[str, Any]) -> None:
        """Send `message` to `channel`, on this machine or another (B1).

        What stays on this machine never waits (M8). Raises ChannelFull, MessageTooLarge,
        InvalidName, InvalidMessage, NotAChannel, and for another machine RemoteUnavailable, after
        ``remote_timeout`` seconds at most; nothing was sent then.
        """
        if not (type(channel) is str and ("!" in channel or "?" in channel)) or (
            self._here in channel and self._local._core.session is self._known
        ):
            await self._local.send(channel, message)
            return
        fields = {"channel": channel, "message": message}
        home, own = await self._home(channel)
        if home and home != own:
            self._check(channel, message)
            await self._remote.to_machine(home, "send", fields)
            return
        await self._local.send(channel, message)
        if not home:
            # Nobody has read there yet, as far as this machine knows: its reader may be anywhere.
            # A machine where it is read says so to the relay here, and is sent to alone then.
            await self._remote.ready(await attached(self._local))
            await self._remote.to_reader("ask", fields)

    async def receive(self, channel: str) -> dict[str, Any]:
        """Return the next message of `channel`, waiting for it (B1).

        Cancelled, it has taken nothing (B4). Raises NotOwner, an AssertionError, for a
        process-specific channel of another layer or process; InvalidName.
        """
        if self._remote._serving is None:
            self._remote.serve()
        if type(channel) is str and "?" in channel:
            await self._reads([channel])
        return await self._local.receive(channel)

    async def receive_async(
        self, channels: Iterable[str], timeout: float | None | object = _MISSING
    ) -> tuple[str | None, dict[str, Any] | None]:
        """Return (channel, message) from the first of `channels` that has one (A9).

        As `asgi_ipc.aio.IPCChannelLayer.receive_async`.
        """
        self._remote.serve()
        if not isinstance(channels, (str, bytes)):
            channels = list(channels)
            await self._reads(channels)
        return await self._local.receive_async(channels, timeout)

    async def _reads(self, channels: list[str]) -> None:
        """Let the other machines know where names are read that do not tell it themselves."""
        for channel in channels:
            check_channel(channel)
            if "!" not in channel and "?" not in channel:
                continue
            session = await attached(self._local)
            home = carried(channel)
            if not home:
                await self._remote.reads(session, channel)
            elif home != machine_id(session):
                raise NotOwner(
                    f"channel {channel!r} was made on another machine, and is received there alone"
                )

    async def new_channel(self, prefix: str = "specific") -> str:
        """Return the name of a new process-specific channel, which carries this machine (B1)."""
        session = await attached(self._local)
        name = await self._local.new_channel(f"{prefix}.m{machine_id(session)}")
        if not self._remote._backend.named:
            # There the machine is reached as a group: once, see that the relay is in it.
            await self._remote.ready(session)
        else:
            self._remote.serve()
        return name

    # -- groups -----------------------------------------------------------------------------------

    async def group_add(self, group: str, channel: str) -> None:
        """Add `channel` to `group`, or renew its membership (B2).

        When it returns other machines reach the channel through the group; if the remote layer is
        away they will when it is back. A channel of another machine is added there, or
        RemoteUnavailable raised. A normal channel is a member on this machine.
        """
        await self._member("add", group, channel)

    async def group_discard(self, group: str, channel: str) -> None:
        """Remove `channel` from `group`; it need not be a member (B2)."""
        await self._member("discard", group, channel)

    async def _member(self, what: str, group: str, channel: str) -> None:
        fields = {"group": group, "channel": channel}
        marked = type(channel) is str and ("!" in channel or "?" in channel)
        home, own = await self._home(channel) if marked else ("", "")
        if home and home != own:
            self._local.require_valid_group_name(group)
            await self._remote.to_machine(home, what, fields)
            return
        if what == "add":
            await self._local.group_add(group, channel)
            await self._remote.join(await attached(self._local), group)
        else:
            await self._local.group_discard(group, channel)
        if marked and not home:
            await self._remote.to_reader(what, fields)

    async def group_channels(self, group: str) -> list[str]:
        """The members of `group` on this machine whose readers live (A5)."""
        return await self._local.group_channels(group)

    async def group_send(self, group: str, message: dict[str, Any]) -> None:
        """Send `message` to every member of `group`, on all machines (B2, M7).

        Full channels are left out. If the remote layer is away the members on this machine get it,
        and the loss is counted and logged.
        """
        await self._local.group_send(group, message)
        await self._remote.to_group(group, message)

    # -- the rest ---------------------------------------------------------------------------------

    async def flush(self) -> None:
        """Forget all messages and groups of this machine, and tell the other machines to (A7).

        When it returns this machine is empty; the others are as soon as the message reaches them.
        Raises RemoteUnavailable after this machine was emptied.
        """
        await self._local.flush()
        await self._remote.ask({"do": "flush"})

    async def global_statistics(self) -> dict[str, Any]:
        """The figures of the statistics extension for this machine (A8)."""
        return await self._local.global_statistics()

    async def channel_statistics(self, channel: str) -> dict[str, Any]:
        """The figures of the statistics extension for a channel on this machine (A8)."""
        return await self._local.channel_statistics(channel)

    async def stats(self) -> Stats:
        """Everything that is known of the layer of this machine: `asgi_ipc.statistics.Stats`."""
        return await self._local.stats()

    def remote_statistics(self) -> dict[str, int]:
        """What this process counted since it began: ``group_sends_lost`` and ``sends_failed`` while
        the remote layer was away; and as the relay of its machine ``relayed`` messages,
        ``duplicates`` that were dropped, and those that were ``undeliverable``."""
        return dict(self._remote.figures.counts)

    async def unread_channels(self, seconds: float = UNREAD_AFTER) -> list[str]:
        """The normal channels of this machine in which a message has waited for so many seconds,
        and on which nobody waits: each machine needs a worker for every normal channel."""
        return unread_channels(await attached(self._local), seconds)

    async def close(self) -> None:
        """Free what this layer holds of the process: descriptors, memory, connections and its
        thread. Nothing is removed, and the next call begins anew."""
        await asyncio.to_thread(self._remote.stop)
        await self._local.close()

    close_pools = close

    def __repr__(self) -> str:
        return (
            f"<{type(self).__module__}.{type(self).__name__} prefix={self.prefix!r} "
            f"remote={self._remote._backend.path}>"
        )

    # -- inside -----------------------------------------------------------------------------------

    async def _home(self, channel: str) -> tuple[str, str]:
        """The machine of a channel with a ``!`` or ``?``, empty if unknown; and this machine."""
        check_channel(channel)
        session = await attached(self._local)
        own = machine_id(session)
        self._known, self._here = session, f"m{own}."
        home = carried(channel)
        if not home:
            home = home_in(await self._local.group_channels(home_group(channel)))
        return home, own

    def _check(self, channel: str, message: dict[str, Any]) -> None:
        """A message for another machine is held to the rules of this one."""
        core = self._local._core
        size = len(core.codec.encode(message))
        if size > core.max_message_size:
            raise errors.MessageTooLarge(core._too_large(channel, size))


def local_options(local: Mapping[str, Any] | None) -> dict[str, Any]:
    """The options of the local layer. Raises InvalidOption."""
    if local is not None and not isinstance(local, Mapping):
        raise InvalidOption(
            f"local must be a dict of the options of asgi_ipc.aio.IPCChannelLayer, not {local!r}"
        )
    return dict(local or {})
