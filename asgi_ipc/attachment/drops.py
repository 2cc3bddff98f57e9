"""Telling the log about dropped messages: what was dropped last of each kind, and not each time.

Every drop is counted, by reason, in the segment. The log gets one line in ten seconds for each
reason, from the process that noticed.
"""

from __future__ import annotations

import logging
import time

from ..store.layout import BUFFER, DEAD_OWNER, DROP_REASONS, EXPIRED

logger = logging.getLogger("asgi_ipc")

_WHY = {
    EXPIRED: "nobody read it in time",
    DEAD_OWNER: "the process that received there is dead",
    BUFFER: "its reader has left as many unread as the channel's capacity",
}
LOG_EVERY = 10.0  # seconds between two lines about the same reason


class DropLog:
    """What one process logs about one prefix.

    `noted` is what the store dropped and nobody has been told of: the channel, by reason.
    """

    def __init__(self, prefix: str, noted: dict[int, str]) -> None:
        self.prefix = prefix
        self.noted = noted
        self._logged: dict[int, float] = {}

    def __call__(self, reason: int, where: str, why: str = "") -> None:
        now = time.monotonic()
        if now - self._logged.get(reason, -LOG_EVERY) < LOG_EVERY:
            return
        self._logged[reason] = now
        why = f"{DROP_REASONS[reason]}: {why}" if why else DROP_REASONS[reason]
        logger.warning("prefix %r, %s: a message was dropped (%s)", self.prefix, where, why)

    def tell(self) -> None:
        """Log what the store has noted. Not inside a section: handlers may do anything."""
        for reason in list(self.noted):
            channel = self.noted.pop(reason, None)
            if channel is not None:
                self(reason, f"channel {channel!r}", _WHY.get(reason, ""))
