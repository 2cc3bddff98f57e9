"""The blocking layer over several machines: a facade of `machines.aio`. Must not decide which way a
message goes, beyond what needs no other machine.

Calls that concern only this machine run in the calling thread, on the blocking layer, and a receive
sleeps in the kernel. Calls that concern other machines run in the loop thread, and are waited for.

Marks such as (A1), (B4) and (M7) name sentences of the contracts: see `asgi_ipc.conformance`.
"""

from __future__ import annotations

import os
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

from .. import clock
from ..aio.session import CACHED
from ..base_layer import BaseChannelLayer, Message, Received
from ..errors import Reentered
from ..names import check_channel
from ..statistics import UNREAD_AFTER, Stats
from ..sync import SPECIFIC, IPCChannelLayer, Subscription
from .aio import LocalAndRemoteChannelLayer as AsyncioLayer
from .base import LocalAndRemote, Settings
from .directory import directory_group, has_home, home_in, machine_id, machine_in_name
from .gateway import CONFIRMED

T = TypeVar("T")


class LocalAndRemoteChannelLayer(LocalAndRemote, BaseChannelLayer):
    """The blocking twin of `asgi_ipc.aio.LocalAndRemoteChannelLayer`, with the calls of Channels 1.

    It takes the same arguments, and exchanges messages with the asyncio layer.
    """

    def _set_up(self, settings: Settings) -> IPCChannelLayer:
        self._asyncio = AsyncioLayer(*settings)
        self._gateway = self._asyncio._gateway
        self._local = IPCChannelLayer(**settings.local)
        self._registered: dict[tuple[int, str], float] = {}
        return self._local

    # -- channels ---------------------------------------------------------------------------------

    def send(self, channel: str, message: Message, timeout: float | None = None) -> None:
        """Send `message` to `channel`, on this machine or another (A1).

        A send within this machine never blocks (M8). With a `timeout` in seconds it waits for
        room (see `asgi_ipc.IPCChannelLayer.send`). A send to another machine hands the message to
        the remote layer, which cannot wait for room: `timeout` is checked, but has no effect.
        Raises ChannelFull, MessageTooLarge, InvalidName, InvalidMessage, NotAChannel; for another
        machine also RemoteUnavailable, after at most ``remote_timeout`` seconds. If it raises,
        nothing was sent.
        """
        if has_home(channel):
            check_channel(channel)
            home = machine_in_name(channel)
            if not home:
                home = home_in(self._local.group_channels(directory_group(channel)))
            if home != self._machine():
                self._wait(self._asyncio.send(channel, message, timeout))
                return
        self._local.send(channel, message, timeout)

    def receive(
        self, channels: Iterable[str], block: bool = False, timeout: float | None = None
    ) -> Received:
        """Return (channel, message) from the first of `channels` that has a message (A1, A2).

        Arguments and errors are those of `asgi_ipc.IPCChannelLayer.receive`.
        """
        return self._local.receive(self._register_readers(channels, wait=block), block, timeout)

    async def receive_async(self, channels: Iterable[str]) -> Received:
        """Do the same as `receive` with ``block=True``, as a coroutine on any asyncio loop (A9)."""
        return await self._local.receive_async(self._register_readers(channels, wait=False))

    def receive_twisted(self, channels: Iterable[str]) -> Any:
        """Do the same as `receive` with ``block=True``, as a Deferred (A9)."""
        return self._local.receive_twisted(self._register_readers(channels, wait=False))

    def new_channel(self, pattern: str = SPECIFIC) -> str:
        """Return an unused name for `pattern`, which ends in ``?`` (A3). The name contains this
        machine, and only this machine can receive on it.

        Without an argument, return the name of a new process-specific channel: only this process
        receives on it, through this layer, and its memberships end with the process. Raises
        InvalidName.
        """
        self._local.new_channel(pattern)
        if pattern == SPECIFIC:
            name = self._local._core.new_channel(f"specific.m{self._machine()}")
            self._wait(self._asyncio._be_reachable())
            return name
        return check_channel(f"{pattern}m{self._machine()}.{os.urandom(8).hex()}")

    # -- groups -----------------------------------------------------------------------------------

    def group_add(self, group: str, channel: str) -> None:
        """Add `channel` to `group`, or renew its membership (A5). When it returns, other machines
        reach the channel through the group."""
        self._wait(self._asyncio.group_add(group, channel))

    def group_discard(self, group: str, channel: str) -> None:
        """Remove `channel` from `group`; no error if it is not a member (A5)."""
        self._wait(self._asyncio.group_discard(group, channel))

    def group_channels(self, group: str) -> list[str]:
        """Return the members of `group` on this machine whose readers are alive (A5)."""
        return self._local.group_channels(group)

    def send_group(self, group: str, message: Message) -> None:
        """Send `message` to every member of `group`, on all machines; full channels are skipped
        (A5, M7). If the remote layer is away, the loss is counted and logged."""
        self._wait(self._asyncio.group_send(group, message))

    def subscribe(self, *groups: str) -> Subscription:
        """Return a subscription to `groups`, on all machines: see
        `asgi_ipc.IPCChannelLayer.subscribe`. Raises InvalidName."""
        return Subscription(self, self._local._core, groups, self._gateway.serve)

    # -- the rest ---------------------------------------------------------------------------------

    def flush(self) -> None:
        """Remove all messages and groups of this machine, and tell the other machines to (A7).

        If it raises RemoteUnavailable, this machine is empty.
        """
        self._wait(self._asyncio.flush())

    def global_statistics(self) -> dict[str, float]:
        """Return the figures of the statistics extension for this machine (A8)."""
        return self._local.global_statistics()

    def channel_statistics(self, channel: str) -> dict[str, float]:
        """Return the figures of the statistics extension for a channel on this machine (A8)."""
        return self._local.channel_statistics(channel)

    def stats(self) -> Stats:
        """Return all figures of this machine's layer: see `asgi_ipc.statistics.Stats`."""
        return self._local.stats()

    def unread_channels(self, seconds: float = UNREAD_AFTER) -> list[str]:
        """Do the same as `asgi_ipc.aio.LocalAndRemoteChannelLayer.unread_channels`."""
        return self._wait(self._asyncio.unread_channels(seconds))

    def close(self) -> None:
        """Free what this layer uses of the process: descriptors, memory, connections and its
        thread. Nothing is removed, and the next call attaches and connects again."""
        self._gateway.stop()
        self._registered = {}  # another dict: another thread may be writing to the old one
        self._asyncio._local._core.detach()
        self._local.close()

    # -- inside -----------------------------------------------------------------------------------

    def _machine(self) -> str:
        core = self._local._core
        return machine_id(core.session or core.attach())

    def _wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run in the loop thread, and wait. A signal handler that raises ends the wait at once."""
        if self._gateway.is_current():
            coroutine.close()
            raise Reentered(
                "the layer was called in its own thread, which would wait for itself: by a handler "
                "of its log lines, for example. Call it from another thread"
            )
        future = self._gateway.run(coroutine)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _register_readers(self, channels: Iterable[str], wait: bool) -> Iterable[str]:
        """Tell the other machines which channels are received here, unless they know already."""
        self._gateway.serve()
        if isinstance(channels, (str, bytes)):
            return channels  # refused by the local layer
        channels, known = list(channels), self._registered
        marked = [name for name in channels if has_home(name)]
        if marked:
            core, now = self._local._core, clock.monotonic()
            epoch = (core.session or core.attach()).epoch
            new = [
                core.check_receive(name)
                for name in marked
                if not now <= known.get((epoch, name), 0.0) <= now + CONFIRMED
            ]
            if new:
                registering = self._gateway.run(self._asyncio._register_readers(new))
                if wait:
                    registering.result()
                if len(known) >= CACHED:
                    known.clear()
                known.update(((epoch, name), now + CONFIRMED) for name in new)
        return channels
