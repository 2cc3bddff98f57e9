"""Suspects: channels of this process for which a message expired unread.

The socket of such a channel may be gone, or its handler may just be slow. Only silence tells: a
channel on which nothing is received for `PATIENCE` times ``expiry`` from then on counts as
*abandoned*. Any receive that names the channel ends the suspicion. This module must not end
memberships (`upkeep` does that), and must not know messages.
"""

from __future__ import annotations

from itertools import takewhile

PATIENCE = 10  # times `expiry` without a receive, until a suspect is abandoned
MOST = 10_000  # suspects of one queue; at this number, no others become suspect


class Suspects(dict[str, tuple[float, int]]):
    """Suspect local parts of one queue, the oldest suspicion first: when each began, in seconds of
    `time`, and the store's counter then, which is higher than the generation of every membership
    that the channel had.

    A receive removes its own with `pop` or `clear`, in any thread and without the lock. All other
    changes are made inside sections.
    """

    time = 0.0  # seconds in which this process could have received
    looked = float("inf")  # the time of the last look

    def look(self, now: float, expiry: float, every: float) -> None:
        """Inside a section: let time pass up to `now`. `every`: seconds between two looks, if
        nothing delays them.

        A process that was stopped, or whose loop was blocked, did not look meanwhile, and could
        not receive. So one look counts for at most `expiry`.
        """
        self.time += min(max(now - self.looked, 0.0), max(expiry, 2 * every))
        self.looked = now

    def add(self, local_parts: list[str], counter: int) -> None:
        """A message for each of these expired unread. An older suspicion stays as it is."""
        for local in local_parts:
            if len(self) >= MOST:
                return
            self.setdefault(local, (self.time, counter))

    def abandoned(self, expiry: float) -> dict[bytes, int]:
        """The local parts on which nothing was received for too long, and the counter of each."""
        before = self.time - PATIENCE * expiry
        # They are in the order of their times, so the first that is too recent ends the search.
        overdue = takewhile(lambda suspect: suspect[1][0] <= before, self.copy().items())
        return {local.encode("ascii"): counter for local, (_, counter) in overdue}
