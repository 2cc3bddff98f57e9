"""An inbox: what this process has taken out of a process-specific queue and not yet delivered.

The queue of ``specific.X!`` holds the messages of every socket of a process. The thread or loop
that is woken drains it in one go into the inbox, which routes by local part, so that one slow
socket never delays the others. Each local part has a `Mailbox`: its messages, and the receives that
wait for them.

Feeding happens inside a section, by one thread at a time. Taking, joining and parting need no lock,
with the GIL or without: each consists of single calls of methods of a dict, a list or a deque,
which Python promises to be safe between threads. Their keys and items are compared without running
Python code. One `list.pop` decides which receive gets a message. Between two calls another thread
may change anything, so loops go through a copy. An inbox must not wait, and must not ring: it says
which receives have to be woken.
"""

from __future__ import annotations

import contextlib
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from ..options import UnknownCapacity
from ..store.layout import BUFFER, LOCAL_SEPARATOR, S_EPOCH
from ..store.queues import Taken
from ..store.store import Store
from .suspects import Suspects

ANY = None  # the local part of a receiver that takes any message
_DRAINED_AT_ONCE = 128  # messages moved into an inbox in one section
_LONG = 64  # messages in the list of a mailbox; taking from its front costs its length
_SEPARATOR = LOCAL_SEPARATOR.decode("ascii")
# Messages by which a mailbox may exceed its capacity where this process sends to itself: a receive
# that takes one which is still being routed puts it back. Meanwhile a send may have found room.
IN_HAND = 16
_FEW = 4  # mailboxes that are checked for waiting receives under the lock
_LISTED = 4096  # mailboxes listed in the order, in addition to twice those that have something
_NEVER = float("inf")
_LEFT: memoryview[int] = memoryview(b"").cast("Q")  # the words once the segment was left
_LEFT.release()
# What `deque.copy` raises if another thread takes from the deque meanwhile: only on builds without
# a GIL, before python/cpython#144809 was mended, and no exception that is derived from it.
_CHANGED: tuple[type[Exception], ...] = (RuntimeError,) if "t" in sys.abiflags else ()


class Waiting(Protocol):
    """A receive that sleeps, as the inbox sees it."""

    def wake(self) -> None: ...

    def gone(self) -> bool:
        """Whether it will never wake, because its loop was closed."""


class Drained:
    """A message that was taken out of its queue: one object for all of its local parts."""

    __slots__ = ("body", "expires", "message", "seq", "shared")

    def __init__(self, seq: int, body: bytes, expires: float, shared: bool = False) -> None:
        self.seq = seq
        self.body = body
        self.expires = expires
        self.shared = shared  # by several local parts
        # The decoded message, once a receive took it, if a copy is as good as decoding it again.
        self.message: dict[str, Any] | None = None


Entry = tuple[str, Drained]  # the local part that it is for


