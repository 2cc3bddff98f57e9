"""How Twisted waits: the reactor's own readers, timers and Deferreds. Imported by
`receive_twisted` alone, so that nothing else needs Twisted."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterable
from typing import Any, cast

from twisted.internet import defer, task
from twisted.internet.interfaces import IReadDescriptor
from twisted.python import threadable
from zope.interface import implementer

from .. import clock
from .hub import Hub, Timer, hub_of
from .operations import Core
from .session import Session
from .waiter import Way


@implementer(IReadDescriptor)
class _Bell:
    """A hub's doorbell in the form that the reactor needs."""

    def __init__(self, hub: ReactorHub) -> None:
        self._hub = weakref.ref(hub)

    def fileno(self) -> int:
        hub = self._hub()
        return -1 if hub is None or hub.bell is None else hub.bell.fileno()

    def doRead(self) -> None:
        hub = self._hub()
        if hub is not None:
            hub.rung()

    def connectionLost(self, reason: Any) -> None:
        pass

    def logPrefix(self) -> str:
        return "asgi_ipc"


class ReactorHub(Hub):
    """The hub of the reactor."""

    def __init__(self, session: Session, reactor: weakref.ref[Any]) -> None:
        super().__init__(session)
        self._reference = reactor
        self._watched = _Bell(self)
        self._thread = threading.get_ident()

    def _reactor(self) -> Any:
        return self._reference()

    def future(self) -> defer.Deferred[None]:
        self._thread = threading.get_ident()
        return defer.Deferred()

    def closed(self) -> bool:
        return False  # the process has one reactor, for its whole life

    def resolve(self, future: defer.Deferred[None], error: BaseException | None) -> None:
        reactor = self._reactor()
        if (
            threadable.isInIOThread()  # type: ignore[no-untyped-call]
            if reactor.running
            else threading.get_ident() == self._thread  # not begun, or already ended
        ):
            _resolve(future, error)
        else:
            reactor.callFromThread(_resolve, future, error)

    async def sleep(self, future: defer.Deferred[None], seconds: float) -> bool:
        over = self._reactor().callLater(max(seconds, 0), future.cancel)
        try:
            await future
        except defer.CancelledError:
            if over.active():
                raise
            return False
        finally:
            if over.active():
                over.cancel()
        return True

    async def pause(self, seconds: float) -> None:
        await task.deferLater(self._reactor(), seconds, lambda: None)

    def watch(self) -> None:
        self._reactor().addReader(self._watched)

    def unwatch(self) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._reactor().removeReader(self._watched)

    def later(self, seconds: float) -> Timer:
        timer: Timer = self._reactor().callLater(seconds, self.look)
        return timer


def _resolve(future: defer.Deferred[None], error: BaseException | None) -> None:
    if not future.called:
        if error is None:
            future.callback(None)
        else:
            future.errback(error)


def receive(core: Core, channels: Iterable[str], seconds: float) -> defer.Deferred[Any]:
    """A Deferred of (channel, message), or of (None, None) after `seconds`."""
    from twisted.internet import reactor

    def hub(session: Session) -> ReactorHub:
        return hub_of(session, reactor, ReactorHub)

    async def pause(seconds: float) -> None:
        await task.deferLater(cast(Any, reactor), seconds, lambda: None)

    deadline = clock.monotonic() + seconds
    return defer.ensureDeferred(core.receive_from(channels, deadline, Way(hub, pause)))
