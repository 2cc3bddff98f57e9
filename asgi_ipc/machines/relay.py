"""The relay: the one process of a machine that receives from other machines for all its processes.
Must not send for them: each process does that itself (`gateway`).

The process that holds the flock on ``relay.lock``, beside the segment, is the relay. The others try
once a second to get it, because the kernel releases it when its holder dies. While it is the relay,
a process has an `Uplink`, and handles the requests of the machine's other processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os

from ..aio.layer import IPCChannelLayer
from ..aio.session import Session
from ..attachment.process import register
from ..base_layer import Message
from ..errors import IPCError, SegmentError
from ..segment.files import Descriptor, open_file
from .backend import Backend
from .directory import OWN_NAMES, attach
from .figures import Figures, described
from .incoming import REQUESTS, Incoming
from .tasks import run_until_one_ends
from .uplink import MACHINES, Uplink

logger = logging.getLogger("asgi_ipc")

_STANDBY = OWN_NAMES + "standby"  # local channel: a relay that ends wakes one of the others

_LOOK_EVERY = 1.0  # seconds between two checks whether the relay has died


class Relay:
    """Stands for election in this process, and does the work while it is elected.

    `local` delivers what comes from other machines, and `control` receives the requests of this
    machine's processes, both in the loop in which this was made. `figures` count what comes.
    `timeout`, in seconds, is for one call on the remote layer.
    """

    def __init__(
        self,
        backend: Backend,
        local: IPCChannelLayer,
        control: IPCChannelLayer,
        figures: Figures,
        timeout: float,
    ) -> None:
        self._local = local
        self._control = control
        self._figures = figures
        self._incoming = Incoming(local, control, figures)
        self._uplink = Uplink(backend, local, self._incoming, timeout)
        self._lock: Descriptor | None = None
        self.loop = asyncio.get_running_loop()
        self.elected = False
        register(self)

    @property
    def up(self) -> bool:
        """Whether messages of other machines come in."""
        return self._uplink.up

    def forked(self) -> None:
        """In a child: close the lock file, which would keep the lock after the parent's death."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        self.elected = self._uplink.up = False

    def detach(self, attachment: object = None) -> None:
        """Do nothing, for `process.register`: only the local layer is attached."""

    # -- election ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Be the relay whenever no other process is the relay, until cancelled."""
        while True:
            try:
                session = await attach(self._local)
                if self._take_lock(session):
                    try:
                        await self._work(session)
                    finally:
                        await self._release_lock()
                await self._control.receive_async([_STANDBY], timeout=_LOOK_EVERY)
            except (IPCError, OSError) as error:
                # The segment is gone, or cannot be attached to. The program's calls say so too.
                self._figures.warn("relay", f"it starts again: {described(error)}")
                await asyncio.sleep(_LOOK_EVERY)
            except Exception:
                logger.exception("%r: the relay starts again", self._local)
                await asyncio.sleep(_LOOK_EVERY)

    def _take_lock(self, session: Session) -> bool:
        segment = session.attachment.segment
        path = os.path.join(segment.paths.directory, "relay.lock")
        lock = Descriptor(open_file(path, segment.mode, segment.group))
        try:
            fcntl.flock(lock.number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return False
        self._lock = self._incoming.memory = lock
        self._incoming.recall()
        return True

    async def _release_lock(self) -> None:
        self.elected = self._uplink.up = False
        if self._lock is not None:
            self._lock.close()
            self._lock = None
            with contextlib.suppress(IPCError):
                await self._control.send(_STANDBY, {})

    async def _work(self, session: Session) -> None:
        """Handle requests, and stay connected to the remote layer, until the segment fails."""
        staying_connected = self._uplink.stay_connected(session)
        self.elected = True
        await run_until_one_ends(self._handle_requests(), staying_connected)

    # -- requests of this machine's processes -----------------------------------------------------

    async def _handle_requests(self) -> None:
        while True:
            request = await self._control.receive(REQUESTS)
            error = await self.handle(request)
            if "reply" in request:
                with contextlib.suppress(IPCError):
                    await self._control.send(request["reply"], {"error": error})

    async def handle(self, request: Message) -> str:
        """Do what a process asks for; return "", or what went wrong."""
        try:
            if request["do"] == "discard":
                await self._local.group_discard(request["group"], request["channel"])
                return ""
            await self._uplink.wait_until_settled()
            if request["do"] == "join":
                await self._uplink.join(request["group"])
            elif request["do"] == "add":
                try:
                    await self._uplink.join(request["group"])
                finally:
                    await self._local.group_add(request["group"], request["channel"])
            elif not self.up:
                raise ConnectionError("the remote layer cannot be reached")
            elif request["do"] == "flush":
                # It comes back after everything that is still under way to this machine.
                await self._uplink.send_to_itself(MACHINES, "flush")
                await self._local.flush()
            return ""
        except SegmentError:
            raise
        except Exception as error:
            return described(error)
