"""Log lines about dropped messages: for each reason at most one in ten seconds.

The segment counts every drop, by reason. The process that drops a message logs it. This module must
not count.
"""

from __future__ import annotations

import logging

from .. import clock
from ..segment.notes import note
from ..store.layout import BUFFER, DEAD_OWNER, DROP_REASONS, EXPIRED

logger = logging.getLogger("asgi_ipc")

_WHY = {
    EXPIRED: "nobody read it in time",
    DEAD_OWNER: "the process that received on it is dead",
    BUFFER: "its reader has left as many messages unread as the channel's capacity",
}
LOG_EVERY = 10.0  # seconds between two lines about the same reason


class DropLog:
    """Logs the drops of one process in the segment of one prefix.

    `noted` is where the store notes them: the channel of the last drop that is not logged yet, by
    reason.
    """

    def __init__(self, prefix: str, noted: dict[int, str]) -> None:
        self.prefix = prefix
        self.noted = noted
        self._logged: dict[int, float] = {}

    def __call__(self, reason: int, where: str, why: str = "", later: bool = False) -> None:
        """Log that a message was dropped, unless the last line about `reason` is too recent.
        `later`: once no lock is held."""
        now = clock.monotonic()
        if 0 <= now - self._logged.get(reason, -LOG_EVERY) < LOG_EVERY:
            return
        self._logged[reason] = now
        why = f"{DROP_REASONS[reason]}: {why}" if why else DROP_REASONS[reason]
        log = note if later else logger.warning
        log("prefix %r, %s: a message was dropped (%s)", self.prefix, where, why)

    def tell(self, later: bool = False) -> None:
        """Log what the store has noted. Under a lock only with `later`: see `segment.notes`."""
        for reason in self.noted.copy():
            channel = self.noted.pop(reason, None)
            if channel is not None:
                self(reason, f"channel {channel!r}", _WHY.get(reason, ""), later)
