"""A core over memory of this process, whose sections and rings a test sees and can make fail."""

from __future__ import annotations

from typing import Any

from asgi_ipc.aio.session import NEVER
from asgi_ipc.segment.section import spread
from asgi_ipc.store.layout import Q_WAITERS, WAITER_SET_WORDS
from asgi_ipc.testing.sync import InProcessChannelLayer

from ..support import KIB


class Cored:
    """A core, its session, and what it did to them."""

    def __init__(self, prefix: str, **options: Any) -> None:
        sizes = {"message_memory": 256 * KIB, "group_memory": 64 * KIB, "max_message_size": KIB}
        self.layer = InProcessChannelLayer(prefix, **{**sizes, **options})
        self.core = self.layer._core
        self.session = self.core.attach()
        self.store = self.session.store
        self.session.attachment.due = float("inf")  # no upkeep comes in between
        self.sections = 0
        self.fails: list[Exception | None] = []  # what the next sections raise
        self.rings: list[tuple[str, int]] = []  # (queue, waiter id)
        self._run = self.session.section_of_three
        self.session.section_of_three = self._section
        self.session.section = spread(self._section)
        self.session.ring = self._ring
        self.session.usual = NEVER  # the compiled path would pass these by

    def _section(self, operation: Any, a: Any, b: Any, c: Any) -> Any:
        self.sections += 1
        error = self.fails.pop(0) if self.fails else None
        if error is not None:
            raise error
        return self._run(operation, a, b, c)

    def _ring(self, row: int, waiter_id: int) -> None:
        self.rings.append((self.store.queues.name(row).decode(), waiter_id))

    def row(self, queue: str) -> int:
        return self.store.queues.find(queue.encode())

    def parked(self, *queues: str) -> list[int]:
        """How many waiters are parked at each of `queues`."""
        sets = [self.row(queue) + Q_WAITERS for queue in queues]
        return [sum(map(_bits, self.store.words[at : at + WAITER_SET_WORDS])) for at in sets]

    def receive(self, *channels: str) -> list[Any]:
        """All messages that are pending on `channels`."""
        return list(iter(lambda: self.layer.receive(list(channels))[1], None))


def _bits(word: int) -> int:
    return bin(word).count("1")
