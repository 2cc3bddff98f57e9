"""A broadcast as the sender's process sees it: a plan of the store, turned into targets."""

from __future__ import annotations

from ..store.layout import LOCAL_SEPARATOR, Q_CAPACITY
from ..store.plans import Plan
from ..store.queues import Target
from ..store.store import Store


class Fanout:
    """A plan as targets: those of each queue, and all of them."""

    def __init__(self, plan: Plan, expiry: float) -> None:
        """`expiry` of what is sent, in seconds."""
        self.plan = plan
        self.targets: list[Target] = []
        self._expiry = expiry
        self._by_queue: dict[bytes, list[Target]] = {}

    def update(self, store: Store) -> None:
        """Inside a section: make new targets for the queues that changed in the plan. The list of
        targets is replaced and not changed: a broadcast may be half way through the old one."""
        plan, by_queue = self.plan, self._by_queue
        for queue in plan.changed:
            found = plan.channels.get(queue)
            if found is None or not found[2]:  # empty: an interrupted change that was undone
                by_queue.pop(queue, None)
                continue
            row, generation, parts = found
            capacity = min(parts.values())
            store.words[row + Q_CAPACITY] = capacity  # read by `inspection`
            by_queue[queue] = [
                store.fix(Target(queue, joined, capacity, self._expiry), row, generation)
                for joined in _joined(list(parts), store.layout.max_locals)
            ]
        self.targets = [target for targets in by_queue.values() for target in targets]
        plan.changed.clear()


class Broadcast:
    """How far a group send has come: its targets, and how many of them have their message.

    With `turns` it stops, once for each target, where it has drained a queue of this process. The
    receivers of the sending loop then get a turn before more messages come for them.
    """

    def __init__(self, turns: bool = False) -> None:
        self.targets: list[Target] | None = None
        self.sent = 0
        self.turns = turns
        self.drained = -1  # the target that it stopped at last

    def is_done(self) -> bool:
        return self.targets is not None and self.sent >= len(self.targets)


def _joined(local_parts: list[bytes], most: int) -> list[bytes]:
    """The local parts of a broadcast to one queue, joined, in pieces of at most `most` bytes."""
    whole = LOCAL_SEPARATOR.join(local_parts)
    if len(whole) <= most:
        return [whole]
    middle = len(local_parts) // 2
    return _joined(local_parts[:middle], most) + _joined(local_parts[middle:], most)
