"""The gateway of a process to the other machines: it sends to the remote layer itself, and the
relay of its machine receives for it. Must not decide which way a message goes: the layers do.

Each layer object has one gateway, which works in one loop thread. Coroutines here may be awaited in
any event loop; a blocking program waits for the future of `run`.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Coroutine, Mapping
from concurrent.futures import Future
from typing import Any, Literal, TypeVar

from .. import clock
from ..aio.layer import IPCChannelLayer
from ..aio.loop import timeout
from ..aio.session import CACHED, Session
from ..attachment.process import notice_fork, register
from ..base_layer import Message
from ..errors import RemoteUnavailable
from .backend import Backend, Caller
from .directory import address_of, attach, machine_group, machine_id, reader_group, set_home
from .figures import Figures, described
from .incoming import REQUESTS, new_number
from .loop_thread import LoopThread
from .relay import Relay

logger = logging.getLogger("asgi_ipc")

T = TypeVar("T")

_SILENT = "the process that receives for this machine does not answer. Check that it is not stopped"

_FOR_REQUESTS = {"capacity": 1 << 20, "channel_capacity": None, "expiry": 60}
CONFIRMED = 5.0  # seconds that a join counts as in force; half of the relay's time to leave


class Gateway:
    """The way of a process to the other machines."""

    def __init__(
        self,
        backend: Backend,
        local: IPCChannelLayer,
        options: Mapping[str, Any],
        timeout: float,
    ) -> None:
        """`options` are those that `local` was made with; `timeout` in seconds is for one call."""
        self.backend = backend
        self._local = local
        # A second layer of the same prefix, for the requests of the machine's processes to the
        # relay.
        self._control = IPCChannelLayer(**{**options, **_FOR_REQUESTS})
        self._timeout = timeout
        self._thread = LoopThread("asgi_ipc remote")
        self.forked()
        register(self)

    def forked(self) -> None:
        """Begin without connections and confirmed joins: in a forked child, and at first."""
        self.figures = Figures(self._local.prefix)
        self._thread.forked()
        self._lock = threading.RLock()  # of `serving`; a finalizer may stop meanwhile
        self._caller: Caller | None = None
        self.relay: Relay | None = None  # of this process, elected or not
        self.serving: Future[None] | None = None
        self.confirmed: dict[tuple[int, str], float] = {}
        self._silent_until = 0.0  # clock.monotonic(), while the relay does not answer

    def detach(self, attachment: object = None) -> None:
        """Do nothing, for `process.register`: only the local layer is attached."""

    # -- running ----------------------------------------------------------------------------------

    def run(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine in the loop thread."""
        return self._thread.submit(coroutine)

    def is_current(self) -> bool:
        """Whether the caller runs in the loop thread, and must not wait for what `run` returns."""
        return self._thread.is_current()

    async def _run_there(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return await asyncio.wrap_future(self._thread.submit(coroutine))

    def serve(self) -> None:
        """Offer this process as the relay of its machine, from now on."""
        notice_fork()
        serving = self.serving
        if serving is None or serving.done():  # done: another thread stopped the gateway meanwhile
            with self._lock:
                if self.serving is serving:
                    self.serving = self._thread.submit(self._run_relay())

    async def _run_relay(self) -> None:
        self.relay = relay = Relay(
            self.backend, self._local, self._control, self.figures, self._timeout
        )
        try:
            await relay.run()
        finally:
            if self.relay is relay:
                self.relay = None

    def stop(self, wait: bool = True) -> None:
        """End the loop thread. If the relay ran here, another process of the machine takes over."""
        notice_fork()
        self.serving = None
        caller, self._caller = self._caller, None
        if caller is not None and wait:
            closing = self._thread.submit(caller.close())
            try:
                closing.result(self._timeout)
            except Exception as error:
                logger.debug("closing the remote layer: %s", described(error))
        self._thread.stop(wait)
        # Not earlier, and not by clear(): a call that was answered before may note it only now.
        self.confirmed = {}

    # -- sending ----------------------------------------------------------------------------------

    async def send_to_machine(self, machine: str, kind: str, fields: Message) -> None:
        """Send to one machine. Raises ChannelFull, RemoteUnavailable."""
        try:
            if self.backend.named:
                await self._send("send", address_of(machine), kind, fields)
            else:
                await self._send("group_send", machine_group(machine), kind, fields)
        except RemoteUnavailable:
            self.figures.count("sends_failed")
            raise

    async def send_to_group(self, group: str, message: Message) -> None:
        """Send to the other machines with members of `group`; count and log a loss."""
        fields = {"group": group, "message": message}
        await self._send_or_log(group, group, "group", fields)

    async def send_to_reader(self, kind: str, fields: Message) -> None:
        """Send to the home of a channel, on any machine; count and log a loss."""
        channel = fields["channel"]
        await self._send_or_log(channel, reader_group(channel), kind, fields)

    async def _send_or_log(self, name: str, group: str, kind: str, fields: Message) -> None:
        try:
            await self._send("group_send", group, kind, fields)
        except Exception as error:
            self.figures.count("group_sends_lost")
            self.figures.warn(f"lost for {name!r} on other machines", described(error))

    async def _send(
        self, operation: Literal["send", "group_send"], name: str, kind: str, fields: Message
    ) -> None:
        session = await attach(self._local)
        envelope = {
            "asgi_ipc": kind,
            "id": new_number(),
            "from": machine_id(session),
            **fields,
        }
        await self._run_there(self._call(operation, name, envelope))

    async def _call(
        self, operation: Literal["send", "group_send"], name: str, envelope: Message
    ) -> None:
        caller = self._caller
        if caller is None or caller.loop is not asyncio.get_running_loop():
            caller = self._caller = Caller(self.backend, self._timeout)
        await caller.call(operation, name, envelope)

    # -- what the relay does for this process -----------------------------------------------------

    async def join(self, session: Session, group: str) -> None:
        """Have this machine get what others send to `group`, from now on."""
        await self._confirm(session, "join", group)

    async def be_reachable(self, session: Session) -> None:
        """Have this machine get what others send to it."""
        await self._confirm(session, "ready", "")

    async def _confirm(self, session: Session, what: str, group: str) -> None:
        """Ask the relay, unless it has just confirmed the same.

        If the remote layer is away this is logged, and the relay joins when it is back.
        """
        key, confirmed = (session.epoch, group), self.confirmed
        if self._confirmed(key):
            return
        try:
            await self.ask({"do": what, "group": group})
        except RemoteUnavailable as error:
            self.figures.warn(f"group {group!r} is not joined yet", str(error))
        if len(confirmed) >= CACHED:
            confirmed.clear()
        confirmed[key] = clock.monotonic() + CONFIRMED  # asking again would not help sooner

    def _confirmed(self, key: tuple[int, str]) -> bool:
        now = clock.monotonic()
        return now < self.confirmed.get(key, 0.0) <= now + CONFIRMED

    async def register_reader(self, session: Session, channel: str) -> None:
        """Enter this machine as the home of a channel whose name contains no machine."""
        group = reader_group(channel)
        if not self._confirmed((session.epoch, group)):
            await set_home(self._local, channel, machine_id(session))
            await self.join(session, group)

    async def ask(self, request: Message) -> None:
        """Have the relay of this machine do something. Raises RemoteUnavailable."""
        self.serve()
        error = await self._run_there(self._ask(request))
        if error:
            raise RemoteUnavailable(
                f"the remote layer ({self.backend.path}) cannot be reached: {error}"
            )

    async def _ask(self, request: Message) -> str:
        """In the loop thread: return "", or what went wrong."""
        relay = self.relay
        # In another loop it is one that another thread is just ending.
        if relay is not None and relay.elected and relay.loop is asyncio.get_running_loop():
            return await relay.handle(request)
        now = clock.monotonic()
        if now < self._silent_until <= now + 2 * self._timeout:
            return _SILENT
        control = self._control
        reply = await control.new_channel("asgi_ipc")
        try:
            await control.send(REQUESTS, {**request, "reply": reply})
            async with timeout(2 * self._timeout):
                answer = await control.receive(reply)
        except asyncio.TimeoutError:
            self._silent_until = clock.monotonic() + 2 * self._timeout
            return _SILENT
        return str(answer["error"])
