"""One process of a machine receives for all of it what comes from other machines: the relay.

Whoever holds the flock on ``relay.lock`` beside the segment is the relay; the others look once a
second whether it is free, because the kernel frees it when its holder dies. The relay has an
address on the remote layer, and joins there every group that has members on this machine. So a
group send reaches a machine as one message, whatever the number of its members; the relay sends it
on through shared memory.

Only calls of the Channels 4 contract are made on the remote layer. That contract does not say when
a server has forgotten its groups (a restart without persistence), so the relay finds out: it sends
messages to groups that only it is in, and joins everything anew when none comes back.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from ..aio.layer import IPCChannelLayer
from ..aio.loop import timeout
from ..aio.session import Session
from ..attachment.process import register
from ..errors import IPCError, SegmentError
from ..segment.files import open_file
from ..statistics import UNREAD_AFTER
from .directory import (
    HOME,
    OWN_NAMES,
    READER,
    address_of,
    attached,
    beat_group,
    home_in,
    machine_group,
    machine_id,
    unread_channels,
)
from .distributed import Backend, Figures, described, is_timeout
from .incoming import REQUESTS, Incoming

logger = logging.getLogger("asgi_ipc")

_STANDBY = OWN_NAMES + "standby"  # local channel: a relay that ends wakes one of the others
_MACHINES = OWN_NAMES + "machines"  # remote group of all machines

_LOOK_EVERY = 1.0  # seconds between two looks whether the relay has died
_BEAT_EVERY = 2.0  # seconds between two messages to itself
_PATIENCE = 6.0  # seconds without any message after which the remote layer counts as lost
_RETRY_AFTER = 0.5  # seconds between two tries to reach it
_TRIES = 5  # to get an answer out of a layer that may heal by itself, before it is used anew
_TIDY_EVERY = 10.0  # seconds between two looks for groups without members here; see `Remote.join`
_BEATS = 8  # groups for each shard that the beat goes to in turn, so that each very likely has one
_AT_ONCE = 16  # joins under way at a time


class Relay:
    """Stands for election in this process, and does the work while it is elected.

    `local` and `control` are used in the loop that runs `run`, for what comes from other machines
    and for what this one's processes ask; `figures` count what comes; `timeout` in seconds is for
    a call on the remote layer.
    """

    def __init__(
        self,
        backend: Backend,
        local: IPCChannelLayer,
        control: IPCChannelLayer,
        figures: Figures,
        timeout: float,
    ) -> None:
        self._backend = backend
        self._local = local
        self._control = control
        self._figures = figures
        self._timeout = timeout
        self.elected = False
        self.up = False  # whether messages of other machines come in
        self._lock_fd = -1
        self._remote: Any = None
        self._address = ""
        self._joined: dict[str, float] = {}  # remote group → time.monotonic() when last asked for
        self._incoming = Incoming(local, control, figures)
        self._unread_at = 0.0
        self._complained = False
        self._settled = asyncio.Event()  # made in the loop that runs `run`
        self._joining = asyncio.Lock()
        register(self)

    def forked(self) -> None:
        """In a child: the lock is its parent's, and would outlive that if it stayed open."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1
        self.elected = self.up = False

    def detach(self, attachment: object = None) -> None:
        """For `process.register`; what is attached is the local layer."""

    # -- election ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Be the relay whenever nobody else is; until cancelled."""
        while True:
            try:
                session = await attached(self._local)
                if self._take_lock(session):
                    try:
                        await self._serve(session)
                    finally:
                        await self._let_go()
                await self._control.receive_async([_STANDBY], timeout=_LOOK_EVERY)
            except (IPCError, OSError) as error:
                # The segment is gone or not to be had; the calls of the program say so as well.
                self._figures.tell("relay", f"it starts again: {described(error)}")
                await asyncio.sleep(_LOOK_EVERY)
            except Exception:
                logger.exception("%r: the relay starts again", self._local)
                await asyncio.sleep(_LOOK_EVERY)

    def _take_lock(self, session: Session) -> bool:
        segment = session.attachment.segment
        path = os.path.join(segment.paths.directory, "relay.lock")
        fd = open_file(path, segment.mode)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        self._lock_fd = self._incoming.memory = fd
        self._incoming.recall()
        return True

    async def _let_go(self) -> None:
        self.elected = self.up = False
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1
            with contextlib.suppress(IPCError):
                await self._control.send(_STANDBY, {})

    async def _serve(self, session: Session) -> None:
        """Answer requests, and keep a session with the remote layer, until the segment fails."""
        self._settled.clear()
        self.elected = True
        await _first(self._requests(), self._again_and_again(self._one_session, session))

    # -- requests of this machine's processes -----------------------------------------------------

    async def _requests(self) -> None:
        while True:
            request = await self._control.receive(REQUESTS)
            error = await self.handle(request)
            if "reply" in request:
                with contextlib.suppress(IPCError):
                    await self._control.send(request["reply"], {"error": error})

    async def handle(self, request: dict[str, Any]) -> str:
        """Do what a process asks for; an empty string, or what went wrong."""
        try:
            if request["do"] == "discard":
                await self._local.group_discard(request["group"], request["channel"])
                return ""
            await self._within(self._settled.wait)
            if request["do"] == "join":
                await self._join_one(request["group"])
            elif request["do"] == "add":
                try:
                    await self._join_one(request["group"])
                finally:
                    await self._local.group_add(request["group"], request["channel"])
            elif not self.up:
                raise ConnectionError("the remote layer cannot be reached")
            elif request["do"] == "flush":
                await self._to_itself(_MACHINES, "flush")  # behind all that is on its way here
                await self._local.flush()
            return ""
        except SegmentError:
            raise
        except Exception as error:
            return described(error)

    async def _join_one(self, group: str) -> None:
        """If it fails, the next look at what there is on this machine makes up for it."""
        async with self._joining:
            if not self.up:
                raise ConnectionError("the remote layer cannot be reached")
            if group not in self._joined:
                await self._within(self._remote.group_add, group, self._address)
                if not self._backend.named:
                    await self._comes_back(group)
            self._joined[group] = time.monotonic()

    async def _to_itself(self, group: str, kind: str, patience: float = _PATIENCE) -> None:
        """Send to a group that this machine is in, and wait until that comes back.

        Raises ConnectionError when nothing at all has come for `patience` seconds.
        """
        number = self._incoming.new_number()
        echo = self._incoming.echoes[number] = asyncio.get_running_loop().create_future()
        try:
            machine = machine_id(await attached(self._local))
            envelope = {"asgi_ipc": kind, "id": number, "from": machine}
            await self._within(self._remote.group_send, group, envelope)
            sent = time.monotonic()
            while not echo.done():
                await asyncio.wait([echo], timeout=min(0.5, patience))
                now = time.monotonic()
                # While others' messages come this one may only be behind them: but not for ever.
                if now - max(sent, self._incoming.heard) > patience or now - sent > 3 * patience:
                    raise ConnectionError(f"nothing came back from {group!r}")
        finally:
            self._incoming.echoes.pop(number, None)

    async def _comes_back(self, group: str) -> None:
        """Wait until a join is in force: pub/sub layers return before the server knows of it."""
        patience = 0.02
        while True:
            try:
                return await self._to_itself(group, "beat", patience)
            except ConnectionError:
                patience *= 2
                if patience > _PATIENCE:
                    raise

    # -- the remote layer -------------------------------------------------------------------------

    async def _again_and_again(
        self, call: Callable[..., Awaitable[Any]], *args: Any, tries: int = 0
    ) -> None:
        """Begin anew whatever fails, for ever or for so many times in a row."""
        failed = 0
        while True:
            try:
                await call(*args)
            except SegmentError:
                raise
            except Exception as error:
                failed = 1 if self.up else failed + 1
                if failed == tries:
                    raise
                if not self._complained:
                    self._complained = True
                    logger.warning(
                        "%r: messages of other machines do not come in: %s",
                        self._local,
                        described(error),
                    )
                self.up = False
                self._settled.set()
                await asyncio.sleep(_RETRY_AFTER)

    async def _one_session(self, session: Session) -> None:
        machine = machine_id(session)
        if self._remote is None:
            self._remote = self._backend.open(machine)
        remote = self._remote
        try:
            if self._backend.named:
                address = address_of(machine)
            else:
                address = await self._within(remote.new_channel, OWN_NAMES[:-1])
            before, self._address = self._address, address
            beating = session, remote, address, before
            await _first(
                self._ingress(session, remote, address),
                self._beat(*beating)
                if self._backend.can_close
                # A layer that cannot be opened anew heals by itself; meddling would cost messages.
                else self._again_and_again(self._beat, *beating, tries=_TRIES),
            )
        finally:
            self.up = False
            if self._backend.can_close:
                self._remote = None
                await self._backend.close(remote)

    async def _ingress(self, session: Session, remote: Any, address: str) -> None:
        machine = machine_id(session)
        while True:
            began = time.monotonic()
            try:
                envelope = await remote.receive(address)
            except Exception as error:
                if not is_timeout(error):
                    raise
                # Idle for long. If it was not long, something is wrong, and the beat finds out.
                await asyncio.sleep(0 if time.monotonic() - began > 1 else 0.1)
                continue
            await self._incoming.deliver(machine, envelope, remote)

    async def _beat(self, session: Session, remote: Any, address: str, before: str) -> None:
        """Join, see that it holds, renew, and leave what has no members here any more."""
        machine = machine_id(session)
        fixed = [machine_group(machine), _MACHINES]
        shards = self._backend.shards
        beats = [beat_group(machine, number) for number in range(_BEATS * shards)]
        if shards == 1:
            del beats[1:]
        renewed = tidied = time.monotonic()
        self._joined = dict.fromkeys(self._here(session), renewed)
        # The beats last: one that comes back tells that the joins before it are in force.
        await self._join([*fixed, *self._joined, *beats], remote, address, before)
        if not self._backend.named:
            await asyncio.gather(*map(self._comes_back, beats))
        self.up = True
        self._settled.set()
        if self._complained:
            self._complained = False
            logger.warning("%r: messages of other machines come in again", self._local)
        await self._tidy(session, remote, address, time.monotonic())  # what came meanwhile
        while True:
            for start in range(0, len(beats), shards):
                await asyncio.gather(
                    *(self._to_itself(beat, "beat") for beat in beats[start : start + shards])
                )
                await asyncio.sleep(_BEAT_EVERY)
                now = time.monotonic()
                if now - tidied > _TIDY_EVERY:
                    tidied = now
                    await self._tidy(session, remote, address, now)
                if now - renewed > self._backend.group_expiry / 4:
                    renewed = now
                    await self._join([*fixed, *beats, *self._joined], remote, address, address)

    async def _join(self, groups: list[str], remote: Any, address: str, before: str) -> None:
        for start in range(0, len(groups), _AT_ONCE):
            few = groups[start : start + _AT_ONCE]
            await asyncio.gather(*(self._within(remote.group_add, group, address) for group in few))
            if before and before != address:
                # One message for one machine: nobody receives at the old address.
                await asyncio.gather(
                    *(self._within(remote.group_discard, group, before) for group in few)
                )

    async def _tidy(self, session: Session, remote: Any, address: str, now: float) -> None:
        async with self._joining:
            here = set(self._here(session))
            for group in here.difference(self._joined):
                await self._within(remote.group_add, group, address)
                self._joined[group] = now
            for group, asked in list(self._joined.items()):
                if group not in here and now - asked > _TIDY_EVERY:
                    del self._joined[group]
                    await self._within(remote.group_discard, group, address)
        names = unread_channels(session, UNREAD_AFTER)
        if names and now >= self._unread_at:
            self._unread_at = now + 6 * _TIDY_EVERY
            logger.warning(
                "%r: nobody on this machine reads %s, and messages wait there for more than %g s: "
                "each machine needs a worker for every normal channel",
                self._local,
                ", ".join(map(repr, names[:10])),
                UNREAD_AFTER,
            )

    async def _within(self, call: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        async with timeout(self._timeout):
            return await call(*args)

    def _here(self, session: Session) -> list[str]:
        """The remote groups that this machine belongs in: a glance, unlocked."""
        machine = machine_id(session)
        groups = session.groups
        found = []
        for row in session.store.groups.rows():
            name = session.store.groups.name(row).decode("ascii", "replace")
            if not name.startswith(OWN_NAMES):
                found.append(name)
            elif name.startswith(HOME):
                members = session.section(groups.channels, name.encode(), time.monotonic())
                if home_in(members) == machine:
                    found.append(READER + name[len(HOME) :])
        return found


async def _first(*coroutines: Coroutine[Any, Any, Any]) -> None:
    """Run all at once until one of them ends or fails, then cancel the others."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
