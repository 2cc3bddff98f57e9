"""What one process has taken out of a process-specific queue and not yet handed to a receiver.

The queue of ``specific.X!`` holds the messages of every socket of a process. Whoever of its
threads or loops is woken drains it in one go into the inbox, which routes by local part, so that
one slow socket never holds up the others (M7, and the routing of Channels 4).

Feeding happens inside a section, by one thread at a time. Taking needs no lock: what decides who
gets an entry is one `dict.pop`, which the interpreter does in one step.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

from .layout import LOCAL_SEPARATOR
from .queues import Taken

ANY = None  # the local part of a receiver that takes whatever comes


class Waiting(Protocol):
    """A receive that sleeps, as the inbox sees it."""

    def wake(self) -> None: ...

    def gone(self) -> bool:
        """Whether it will never wake: its loop was closed under it."""


class Entry(NamedTuple):
    local: str
    body: bytes
    expires: float


class Inbox:
    """The buffers of one queue. `capacity(local)` bounds each of them."""

    def __init__(self, queue: str) -> None:
        self.queue = queue
        self.epoch = 0
        self.waiting: dict[str | None, deque[Waiting]] = {}
        self._entries: OrderedDict[int, Entry] = OrderedDict()
        self._by_local: dict[str, deque[int]] = {}
        self._number = 0
        self._last_seq = 0
        self._feeding = 0  # sequence number of the message that is being routed
        self._fed_parts = 0  # and how many of its local parts have been
        self._fed: set[str] = set()  # local parts that got something since the last to_wake()

    def __len__(self) -> int:
        return len(self._entries)

    def feed(self, taken: Taken, capacity: Callable[[str], int]) -> list[str]:
        """Route one message to the buffers of its local parts; return those that were full.

        Feeding the same message twice, after an interruption, routes it once.
        """
        if taken.seq <= self._last_seq:
            return []
        if taken.seq != self._feeding:
            self._feeding, self._fed_parts = taken.seq, 0
        full = []
        for part in taken.local_parts.split(LOCAL_SEPARATOR)[self._fed_parts :]:
            # Counted before it is done: an interruption may lose a message, and doubles none (M3).
            self._fed_parts += 1
            local = part.decode("ascii")
            numbers = self._by_local.get(local)
            if numbers is None:
                numbers = self._by_local[local] = deque()
            if len(numbers) >= capacity(local):
                full.append(local)
                continue
            self._number = number = self._number + 1
            # The entry first: an entry without its number is still found by those who take any.
            self._entries[number] = Entry(local, taken.body, taken.expires)
            numbers.append(number)
            self._fed.add(local)
        self._last_seq = taken.seq
        if len(self._by_local) > 2 * len(self._entries) + 64:
            self._tidy()
        return full

    def take(self, local: str | None) -> Entry | None:
        """The oldest entry for `local`, or the oldest of all for ANY; None if there is none."""
        entries = self._entries
        if not entries:
            return None
        if local is ANY:
            try:
                number, entry = entries.popitem(last=False)
            except KeyError:
                return None
            self._forget(entry.local, number)
            return entry
        numbers = self._by_local.get(local)
        while numbers:
            try:
                found = entries.pop(numbers.popleft(), None)
            except IndexError:
                return None
            if found is not None:
                return found
        return None

    def _forget(self, local: str, number: int) -> None:
        """Take a number out of the buffer of its local part, where it stands first."""
        numbers = self._by_local.get(local)
        if numbers is not None:
            # Not there: a tidied index, or a receiver of this local part came first.
            with contextlib.suppress(ValueError):
                numbers.remove(number)

    def has(self, local: str | None) -> bool:
        return bool(self._entries if local is ANY else self._by_local.get(local))

    def lives(self, now: float) -> bool:
        """Whether anything in it can still be received."""
        return any(entry.expires > now for entry in list(self._entries.values()))

    def expire(self, now: float) -> Iterator[Entry]:
        """Take out the entries that nobody read in time, oldest first."""
        while self._entries:
            try:
                number, entry = next(iter(self._entries.items()))
            except (StopIteration, RuntimeError):
                return  # another thread took it
            if entry.expires > now:
                return
            if self._entries.pop(number, None) is not None:
                self._forget(entry.local, number)
                yield entry

    def clear(self) -> None:
        """A flush: forget everything that was buffered."""
        self._entries.clear()
        self._by_local.clear()
        self._last_seq = self._feeding = 0  # the numbers begin anew if they were damaged

    def to_wake(self) -> list[Waiting]:
        """Whom to wake after feeding: the first receive of each local part that got something."""
        waiting = self.waiting
        found = []
        if waiting:
            for local in self._fed:
                first = _first(waiting.get(local)) or _first(waiting.get(ANY))
                if first is not None:
                    found.append(first)
        self._fed.clear()
        return found

    def join(self, local: str | None, receive: Waiting) -> bool:
        """Enter a receive that is about to sleep; True if it need not, something is there."""
        self.waiting.setdefault(local, deque()).append(receive)
        return self.has(local)

    def part(self, local: str | None, receive: Waiting) -> None:
        """A receive sleeps no longer. What it leaves behind is for the next one."""
        receives = self.waiting.get(local)
        if receives is None:
            return
        with contextlib.suppress(ValueError):
            receives.remove(receive)
        if not receives:
            self.waiting.pop(local, None)
        first = _first(receives) if self.has(local) else None
        if first is None and self._entries:
            first = _first(self.waiting.get(ANY))
        if first is not None:
            first.wake()

    def _tidy(self) -> None:
        """Forget the buffers of local parts that have nothing, most of which never will."""
        by_local: dict[str, deque[int]] = {}
        for number, entry in list(self._entries.items()):
            by_local.setdefault(entry.local, deque()).append(number)
        self._by_local = by_local


def _first(receives: deque[Waiting] | None) -> Waiting | None:
    """The first receive that can still wake; those before it are forgotten."""
    while receives:
        try:
            if not receives[0].gone():
                return receives[0]
            receives.popleft()
        except IndexError:
            break  # another thread was quicker
    return None
