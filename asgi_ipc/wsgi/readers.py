"""Tells whether a process-specific channel still has a reader. Must never take a message, or create
a queue.

A sender that streams asks this while it waits for room.
"""

from __future__ import annotations

from ..aio.operations import Core
from ..names import check_channel, split
from ..store.layout import P_DEAD_SINCE, P_GENERATION, P_LEFT, Q_OWNER, Q_OWNER_GENERATION
from ..store.queues import Target
from ..store.store import Store


def has_reader(core: Core, channel: str) -> bool:
    """Whether a living process owns the queue of `channel`: the first that received on it does.

    `channel` is process-specific. False also before its process first received, and for a moment
    after a flush. Raises InvalidName.
    """
    target = Target(split(check_channel(channel))[0].encode("ascii"))
    session = core.attach()
    owner = session.section(_owner, session.store, target)
    return bool(owner) and session.attachment.alive(owner)


def _owner(store: Store, target: Target) -> int:
    """Inside a section: the process row of the owner; 0 if there is none, or if it is known to be
    dead."""
    row = store.find(target)
    if not row:
        return 0
    words, doubles = store.words, store.doubles
    owner = words[row + Q_OWNER]
    if not owner or words[store.process(owner) + P_GENERATION] != words[row + Q_OWNER_GENERATION]:
        return 0
    return 0 if words[owner + P_LEFT] or doubles[owner + P_DEAD_SINCE] else owner
