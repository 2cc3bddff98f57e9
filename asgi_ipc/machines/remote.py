"""What one process does with the remote layer: it sends there itself, and has the relay of its
machine receive for it. Made once for each layer object; everything runs in one loop thread.

Coroutines here may be awaited in any loop, and blocking programs wait for `run`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from ..aio.layer import IPCChannelLayer
from ..aio.loop import timeout
from ..aio.session import CACHED, Session
from ..attachment.process import register
from ..errors import RemoteUnavailable
from .directory import address_of, attached, machine_group, machine_id, reader_group, set_home
from .distributed import Backend, Caller, Figures, described
from .incoming import REQUESTS
from .loop_thread import LoopThread
from .relay import Relay

logger = logging.getLogger("asgi_ipc")

T = TypeVar("T")

_SILENT = "the process that receives for this machine does not answer (is it stopped?)"

_FOR_REQUESTS = {"capacity": 1 << 20, "channel_capacity": None, "expiry": 60}
CONFIRMED = 5.0  # seconds that a join is taken to hold; half of the relay's time to leave


class Remote:
    """The remote layer as a process of a machine uses it."""

    def __init__(
        self, backend: Backend, local: IPCChannelLayer, options: dict[str, Any], timeout: float
    ) -> None:
        """`options` are those that `local` was made with."""
        self._backend = backend
        self._local = local
        # A second layer of the same prefix, for what the machine's processes ask of the relay.
        self._control = IPCChannelLayer(**{**options, **_FOR_REQUESTS})
        self._timeout = timeout
        self.thread = LoopThread("asgi_ipc remote")
        self.forked()
        register(self)

    def forked(self) -> None:
        """In a child, as at first: nobody is connected, and nothing confirmed."""
        self.figures = Figures(self._local.prefix)
        self.thread.forked()
        self._caller: Caller | None = None
        self._relay: Relay | None = None
        self._serving: Future[None] | None = None
        self._confirmed: dict[tuple[int, str], float] = {}
        self._silent_until = 0.0  # time.monotonic(), while the relay does not answer
        self._name = os.urandom(8).hex()
        self._number = 0

    def detach(self, attachment: object = None) -> None:
        """For `process.register`; what is attached is the local layer."""

    # -- running ----------------------------------------------------------------------------------

    def run(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine in the loop thread."""
        return self.thread.submit(coroutine)

    async def _there(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return await asyncio.wrap_future(self.thread.submit(coroutine))

    def serve(self) -> None:
        """Take part in receiving for this machine, from now on."""
        if self._serving is None:
            self._serving = self.thread.submit(self._stand())

    async def _stand(self) -> None:
        self._relay = relay = Relay(
            self._backend, self._local, self._control, self.figures, self._timeout
        )
        try:
            await relay.run()
        finally:
            if self._relay is relay:
                self._relay = None

    def stop(self, wait: bool = True) -> None:
        """End the loop thread: another process of the machine becomes the relay if it was here."""
        self._serving = None
        self._confirmed.clear()
        if self._caller is not None and wait:
            closing = self.thread.submit(self._caller.close())
            try:
                closing.result(self._timeout)
            except Exception as error:
                logger.debug("closing the remote layer: %s", described(error))
        self._caller = None
        self.thread.stop(wait)

    # -- sending ----------------------------------------------------------------------------------

    async def to_machine(self, machine: str, kind: str, fields: dict[str, Any]) -> None:
        """Send to one machine. Raises ChannelFull, RemoteUnavailable."""
        try:
            if self._backend.named:
                await self._call("send", address_of(machine), kind, fields)
            else:
                await self._call("group_send", machine_group(machine), kind, fields)
        except RemoteUnavailable:
            self.figures.count("sends_failed")
            raise

    async def to_group(self, group: str, message: dict[str, Any]) -> None:
        """Send to the other machines that have members of `group`; a loss is counted and logged."""
        fields = {"group": group, "message": message}
        await self._or_lost(group, group, "group", fields)

    async def to_reader(self, kind: str, fields: dict[str, Any]) -> None:
        """Send to whichever machine a channel is read on; a loss is counted and logged."""
        channel = fields["channel"]
        await self._or_lost(channel, reader_group(channel), kind, fields)

    async def _or_lost(self, name: str, group: str, kind: str, fields: dict[str, Any]) -> None:
        try:
            await self._call("group_send", group, kind, fields)
        except Exception as error:
            self.figures.count("group_sends_lost")
            self.figures.tell(f"lost for {name!r} on other machines", described(error))

    async def _call(self, operation: str, name: str, kind: str, fields: dict[str, Any]) -> None:
        session = await attached(self._local)
        self._number += 1
        envelope = {
            "asgi_ipc": kind,
            "id": f"{self._name}:{self._number}",
            "from": machine_id(session),
            **fields,
        }
        await self._there(self._attempt(operation, name, envelope))

    async def _attempt(self, operation: str, *args: Any) -> Any:
        if self._caller is None:
            self._caller = Caller(self._backend, self._timeout)
        return await self._caller.call(operation, *args)

    # -- what the relay does for us ---------------------------------------------------------------

    async def join(self, session: Session, group: str) -> None:
        """See to it that this machine gets what others send to `group`, from now on."""
        await self._confirm(session, "join", group)

    async def ready(self, session: Session) -> None:
        """See to it that this machine gets what others send to it."""
        await self._confirm(session, "ready", "")

    async def _confirm(self, session: Session, what: str, group: str) -> None:
        """Ask the relay, unless it has just said so.

        If the remote layer is away this is logged, and the relay joins when it is back.
        """
        key = (session.epoch, group)
        if self._confirmed.get(key, 0.0) > time.monotonic():
            return
        try:
            await self.ask({"do": what, "group": group})
        except RemoteUnavailable as error:
            self.figures.tell(f"group {group!r} is not joined yet", str(error))
        if len(self._confirmed) >= CACHED:
            self._confirmed.clear()
        self._confirmed[key] = time.monotonic() + CONFIRMED  # asking again would not help sooner

    async def reads(self, session: Session, channel: str) -> None:
        """Enter a channel whose name carries no machine as one that is read on this machine."""
        group = reader_group(channel)
        if self._confirmed.get((session.epoch, group), 0.0) <= time.monotonic():
            await set_home(self._local, channel, machine_id(session))
            await self.join(session, group)

    async def ask(self, request: dict[str, Any]) -> None:
        """Have the relay of this machine do something. Raises RemoteUnavailable."""
        self.serve()
        error = await self._there(self._ask(request))
        if error:
            raise RemoteUnavailable(
                f"the remote layer ({self._backend.path}) cannot be reached: {error}"
            )

    async def _ask(self, request: dict[str, Any]) -> str:
        """In the loop thread: an empty string, or what went wrong."""
        if self._relay is not None and self._relay.elected:
            return await self._relay.handle(request)
        if self._silent_until > time.monotonic():
            return _SILENT
        control = self._control
        reply = await control.new_channel("asgi_ipc")
        try:
            await control.send(REQUESTS, {**request, "reply": reply})
            async with timeout(2 * self._timeout):
                answer = await control.receive(reply)
        except asyncio.TimeoutError:
            self._silent_until = time.monotonic() + 2 * self._timeout
            return _SILENT
        return str(answer["error"])
