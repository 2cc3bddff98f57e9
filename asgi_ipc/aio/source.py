"""A channel as a receive names it, and the glances at it that need no lock.

A glance may be out of date when it is acted on: nothing is taken here, and nothing changes.
"""

from __future__ import annotations

from ..attachment.inbox import ANY, Inbox, Mailbox
from ..names import split
from ..store import native
from ..store.layout import COUNT, Q_PENDING, Q_WAITING, R_GENERATION
from ..store.queues import Target
from ..store.store import Store
from .spin import Spin

_NONE = Mailbox(ANY)  # always empty


class Source(native.Source):
    """A queue, and for a process-specific channel the local part that the receive is for."""

    __slots__ = ("box", "local", "queue", "spin")

    inbox: Inbox | None
    target: Target

    sends = False  # whether a send waits there for room: see `sending.Room`
    sending: Inbox | None = None  # ... in this inbox of its own process

    def __init__(self, channel: str, inbox: Inbox | None, whole: Source | None = None) -> None:
        """`inbox`: that of the queue, if the channel is process-specific. `whole`: the source for
        the whole queue; the sources of one queue share what they learn of it."""
        self.queue, local = split(channel)
        self.channel = channel
        self.inbox = inbox
        self.local: str | None = local or ANY
        if whole is None:
            self.target = Target(self.queue.encode("ascii"))
            self.spin = Spin()
        else:
            self.queue, self.target, self.spin = whole.queue, whole.target, whole.spin
        self.box = _NONE
        self.find_box()

    def find_box(self) -> None:
        """Note the mailbox of the local part. One that the inbox has removed stays empty."""
        if self.inbox is not None and self.local is not ANY:
            self.box = self.inbox.mailbox(self.local)

    @property
    def place(self) -> int:
        """What a ring for it says: the row of the queue."""
        return self.target.row

    def park_again(self, store: Store, waiter_id: int) -> bool:
        """Inside a section: park for others of a loop; True if there is something for them."""
        return store.park_if_empty(self.target.row, waiter_id)

    def ready(self) -> bool:
        """Whether messages are pending in the queue, or only a look-up can tell, because the queue
        has no known row yet or was flushed."""
        words = self.target.words
        return words[Q_PENDING] & COUNT > 0 or words[R_GENERATION] != self.target.generation

    def awaited(self) -> bool:
        """Whether a waiter is parked at the queue. Senders ring it for the next message, even if
        another takes that. Never true of a process-specific queue, which one process receives on.
        """
        return self.inbox is None and self.target.words[Q_WAITING] > 0

    def buffered(self) -> bool:
        """Whether the inbox holds a message for this source."""
        return self.inbox is not None and self.inbox.has(self.local)