class Mailbox:
    """The messages of one local part, the oldest first, and the receives that wait for them."""

    __slots__ = ("local", "messages", "more", "waiting")

    def __init__(self, local: str | None) -> None:
        self.local: Any = local  # a str, except for the mailbox of receives that take any
        # A list takes far less memory than a deque, of which thousands would not fit into the
        # cache. What does not fit is in `more`; while that has any, it gets new messages.
        self.messages: list[Drained] = []
        self.more: deque[Drained] | None = None
        self.waiting: list[Waiting] = []

    def __len__(self) -> int:
        return len(self.messages) + (len(self.more) if self.more else 0)

    def add(self, drained: Drained) -> None:
        """Inside a section: append a message."""
        if self.more:
            self.more.append(drained)
        elif len(self.messages) < _LONG:
            self.messages.append(drained)
        else:
            self.more = deque([drained])

    def front(self) -> Drained | None:
        """The oldest message; None if there is none."""
        while messages := self.messages or self.more:
            try:
                return messages[0]
            except IndexError:
                pass  # another thread was quicker
        return None

    def has(self, upto: int) -> bool:
        """Whether it has a message whose number is `upto` or lower."""
        messages = self.messages or self.more
        try:
            return messages[0].seq <= upto if messages else False
        except IndexError:
            return self.has(upto)  # another thread was quicker

    def pop(self, upto: int) -> Drained | None:
        """Take out the oldest message, if its number is `upto` or lower."""
        messages = self.messages
        if not messages:
            return self._pop_more(upto) if self.more else None
        try:
            if messages[0].seq > upto:
                return None
            drained = messages.pop(0)
        except IndexError:
            return self.pop(upto)  # another thread was quicker
        if drained.seq > upto:  # another thread took the one before it
            messages.insert(0, drained)
            return None
        return drained

    def _pop_more(self, upto: int) -> Drained | None:
        more = self.more
        try:
            if not more or more[0].seq > upto:
                return None
            drained = more.popleft()
        except IndexError:
            return None
        front = self.front()
        if drained.seq > upto or (front is not None and front.seq < drained.seq):
            more.appendleft(drained)  # meanwhile more of them came and went: the next is elsewhere
            return self.pop(upto)
        return drained

    def undo(self, newest: int) -> None:
        """Inside a section: take out what came after the message `newest`."""
        for messages in (self.more, self.messages):
            with contextlib.suppress(IndexError):  # another thread was quicker
                while messages and messages[-1].seq > newest:
                    messages.pop()

    def all(self) -> list[Drained]:
        """What it has, the oldest first."""
        while True:
            messages, more = self.messages.copy(), self.more
            try:
                return [*messages, *more.copy()] if more else messages
            except _CHANGED as error:
                if type(error) is not RuntimeError:
                    raise


