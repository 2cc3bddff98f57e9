"""An inbox: what this process has taken out of a process-specific queue and not yet delivered.

The queue of ``specific.X!`` holds the messages of every socket of a process. The thread or loop
that is woken drains it in one go into the inbox, which routes by local part, so that one slow
socket never holds up the others.

Feeding happens inside a section, by one thread at a time. Taking, joining and parting need no lock,
with the GIL or without: each is made of single calls of methods of a dict, a list or a deque, which
Python promises to be safe between threads. Their keys and items are compared without running Python
code. One `dict.pop` decides who gets an entry. Between two calls another thread may change
anything, so what is iterated over is a copy. An inbox must not wait, and must not ring: it says
which receives are to be woken.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from ..options import UnknownCapacity
from ..store.layout import BUFFER, LOCAL_SEPARATOR, S_EPOCH
from ..store.queues import Taken
from ..store.store import Store
from .suspects import Suspects

ANY = None  # the local part of a receiver that takes any message
_DRAINED_AT_ONCE = 128  # messages moved into an inbox in one section
_LONG = 256  # entries of one local part; taking from the front of a list costs its length
_SEPARATOR = LOCAL_SEPARATOR.decode("ascii")


class Waiting(Protocol):
    """A receive that sleeps, as the inbox sees it."""

    def wake(self) -> None: ...

    def gone(self) -> bool:
        """Whether it will never wake, because its loop was closed."""


class Drained:
    """A message that was taken out of its queue: one object for all of its local parts."""

    __slots__ = ("body", "expires", "message", "shared")

    def __init__(self, body: bytes, expires: float, shared: bool = False) -> None:
        self.body = body
        self.expires = expires
        self.shared = shared  # by several local parts
        # The decoded message, once somebody took it, if copies do as well as decoding it again.
        self.message: dict[str, Any] | None = None


Entry = tuple[str, Drained]  # the local part that it is for


class Inbox:
    """The buffers of one queue, one for each local part."""

    def __init__(self, queue: str, store: Store) -> None:
        self.queue = queue
        self.enter(store)
        self.epoch = 0  # which flush was the last when it was filled
        self.waiting: dict[str | None, list[Waiting]] = {}
        # Sends of this process that wait until a local part has room, likewise.
        self.sending: dict[str | None, list[Waiting]] = {}
        self.suspects = Suspects()
        # What was drained, once for each of its local parts, by number. An `Entry` is made when it
        # is taken: thousands of them at once would keep the garbage collector busy.
        self._entries: dict[int, Drained] = {}
        # No entry that may be taken has a lower number. A thread may set it back, which does no
        # harm: a number that was taken does not come again.
        self._front = 1
        # The local part of each number, which is entered before its entry and forgotten after it.
        self._locals: dict[int, str] = {}
        # Deques only where they are long: thousands of them would not fit into the cache.
        self._by_local: dict[str, list[int] | deque[int]] = {}
        # The sequence number of the last message that was routed completely, and the number of its
        # last entry. Entries after that are still being made: nobody takes them.
        self._newest = (0, 0)
        self._feeding = False
        # Local parts that got something since the last fed(), in order: receives that began one
        # after the other are neighbours in memory, and thousands are woken far faster that way.
        self._fed: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def enter(self, store: Store) -> None:
        """Be filled from `store`: first that of one attachment, later perhaps that of the next."""
        self._store = store
        self._words = store.words

    def leave(self) -> None:
        """Outlive the attachment: what refers to its store keeps the memory mapped."""
        del self._store, self._words

    # -- filling ----------------------------------------------------------------------------------

    def is_fresh(self) -> bool:
        """Whether nothing was flushed since it was filled. If not, `refresh` empties it."""
        return self.epoch == self._words[S_EPOCH]

    def refresh(self) -> None:
        """Inside a section: empty it if there was a flush since it was filled."""
        epoch = self._words[S_EPOCH]
        if self.epoch != epoch:
            self.clear()
            self.epoch = epoch

    def held(self, local: str) -> int:
        """How many entries the buffer of a local part holds, or a few more: see `_is_full`."""
        numbers = self._by_local.get(local)
        return len(numbers) if numbers else 0

    def drain(self, row: int, capacity: Callable[[str], int | None], now: float) -> None:
        """Inside a section: move what is pending in the queue at `row` into the inbox.

        `capacity(channel)` bounds the buffer of each local part. Raises UnknownCapacity if it is
        not known; nothing is lost, and `drain` goes on where it stopped.
        """
        store = self._store
        self.refresh()
        for _ in range(_DRAINED_AT_ONCE):
            taken = store.peek(row)
            if taken is None:
                return
            if taken.expires <= now:
                store.drop_expired(row, now)  # buffered, it would take the place of a living one
                continue
            full = self.feed(taken, capacity)
            if full:
                store.count_drop(row, BUFFER, len(full), full[0])
            store.pop(row)

    def feed(self, taken: Taken, capacity: Callable[[str], int | None]) -> list[str]:
        """Route one message to the buffers of its local parts; return those that were full.

        A message that is fed twice, after an interruption, is routed once.
        """
        seq, number = self._newest
        if taken.seq <= seq:
            return []
        if self._feeding:
            self._undo(number)
        self._feeding = True
        full, unknown = [], []
        local_parts = taken.local_parts.decode("ascii").split(_SEPARATOR)
        drained = Drained(taken.body, taken.expires, len(local_parts) > 1)
        locals_, entries, by_local, fed = self._locals, self._entries, self._by_local, self._fed
        for local in local_parts:
            numbers = by_local.get(local)
            if numbers is None:
                numbers = by_local[local] = []
            elif numbers:
                most = capacity(self.queue + local)
                if most is None:
                    unknown.append(self.queue + local)
                    continue
                if len(numbers) >= most and self._is_full(numbers, most):
                    full.append(local)
                    continue
                if len(numbers) == _LONG:
                    numbers = by_local[local] = deque(numbers.copy())
            number += 1
            locals_[number] = local
            entries[number] = drained
            numbers.append(number)
            fed[local] = None
        if unknown:
            raise UnknownCapacity(unknown)
        self._newest = taken.seq, number  # in one store: an interruption loses or doubles none
        self._feeding = False
        if len(self._by_local) > 2 * len(self._entries) + 64:
            self._tidy()
        return full

    def _undo(self, newest: int) -> None:
        """Take out what an interrupted `feed` left: the entries after `newest`."""
        for number, local in self._locals.copy().items():
            if number <= newest:
                continue
            # This first: a number without its entry would later lead to another entry.
            self._forget(local, number)
            self._entries.pop(number, None)
            self._locals.pop(number, None)

    # -- taking -----------------------------------------------------------------------------------

    def take(self, local: str | None) -> Entry | None:
        """Take the oldest entry for `local`, for ANY the oldest of all; None if there is none."""
        entries = self._entries
        if not entries:
            return None
        newest = self._newest[1]
        if local is ANY:
            while (number := self._oldest()) and number <= newest:
                whose = self._locals.get(number)
                found = entries.pop(number, None)
                if found is not None and whose is not None:
                    self._forget_entry(whose, number)
                    if self.suspects:
                        self.suspects.clear()
                    if self.sending:
                        self.wake_sender(whose)
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
            # The same as `_forget_entry`, written out: every socket pays for it in every broadcast.
            self._locals.pop(number, None)
            try:
                numbers.remove(number)
            except ValueError:
                pass  # a receiver of this local part came first
            if found is not None:
                if self.suspects:
                    self.suspects.pop(local, None)
                if self.sending:
                    self.wake_sender(local)
                return local, found
        return None

    def visited(self, local: str | None) -> None:
        """A receive for `local` has looked: its channel is not abandoned, message or no message.
        A receive for ANY reads all channels."""
        if local is ANY:
            self.suspects.clear()
        else:
            self.suspects.pop(local, None)

    def _forget_entry(self, local: str, number: int) -> None:
        """Forget the number of an entry that was taken."""
        self._locals.pop(number, None)
        self._forget(local, number)

    def _forget(self, local: str, number: int) -> None:
        """Take a number out of the buffer of its local part."""
        try:
            self._by_local[local].remove(number)
        except (KeyError, ValueError):
            pass  # tidied away, or a receiver of this local part came first

    def _is_full(self, numbers: list[int] | deque[int], most: int) -> bool:
        """Whether the buffer of a local part holds `most` entries. Its first numbers may be of
        entries that were taken: whoever takes one forgets its number later, and perhaps in a list
        that `feed` or `_tidy` has replaced meanwhile."""
        while len(numbers) >= most:
            number = _front(numbers)
            if number in self._entries:
                return True
            with contextlib.suppress(ValueError):
                numbers.remove(number)
        return False

    def has(self, local: str | None) -> bool:
        """Whether there is an entry for `local`, or any entry for ANY."""
        if not self._entries:
            return False
        number = self._oldest() if local is ANY else _front(self._by_local.get(local))
        return 0 < number <= self._newest[1]

    def _oldest(self) -> int:
        """The number of the oldest entry that may be taken; 0 if there is none."""
        entries, number, newest = self._entries, self._front, self._newest[1]
        while number <= newest:
            if number in entries:
                self._front = number
                return number
            number += 1
        self._front = number
        return 0

    def lives(self, now: float) -> bool:
        """Whether anything in it can still be received."""
        return any(entry.expires > now for entry in self._entries.copy().values())

    def expire(self, now: float) -> Iterator[Entry]:
        """Take out the entries that nobody read in time, the oldest first."""
        while (number := self._oldest()) and number <= self._newest[1]:
            drained, local = self._entries.get(number), self._locals.get(number)
            if drained is None or local is None:
                continue  # another thread took it
            if drained.expires > now:
                return
            if self._entries.pop(number, None) is not None:
                self._forget_entry(local, number)
                yield local, drained

    def clear(self) -> None:
        """Forget everything that was buffered."""
        self._entries.clear()
        self._locals.clear()
        self._by_local.clear()
        self._newest = 0, self._newest[1]  # a flush restarts the sequence if it was damaged
        self.suspects.clear()  # it has ended their memberships

    # -- waiting ----------------------------------------------------------------------------------

    def fed(self) -> dict[str, None]:
        """Inside the section that fed it: the local parts that got something, for `to_wake`. None
        if nobody waits: who joins after that sees what is there."""
        fed = self._fed
        if self.waiting:
            self._fed = {}
        else:
            fed.clear()
        return fed

    def to_wake(self, fed: dict[str, None]) -> list[Waiting]:
        """Return whom to wake after feeding: the first receive of each local part that got
        something. Not inside a section: a receive is asked, and with it its loop, whether it can
        still wake."""
        waiting = self.waiting
        found = []
        for local in fed:
            first = _first(waiting.get(local)) or _first(waiting.get(ANY))
            if first is not None:
                found.append(first)
        return found

    def overdue(self) -> list[Waiting]:
        """Return who sleeps although something is there: the thread that fed it was interrupted
        before it woke anybody."""
        if not self._entries:
            return []
        waiting = self.waiting.copy()
        found = (_first(receives) for local, receives in waiting.items() if self.has(local))
        return [first for first in found if first is not None]

    def join(self, local: str | None, receive: Waiting) -> bool:
        """Enter a receive that is about to sleep; True if it need not, as something is there."""
        if self.suspects:
            self.visited(local)
        while True:
            receives = self.waiting.setdefault(local, [])
            receives.append(receive)
            # Else another thread has just removed the list, and who joins it is not found there.
            if self.waiting.get(local) is receives:
                return self.has(local)

    def part(self, local: str | None, receive: Waiting) -> None:
        """Take out a receive that sleeps no longer. What it leaves there is for the next one."""
        waiting = self.waiting
        receives = waiting.get(local)
        if receives is None:
            return
        try:
            receives.remove(receive)
        except ValueError:
            pass  # it had not joined, or it left already
        if not receives:
            for other in waiting.pop(local, []).copy():
                # One of another thread, which joined in between. It looks, and joins again by
                # itself: entered by this thread, it would stay where it has parted meanwhile.
                other.wake()
        if self._entries and (receives or ANY in waiting):
            first = _first(receives) if receives and self.has(local) else None
            if first is None:
                first = _first(waiting.get(ANY))
            if first is not None:
                first.wake()

    # -- sends of this process that wait for room -------------------------------------------------

    def is_full(self, local: str, most: int) -> bool:
        """Whether the buffer of a local part holds `most` entries."""
        numbers = self._by_local.get(local)
        return numbers is not None and len(numbers) >= most and self._is_full(numbers, most)

    def join_senders(self, local: str | None, send: Waiting) -> None:
        """Enter a send that is about to sleep until `local` has room; it looks after that."""
        while True:
            sends = self.sending.setdefault(local, [])
            sends.append(send)
            if self.sending.get(local) is sends:
                return

    def part_senders(self, local: str | None, send: Waiting) -> None:
        """Take out a send that sleeps no longer."""
        sends = self.sending.get(local)
        if sends is None:
            return
        with contextlib.suppress(ValueError):
            sends.remove(send)
        if not sends:
            for other in self.sending.pop(local, []).copy():
                other.wake()  # it joined in between, and joins again if it has to

    def wake_sender(self, local: str) -> None:
        """Wake the first send that waits until `local` has room."""
        first = _first(self.sending.get(local))
        if first is not None:
            first.wake()

    def _tidy(self) -> None:
        """Forget the empty buffers: most of them will never get anything again."""
        by_local: dict[str, list[int] | deque[int]] = {}
        for number in self._entries.copy():
            local = self._locals.get(number)
            if local is not None:  # else another thread just took it
                by_local.setdefault(local, deque()).append(number)
        for local, numbers in by_local.items():
            if len(numbers) < _LONG:
                by_local[local] = list(numbers)
        self._by_local = by_local


def _front(numbers: list[int] | deque[int] | None) -> int:
    """The first of `numbers`; 0 if there is none."""
    try:
        return numbers[0] if numbers else 0
    except IndexError:
        return 0  # another thread was quicker


def _first(receives: list[Waiting] | None) -> Waiting | None:
    """Return the first receive that can still wake, and forget those before it."""
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
