"""What every waiter has: an id in the segment and a doorbell. Must not know how it sleeps.

There are four files of waits: `thread`, `hub` (what all event loops share), `loop` and `reactor`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import clock
from ..attachment.upkeep import CHECK_EVERY
from ..segment.doorbell import Doorbell
from .session import Session
from .source import Source

if TYPE_CHECKING:
    from .receiving import Receiving


LOOK_EVERY = 0.05  # seconds between two looks of a waiter that has no doorbell


class Waiter(ABC):
    """A thread or an event loop that waits for messages."""

    waiter_id = 0  # 0: no id or no doorbell was left, and the waiter looks by itself
    _retry_at = 0.0  # when it tries again to get one
    bell: Doorbell | None = None

    def __init__(self, session: Session) -> None:
        self._give_back = session.attachment.give_back
        self._take_bell(session)

    def __del__(self) -> None:
        self._return_bell()

    def _take_bell(self, session: Session) -> None:
        """Get a waiter id and a doorbell, if there are any left."""
        self._retry_at = clock.monotonic() + CHECK_EVERY
        taken = session.attachment.new_bell(session.section)
        if taken is not None:
            self.waiter_id, self._generation, self.bell = waiter_id, generation, bell = taken
            row = session.store.waiter_row(waiter_id)
            self._held = session.attachment.unchanged.held(bell.fileno(), row, generation)

    def _return_bell(self) -> None:
        """Give the waiter id and the doorbell back."""
        if self.bell is not None:
            self._give_back(self.bell, self.waiter_id, self._generation)
            self.waiter_id, self.bell = 0, None

    def _lost_bell(self, session: Session) -> bool:
        """Whether nobody can ring here any more: somebody removed the doorbell, the program closed
        it, or its row in the segment is damaged. Or there was none, and it is time to try again."""
        if not self.waiter_id:
            return not self._retry_at - CHECK_EVERY <= clock.monotonic() < self._retry_at
        lost = self.bell is not None and self.bell.lost()
        return lost or not session.store.is_waiter(self.waiter_id, self._generation)

    def _renew_bell(self, session: Session) -> None:
        self._return_bell()
        self._take_bell(session)

    @property
    def look_every(self) -> float:
        """Seconds between two looks that no ring asks for."""
        return CHECK_EVERY if self.waiter_id else LOOK_EVERY

    # -- what a receive asks, in this order -------------------------------------------------------

    @abstractmethod
    def begin(self, session: Session, sources: list[Source], spin: float) -> bool:
        """A receive is about to take from `sources`; whether it has to spin first, for `spin`
        seconds."""

    @abstractmethod
    async def spin(self, sources: list[Source], seconds: float, deadline: float | None) -> None:
        """Check until something comes, `seconds` are over, or the deadline has come."""

    def is_parked(self, source: Source) -> bool:
        """Whether this waiter is parked at the process-specific queue of `source` already."""
        return False

    @abstractmethod
    async def wait(
        self, core: Receiving, session: Session, sources: list[Source], deadline: float | None
    ) -> bool:
        """Sleep until there may be something in one of `sources`; False at `deadline`."""

    def stays(self, source: Source) -> bool:
        """Whether this waiter stays parked at `source` when the receive ends, because other
        receives of it wait there."""
        return False

    def end(self, session: Session, source: Source) -> None:  # noqa: B027 (threads have no others)
        """A receive of this waiter no longer waits for `source`. Others of it may still wait, and
        the ring that this one answered may have been for them."""


class Way(NamedTuple):
    """A way of waiting: what a receive is given."""

    waiter: Callable[[Session], Waiter]  # the waiter of the caller, made when it first waits
    pause: Callable[[float], Coroutine[Any, Any, Any]]  # sleeps for some seconds
