"""The front of a queue, read without the lock: how many messages are pending, and since when.

It must not write, or trust what it reads: a record may be taken or overwritten at the same time.
`inspection` reads copies of a segment, and the operations read the memory itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from . import layout as at

_EXPIRED_AT_ONCE = 1000  # expired messages at the front of a queue that are skipped


class Front(NamedTuple):
    """What is pending in a queue, without the messages at its front that have expired."""

    pending: int
    sent: float  # time when the oldest message was sent; 0.0 if none is pending or it is not known

    def age(self, now: float) -> float:
        """Return the age of the oldest message in seconds; 0.0 if there is none, or not known."""
        return max(now - self.sent, 0.0) if self.sent else 0.0


def read_front(
    layout: at.Layout,
    read: Callable[[int, int], bytes],
    row: int,
    words: memoryview[int],
    now: float,
) -> Front:
    """Return the front of the queue at `row`, whose words are `words`.

    ``read(offset, length)`` returns bytes of the segment.
    """
    pending, record = words[at.Q_PENDING] & at.COUNT, words[at.Q_FIRST]
    for expired in range(min(pending, _EXPIRED_AT_ONCE)):
        if not layout.log <= record <= layout.log_end - at.RECORD_WORDS:
            return Front(pending, 0.0)
        found = at.RECORD.unpack(read(record * at.WORD, at.RECORD.size))
        _, state, _, following, _, queue, _, expires, sent, _, _ = found
        if queue != row or state != at.LIVE:
            return Front(pending - expired, 0.0)  # it has just been taken
        if expires > now:
            return Front(pending - expired, sent)
        record = following
    return Front(max(pending - _EXPIRED_AT_ONCE, 0), 0.0)
