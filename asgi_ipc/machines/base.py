"""What both layers for several machines have in common, above all their options. Must not touch
memory or servers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from ..attachment.process import notice_fork
from ..base_layer import _Common
from ..errors import InvalidOption
from ..options import LocalOptions, check_seconds

if TYPE_CHECKING:
    from ..aio.layer import IPCChannelLayer as AsyncioLayer
    from ..sync import IPCChannelLayer as BlockingLayer
    from .gateway import Gateway


class Settings(NamedTuple):
    """The options of a layer for several machines: those of its constructor, in the same order."""

    remote: Mapping[str, Any]
    local: LocalOptions
    remote_timeout: float


class LocalAndRemote(_Common):
    """The constructor of both layers."""

    prefix: str
    _gateway: Gateway

    def __init__(
        self,
        remote: Mapping[str, Any],
        local: LocalOptions | None = None,
        remote_timeout: float = 5,
    ) -> None:
        """`remote`: the ``CHANNEL_LAYERS`` entry of any layer for Channels 4, as plain data;
        `local`: the options of `asgi_ipc.aio.IPCChannelLayer`, for this machine; `remote_timeout`:
        seconds until a call on the remote layer counts as failed.

        Raises InvalidOption. The first call attaches to the memory and connects to the servers.
        """
        check_seconds("remote_timeout", remote_timeout)
        if local is not None and not isinstance(local, Mapping):
            raise InvalidOption(
                "local must be a dict of the options of asgi_ipc.aio.IPCChannelLayer, "
                f"not {local!r}"
            )
        given: LocalOptions = {} if local is None else {**local}
        ipc = self._set_up(Settings(remote, given, remote_timeout))
        super().__init__(ipc.expiry, ipc.group_expiry, ipc.capacity, ipc.channel_capacity)
        self.prefix = ipc.prefix
        self.extensions = list(ipc.extensions)

    def _set_up(self, settings: Settings) -> AsyncioLayer | BlockingLayer:
        """Make the layer for this machine and the gateway to the others; return the layer."""
        raise NotImplementedError

    def remote_statistics(self) -> dict[str, int]:
        """Return what this process counted since it began.

        ``group_sends_lost`` and ``sends_failed``, while the remote layer was away; and, as the
        relay of its machine, the messages ``relayed``, the ``duplicates`` that it dropped, and the
        messages that were ``undeliverable``.
        """
        notice_fork()
        return dict(self._gateway.figures.counts)

    def __repr__(self) -> str:
        return (
            f"<{type(self).__module__}.{type(self).__name__} prefix={self.prefix!r} "
            f"remote={self._gateway.backend.path}>"
        )
