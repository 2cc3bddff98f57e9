"""How asyncio waits: the loop's own readers, timers and futures. Only this file knows them."""

from __future__ import annotations

import asyncio
import sys
import threading
import weakref
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

from ..attachment.inbox import ANY, Inbox, Mailbox, wake
from ..errors import NoEventLoop
from .hub import Hub, Sleep, hub_of
from .session import Session
from .source import Source
from .waiter import Way

if sys.version_info >= (3, 11):
    from asyncio import timeout as timeout
elif not TYPE_CHECKING:
    from async_timeout import timeout as timeout


WOKEN_AT_ONCE = 64  # receives woken in one turn of a loop


class AsyncioHub(Hub):
    """The hub of an asyncio event loop (asyncio's own loops, uvloop)."""

    def __init__(self, session: Session, loop: weakref.ref[asyncio.AbstractEventLoop]) -> None:
        super().__init__(session)
        self.ref = loop
        self._thread = threading.get_ident()

    def loop(self) -> asyncio.AbstractEventLoop:
        found = self.ref()
        if found is None:
            raise RuntimeError("the event loop of this receive is gone")
        return found

    def future(self) -> asyncio.Future[None]:
        self._thread = threading.get_ident()  # a loop may be run by another thread next time
        return (self.ref() or self.loop()).create_future()

    def closed(self) -> bool:
        loop = self.ref()
        return loop is None or loop.is_closed()

    def resolve(self, future: asyncio.Future[None], error: BaseException | None) -> None:
        loop = self.ref()
        if loop is None:
            return
        # `_thread` alone may be that of an earlier run of the loop. And the running loop alone may
        # be that of another green thread.
        if threading.get_ident() == self._thread and asyncio._get_running_loop() is loop:
            if error is None and not future.done():
                future.set_result(None)
            else:
                _resolve(future, error)
            return
        try:
            loop.call_soon_threadsafe(_resolve, future, error)
        except RuntimeError:
            pass  # closed: nobody waits there any more

    def wake_fed(self, inbox: Inbox, fed: dict[Mailbox, None]) -> None:
        """If thousands are woken at once, they have left the cache before they run. And what the
        loop allocates for them makes the garbage collector look at all of them again and again.
        So a bounded number is woken in each turn of the loop."""
        if len(fed) <= WOKEN_AT_ONCE or self._shares(inbox):
            wake(inbox, fed)
        else:
            self._wake_some(inbox, iter(fed))

    def _shares(self, inbox: Inbox) -> bool:
        """Whether others wait at the queue as well. They must not wait for turns of this loop."""
        session = self._session
        hubs = session.attachment.hubs.values() if session is not None else []
        return bool(inbox.threads) or any(
            hub is not self and hub.drains(inbox.queue) for hub in hubs
        )

    def _wake_some(self, inbox: Inbox, boxes: Iterator[Mailbox]) -> None:
        """A receive that an exception leaves out is woken by the look once a second."""
        some = list(islice(boxes, WOKEN_AT_ONCE))
        if len(some) == WOKEN_AT_ONCE:
            self.loop().call_soon(self._wake_some, inbox, boxes)
        others = []
        for box in some:
            try:
                first = box.waiting[0]
            except IndexError:
                first = None
            if type(first) is Sleep and first.hub is self:
                try:
                    first.future.set_result(None)
                except asyncio.InvalidStateError:
                    pass  # it is awake already, or was cancelled
            else:
                others.append(box)
        if others:
            wake(inbox, others)

    async def sleep(self, future: asyncio.Future[None], seconds: float) -> bool:
        try:
            async with timeout(seconds):
                await future
        except asyncio.TimeoutError:
            return False
        return True

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def watch(self) -> None:
        assert self.bell is not None
        self.loop().add_reader(self.bell.fileno(), self.rung)

    def unwatch(self) -> None:
        loop = self.ref()
        if loop is not None and not loop.is_closed() and self.bell is not None:
            loop.remove_reader(self.bell.fileno())

    def later(self, seconds: float) -> asyncio.TimerHandle:
        self._thread = threading.get_ident()  # once a second, since `nap` does not
        return self.loop().call_later(seconds, self.look)


def _resolve(future: asyncio.Future[None], error: BaseException | None) -> None:
    if not future.done():
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)


def running_loop() -> asyncio.AbstractEventLoop:
    """The running loop of asyncio. Raises NoEventLoop, as under trio."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise NoEventLoop(
            "this call waits in an event loop of asyncio, and none is running here. Under another "
            "library (trio, curio) use the blocking layer, asgi_ipc.IPCChannelLayer, in a thread "
            "(trio.to_thread.run_sync), or asyncio by trio-asyncio"
        ) from None


async def pause(seconds: float) -> None:
    """Sleep, and let the loop run."""
    running_loop()
    await asyncio.sleep(seconds)


def current_hub(session: Session) -> AsyncioHub:
    """The hub of the running loop."""
    found = session.loop_waiter
    loop = asyncio._get_running_loop() or running_loop()
    if found is None or found.ref() is not loop:
        session.loop_waiter = None  # the last one may be of a closed loop: release it
        found = session.loop_waiter = hub_of(session, loop, AsyncioHub)
    return found


ASYNCIO = Way(current_hub, pause)


def nap(session: Session, source: Source, spin: float) -> Sleep | None:
    """A receive of the running loop is about to sleep until the mailbox of `source` has something.
    Return what it sleeps on; the receive joins the mailbox. None if waiting takes more than that.

    It does not where the loop is parked at the queue already, as for every socket of a server that
    receives again.
    """
    inbox = source.inbox
    if inbox is None or source.local is ANY or not session.due[()]:
        return None  # the last: this may be a child that was forked in C
    hub, loop = session.loop_waiter, asyncio._get_running_loop()
    if hub is None or loop is None or hub.ref() is not loop:
        hub = current_hub(session)
        loop = hub.loop()
    if (
        session.attachment.broken is not None
        or not inbox.is_fresh()
        or source.queue not in hub._drains
        or hub._timer is None
        or hub.late
    ):
        return None
    if spin > 0 and not hub._spinning:
        learned = source.spin
        if learned.waits <= 0:
            return None
        learned.waits -= 1
    sleep = Sleep()
    sleep.hub, sleep.future = hub, loop.create_future()
    hub.sleepers += 1  # last: the receive counts it out again
    return sleep
