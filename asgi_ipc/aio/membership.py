"""A subscription: its own channel in some groups, for the duration of a block. Written once for all
layers; must not know any particular way of waiting.

After the memory was removed or flushed, the channel is replaced by a new one, which joins the same
groups: each call compares what it joined with what its layer is attached to now, and a flush wakes
a receive that waits. In a forked child the channel belongs to the parent, which still receives on
it: the child joins with its own channel.

Several threads or tasks may use one subscription. Nothing is locked: where two of them join again
at once, `_Place.ticket` decides whose channel is used, and the other one leaves.

The facades are `aio.subscription` (asyncio) and `sync.Subscription` (blocking).
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import weakref
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from .. import clock, errors
from ..attachment.attachment import Attachment, Inherited
from ..attachment.process import notice_fork, register
from ..attachment.weak import WeakKeys
from ..errors import IPCError, LockTimeout, NotSubscribed, SegmentVanished
from ..names import check_group
from .operations import Core
from .session import Session
from .thread import BLOCKING, finished
from .waiter import Way

logger = logging.getLogger("asgi_ipc")

Answer = TypeVar("Answer")

_RETRY = 1.0  # seconds until a renewal that failed is tried again


class _Place:
    """A channel, and the groups that it is in."""

    def __init__(self, channel: str, session: Session) -> None:
        self.channel = channel
        self.groups: set[str] = set()
        self.epoch = session.epoch  # which flush was the last before it joins
        self.nonce = session.attachment.segment.nonce
        self.pid = os.getpid()
        self.is_left = False  # whether there is nothing left to leave
        # A reference would keep memory that was removed mapped.
        self.attachment: weakref.ref[Attachment] = weakref.ref(session.attachment)
        self.ticket = [True]  # the one that pops it may put another place here
        self.renew_at = 0.0
        register(self)

    def holds(self, session: Session) -> bool:
        """Whether its channel is one of this process in the memory of `session`."""
        return self.epoch == session.epoch and (
            self.attachment() is session.attachment
            or (
                self.nonce == session.attachment.segment.nonce
                and self.pid == os.getpid()
                and not self.is_left
            )
        )

    def can_be_left(self) -> bool:
        """Whether this process is still attached. If not, its memberships end by themselves.
        Attaching only to end them would create removed memory again."""
        return not self.is_left and self.attachment() is not None

    def detach(self, attachment: Attachment) -> None:
        """The memory was removed, or this process left it at exit, or is a forked child."""
        if self.attachment() is attachment:
            self.is_left = True

    def forked(self) -> None:
        """For `process.register`: the memberships are the parent's."""
        self.is_left = True


_known: WeakKeys[Membership, None] = WeakKeys()


