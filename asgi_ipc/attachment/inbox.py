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
from typing import Any, Protocol

from ..store.layout import LOCAL_SEPARATOR
from ..store.queues import Taken

ANY = None  # the local part of a receiver that takes whatever comes
_LONG = 256  # entries of one local part; to take from the front of a list costs what it is long
_SEPARATOR = LOCAL_SEPARATOR.decode("ascii")


class Waiting(Protocol):
    """A receive that sleeps, as the inbox sees it."""

    def wake(self) -> None: ...

    def gone(self) -> bool:
        """Whether it will never wake: its loop was closed under it."""


class Drained:
    """A message that was taken out of its queue, one for all of its local parts."""

    __slots__ = ("body", "expires", "message", "shared")

    def __init__(self, body: bytes, expires: float, shared: bool = False) -> None:
        self.body = body
        self.expires = expires
        self.shared = shared  # by several local parts
        # What it says, once somebody took it, if copies of that do as well as decoding it again.
        self.message: dict[str, Any] | None = None


Entry = tuple[str, Drained]  # the local part that it is for


class Inbox:
    """The buffers of one queue. `capacity(local)` bounds each of them."""

    def __init__(self, queue: str) -> None:
        self.queue = queue
        self.epoch = 0
        self.waiting: dict[str | None, list[Waiting]] = {}
        # What was drained, once for each of its local parts, by number. An `Entry` is made when it
        # is taken: thousands of them at once keep the garbage collector busy.
        self._entries: OrderedDict[int, Drained] = OrderedDict()
        self._locals: dict[int, str] = {}  # of each number, entered before and forgotten after it
        # Deques only where they are long: thousands of them would not fit into the cache.
        self._by_local: dict[str, list[int] | deque[int]] = {}
        # Sequence number of the last message that was routed to its end, and the number of its last
        # entry. What is after that is still being made: nobody takes it.
        self._newest = (0, 0)
        self._feeding = False
        # Local parts that got something since the last to_wake(). In order: receives that began one
        # after the other lie so in memory, and thousands are woken in far less time that way.
        self._fed: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def feed(self, taken: Taken, capacity: Callable[[str], int]) -> list[str]:
        """Route one message to the buffers of its local parts; return those that were full.

        Feeding the same message twice, after an interruption, routes it once.
        """
        seq, number = self._newest
        if taken.seq <= seq:
            return []
        if self._feeding:
            self._undo(number)
        self._feeding = True
        full = []
        local_parts = taken.local_parts.decode("ascii").split(_SEPARATOR)
        drained = Drained(taken.body, taken.expires, len(local_parts) > 1)
        locals_, entries, by_local, fed = self._locals, self._entries, self._by_local, self._fed
        for local in local_parts:
            numbers = by_local.get(local)
            if numbers is None:
                numbers = by_local[local] = []
            elif numbers and len(numbers) >= capacity(local):
                full.append(local)
                continue
            elif len(numbers) == _LONG:
                numbers = by_local[local] = deque(numbers)
            number += 1
            locals_[number] = local
            entries[number] = drained
            numbers.append(number)
            fed[local] = None
        self._newest = taken.seq, number  # in one store: an interruption loses and doubles none
        self._feeding = False
        if len(self._by_local) > 2 * len(self._entries) + 64:
            self._tidy()
        return full

    def _undo(self, newest: int) -> None:
        """Take out what an interrupted `feed` left: the entries after `newest`."""
        for number, local in [item for item in list(self._locals.items()) if item[0] > newest]:
            # First of all: a number without its entry would lead to another one later.
            self._forget(local, number)
            self._entries.pop(number, None)
            self._locals.pop(number, None)

    def take(self, local: str | None) -> Entry | None:
        """The oldest entry for `local`, or the oldest of all for ANY; None if there is none."""
        entries = self._entries
        if not entries:
            return None
        newest = self._newest[1]
        if local is ANY:
            while (number := self._oldest()) and number <= newest:
                whose = self._locals.get(number)
                found = entries.pop(number, None)
                if found is not None and whose is not None:
                    self._forgotten(whose, number)
                    return whose, found
            return None
        while numbers := self._by_local.get(local):
            try:
                number = numbers[0]
            except IndexError:
                continue  # another thread was quicker
            if number > newest:
                return None
            found = entries.pop(number, None)
            # As `_forgotten`, in one: every socket pays for this in every broadcast.
            self._locals.pop(number, None)
            try:
                numbers.remove(number)
            except ValueError:
                pass  # a receiver of this local part came first
            if found is not None:
                return local, found
        return None

    def _forgotten(self, local: str, number: int) -> None:
        """What had that number was taken."""
        self._locals.pop(number, None)
        self._forget(local, number)

    def _forget(self, local: str, number: int) -> None:
        """Take a number out of the buffer of its local part."""
        try:
            self._by_local[local].remove(number)
        except (KeyError, ValueError):
            pass  # tidied away, or a receiver of this local part came first

    def has(self, local: str | None) -> bool:
        if not self._entries:
            return False
        number = self._oldest() if local is ANY else _front(self._by_local.get(local))
        return 0 < number <= self._newest[1]

    def _oldest(self) -> int:
        """The number of the oldest entry, 0 if there is none."""
        while True:
            try:
                return next(iter(self._entries), 0)
            except RuntimeError:
                continue  # another thread has changed them meanwhile

    def lives(self, now: float) -> bool:
        """Whether anything in it can still be received."""
        return any(entry.expires > now for entry in list(self._entries.values()))

    def expire(self, now: float) -> Iterator[Entry]:
        """Take out the entries that nobody read in time, oldest first."""
        while (number := self._oldest()) and number <= self._newest[1]:
            drained, local = self._entries.get(number), self._locals.get(number)
            if drained is None or local is None:
                continue  # another thread took it
            if drained.expires > now:
                return
            if self._entries.pop(number, None) is not None:
                self._forgotten(local, number)
                yield local, drained

    def clear(self) -> None:
        """A flush: forget everything that was buffered."""
        self._entries.clear()
        self._locals.clear()
        self._by_local.clear()
        self._newest = 0, self._newest[1]  # the sequence begins anew if it was damaged

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

    def overdue(self) -> list[Waiting]:
        """Who sleeps although something is there: whoever fed it was interrupted before waking."""
        if not self._entries:
            return []
        waiting = list(self.waiting.items())
        found = (_first(receives) for local, receives in waiting if self.has(local))
        return [first for first in found if first is not None]

    def join(self, local: str | None, receive: Waiting) -> bool:
        """Enter a receive that is about to sleep; True if it need not, something is there."""
        while True:
            receives = self.waiting.setdefault(local, [])
            receives.append(receive)
            if self.waiting.get(local) is receives:  # else another thread has just removed it
                return self.has(local)

    def part(self, local: str | None, receive: Waiting) -> None:
        """A receive sleeps no longer. What it leaves behind is for the next one."""
        waiting = self.waiting
        receives = waiting.get(local)
        if receives is None:
            return
        try:
            receives.remove(receive)
        except ValueError:
            pass  # it had not joined, or left already
        if not receives:
            for other in list(waiting.pop(local, ())):
                # Another thread's, that came in between.
                self.join(local, other)
                other.wake()
        if self._entries and (receives or ANY in waiting):
            first = _first(receives) if receives and self.has(local) else None
            if first is None:
                first = _first(waiting.get(ANY))
            if first is not None:
                first.wake()

    def _tidy(self) -> None:
        """Forget the buffers of local parts that have nothing, most of which never will."""
        by_local: dict[str, list[int] | deque[int]] = {}
        for number in list(self._entries):
            local = self._locals.get(number)
            if local is not None:  # else another thread has just taken it
                by_local.setdefault(local, deque()).append(number)
        for local, numbers in by_local.items():
            if len(numbers) < _LONG:
                by_local[local] = list(numbers)
        self._by_local = by_local


def _front(numbers: list[int] | deque[int] | None) -> int:
    """The first of `numbers`, 0 if there is none."""
    try:
        return numbers[0] if numbers else 0
    except IndexError:
        return 0  # another thread was quicker


def _first(receives: list[Waiting] | None) -> Waiting | None:
    """The first receive that can still wake; those before it are forgotten."""
    while receives:
        try:
            first = receives[0]
        except IndexError:
            break  # another thread was quicker
        if not first.gone():
            return first
        with contextlib.suppress(ValueError):
            receives.remove(first)
    return None
