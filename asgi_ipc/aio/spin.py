"""Spinning: to go on looking for a moment before going to sleep, where that pays.

To put a process to sleep and to wake it takes many times as long as a message takes through memory.
Where messages come fast, a receive that finds nothing therefore spins for up to ``spin`` seconds
before it parks: what comes meanwhile needs no ring and no wakeup. Whether that pays is learnt for
each channel; a receive of several asks the one whose turn it is to be first. Every miss in a row
makes it four times as rare, down to one wait in a thousand, and a hit begins anew. So a quiet
channel costs next to nothing, and a processor is kept busy between messages only where these come
faster than ``spin``.

Nobody spins where somebody is parked: a sender rings that one all the same, who would wake for
nothing each time.

It is a glance without the lock, at memory only. Nothing is taken, and nothing in shared memory
changes, so that a receive may end in it in any way. How to spin is the waiter's (`Hub.spin`,
`ThreadWaiter.spin`).
"""

from __future__ import annotations

_MISSES = 5  # in a row, that count: it is tried once in four to the power of that


class Spin:
    """Whether it pays for one channel."""

    __slots__ = ("_misses", "_rest")

    def __init__(self) -> None:
        self._misses, self._rest = 0, 1  # never at once: most channels are received from in peace

    def due(self) -> bool:
        """Whether the receive that asks, having found nothing, is to try."""
        self._rest -= 1
        return self._rest < 0

    def note(self, hit: bool) -> None:
        """What came of it."""
        if hit:
            self._misses = self._rest = 0
        else:
            self._misses = min(self._misses + 1, _MISSES)
            self._rest = 4**self._misses