class Membership:
    """The groups of one subscription, and what is received from them.

    The calls are coroutines; for a blocking layer they never suspend (`thread.finished`).
    """

    def __init__(
        self,
        layer: Any,
        core: Core,
        way: Way,
        groups: Iterable[str],
        begin: Callable[[], None] = lambda: None,
    ) -> None:
        """`layer` joins, by `new_channel` and `group_add`, which may be coroutines; `core` leaves
        and receives. `begin` is called before each receive. Raises InvalidName."""
        self._layer = layer
        self._core = core
        self._way = way
        self._begin = begin
        self.groups = dict.fromkeys(map(check_group, groups))
        self._gaps: list[bool] = []  # one entry for each; a counter could lose one of two threads
        self._to_enter = [True]  # the thread that pops it enters
        self._entered = self._ended = False
        self._place: _Place | None = None
        self._waiting: list[bool] = []  # one entry for each receive
        self._seen = 0.0  # time of the last receive
        _known[self] = None

    @property
    def prefix(self) -> str:
        """That of the layer."""
        return self._core.prefix

    @property
    def half(self) -> float:
        """Seconds between two renewals."""
        return self._core.group_expiry / 2

    @property
    def gaps(self) -> int:
        """How many times messages may have been missed."""
        return len(self._gaps)

    # -- the block --------------------------------------------------------------------------------

    async def enter(self) -> None:
        """Join the groups, or none if it raises."""
        try:
            self._to_enter.pop()
        except IndexError:
            raise NotSubscribed(
                "a subscription can be entered once. Call subscribe() for another one"
            ) from None
        try:
            await self._join_all()
            self._entered = True  # not earlier: there must be a place when others begin to receive
        except BaseException:
            await self.end()
            raise

    async def end(self) -> None:
        """Leave the groups. A call that still waits for a message raises NotSubscribed."""
        self._ended = True
        notice_fork()
        place = self._place
        if place is not None:
            await self._leave(place)

    async def join(self, groups: Iterable[str]) -> None:
        """Join more groups: all of them, or none if it raises."""
        names = list(map(check_group, groups))
        self._check()
        new = [name for name in names if name not in self.groups]
        self.groups.update(dict.fromkeys(new))
        try:
            await self._join_all()
        except BaseException:
            for name in new:
                self.groups.pop(name, None)
            with contextlib.suppress(IPCError):
                if self._place is not None:
                    await self._settle(self._place)
            raise

    async def leave(self, groups: Iterable[str]) -> None:
        """Leave some of the groups; no error if it is not in them."""
        names = list(map(check_group, groups))
        self._check()
        for name in names:
            self.groups.pop(name, None)
        await self._join_all()

    # -- receiving --------------------------------------------------------------------------------

    async def receive(self, deadline: float | None, renewed: bool = False) -> dict[str, Any] | None:
        """The next message, or None at `deadline`. `renewed`: whether something else renews the
        memberships while this waits."""
        core = self._core
        self._waiting.append(True)  # before the check: `_leave` looks here after the end was noted
        try:
            while True:
                self._check()
                notice_fork()
                try:
                    self._begin()
                    place, session = await self._current(deadline)
                    if place.holds(session):
                        sources = session.exact_sources.get(place.channel)
                        if sources is None:
                            sources = core.exact_source(session, place.channel)
                        until = deadline
                        if not renewed and (until is None or place.renew_at < until):
                            until = place.renew_at
                        found = await core.receive(session, sources, until, self._way, place.epoch)
                        self._seen = clock.monotonic()
                        if found is not None and not self._ended:
                            return found[1]
                        if found is None and until == deadline and place.holds(session):
                            return None  # it has waited long enough, whatever the clock says
                except (Inherited, SegmentVanished):
                    continue  # the next turn joins again
                except LockTimeout as error:
                    logger.warning(
                        "prefix %r: a subscription continues to wait: %s", core.prefix, error
                    )
                if deadline is not None and clock.monotonic() >= deadline:
                    return None
        finally:
            self._waiting.pop()
            if self._ended and not self._waiting:
                last = self._place
                if last is not None:
                    self._drop_rest(last)

    def _check(self) -> None:
        if self._ended:
            raise NotSubscribed(
                "this subscription has ended with its block. Call subscribe() for another one"
            )
        if not self._entered:
            raise NotSubscribed(
                "a subscription receives inside its block: `with layer.subscribe(...) as events:` "
                "on a blocking layer, `async with` on an asyncio layer"
            )

    # -- joining, renewing, leaving ---------------------------------------------------------------

    async def renew(self) -> float:
        """Do what is due. Returns the seconds until the next time."""
        try:
            place, _ = await self._current(None)
        except (Inherited, SegmentVanished):
            return 0.0
        except IPCError as error:
            logger.warning("prefix %r: cannot renew a subscription: %s", self._core.prefix, error)
            return min(_RETRY, self.half)
        return max(place.renew_at - clock.monotonic(), 0.0)

    async def _current(self, deadline: float | None) -> tuple[_Place, Session]:
        """The place whose channel receives now; joins and renews where that is due. Raises
        LockTimeout at `deadline`."""
        core, place = self._core, self._place
        session = core.session
        if session is None:
            session = await self._ride_out(deadline, core.attach)
        if place is not None and place.holds(session):
            now = clock.monotonic()
            # The memberships of a channel on which nobody receives for a long time are ended, as
            # are those of a process that left the memory: check whether they were.
            again = place.attachment() is not session.attachment or now - self._seen > core.expiry
            if again or not now < place.renew_at <= now + self.half:
                await self._renew(place, deadline)
                place.attachment = weakref.ref(session.attachment)
            return place, session
        made = _Place(await self._ask(self._layer.new_channel), session)
        now = self._seen = clock.monotonic()
        made.renew_at = now + self.half
        try:
            # After one receive, its queue belongs to this process, and its memberships end with it.
            sources = core.exact_source(session, made.channel)
            await core.ride_out(self._way, deadline, core.take, session, sources)
            await self._settle(made)
            if place is not None:
                place.ticket.pop()
        except IndexError:
            await self._leave(made)  # another task or thread was quicker
        except BaseException:
            await self._leave(made)
            raise
        else:
            self._place = made
            if self._ended:
                await self._leave(made)
                self._check()
            if place is not None and place.pid == made.pid:
                self._note_gap(session, place)
                if place.nonce == made.nonce:
                    with contextlib.suppress(IPCError):
                        # Groups that it joined only after the flush.
                        await self._discard_all(place, self._way)
            await self._settle(made)  # what was joined or left meanwhile
        assert self._place is not None
        return self._place, session

    async def _join_all(self) -> None:
        """Be in the groups of this subscription, and in no others, in the memory that there is when
        this returns: it may be removed or flushed meanwhile."""
        while True:
            try:
                place, session = await self._current(None)
                await self._settle(place)
                if place.holds(session):
                    return
            except (Inherited, SegmentVanished):
                pass  # the next turn attaches again

    async def _renew(self, place: _Place, deadline: float | None) -> None:
        now = clock.monotonic()
        lost = []
        for group in place.groups.copy():
            # This tells whether it was still a member; the layer tells other machines.
            if await self._ride_out(deadline, self._core.group_add, group, place.channel):
                lost.append(group)
            await self._ask(self._layer.group_add, group, place.channel)
            await self._undo_if_left(place, group)
        place.renew_at, self._seen = now + self.half, now
        if lost:
            self._gaps.append(True)
            logger.warning(
                "prefix %r: a subscription was no longer in %s, and has joined again: it had not "
                "been renewed for group_expiry (%g s), not been read for ten times expiry (%g s), "
                "or its layer was closed. It missed the messages sent in between",
                self._core.prefix,
                ", ".join(map(repr, sorted(lost))),
                self._core.group_expiry,
                self._core.expiry,
            )

    async def _settle(self, place: _Place) -> None:
        """Have `place` be in the groups of this subscription, and in no others. These may change
        meanwhile."""
        while (joined := place.groups.copy()) != (wanted := set(self.groups.copy())):
            for group in wanted - joined:
                place.groups.add(group)
                try:
                    await self._ask(self._layer.group_add, group, place.channel)
                except BaseException:
                    # Over several machines an add that was cancelled may have been done here.
                    place.groups.discard(group)
                    with contextlib.suppress(IPCError):
                        await self._ride_out(None, self._discard, group, place.channel)
                    raise
                await self._undo_if_left(place, group)
            for group in joined - wanted:
                await self._ride_out(None, self._discard, group, place.channel)
                place.groups.discard(group)

    async def _undo_if_left(self, place: _Place, group: str) -> None:
        """Undo an add, if another task or thread has left the group meanwhile."""
        if group not in place.groups or self._ended:
            await self._ride_out(None, self._discard, group, place.channel)

    async def _leave(self, place: _Place) -> None:
        """End the memberships of `place`, wake the receives there, and drop what was not read."""
        try:
            await self._discard_all(place, self._way)
            if not self._waiting:
                self._drop_rest(place)
            deadline = clock.monotonic() + self._core.options.lock_timeout
            for _ in self._waiting.copy() if place.can_be_left() else ():
                await self._ride_out(deadline, self._wake, place.channel)
        except SegmentVanished:
            pass  # and with it the memberships
        except IPCError as error:
            logger.warning(
                "prefix %r: a subscription could not leave its groups: %s. Its memberships end "
                "group_expiry (%g s) after they were last renewed",
                self._core.prefix,
                error,
                self._core.group_expiry,
            )
        except BaseException:
            # A cancellation, an exception of a signal handler, or no memory. Not in another task:
            # those of a loop that is about to end do not run any more.
            self._leave_at_once(place)
            raise

    def _wake(self, channel: str) -> bool:
        with contextlib.suppress(errors.ChannelFull):  # then there is a message already
            self._core.send(channel, {})
        return True

    async def _discard_all(self, place: _Place, way: Way) -> None:
        """End the memberships of `place`. Other machines need not know."""
        deadline = clock.monotonic() + self._core.options.lock_timeout
        for group in place.groups.copy() if place.can_be_left() else ():
            await self._ride_out(deadline, self._discard, group, place.channel, way=way)
            place.groups.discard(group)

    def _discard(self, group: str, channel: str) -> bool:
        self._core.group_discard(group, channel)
        return True

    def leave_at_once(self) -> None:
        """Leave the groups, if that was not done, and block everything else meanwhile. It wakes
        no receive: at exit that would end daemon threads with an error."""
        if self._place is not None:
            self._leave_at_once(self._place)

    def _leave_at_once(self, place: _Place) -> None:
        with contextlib.suppress(IPCError):
            finished(self._discard_all(place, BLOCKING))

    def _drop_rest(self, place: _Place) -> None:
        """Take what nobody will read. Otherwise it would be counted and logged as expired."""
        if not place.can_be_left():
            return
        with contextlib.suppress(IPCError):
            session = self._core.attach()
            sources = self._core.exact_source(session, place.channel)
            while self._core.take(session, sources) is not None:
                pass

    def _note_gap(self, session: Session, before: _Place) -> None:
        """Count, and log once for all subscriptions of the layer, that messages may be missed."""
        self._gaps.append(True)
        if session.told == session.epoch:
            return
        session.told = session.epoch
        if before.nonce != session.attachment.segment.nonce:
            why = "the shared memory was removed"
        elif before.epoch != session.epoch:
            why = "all messages and groups were flushed"
        else:
            why = "this process had left the shared memory"
        logger.warning(
            "prefix %r: %s. Subscriptions of this layer join their groups again; they missed the "
            "messages sent in between",
            self._core.prefix,
            why,
        )

    async def _ride_out(
        self,
        deadline: float | None,
        call: Callable[..., Answer],
        *args: Any,
        way: Way | None = None,
    ) -> Answer:
        """Call something of the core, however busy the lock is; raise LockTimeout at `deadline`."""
        answer = await self._core.ride_out(way or self._way, deadline, call, *args)
        if answer is None:
            raise LockTimeout("the time was over before the lock was free")
        return answer

    async def _ask(self, call: Callable[..., Any], *args: Any) -> Any:
        """Call a method of the layer, which may be a coroutine or not."""
        answer = call(*args)
        return answer if answer is None or isinstance(answer, str) else await answer


class Subscribed:
    """What subscriptions of all layers have in common: what can be read of them."""

    _membership: Membership

    @property
    def groups(self) -> list[str]:
        """The groups of the subscription."""
        return list(self._membership.groups.copy())

    @property
    def gaps(self) -> int:
        """How many times the subscription may have missed messages, because the memory was removed
        or flushed, the layer was closed, or a membership was renewed too late."""
        return self._membership.gaps


def nothing_came(membership: Membership, timeout: float | None) -> TimeoutError:
    groups = ", ".join(map(repr, membership.groups.copy())) or "no group"
    return TimeoutError(
        f"no message came from {groups} of prefix {membership.prefix!r} within {timeout:g} s"
    )


def _leave_at_exit() -> None:
    notice_fork()
    for membership in _known.keys():
        membership.leave_at_once()


atexit.register(_leave_at_exit)  # after the handler of `process`, and so called before it
