"""What the asyncio layers return from `subscribe`: a facade of `membership`, which a timer of the
loop renews. Must not decide when to join."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from .. import clock
from ..options import waiting_time
from .loop import ASYNCIO, running_loop
from .membership import Membership, Subscribed, nothing_came
from .operations import Core

if TYPE_CHECKING:
    from typing_extensions import Self


class Subscription(Subscribed):
    """The messages of some groups, for the duration of a block. ``layer.subscribe`` returns it::

        async with layer.subscribe("news", "weather") as events:
            async for event in events:
                ...

    It joins the groups when the block is entered, and leaves them when the block ends in any way.
    Within the block it renews the memberships at half of ``group_expiry``, whether or not a task
    reads. Messages that come while no task reads wait, up to the ``capacity`` of the layer.

    If the shared memory is removed or flushed, the subscription joins its groups again at the next
    read. Messages sent in between are lost; that is logged, and counted in `gaps`. In a forked
    child it joins on its own when it is first used there.

    Several tasks may read one subscription; each message goes to one of them.
    """

    def __init__(
        self,
        layer: Any,
        core: Core,
        groups: Iterable[str],
        begin: Callable[[], None] = lambda: None,
    ) -> None:
        self._membership = Membership(layer, core, ASYNCIO, groups, begin)
        self._timer: asyncio.Handle | None = None
        self._due = 0.0  # when it calls, by the loop's clock; not every handle of uvloop can say it
        self._loop: weakref.ref[asyncio.AbstractEventLoop] | None = None  # whose timer it is
        self._renewal: asyncio.Task[None] | None = None

    async def get(self, timeout: float | None = None) -> dict[str, Any]:
        """Wait for the next message, and return it.

        If none comes within `timeout` seconds, raise the built-in TimeoutError. None waits without
        a limit; 0 takes only a pending message. If it is cancelled, it has taken nothing. Raises
        NotSubscribed outside the block.
        """
        deadline = None if timeout is None else clock.monotonic() + waiting_time(timeout)
        found = await self._membership.receive(deadline, self._is_renewed())
        if found is None:
            raise nothing_came(self._membership, timeout)
        return found

    async def join(self, *groups: str) -> None:
        """Join more groups: all of them, or none if it raises. Raises InvalidName, LimitReached,
        NotSubscribed."""
        await self._membership.join(groups)

    async def leave(self, *groups: str) -> None:
        """Leave some of the groups. Messages that were sent to them before may still come. Raises
        InvalidName, NotSubscribed."""
        await self._membership.leave(groups)

    async def __aenter__(self) -> Self:
        """Join the groups. If it raises (LimitReached, SegmentError), none is joined."""
        await self._membership.enter()
        self._renew_in(self._membership.half)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._renewal is not None:
            self._renewal.cancel()
        await self._membership.end()  # which suspends only while the lock is busy

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> dict[str, Any]:
        return await self.get()

    def _is_renewed(self) -> bool:
        """Whether a timer of the running loop renews the memberships."""
        loop = running_loop()
        if self._timer is None or self._loop is None or self._loop() is not loop:
            return False
        if self._due - loop.time() > self._membership.half:
            # Set while the clock of the loop was replaced, it may never call.
            self._timer.cancel()
            self._renew_in(0)
        return True

    def _renew_in(self, seconds: float) -> None:
        # The timer must not keep alive what nobody refers to.
        loop = running_loop()
        self._loop = weakref.ref(loop)
        self._due = loop.time() + seconds
        self._timer = loop.call_later(seconds, _renew, weakref.ref(self))

    async def _renew(self) -> None:
        self._renew_in(await self._membership.renew())


def _renew(reference: weakref.ref[Subscription]) -> None:
    found = reference()
    if found is not None:
        found._renewal = asyncio.ensure_future(found._renew())
