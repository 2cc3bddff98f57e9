"""The operations of both contracts, written once: the layers around it only differ in how to wait.

Everything but `receive` never waits and is a plain call. `receive` is a coroutine that waits at
one place, ``await waiter.wait(...)``. The asyncio waiter suspends there; the blocking one sleeps
in the kernel and never suspends, so that its facade runs the coroutine to its end by hand.

A receive first tries, and parks in the section that found nothing. Nothing is awaited between
taking a message out and returning it: cancelling a receive loses nothing and doubles nothing.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterable
from typing import Any, Protocol

from .. import errors
from ..attachment import Attachment, attached, register
from ..codec import Codec, DecodeError
from ..errors import InvalidName, LimitReached, LockBusy, LockTimeout, NotAChannel, NotOwner
from ..groups import Plan
from ..inbox import ANY, Entry, Inbox, Waiting
from ..layout import (
    CAPACITY,
    DROP_REASONS,
    L_EXPIRES,
    L_SENT,
    LOCAL_SEPARATOR,
    MAX_LOCALS,
    MEMORY,
    Q_COUNT,
    Q_CREATED,
    Q_DROPS,
    Q_FIRST,
    Q_FULL,
    Q_TOTAL,
    R_GENERATION,
    S_DROPS,
    S_FULL,
    S_SEQ,
    S_SEQ_BASE,
    S_SINCE,
    UNDECODABLE,
)
from ..names import check_channel, check_group, check_receive, split
from ..options import Options
from ..segment import Paths, Wanted
from ..store import FULL, NO_MEMORY, NO_ROW, Target

logger = logging.getLogger("asgi_ipc")

_CACHED = 20_000  # names whose routes a layer remembers
_TARGETS_AT_ONCE = 64  # queues that a broadcast reaches in one section
_LOG_EVERY = 10.0  # seconds between two log lines about the same kind of drop

Found = tuple[str, bytes]  # full channel name, undecoded body


class Waiter(Protocol):
    """Who waits for a core: a thread or an event loop, with a doorbell of its own."""

    index: int  # waiter id; 0 if ids have run out, and it has to look by itself

    async def wait(self, core: Core, sources: list[Source], deadline: float | None) -> bool:
        """Sleep until there may be something in one of `sources`; False at `deadline`."""

    async def pause(self, seconds: float) -> None:
        """Sleep while the lock is busy."""

    def keeps(self, source: Source) -> bool:
        """Whether another receive of this waiter waits for `source`, so that its bit must stay."""

    def left(self, core: Core, source: Source) -> None:
        """A receive of this waiter got a message from `source`: others may be left waiting."""


class Source:
    """A channel as a receive names it: a queue, and for process-specific ones what part of it."""

    __slots__ = ("channel", "inbox", "local", "queue", "target")

    def __init__(self, channel: str, inbox: Inbox | None) -> None:
        self.queue, local = split(channel)
        self.channel = channel
        self.target = Target(self.queue.encode("ascii"))
        self.inbox = inbox
        self.local: str | None = local or ANY


class Core:
    """The operations of one layer on the attachment of its process."""

    def __init__(self, options: Options, patience: float | None = None) -> None:
        """`patience`: seconds that one call may wait for the lock; by default ``lock_timeout``."""
        self.options = options
        self.prefix = options.prefix
        self.expiry = options.expiry
        self.group_expiry = options.group_expiry
        self.max_message_size = options.max_message_size
        self.codec = Codec(options.symmetric_encryption_keys)
        self._capacities = options.capacities()
        self._patience = options.lock_timeout if patience is None else patience
        self._wanted = Wanted(
            options.prefix,
            options.message_memory,
            options.group_memory,
            options.max_message_size,
            options.mode,
            options.lock,
        )
        # What is known only while attached, and void after a detach.
        self._attachment: Attachment | None = None
        self._routes: dict[str, Target] = {}
        self._sources: dict[str, Source] = {}
        self.exact_sources: dict[str, list[Source]] = {}
        self._plans: dict[bytes, tuple[Plan, list[Target]]] = {}
        self.section: Any = None
        self._put: Any = None
        self._take: Any = None
        self.loop_waiter: Any = None  # the waiter of the loop that last received
        self._turn = 0
        self._logged: dict[str, float] = {}
        self._samples: dict[str, tuple[float, int, int]] = {}
        Paths(options.prefix)  # refuses a prefix that cannot be
        register(self)

    # -- attaching --------------------------------------------------------------------------------

    def attach(self) -> Attachment:
        """This process's attachment, made when the layer is first used."""
        found = self._attachment
        if found is None:
            found = attached(self._wanted)
            self.section = found.make_section(self._patience, self.options.lock_timeout)
            self._put = found.store.put
            self._take = found.store.take
            self.max_message_size = min(
                self.options.max_message_size, found.segment.layout.max_message_size
            )
            self._attachment = found
        return found

    def detach(self, attachment: Attachment | None = None) -> None:
        """Forget the attachment (only if it is this one); the next call attaches again."""
        if attachment is None or self._attachment is attachment:
            self._attachment = None
            self.section = self._put = self._take = self.loop_waiter = None
            self._routes = {}
            self._sources = {}
            self.exact_sources = {}
            self._plans = {}

    def upkeep(self, attachment: Attachment, now: float) -> None:
        attachment.upkeep(now, self.expiry, self.section)

    # -- sending ----------------------------------------------------------------------------------

    def send(self, channel: str, message: dict[str, Any]) -> None:
        """Append `message` to `channel` (A1, B1, M8: never blocks).

        Raises InvalidName, InvalidMessage, MessageTooLarge, ChannelFull, NotAChannel.
        """
        try:
            target = self._routes[channel]
        except (KeyError, TypeError):
            target = self._route(channel)
        body = self.codec.encode(message)
        if len(body) > self.max_message_size:
            raise errors.MessageTooLarge(self._too_large(channel, len(body)))
        attachment = self._attachment or self.attach()
        now = time.monotonic()
        if now >= attachment.due:
            self.upkeep(attachment, now)
        waiter = self.section(self._put, target, body, now, now + self.expiry)
        if waiter:
            if waiter < 0:
                self._refuse(attachment, channel, waiter)
            attachment.ring(target.row, waiter)

    def _route(self, channel: str) -> Target:
        """Where messages for `channel` go; looked up once for each name."""
        check_channel(channel)
        attachment = self.attach()
        queue, local = split(channel)
        target = Target(queue.encode("ascii"), local.encode("ascii"), self.capacity_of(channel))
        self.section(self._refuse_group, attachment, target, channel)
        if len(self._routes) >= _CACHED:
            self._routes.clear()
        self._routes[channel] = target
        return target

    def _refuse_group(self, attachment: Attachment, target: Target, channel: str) -> None:
        """Inside a section: a name that no channel has yet and a group bears is a mistake."""
        store = attachment.store
        if not store.find(target) and store.groups.find(target.queue):
            raise NotAChannel(
                f"{channel!r} is the name of a group, and no channel has that name: to reach its "
                "members use group_send (send_group in Channels 1). A channel that is to have the "
                "name of a group must be received on first"
            )

    def _refuse(self, attachment: Attachment, channel: str, why: int) -> None:
        if why == FULL:
            raise errors.ChannelFull(
                f"channel {channel!r} is at its capacity of {self.capacity_of(channel)} messages: "
                "its readers are slower than its senders, or there are none"
            )
        store = attachment.store
        store.words[S_FULL] += 1
        raise errors.ChannelFull(
            f"no memory for another message to {channel!r}: message_memory="
            f"{store.layout.message_memory} of prefix {self.prefix!r} is used up, or the machine "
            "has no more shared memory (Docker: --shm-size)"
        )

    def _too_large(self, channel: str, size: int) -> str:
        return (
            f"the message to {channel!r} takes {size} bytes, and max_message_size is "
            f"{self.max_message_size}"
        )

    def capacity_of(self, channel: str) -> int:
        """How many messages may wait in `channel`; patterns see the full name that is sent to."""
        for match, capacity in self._capacities:
            if match(channel):
                return capacity
        return self.options.capacity

    # -- receiving --------------------------------------------------------------------------------

    def sources(self, channels: Iterable[str]) -> list[Source]:
        """Look up what a receive names; process-specific channels only up to the ``!`` (A1)."""
        known = self._sources
        try:
            if type(channels) is list and len(channels) == 1:
                return [known[channels[0]]]
            channels = _listed(channels)
            found = [known[channel] for channel in channels]
        except (KeyError, TypeError):
            found = [self._source(check_receive(channel)) for channel in channels]
        if len(found) > 1:
            # Begin with another one each time: a busy channel never starves a quiet one (M9).
            self._turn = turn = (self._turn + 1) % len(found)
            found = found[turn:] + found[:turn]
        return found

    def exact_source(self, channel: str) -> list[Source]:
        """What a receive of one full name takes from, as a list of one; looked up once."""
        check_channel(channel)
        found = [self._source(channel)]
        if len(self.exact_sources) >= _CACHED:
            self.exact_sources.clear()
        self.exact_sources[channel] = found
        return found

    def _source(self, channel: str) -> Source:
        attachment = self.attach()
        queue = split(channel)[0]
        source = Source(channel, attachment.inbox(queue) if queue.endswith("!") else None)
        if source.local is ANY:
            if len(self._sources) >= _CACHED:
                self._sources.clear()
            self._sources[channel] = source
        return source

    def take(
        self, sources: list[Source], waiter: Waiter | None = None, parked: bool = False
    ) -> tuple[str, dict[str, Any]] | None:
        """Take one message out of `sources`: (channel, message), or None if there is none.

        With a waiter: park it, if there is none, in the section that saw so. `parked`: it may be
        parked in all of them from the last try; what is left of that goes when a message is taken.
        """
        attachment = self._attachment or self.attach()
        now = time.monotonic()
        if now >= attachment.due:
            self.upkeep(attachment, now)
        while True:
            source = sources[0]
            if len(sources) == 1 and source.inbox is None:
                channel = source.channel
                body = self.section(
                    self._take, source.target, now, 0 if waiter is None else waiter.index
                )
                if body is None:
                    return None
            else:
                found = self._take_any(attachment, sources, now, waiter, parked)
                if found is None:
                    return None
                source, channel, body = found
            if parked and waiter is not None:
                waiter.left(self, source)
                parked = False
            try:
                return channel, self.codec.decode(body)
            except DecodeError as error:
                self._count_drop(attachment, source.target, UNDECODABLE, channel, str(error))

    def _take_any(
        self,
        attachment: Attachment,
        sources: list[Source],
        now: float,
        waiter: Waiter | None,
        parked: bool,
    ) -> Any:
        """`take` where there are several queues, or an inbox: (source, channel, body) or None."""
        found = self._buffered(attachment, sources, now)
        if found is not None:
            if parked and waiter is not None:
                rings = self.section(self._unpark, attachment, sources, None, waiter)
            else:
                rings = ()
        else:
            woken: list[Waiting] = []
            found, rings = self.section(
                self._attempt, attachment, sources, now, waiter, parked, woken
            )
            for waiting in woken:
                waiting.wake()
        for row, other in rings:
            attachment.ring(row, other)
        return found

    def _buffered(self, attachment: Attachment, sources: list[Source], now: float) -> Any:
        """What was drained before, by whichever thread of this process."""
        for source in sources:
            if source.inbox:
                entry = self._entry(attachment, source, now, self.section)
                if entry is not None:
                    return source, source.queue + entry.local, entry.body
        return None

    def _entry(
        self, attachment: Attachment, source: Source, now: float, section: Any
    ) -> Entry | None:
        """The oldest entry for `source` in its inbox; what has expired is dropped on the way."""
        assert source.inbox is not None
        inbox = attachment.fresh(source.inbox)
        while True:
            entry = inbox.take(source.local)
            if entry is None or entry.expires > now:
                return entry
            section(attachment.store.count_expired, source.target, 1)

    def _attempt(
        self,
        attachment: Attachment,
        sources: list[Source],
        now: float,
        waiter: Waiter | None,
        parked: bool,
        woken: list[Waiting],
    ) -> Any:
        """Inside a section: take from the first queue that has something, or park in all.

        Returns what was taken, (source, channel, body) or None, and the rings that are due. Puts
        into `woken` which other receives of this process got something out of a drained queue.
        """
        store = attachment.store
        for source in sources:
            if source.inbox is None:
                body = store.take(source.target, now)
                if body is None:
                    continue
                found = source, source.channel, body
            else:
                row = self._bind(attachment, source.target, now)
                woken += self._drain(attachment, source, row, now)
                entry = self._entry(attachment, source, now, lambda call, *args: call(*args))
                if entry is None:
                    continue
                found = source, source.queue + entry.local, entry.body
            if parked and waiter is not None:
                return found, self._unpark(attachment, sources, source, waiter)
            return found, ()
        if waiter is not None and waiter.index:
            for source in sources:
                store.park(self._bind(attachment, source.target, now), waiter.index)
        return None, ()

    def _bind(self, attachment: Attachment, target: Target, now: float) -> int:
        row = attachment.store.bind(target, now)
        if not row:
            raise LimitReached(NO_ROW.format(attachment.store.queues.used))
        return row

    def _drain(self, attachment: Attachment, source: Source, row: int, now: float) -> list[Waiting]:
        """Inside a section: own a process-specific queue, and move what it holds to the inbox.

        Returns whom to wake, once the section is over.
        """
        owner = attachment.claim(row, now, self.expiry)
        if owner:
            raise NotOwner(
                f"channel {source.channel!r} belongs to process {owner}: a process-specific "
                "channel is received only by the process that first did"
            )
        inbox = source.inbox
        assert inbox is not None
        queue = source.queue
        attachment.drain(row, inbox, lambda local: self.capacity_of(queue + local))
        return inbox.to_wake()

    def _unpark(
        self,
        attachment: Attachment,
        sources: list[Source],
        taken: Source | None,
        waiter: Waiter,
    ) -> list[tuple[int, int]]:
        """Inside a section: take the waiter's bits back; returns the rings that then are due.

        A bit that is gone already means that a ring is under way for nothing: it goes to another.
        """
        store = attachment.store
        due = []
        for source in sources:
            if source is taken or not waiter.index or waiter.keeps(source):
                continue
            row = store.find(source.target)
            if row and not store.unpark(row, waiter.index):
                other = store.pick_if_waiting(row)
                if other:
                    due.append((row, other))
        return due

    def drain(self, source: Source, waiter: Waiter) -> None:
        """The bell rang for a process-specific queue: empty it into the inbox, wake, and park."""
        attachment = self.attach()
        for waiting in self.section(self._drain_and_park, attachment, source, waiter.index):
            waiting.wake()

    def _drain_and_park(self, attachment: Attachment, source: Source, waiter: int) -> list[Waiting]:
        now = time.monotonic()
        row = self._bind(attachment, source.target, now)
        woken = self._drain(attachment, source, row, now)
        if not attachment.store.words[row + Q_COUNT]:
            attachment.store.park(row, waiter)
        else:
            # More than one section takes: ring again, behind whoever waits for the lock.
            attachment.ring(row, waiter)
        return woken

    async def receive(
        self,
        sources: list[Source],
        waiter: Waiter,
        deadline: float | None,
        parked: bool = False,
    ) -> tuple[str, dict[str, Any]] | None:
        """Wait for a message in one of `sources`: (channel, message), or None at `deadline`.

        `parked`: a `take` with this waiter has just found nothing. A lock that stays busy is ridden
        out, with a line in the log each `lock_timeout`.
        """
        busy_since = 0.0
        wait = parked
        try:
            while True:
                if wait and not await waiter.wait(self, sources, deadline):
                    return None
                wait = True
                try:
                    found = self.take(sources, waiter, parked)
                except LockTimeout as error:
                    wait = False
                    now = time.monotonic()
                    busy_since = busy_since or now
                    if now - busy_since >= self.options.lock_timeout or not isinstance(
                        error, LockBusy
                    ):
                        busy_since = now
                        logger.warning(
                            "prefix %r: a receive goes on waiting: %s", self.prefix, error
                        )
                    await waiter.pause(0.001)
                    continue
                parked = found is None
                if found is not None:
                    return found
        finally:
            if parked:
                self._leave(sources, waiter)

    def _leave(self, sources: list[Source], waiter: Waiter) -> None:
        """Stop waiting without a message: by a timeout, a cancellation or an error."""
        attachment = self._attachment
        if attachment is None or attachment.broken is not None:
            return
        # If the lock is not to be had a bit stays, and whoever rings for it is passed on.
        with contextlib.suppress(LockTimeout):
            for row, other in self.section(self._unpark, attachment, sources, None, waiter):
                attachment.ring(row, other)

    # -- groups -----------------------------------------------------------------------------------

    def group_add(self, group: str, channel: str) -> None:
        """Make `channel` a member, or renew its membership (A5). Raises LimitReached."""
        names = check_group(group).encode("ascii"), check_channel(channel).encode("ascii")
        attachment = self.attach()
        now = time.monotonic()
        self.section(attachment.groups.add, *names, now, now + self.group_expiry)

    def group_discard(self, group: str, channel: str) -> None:
        """End a membership, if there is one (A5)."""
        names = check_group(group).encode("ascii"), check_channel(channel).encode("ascii")
        attachment = self.attach()
        self.section(attachment.groups.discard, *names)

    def group_channels(self, group: str) -> list[str]:
        """The members whose readers live, as far as is known, and whose time is not over (A5)."""
        name = check_group(group).encode("ascii")
        attachment = self.attach()
        now = time.monotonic()
        if now >= attachment.due:
            self.upkeep(attachment, now)
        found: list[str] = self.section(attachment.groups.channels, name, now)
        return found

    def group_send(self, group: str, message: dict[str, Any]) -> None:
        """Send to every member; what does not fit is dropped and counted (A5, B2, M7).

        Each destination queue gets one record, whatever the number of its local parts.
        """
        name = check_group(group).encode("ascii")
        body = self.codec.encode(message)
        if len(body) > self.max_message_size:
            raise errors.MessageTooLarge(self._too_large(group, len(body)))
        attachment = self.attach()
        now = time.monotonic()
        if now >= attachment.due:
            self.upkeep(attachment, now)
        targets: list[Target] | None = None
        sent = 0
        section = self.section
        while targets is None or sent < len(targets):
            targets, rings, dropped = section(
                self._broadcast, attachment, name, targets, sent, body, now
            )
            sent += _TARGETS_AT_ONCE
            section = attachment.section  # begun, so it is finished: with all patience
            for row, waiter in rings:
                attachment.ring(row, waiter)
            for target, reason in dropped:
                queue = target.queue.decode("ascii")
                self._log_drop(f"group {group!r}, channel {queue!r}", DROP_REASONS[reason])

    def _broadcast(
        self,
        attachment: Attachment,
        group: bytes,
        targets: list[Target] | None,
        first: int,
        body: bytes,
        now: float,
    ) -> tuple[list[Target], list[tuple[int, int]], list[tuple[Target, int]]]:
        """Inside a section: put one message into the next few queues of a group's plan."""
        store = attachment.store
        if targets is None:
            targets = self._plan(attachment, group, now)
        rings, dropped = [], []
        for target in targets[first : first + _TARGETS_AT_ONCE]:
            waiter = store.put(target, body, now, now + self.expiry)
            if waiter > 0:
                rings.append((target.row, waiter))
            elif waiter == FULL or waiter == NO_MEMORY:
                reason = CAPACITY if waiter == FULL else MEMORY
                store.words[S_DROPS + reason] += 1
                store.words[target.row + Q_DROPS] += 1
                dropped.append((target, reason))
        return targets, rings, dropped

    def _plan(self, attachment: Attachment, group: bytes, now: float) -> list[Target]:
        """The targets of a broadcast, kept while the group's version stands."""
        known = self._plans.get(group)
        if known is not None and attachment.groups.current(known[0], now):
            return known[1]
        plan = attachment.groups.plan(group, now)
        if plan is None:
            self._plans.pop(group, None)
            return []
        targets = []
        for queue, (row, generation, local_parts) in plan.channels.items():
            name = queue.decode("ascii")
            if self._capacities and local_parts:
                capacity = min(
                    self.capacity_of(name + part.decode("ascii")) for part in local_parts
                )
            else:
                capacity = self.capacity_of(name) if self._capacities else self.options.capacity
            for joined in _joined(local_parts):
                targets.append(
                    Target(queue, joined, capacity, row=row, generation=generation, fixed=True)
                )
        if len(self._plans) >= _CACHED:
            self._plans.clear()
        self._plans[group] = plan, targets
        return targets

    # -- flush and statistics ---------------------------------------------------------------------

    def flush(self) -> None:
        """Forget all messages and groups, for every client, when it returns (A7)."""
        self.attach().flush()
        self._plans.clear()

    def global_statistics(self) -> dict[str, Any]:
        """The six figures of the specification for the whole layer (A8)."""
        attachment = self.attach()
        now = time.monotonic()
        store = attachment.store
        self.section(store.sweep, now)
        words, doubles = store.words, store.doubles
        pending, oldest = 0, now
        for row in store.queues.rows():
            pending += words[row + Q_COUNT]
            oldest = min(oldest, self._sent_at(attachment, row, now))
        since = doubles[S_SINCE]
        count = words[S_SEQ] - words[S_SEQ_BASE]
        return self._statistics("", now, since, count, words[S_FULL], pending, now - oldest)

    def channel_statistics(self, channel: str) -> dict[str, Any]:
        """The six figures for the queue that `channel` is kept in (A8)."""
        queue = split(check_channel(channel))[0]
        attachment = self.attach()
        now = time.monotonic()
        store = attachment.store
        target = Target(queue.encode("ascii"))
        row = self.section(store.find_unexpired, target, now)
        if not row:
            return self._statistics(queue, now, now, 0, 0, 0, 0.0)
        words = store.words
        return self._statistics(
            queue,
            now,
            store.doubles[row + Q_CREATED],
            words[row + Q_TOTAL],
            words[row + Q_FULL],
            words[row + Q_COUNT],
            now - self._sent_at(attachment, row, now),
        )

    def _sent_at(self, attachment: Attachment, row: int, now: float) -> float:
        """When the oldest message of a queue was sent; now if there is none. A glance, unlocked."""
        store = attachment.store
        at = store.words[row + Q_FIRST]
        if not store.log.start <= at < store.log.end or store.doubles[at + L_EXPIRES] <= now:
            return now
        return float(store.doubles[at + L_SENT])

    def _statistics(
        self, name: str, now: float, since: float, count: int, full: int, pending: int, age: float
    ) -> dict[str, Any]:
        """Rates are those since the last call for the same name if that is a second ago, else
        since the beginning."""
        at, count_then, full_then = self._samples.get(name, (since, 0, 0))
        if count < count_then or at < since:
            at, count_then, full_then = since, 0, 0  # there was a flush in between
        period = max(now - at, 1e-9)
        if now - at >= 1.0:
            if len(self._samples) >= _CACHED:
                self._samples.clear()
            self._samples[name] = (now, count, full)
        return {
            "messages_count": count,
            "messages_count_per_second": (count - count_then) / period,
            "messages_pending": pending,
            "messages_max_age": max(age, 0.0),
            "channel_full_count": full,
            "channel_full_count_per_second": (full - full_then) / period,
        }

    # -- drops ------------------------------------------------------------------------------------

    def _count_drop(
        self, attachment: Attachment, target: Target, reason: int, channel: str, why: str
    ) -> None:
        words = attachment.store.words
        words[S_DROPS + reason] += 1
        if words[target.row + R_GENERATION] == target.generation:
            words[target.row + Q_DROPS] += 1
        self._log_drop(f"channel {channel!r}", f"{DROP_REASONS[reason]}: {why}")

    def _log_drop(self, where: str, why: str) -> None:
        """One line in ten seconds for each kind of drop, however many there are."""
        kind = why.partition(":")[0]
        now = time.monotonic()
        if now - self._logged.get(kind, -_LOG_EVERY) >= _LOG_EVERY:
            self._logged[kind] = now
            logger.warning("prefix %r, %s: a message was dropped (%s)", self.prefix, where, why)


def _listed(channels: Any) -> list[Any]:
    if isinstance(channels, (str, bytes)):
        raise InvalidName(f"receive takes a list of channel names, not one string: [{channels!r}]")
    return list(channels)


def _joined(local_parts: list[bytes]) -> list[bytes]:
    """The local parts of a broadcast to one queue, joined; in several pieces if there are many."""
    whole = LOCAL_SEPARATOR.join(local_parts)
    if len(whole) <= MAX_LOCALS:
        return [whole]
    middle = len(local_parts) // 2
    return _joined(local_parts[:middle]) + _joined(local_parts[middle:])
