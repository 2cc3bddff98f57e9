"""Spinning: checking for a moment before going to sleep, where that pays.

Putting a process to sleep and waking it takes many times as long as passing a message through
memory. Where messages come fast, a receive that finds nothing therefore spins for up to ``spin``
seconds before it parks: a message that comes meanwhile needs no ring and no wakeup. Each channel
learns whether that pays; the process-specific channels of one queue do so together. A receive on
several channels asks the one that is first this time. Every miss in a row makes spinning four times
as rare, down to one wait in a thousand, and a hit resets that. A receive never spins right after
one that waited until its deadline for nothing. So a quiet channel costs next to nothing. A
processor is kept busy between messages only where they come faster than ``spin``.

A receive does not spin where a waiter is parked: a sender rings that waiter anyway, and each time
it would wake for nothing.

Spinning only glances at memory, without the lock. It takes nothing and changes nothing in shared
memory, so a receive may be interrupted in it at any point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from .. import clock

if TYPE_CHECKING:
    from .source import Source

_QUICKEST = 1e-7  # seconds: no step of spinning is quicker
_MISSES = 5  # misses in a row that count: it is tried once in four to the power of that


class Spin:
    """Whether it pays for one channel."""

    __slots__ = ("_misses", "waits")

    def __init__(self) -> None:
        self._misses = 0
        # The waits that must not spin, each of which counts itself. At first one: most channels are
        # quiet.
        self.waits = 1

    def due(self) -> bool:
        """Count a wait; return whether it has to spin first."""
        self.waits -= 1
        return self.waits < 0

    def note(self, hit: bool) -> None:
        """Note whether a message came."""
        if hit:
            self._misses = self.waits = 0
        else:
            self._misses = min(self._misses + 1, _MISSES)
            self.waits = 4**self._misses

    def rest(self) -> None:
        """No message came until the deadline of a wait: the next does not spin."""
        self.waits = max(self.waits, 1)


def may_spin(sources: list[Source], sees: Callable[[Source], bool]) -> bool:
    """Whether a receive from `sources` is to spin. `sees(source)` is the waiter's glance."""
    for source in sources:
        if sees(source) or source.awaited():
            return False
    return sources[0].spin.due()


def spinning(
    sources: list[Source], sees: Callable[[Source], bool], seconds: float, deadline: float | None
) -> Iterator[None]:
    """Glance at `sources` in each step, for `seconds` or until `deadline`. Ends when something is
    there or another waiter parks. Notes whether it paid."""
    now = began = clock.monotonic()
    until = now + seconds
    end = until if deadline is None else min(until, deadline)
    # Not for ever, even if the clock stands still.
    for _ in range(int(seconds / _QUICKEST) + 1):
        if not began <= now < end:
            break
        for source in sources:
            if sees(source):
                sources[0].spin.note(True)
                return
            if source.awaited():
                return
        yield
        now = clock.monotonic()
    if now >= until:
        sources[0].spin.note(False)
