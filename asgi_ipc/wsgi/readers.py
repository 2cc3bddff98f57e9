"""Tells whether a process-specific channel still has a reader. Must never take a message or create
a queue.

A sender that streams asks this while it waits for room.
"""

from __future__ import annotations

from ..aio.operations import Core
from ..names import check_channel, split
from ..store.queues import Target


def has_reader(core: Core, channel: str) -> bool:
    """Return whether a living process owns the queue of a process-specific `channel`: the process
    that first received on it, or that made its name and added it to a group.

    Before that, and for a moment after a flush, it has no owner. Raises InvalidName.
    """
    target = Target(split(check_channel(channel))[0].encode("ascii"))
    session = core.attach()
    reader = session.section(session.store.find_reader, target)
    return bool(reader) and session.attachment.is_alive(reader)