class Inbox:
    """The mailboxes of one queue."""

    def __init__(self, queue: str, store: Store) -> None:
        self.queue = queue
        self.enter(store)
        self.epoch = 0  # which flush was the last when it was filled
        # Sends of this process that wait until a local part has room.
        self.sending: dict[str | None, list[Waiting]] = {}
        self.slack = 0  # 0 or IN_HAND
        self.suspects = Suspects()
        self._boxes: dict[str | None, Mailbox] = {}
        self.threads: list[Waiting] = []  # the threads that wait here
        # The local parts of the last message and their mailboxes: a group sends to the same ones
        # again and again. Forgotten before any mailbox is removed.
        self._last: tuple[bytes | None, list[Mailbox]] = None, []
        self._any = Mailbox(ANY)  # has no messages: receives that take any wait there
        self._tidy_at = _LONG  # the number of boxes at which the empty ones are removed
        # The mailboxes of each message (number, mailboxes in reverse order), the oldest first, for
        # receives that take any; None until there is one. A mailbox from which the message has been
        # taken may still be listed.
        self._order: deque[tuple[int, list[Mailbox]]] | None = None
        self._listed = 0  # how many mailboxes are in it,
        self._most_listed = _LISTED  # and the number at which it is made again
        # The sequence number of the last message that was routed completely. Later ones are still
        # being routed: nobody takes them.
        self.newest = 0
        self._feeding = False
        # Mailboxes that got something since the last fed(), in order: receives that began one
        # after the other are neighbours in memory, and thousands are woken far faster that way.
        self._fed: dict[Mailbox, None] = {}
        self._filled = False  # whether it may hold anything
        self._soonest = _NEVER  # no message in it expires before that time

    def __len__(self) -> int:
        return sum(map(len, self._boxes.copy().values()))

    def __bool__(self) -> bool:
        return self._filled and any(box.messages or box.more for box in self._boxes.copy().values())

    def enter(self, store: Store) -> None:
        """Fill it from `store`: first that of one attachment, later perhaps that of the next."""
        self._store = store
        self._words = store.words

    def leave(self) -> None:
        """Outlive the attachment: a reference to its store would keep the memory mapped. A call
        that is still going on in another thread finds words as `store.close` leaves them."""
        self._words = _LEFT
        with contextlib.suppress(AttributeError):  # it may be called twice
            del self._store

    def rests(self, now: float) -> bool:
        """Whether the upkeep finds nothing to do here. If so, this counts as its look."""
        if self._filled or self.suspects or len(self._boxes) > self._tidy_at:
            return False
        self.suspects.looked = now  # the time until then counts for no suspect
        return True

    # -- filling ----------------------------------------------------------------------------------

    def is_fresh(self) -> bool:
        """Whether nothing was flushed since it was filled. If not, `refresh` empties it. Raises
        ValueError if the segment was left."""
        return self.epoch == self._words[S_EPOCH]

    def refresh(self) -> None:
        """Inside a section: empty it if there was a flush since it was filled."""
        epoch = self._words[S_EPOCH]
        if self.epoch != epoch:
            self.clear()
            self.epoch = epoch

    def mailbox(self, local: str) -> Mailbox:
        """The mailbox of a local part. One that nobody uses may be removed, and replaced later."""
        box = self._boxes.get(local)
        return self._boxes.setdefault(local, Mailbox(local)) if box is None else box

    def held(self, local: str) -> int:
        """How many messages a local part has."""
        box = self._boxes.get(local)
        return len(box) if box is not None else 0

    def is_full(self, local: str, most: int) -> bool:
        """Whether a local part has `most` messages."""
        return self.held(local) >= most

    def drain(self, row: int, capacity: Callable[[str], int | None], now: float) -> None:
        """Inside a section: move what is pending in the queue at `row` into the inbox.

        `capacity(channel)` bounds what each local part has. Raises UnknownCapacity if it is not
        known; nothing is lost, and `drain` continues where it stopped.
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
        """Route one message to the mailboxes of its local parts; return those that were full.

        A message that is fed twice, after an interruption, is routed once.
        """
        seq = taken.seq
        if seq <= self.newest:
            return []
        if self._feeding:
            self._undo()
        self._feeding = True
        full, unknown = [], []
        local_parts, known, fed = taken.local_parts, self._boxes, self._fed
        before, boxes = self._last
        if local_parts != before:
            boxes = []
            for local in local_parts.decode("ascii").split(_SEPARATOR):
                box = known.get(local)  # `mailbox`, inlined
                if box is None:
                    box = known.setdefault(local, Mailbox(local))
                boxes.append(box)
            self._last = local_parts, boxes
        drained = Drained(seq, taken.body, taken.expires, len(boxes) > 1)
        for box in boxes:
            if box.messages or box.more:
                channel = self.queue + box.local
                most = capacity(channel)
                if most is None:
                    unknown.append(channel)
                elif len(box) >= most + self.slack:
                    full.append(box.local)
                else:
                    box.add(drained)
                    fed[box] = None
            else:
                box.messages.append(drained)
                fed[box] = None
        if unknown:
            raise UnknownCapacity(unknown)
        order = self._order
        if order is not None:
            if self._listed > self._most_listed:
                order = self._order = deque(self._in_order())
            order.append((seq, boxes[::-1]))
            self._listed += len(boxes)
        if taken.expires < self._soonest:
            self._soonest = taken.expires
        self._filled = True  # first: after an interruption nobody routes it again
        self.newest = seq  # in one store: an interruption loses or doubles none
        self._feeding = False
        if len(known) > self._tidy_at:
            self._tidy()
        return full

    def _undo(self) -> None:
        """Take out what an interrupted `feed` left: all of messages after the newest."""
        newest, order = self.newest, self._order
        while order and order[-1][0] > newest:
            order.pop()
        for box in self._boxes.copy().values():
            box.undo(newest)

    # -- taking -----------------------------------------------------------------------------------

    def take(self, local: str | None) -> Entry | None:
        """Take the oldest message for `local`, for ANY the oldest of all; None if there is none."""
        if local is ANY:
            return self._take_any()
        box = self._boxes.get(local)
        found = box.pop(self.newest) if box is not None else None
        if found is None:
            return None
        if self.suspects or self.sending:
            self.taken(local)
        return local, found

    def taken(self, local: str) -> None:
        """A receive for `local` has a message. It ends a suspicion, and makes room for a send."""
        if self.suspects:
            self.suspects.pop(local, None)
        if self.sending:
            self.wake_sender(local)

    def _take_any(self) -> Entry | None:
        box = self._oldest()
        while box is not None:
            found, local = box.pop(self.newest), box.local
            if found is not None and local is not None:
                if self.suspects:
                    self.suspects.clear()
                if self.sending:
                    self.wake_sender(local)
                return local, found
            box = self._oldest()
        return None

    def _oldest(self) -> Mailbox | None:
        """The mailbox that has the oldest message; None if there is none that may be taken."""
        newest = self.newest
        order = self._order
        if order is None:
            order = self._keep_order()
        while order:
            try:
                first = order[0]
            except IndexError:
                break  # another thread was quicker
            seq, boxes = first
            if seq > newest:
                return None
            # What is out of date is taken out, and what another thread has put in its place
            # meanwhile is put back.
            with contextlib.suppress(IndexError):
                if not boxes:
                    if order[0] is first and (gone := order.popleft()) is not first:
                        order.appendleft(gone)
                    continue
                box = boxes[-1]
                if box.has(seq):
                    return box
                if (other := boxes.pop()) is not box:
                    boxes.append(other)
                    if (
                        not order or order[0] is not first
                    ):  # it seemed to be empty, and was taken out
                        order.appendleft((seq, [other]))
        return None

    def _keep_order(self) -> deque[tuple[int, list[Mailbox]]]:
        """Begin to keep the order. Messages that are fed from now on add themselves. If one is also
        found here, the second entry has no effect."""
        order = self._order = deque()
        for each in reversed(self._in_order()):
            order.appendleft(each)
        return order

    def _in_order(self) -> list[tuple[int, list[Mailbox]]]:
        """What to list in the order: each message that is there."""
        there = [
            (drained.seq, [box]) for box in self._boxes.copy().values() for drained in box.all()
        ]
        there.sort(key=lambda each: each[0])
        self._listed = len(there)
        self._most_listed = 2 * len(there) + _LISTED
        return there

    def visited(self, local: str | None) -> None:
        """A receive for `local` has looked: its channel is not abandoned, with or without a
        message. A receive for ANY reads all channels."""
        if local is ANY:
            self.suspects.clear()
        else:
            self.suspects.pop(local, None)

    def has(self, local: str | None) -> bool:
        """Whether there is a message for `local`, or any message for ANY."""
        if local is ANY:
            return self._oldest() is not None
        box = self._boxes.get(local)
        return box is not None and bool(box.messages or box.more) and box.has(self.newest)

    def lives(self, now: float) -> bool:
        """Whether anything in it can still be received."""
        boxes = self._boxes.copy().values()
        return any(drained.expires > now for box in boxes for drained in box.all())

    def expire(self, now: float) -> Iterator[Entry]:
        """Inside a section: take out what nobody read in time, the oldest first."""
        if now < self._soonest:
            return
        self._soonest = _NEVER
        gone: list[tuple[int, Entry]] = []
        for local, box in self._boxes.copy().items():
            assert local is not None
            while (front := box.front()) is not None and front.seq <= self.newest:
                if front.expires > now:
                    self._soonest = min(self._soonest, front.expires)
                    break
                found = box.pop(front.seq)
                if found is not None:
                    gone.append((found.seq, (local, found)))
        gone.sort(key=lambda each: each[0])
        for _, entry in gone:
            yield entry

    def clear(self) -> None:
        """Inside a section: forget everything that was buffered."""
        for box in self._boxes.copy().values():
            box.messages.clear()
            box.more = None
        if self._order is not None:
            self._order.clear()
        self.newest = 0  # a flush restarts the sequence if it was damaged
        self._filled = self._feeding = False
        self._soonest = _NEVER
        self.suspects.clear()  # it has ended their memberships

    # -- waiting ----------------------------------------------------------------------------------

    @property
    def waiting(self) -> dict[str | None, list[Waiting]]:
        """The receives that sleep, by local part."""
        boxes = [*self._boxes.copy().values(), self._any]
        return {box.local: box.waiting.copy() for box in boxes if box.waiting}

    def fed(self) -> dict[Mailbox, None]:
        """Inside the section that fed it: the mailboxes that got something, for `to_wake`. None if
        no receive waits: one that joins later sees what is there."""
        fed = self._fed
        if len(fed) <= _FEW and not self._any.waiting:
            for box in fed:
                if box.waiting:
                    break
            else:
                fed.clear()
                return fed
        self._fed = {}
        return fed

    def to_wake(self, fed: Iterable[Mailbox]) -> list[Waiting]:
        """Return the receives to wake after feeding: the first of each mailbox that got something.
        Not inside a section: this asks a receive, and so its loop, whether it can still wake."""
        anybody = self._any.waiting
        found = []
        for box in fed:
            first = _first(box.waiting) if box.waiting else None
            if first is None and anybody:
                first = _first(anybody)
            if first is not None:
                found.append(first)
        return found

    def overdue(self) -> list[Waiting]:
        """Return the receives that sleep although something is there: the thread that fed it was
        interrupted before it woke any."""
        if not self._filled:
            return []
        boxes = [*self._boxes.copy().values(), self._any]
        found = (_first(box.waiting) for box in boxes if box.waiting and self.has(box.local))
        return [first for first in found if first is not None]

    def join(self, local: str | None, receive: Waiting) -> bool:
        """Enter a receive that is about to sleep; True if something is there already."""
        if local is ANY:
            self.visited(local)
            self._any.waiting.append(receive)
            return self.has(ANY)
        while True:
            box = self.mailbox(local)
            ready = self.join_at(box, receive)
            if ready is not None:
                return ready

    def join_at(self, box: Mailbox, receive: Waiting) -> bool | None:
        """`join` for one mailbox; None if that was removed: a receive in it is not found."""
        if self.suspects:
            self.visited(box.local)
        box.waiting.append(receive)
        if self._boxes.get(box.local) is not box:
            return None
        return box.has(self.newest) if box.messages or box.more else False

    def part(self, local: str | None, receive: Waiting) -> None:
        """Take out a receive that no longer sleeps. What it leaves there is for the next one."""
        box = self._any if local is ANY else self._boxes.get(local)
        if box is not None:
            self.part_from(box, receive)

    def part_from(self, box: Mailbox, receive: Waiting) -> None:
        """`part` for one mailbox."""
        waiting, anybody = box.waiting, self._any.waiting
        try:
            waiting.remove(receive)
        except ValueError:
            pass  # it had not joined, or it left already
        if (waiting or anybody) and self._filled:
            first = _first(waiting) if self.has(box.local) else None
            if first is None and anybody and self.has(ANY):
                first = _first(anybody)
            if first is not None:
                first.wake()

    def tidy(self) -> None:
        """Inside a section: note whether it is empty, and remove mailboxes that nobody uses, if
        there are many."""
        self._filled = bool(self)  # in one store: an interruption hides no message
        if self._filled and not self._order:
            # Made again when it is needed. A receive that looks while another one has a message in
            # hand, which that puts back, has taken the message out of the order.
            self._order = None
        if len(self._boxes) > self._tidy_at:
            self._tidy()

    def _tidy(self) -> None:
        boxes = self._boxes
        self._last = None, []
        for local, box in boxes.copy().items():
            if not (box.messages or box.more or box.waiting):
                boxes.pop(local, None)
                for receive in box.waiting.copy():
                    receive.wake()  # it joined in between, and joins again if it has to
        self._tidy_at = 2 * len(boxes) + _LONG

    # -- sends of this process that wait for room -------------------------------------------------

    def join_senders(self, local: str | None, send: Waiting) -> None:
        """Enter a send that is about to sleep until `local` has room; it looks after that."""
        while True:
            sends = self.sending.setdefault(local, [])
            sends.append(send)
            if self.sending.get(local) is sends:
                return

    def part_senders(self, local: str | None, send: Waiting) -> None:
        """Take out a send that no longer sleeps."""
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


Fed = tuple[Inbox, dict[Mailbox, None]]  # an inbox, and those of its mailboxes that got something


def wake_all(feds: list[Fed]) -> None:
    """Not inside a section: `wake` for each inbox that was fed. Empties the list."""
    while feds:
        wake(*feds.pop(0))


def wake(inbox: Inbox, fed: Iterable[Mailbox]) -> None:
    """Not inside a section: wake the receives that an inbox was fed for."""
    for waiting in inbox.to_wake(fed):
        waiting.wake()


def _first(receives: list[Waiting] | None) -> Waiting | None:
    """Return the first receive that can still wake, and remove those before it."""
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
