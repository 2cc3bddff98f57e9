"""Several machines, for blocking programs: the facade of `aio.LocalAndRemoteChannelLayer`.

What stays on this machine is done in the calling thread by the blocking layer, and a receive sleeps
in the kernel. Only what concerns other machines is done in the loop thread, and waited for.
"""

from __future__ import annotations

import os
import time
from collections.abc import Coroutine, Iterable, Mapping
from typing import Any, TypeVar

from ..aio.session import CACHED
from ..base_layer import BaseChannelLayer
from ..names import check_channel, check_receive
from ..statistics import UNREAD_AFTER, Stats
from ..sync import IPCChannelLayer
from .aio import LocalAndRemoteChannelLayer as Shared
from .aio import local_options
from .directory import carried, home_group, home_in, machine_id
from .remote import CONFIRMED

T = TypeVar("T")


class LocalAndRemoteChannelLayer(BaseChannelLayer):
    """The blocking twin of `asgi_ipc.aio.LocalAndRemoteChannelLayer`, with the calls of Channels 1.

    Takes the same arguments, and exchanges messages with it.
    """

    def __init__(
        self,
        remote: Mapping[str, Any],
        local: Mapping[str, Any] | None = None,
        remote_timeout: float = 5,
    ) -> None:
        """Raises InvalidOption. Neither memory nor servers are touched before the first call."""
        self._shared = Shared(remote, local, remote_timeout)
        self._local = ipc = IPCChannelLayer(**local_options(local))
        super().__init__(ipc.expiry, ipc.group_expiry, ipc.capacity, self._shared.channel_capacity)
        self._told: dict[tuple[int, str], float] = {}
        self.prefix = ipc.prefix
        self.extensions = list(ipc.extensions)

    # -- channels ---------------------------------------------------------------------------------

    def send(self, channel: str, message: dict[str, Any]) -> None:
        """Send `message` to `channel`, on this machine or another (A1).

        What stays on this machine never blocks (M8). Raises ChannelFull, MessageTooLarge,
        InvalidName, InvalidMessage, NotAChannel, and for another machine RemoteUnavailable, after
        ``remote_timeout`` seconds at most; nothing was sent then.
        """
        if type(channel) is str and ("!" in channel or "?" in channel):
            check_channel(channel)
            home = carried(channel) or home_in(self._local.group_channels(home_group(channel)))
            if home != self._machine():
                self._wait(self._shared.send(channel, message))
                return
        self._local.send(channel, message)

    def receive(
        self, channels: Iterable[str], block: bool = False, timeout: float | None = None
    ) -> tuple[str | None, dict[str, Any] | None]:
        """Return (channel, message) from the first of `channels` that has one (A1, A2).

        As `asgi_ipc.IPCChannelLayer.receive`.
        """
        return self._local.receive(self._reads(channels, wait=block), block, timeout)

    async def receive_async(
        self, channels: Iterable[str]
    ) -> tuple[str | None, dict[str, Any] | None]:
        """`receive` with ``block=True`` as a coroutine, on whatever asyncio loop runs it (A9)."""
        return await self._local.receive_async(self._reads(channels, wait=False))

    def receive_twisted(self, channels: Iterable[str]) -> Any:
        """`receive` with ``block=True`` as a Deferred, driven by the reactor's readers (A9)."""
        return self._local.receive_twisted(self._reads(channels, wait=False))

    def new_channel(self, pattern: str) -> str:
        """Return an unused name for `pattern`, which ends in ``?`` (A3); it carries this machine,
        and is received there. Raises InvalidName."""
        self._local.new_channel(pattern)
        return check_channel(f"{pattern}m{self._machine()}.{os.urandom(8).hex()}")

    # -- groups -----------------------------------------------------------------------------------

    def group_add(self, group: str, channel: str) -> None:
        """Add `channel` to `group`, or renew its membership (A5); when it returns, other machines
        reach the channel through the group."""
        self._wait(self._shared.group_add(group, channel))

    def group_discard(self, group: str, channel: str) -> None:
        """Remove `channel` from `group`; it need not be a member (A5)."""
        self._wait(self._shared.group_discard(group, channel))

    def group_channels(self, group: str) -> list[str]:
        """The members of `group` on this machine whose readers live (A5)."""
        return self._local.group_channels(group)

    def send_group(self, group: str, message: dict[str, Any]) -> None:
        """Send `message` to every member of `group`, on all machines; full channels are left out
        (A5, M7). If the remote layer is away, the loss is counted and logged."""
        self._wait(self._shared.group_send(group, message))

    # -- the rest ---------------------------------------------------------------------------------

    def flush(self) -> None:
        """Forget all messages and groups of this machine, and tell the other machines to (A7).

        Raises RemoteUnavailable after this machine was emptied.
        """
        self._wait(self._shared.flush())

    def global_statistics(self) -> dict[str, Any]:
        """The figures of the statistics extension for this machine (A8)."""
        return self._local.global_statistics()

    def channel_statistics(self, channel: str) -> dict[str, Any]:
        """The figures of the statistics extension for a channel on this machine (A8)."""
        return self._local.channel_statistics(channel)

    def stats(self) -> Stats:
        """Everything that is known of the layer of this machine: `asgi_ipc.statistics.Stats`."""
        return self._local.stats()

    def remote_statistics(self) -> dict[str, int]:
        """As `asgi_ipc.aio.LocalAndRemoteChannelLayer.remote_statistics`."""
        return self._shared.remote_statistics()

    def unread_channels(self, seconds: float = UNREAD_AFTER) -> list[str]:
        """As `asgi_ipc.aio.LocalAndRemoteChannelLayer.unread_channels`."""
        return self._wait(self._shared.unread_channels(seconds))

    def close(self) -> None:
        """Free what this layer holds of the process: descriptors, memory, connections and its
        thread. Nothing is removed, and the next call begins anew."""
        self._shared._remote.stop()
        self._shared._local._core.detach()
        self._local.close()

    def __repr__(self) -> str:
        return (
            f"<{type(self).__module__}.{type(self).__name__} prefix={self.prefix!r} "
            f"remote={self._shared._remote._backend.path}>"
        )

    # -- inside -----------------------------------------------------------------------------------

    def _machine(self) -> str:
        core = self._local._core
        return machine_id(core.session or core.attach())

    def _wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run in the loop thread; a signal handler that raises gets out at once."""
        future = self._shared._remote.run(coroutine)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _reads(self, channels: Iterable[str], wait: bool) -> Any:
        """Let the other machines know what is read here, unless they have just been told."""
        self._shared._remote.serve()
        if isinstance(channels, (str, bytes)):
            return channels  # refused by the local layer
        channels = list(channels)
        marked = [
            name for name in channels if isinstance(name, str) and ("!" in name or "?" in name)
        ]
        if marked:
            core, now = self._local._core, time.monotonic()
            epoch = (core.session or core.attach()).epoch
            new = [
                check_receive(name) for name in marked if self._told.get((epoch, name), 0.0) < now
            ]
            if new:
                telling = self._shared._remote.run(self._shared._reads(new))
                if wait:
                    telling.result()
                if len(self._told) >= CACHED:
                    self._told.clear()
                self._told.update(((epoch, name), now + CONFIRMED) for name in new)
        return channels
