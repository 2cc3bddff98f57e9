"""How a thread waits: asleep in the kernel, in `poll` on its doorbell. Must not know an event loop.

Nothing here suspends: the coroutine of a receive that is given this way of waiting runs to its end
in one go (`finished`).
"""

from __future__ import annotations

import contextlib
import math
import select
import time

# Not `threading.active_count`: that takes a lock, which an exception of a signal handler can leave
# locked on Python 3.9.
from _thread import _count as other_threads
from collections.abc import Callable, Coroutine
from types import BuiltinFunctionType
from typing import TYPE_CHECKING, Any, TypeVar

from .. import clock
from ..attachment.inbox import Inbox
from ..attachment.process import notice_fork
from ..errors import LockTimeout
from ..segment.doorbell import ALL
from ..segment.lock import has_gil
from ..store.wakes import LEAVING, WOKEN
from .session import Session
from .source import Source
from .spin import may_spin, spinning
from .waiter import Waiter, Way

if TYPE_CHECKING:
    from .receiving import Received, Receiving

Answer = TypeVar("Answer")

_READABLE = select.POLLIN
# Seconds that a thread stays in C at most. Only in Python does it notice an exception that another
# thread raises in it (PyThreadState_SetAsyncExc).
_IN_C = 5.0


class _Select:
    """The part of `select.poll` that is used here, by `select.select`. eventlet removes the first,
    and replaces the second by one that lets its other green threads run."""

    def register(self, fd: int, events: int) -> None:
        self._fds = [fd]

    def poll(self, milliseconds: int) -> list[int]:
        return select.select(self._fds, [], [], milliseconds / 1000)[0]


