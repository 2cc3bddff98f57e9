"""The relay's connection to the remote layer: receives from it, and keeps this machine joined to
groups there. Must not know elections and requests: those are in `relay`.

A machine joins every group of the remote layer that has members on the machine, and so gets one
message for a group send, however many members it has; `incoming` sends it on through shared memory.

This makes only calls of the Channels 4 contract. That contract does not tell when a server has lost
its groups (a restart without persistence). This module detects that by *beats*: messages to groups
that only this machine is in. If none comes back, it joins all groups again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, NamedTuple, TypeVar

from .. import clock
from ..aio.layer import IPCChannelLayer
from ..aio.loop import timeout
from ..aio.session import Session
from ..errors import SegmentError
from ..statistics import UNREAD_AFTER
from .backend import Backend, RemoteLayer, is_timeout
from .directory import (
    DIRECTORY,
    OWN_NAMES,
    READER,
    address_of,
    attach,
    beat_group,
    home_in,
    machine_group,
    machine_id,
    unread_channels,
)
from .figures import described
from .incoming import Incoming, new_number
from .tasks import run_until_one_ends

logger = logging.getLogger("asgi_ipc")

T = TypeVar("T")

MACHINES = OWN_NAMES + "machines"  # remote group of all machines

_BEAT_EVERY = 2.0  # seconds between two beats
_PATIENCE = 6.0  # seconds without any message after which the remote layer counts as lost
_RETRY_AFTER = 0.5  # seconds between two tries to reach it
_TRIES = 5  # to get an answer from a layer that may recover by itself, before a new connection
_TIDY_EVERY = 10.0  # seconds between two looks for groups without members here; see `Gateway.join`
_BEATS = 8  # groups for each shard, used by the beats in turn: very likely each shard has one
_AT_ONCE = 16  # joins at a time


class _Connection(NamedTuple):
    """The remote layer, from the moment when it is first used until it fails."""

    session: Session
    remote: RemoteLayer
    address: str  # where the remote layer delivers messages for this machine
    before: str  # that of the last connection; "" if this is the first

    @property
    def machine(self) -> str:
        return machine_id(self.session)


class Uplink:
    """The remote layer, as the relay of this machine uses it.

    `incoming` delivers what comes, `local` is the layer of this machine, and `timeout`, in seconds,
    is for one call on the remote layer. Everything runs in the loop in which this was made.
    """

    def __init__(
        self, backend: Backend, local: IPCChannelLayer, incoming: Incoming, timeout: float
    ) -> None:
        self._backend = backend
        self._local = local
        self._incoming = incoming
        self._timeout = timeout
        self.up = False  # whether messages of other machines come in
        self._settled = asyncio.Event()  # once it is up, or the first try has failed
        self._remote: RemoteLayer | None = None
        self._address = ""
        self._joined: dict[str, float] = {}  # remote group → clock.monotonic() of the last request
        self._joining = asyncio.Lock()
        self._unread_at = 0.0
        self._complained = False

    def stay_connected(self, session: Session) -> Coroutine[Any, Any, None]:
        """Connect, and connect again whenever that fails, until the segment fails."""
        self._settled.clear()  # before the relay handles requests
        return self._retry(lambda: self._connect(session))

    async def wait_until_settled(self) -> None:
        """Wait until `up` tells whether the remote layer answers."""
        await self._limit(self._settled.wait)

    # -- for the relay ----------------------------------------------------------------------------

    async def join(self, group: str) -> None:
        """Join a remote group. If that fails, `_tidy` joins it later."""
        async with self._joining:
            if not self.up or self._remote is None:
                raise ConnectionError("the remote layer cannot be reached")
            if group not in self._joined:
                await self._limit(self._remote.group_add, group, self._address)
                if not self._backend.named:
                    await self._wait_until_joined(group)
            self._joined[group] = clock.monotonic()

    async def send_to_itself(self, group: str, kind: str, patience: float = _PATIENCE) -> None:
        """Send to a group that this machine is in, and wait until the message comes back.

        Raises ConnectionError if no message at all has come for `patience` seconds.
        """
        number = new_number()
        echo = self._incoming.echoes[number] = asyncio.get_running_loop().create_future()
        try:
            machine = machine_id(await attach(self._local))
            envelope = {"asgi_ipc": kind, "id": number, "from": machine}
            if self._remote is None:
                raise ConnectionError("the remote layer cannot be reached")
            await self._limit(self._remote.group_send, group, envelope)
            sent = clock.monotonic()
            while not echo.done():
                await asyncio.wait([echo], timeout=min(0.5, patience))
                now = clock.monotonic()
                # While other messages come, this one may be behind them, but not for ever.
                if now - max(sent, self._incoming.heard) > patience or now - sent > 3 * patience:
                    raise ConnectionError(f"nothing came back from {group!r}")
        finally:
            self._incoming.echoes.pop(number, None)

    async def _wait_until_joined(self, group: str) -> None:
        """Wait until a join is in force: pub/sub layers return before the server knows of it."""
        patience = 0.02
        while True:
            try:
                return await self.send_to_itself(group, "beat", patience)
            except ConnectionError:
                patience *= 2
                if patience > _PATIENCE:
                    raise

    # -- a connection ------------------------------------------------------------------------------

    async def _retry(self, call: Callable[[], Awaitable[None]], tries: int = 0) -> None:
        """Call again after each failure, for ever or until `tries` calls in a row have failed."""
        failed = 0
        while True:
            try:
                await call()
            except SegmentError:
                raise
            except Exception as error:
                failed = 1 if self.up else failed + 1
                if failed == tries:
                    raise
                if not self._complained:
                    self._complained = True
                    logger.warning(
                        "%r: messages from other machines do not arrive: %s",
                        self._local,
                        described(error),
                    )
                self.up = False
                self._settled.set()
                await asyncio.sleep(_RETRY_AFTER)

    async def _connect(self, session: Session) -> None:
        """Use the remote layer until it fails."""
        machine = machine_id(session)
        if self._remote is None:
            self._remote = self._backend.open(machine)
        remote = self._remote
        try:
            if self._backend.named:
                address = address_of(machine)
            else:
                address = await self._limit(remote.new_channel, OWN_NAMES[:-1])
            before, self._address = self._address, address
            connection = _Connection(session, remote, address, before)
            await run_until_one_ends(
                self._receive(connection),
                self._stay_joined(connection)
                if self._backend.can_close
                # A layer that cannot be closed and opened again recovers by itself; opening
                # another one would lose messages.
                else self._retry(lambda: self._stay_joined(connection), tries=_TRIES),
            )
        finally:
            self.up = False
            if self._backend.can_close:
                self._remote = None
                await self._backend.close(remote)

    async def _receive(self, connection: _Connection) -> None:
        machine = connection.machine
        while True:
            began = clock.monotonic()
            try:
                envelope = await connection.remote.receive(connection.address)
            except Exception as error:
                if not is_timeout(error):
                    raise
                # Idle for long. If it was not long, something is wrong, and the beats detect it.
                await asyncio.sleep(0 if clock.monotonic() - began > 1 else 0.1)
                continue
            await self._incoming.deliver(machine, envelope, connection.remote)

    async def _stay_joined(self, connection: _Connection) -> None:
        """Join, check with beats that the joins hold, renew them, and leave groups without members
        here."""
        machine = connection.machine
        fixed = [machine_group(machine), MACHINES]
        shards = self._backend.shards
        beats = [beat_group(machine, number) for number in range(_BEATS * shards)]
        if shards == 1:
            del beats[1:]
        renewed = tidied = clock.monotonic()
        self._joined = dict.fromkeys(self._groups_here(connection), renewed)
        # The beats last: one that comes back proves that the joins before it are in force.
        await self._join_all([*fixed, *self._joined, *beats], connection, connection.before)
        if not self._backend.named:
            await asyncio.gather(*map(self._wait_until_joined, beats))
        self.up = True
        self._settled.set()
        if self._complained:
            self._complained = False
            logger.warning("%r: messages from other machines arrive again", self._local)
        await self._tidy(connection)  # what came meanwhile
        while True:
            for start in range(0, len(beats), shards):
                await asyncio.gather(
                    *(self.send_to_itself(beat, "beat") for beat in beats[start : start + shards])
                )
                await asyncio.sleep(_BEAT_EVERY)
                now = clock.monotonic()
                if not 0 <= now - tidied <= _TIDY_EVERY:
                    tidied = now
                    await self._tidy(connection)
                if not 0 <= now - renewed <= self._backend.group_expiry / 4:
                    renewed = now
                    await self._join_all([*fixed, *beats, *self._joined], connection)

    async def _join_all(self, groups: list[str], connection: _Connection, before: str = "") -> None:
        """Join remote groups with the address of `connection`, and leave them with `before`."""
        remote, address = connection.remote, connection.address
        for start in range(0, len(groups), _AT_ONCE):
            few = groups[start : start + _AT_ONCE]
            await asyncio.gather(*(self._limit(remote.group_add, group, address) for group in few))
            if before and before != address:
                # One message for one machine: nobody receives at the old address.
                await asyncio.gather(
                    *(self._limit(remote.group_discard, group, before) for group in few)
                )

    async def _tidy(self, connection: _Connection) -> None:
        """Join the groups that have members here by now, and leave those that have none."""
        remote, address, now = connection.remote, connection.address, clock.monotonic()
        async with self._joining:
            here = set(self._groups_here(connection))
            for group in here.difference(self._joined):
                await self._limit(remote.group_add, group, address)
                self._joined[group] = now
            for group, asked in list(self._joined.items()):
                if group not in here and now - asked > _TIDY_EVERY:
                    del self._joined[group]
                    await self._limit(remote.group_discard, group, address)
        names = unread_channels(connection.session, UNREAD_AFTER)
        if names and now >= self._unread_at:
            self._unread_at = now + 6 * _TIDY_EVERY
            logger.warning(
                "%r: messages have been pending for more than %g s in %s, and no process of this "
                "machine receives on them: each machine needs a worker for every normal channel",
                self._local,
                UNREAD_AFTER,
                ", ".join(map(repr, names[:10])),
            )

    async def _limit(self, call: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Await a call, within the time limit for calls on the remote layer."""
        async with timeout(self._timeout):
            return await call(*args)

    def _groups_here(self, connection: _Connection) -> list[str]:
        """Return the remote groups that this machine belongs in. It looks without the lock."""
        session, machine = connection.session, connection.machine
        groups = session.groups
        found = []
        for row in session.store.groups.rows():
            name = session.store.groups.name(row).decode("ascii", "replace")
            if not name.startswith(OWN_NAMES):
                found.append(name)
            elif name.startswith(DIRECTORY):
                members = session.section(groups.channels, name.encode(), clock.monotonic())
                if home_in(members) == machine:
                    found.append(READER + name[len(DIRECTORY) :])
        return found
