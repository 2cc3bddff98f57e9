"""Counts what happens to messages between machines, in this process, and logs losses. Must not
send anything."""

from __future__ import annotations

import logging
import threading

from .. import clock
from ..attachment.drops import LOG_EVERY

logger = logging.getLogger("asgi_ipc")


class Figures:
    """The counters of ``remote_statistics()``."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._logged: dict[str, float] = {}
        # The relay counts in its thread, and each sender in its own. A signal handler may send.
        self._lock = threading.RLock()
        self.counts = dict.fromkeys(
            ("group_sends_lost", "sends_failed", "relayed", "duplicates", "undeliverable"), 0
        )

    def count(self, what: str) -> None:
        """Add one to a counter."""
        with self._lock:
            self.counts[what] += 1

    def warn(self, what: str, why: str) -> None:
        """Log a loss; of those whose text begins with the same word, at most one in ten seconds."""
        now = clock.monotonic()
        kind = what.partition(" ")[0]
        if not 0 <= now - self._logged.get(kind, -LOG_EVERY) < LOG_EVERY:
            self._logged[kind] = now
            logger.warning("prefix %r, %s: %s", self._prefix, what, why)


def described(error: BaseException) -> str:
    """Return an error as one line, even if it has no text."""
    return f"{type(error).__name__}: {error}".rstrip(": .")