class ThreadWaiter(Waiter):
    """The waiter of one thread.

    A thread that is woken first takes its message, because its caller waits for it. It reads the
    rings when it is about to park again.
    """

    rung: list[Source] | None = None  # where it was parked when it was rung, until it reads that
    quiet = False  # whether the last receive that slept did so until its deadline, in vain
    _doze: Callable[[float], float | None]  # of `Unchanged.dozing`, for the sources
    _dozes_at: list[Source] | None = None  # ... in this list

    def _take_bell(self, session: Session) -> None:
        self.rung = self._dozes_at = None
        poll = getattr(select, "poll", _Select)
        self._poll = poll()
        # In C it would not let other green threads run, for which `select.poll` was replaced.
        blocks = isinstance(poll, BuiltinFunctionType)
        self._dozes = blocks and session.attachment.unchanged.can_doze
        super()._take_bell(session)
        if self.bell is not None:
            self._poll.register(self.bell.fileno(), _READABLE)

    def wake(self) -> None:
        """Another thread of this process has put something into an inbox that we wait for."""
        bell = self.bell
        if bell is not None:  # else that thread is changing it, and looks before it sleeps again
            bell.ring(ALL)

    def gone(self) -> bool:
        return False

    def begin(self, session: Session, sources: list[Source], spin: float) -> bool:
        """Reads old rings first. With a GIL, a thread does not spin beside others, which would have
        to wait for it."""
        if self.rung:
            self.answer(session, sources)
        return spin > 0 and may_spin(sources, _sees) and not (other_threads() and has_gil())

    async def spin(self, sources: list[Source], seconds: float, deadline: float | None) -> None:
        for _ in spinning(sources, _sees, seconds, deadline):
            pass

    def answer(self, session: Session, sources: list[Source]) -> bool:
        """Read the rings; whether one was for `sources`."""
        before, self.rung = self.rung, None
        if before is None or self.bell is None:
            return False  # a receive of a signal handler was quicker
        mine = False
        notice_fork()  # a child that was forked while this slept must not read the parent's rings
        for row in self.bell.answer():
            if row == ALL and self.bell.lost():
                self._renew_bell(session)
                return True
            if row == ALL or row in [source.place for source in sources]:
                mine = True
            elif row not in [source.place for source in before] or session.pending(row):
                session.attachment.pass_on(row)  # otherwise it was answered, and nothing is left
        return mine

    async def wait(
        self, core: Receiving, session: Session, sources: list[Source], deadline: float | None
    ) -> bool:
        if self.rung and self.answer(session, sources):
            return True  # it may have been rung since the receive looked
        joined: list[tuple[Inbox, str | None]] = []
        last = sources[-1]  # that of a send, if this is one that waits for room
        sending = last.sending
        try:
            if sending is not None:
                sending.join_senders(last.local, self)
                if last.ready():
                    return True
            for source in sources:
                if source.inbox is not None:
                    joined.append((source.inbox, source.local))
                    source.inbox.threads.append(self)
                    if source.inbox.join(source.local, self):
                        return True
            if self._sleep(core, session, sources, deadline):
                return True
            self.quiet = True
            return False
        finally:
            for inbox, local in joined:
                with contextlib.suppress(ValueError):
                    inbox.threads.remove(self)
                inbox.part(local, self)
            if sending is not None:
                sending.part_senders(last.local, self)

    def listen(
        self, core: Receiving, session: Session, sources: list[Source], seconds: float
    ) -> Received | None:
        """`Receiving.receive` where the last one of this thread was `quiet`, and for the same
        source. It takes few steps: a program that waits does nothing else, and none of the code is
        in a cache of the processor."""
        deadline = clock.monotonic() + seconds
        self.quiet, take, source = False, session.usual.take, sources[0]
        try:
            try:
                done = take(source, self.waiter_id)
                if done is False:
                    left = self._doze(min(seconds, _IN_C))
                    if left is None:
                        self.rung = sources
                        source.spin.due()  # counts this wait
                        done = core.take(session, sources, self, True)
                    elif left:
                        self._look(core, session, sources)
                    elif seconds <= _IN_C:
                        done = take(source, self.waiter_id + WOKEN + LEAVING)
                        if done is False:
                            self.quiet = True
                            return None
                found = core.unpacked(session, done) if done else None
                if found is not None:
                    return found
            except LockTimeout:
                pass  # `receive` keeps waiting
            return finished(core.receive(session, sources, deadline, BLOCKING, parked=True))
        except BaseException:
            core.leave(session, sources, self)
            raise

    def _sleep(
        self, core: Receiving, session: Session, sources: list[Source], deadline: float | None
    ) -> bool:
        """`wait`, once it is known to all who may end it."""
        every, left = self.look_every, math.inf
        whole = math.ceil(every * 1000)
        while True:
            if deadline is not None:
                until = deadline - clock.monotonic()
                if until < left:  # else the clock stands still: the time slept counts
                    left = until
                if left <= 0:
                    return False
            seconds = every if left > every else left
            if self.bell is None:
                time.sleep(seconds)
                if self._lost_bell(session):
                    with contextlib.suppress(LockTimeout):  # the receive keeps waiting
                        core.upkeep(session, clock.monotonic())
                        self._renew_bell(session)
                return True
            if self._dozes_at is sources:
                longest = min(left, _IN_C)
                dozed = self._doze(longest)
                if dozed is None:
                    break  # rung
                left -= longest - dozed
                if not dozed:
                    continue
                left -= min(every, dozed)
            else:
                if self._poll.poll(whole if left > every else math.ceil(left * 1000)):
                    break
                left -= seconds
            if self._look(core, session, sources):
                return True
            if self._dozes and sources[0].inbox is None and not sources[-1].sends:
                # Not before the first sleep: most are short where messages come. C looks for
                # messages, not for room.
                unchanged = session.attachment.unchanged
                self._doze = unchanged.dozing(self._held, self.bell.fileno(), sources)
                self._dozes_at = sources
        self.rung, self.quiet = sources, False
        if not any(map(_sees, sources)):
            self.answer(session, sources)  # another was quicker: it parks again at once
        return True

    def _look(self, core: Receiving, session: Session, sources: list[Source]) -> bool:
        """Look, in case the process that should have rung was killed before it could. Returns
        whether the receive has to try again."""
        self._dozes_at = None  # what it knows may be out of date
        if not session.attachment.unchanged.holds(self._held, 0):
            try:
                core.upkeep(session, clock.monotonic())
                if self._lost_bell(session):
                    self._renew_bell(session)
                    return True
            except LockTimeout:
                return True  # the receive keeps waiting
        for source in sources:
            if source.ready() or (source.inbox is not None and source.buffered()):
                return True  # a process that sent, or flushed, may have died before it rang
        return False


def _sees(source: Source) -> bool:
    """A glance, without the lock: whether there may be something that a receive could take."""
    return source.ready() or source.buffered()


def waiter_of_thread(session: Session) -> ThreadWaiter:
    """The waiter of the calling thread."""
    local = session.attachment.local
    try:
        found: ThreadWaiter = local.waiter
    except AttributeError:
        found = local.waiter = ThreadWaiter(session)
    return found


def quiet_waiter(session: Session, sources: list[Source]) -> ThreadWaiter | None:
    """The waiter of the calling thread, if its last receive was from `sources` and heard nothing:
    then `ThreadWaiter.listen` does the next. `sources`: one, in the list that `session` keeps."""
    found: ThreadWaiter | None = getattr(session.attachment.local, "waiter", None)
    if found is None or not found.quiet or found._dozes_at is not sources:
        return None
    return found


async def _pause(seconds: float) -> None:
    time.sleep(seconds)


BLOCKING = Way(waiter_of_thread, _pause)


def finished(receive: Coroutine[Any, Any, Answer]) -> Answer:
    """Run a coroutine that was given `BLOCKING` to its end, without an event loop."""
    try:
        receive.send(None)
    except StopIteration as end:
        answer: Answer = end.value
        return answer
    raise AssertionError("a blocking waiter suspended")
