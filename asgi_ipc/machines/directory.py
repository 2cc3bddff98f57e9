"""Finds the home of a channel: the machine where it is received. Must not wait for another machine.

A name that this mode makes contains its home: ``specific.m<id>.<process>!<socket>`` and
``reply?m<id>.<random>``. Other names with a ``!`` or ``?`` (daphne 1.x makes up its own) are looked
up in a directory. It consists of groups of the local layer, one for each such channel. The only
member of such a group names the home.
"""

from __future__ import annotations

import re
from hashlib import sha256

from .. import clock
from ..aio.layer import IPCChannelLayer
from ..aio.loop import ASYNCIO
from ..aio.session import Session
from ..attachment.process import notice_fork

OWN_NAMES = "asgi_ipc."  # how names of this mode begin, on both layers
DIRECTORY = OWN_NAMES + "home."  # local groups: the home of a channel
READER = OWN_NAMES + "reader."  # remote groups: the machine that is the home of a channel

_MACHINE = re.compile(r"\.m([0-9a-f]{16})\.[0-9a-f]{16}!|\?m([0-9a-f]{16})\.")


async def attach(local: IPCChannelLayer) -> Session:
    """Return the session of the local layer; attach first if needed, however busy the lock is."""
    core = local._core
    notice_fork()
    return core.session or await core.attach_patiently(ASYNCIO)


def machine_id(session: Session) -> str:
    """Return the id of this machine, which is unique: the nonce of its segment."""
    return f"{session.attachment.segment.nonce:016x}"


def has_home(channel: object) -> bool:
    """Return whether a channel has a home: its name has a ``!`` or ``?``. The name may be an
    instance of a subclass of str (Django's safe strings, members of an Enum)."""
    return issubclass(type(channel), str) and ("!" in channel or "?" in channel)  # type: ignore[operator]


def machine_in_name(channel: str) -> str:
    """Return the machine that the name of a channel contains; "" if it contains none."""
    found = _MACHINE.search(channel)
    return (found[1] or found[2]) if found else ""


def machine_group(machine: str) -> str:
    """Return the remote group whose one member is the relay of a machine."""
    return f"{OWN_NAMES}machine.{machine}"


def beat_group(machine: str, number: int) -> str:
    """Return a remote group that only one machine is in.

    A layer chooses the shard of a group by a CRC of its name, which puts names that differ only in
    their last digit on the same shard. So the name is put through a better hash first.
    """
    return f"{OWN_NAMES}beat.{sha256(f'{machine}.{number}'.encode()).hexdigest()[:32]}"


def address_of(machine: str) -> str:
    """Return the remote channel of a machine, on layers that give it one for all its life."""
    return f"{OWN_NAMES}{machine}!"


def directory_group(channel: str) -> str:
    return DIRECTORY + _digest(channel)


def reader_group(channel: str) -> str:
    return READER + _digest(channel)


def home_in(members: list[str]) -> str:
    """Return the home that is entered in a directory group; "" if there is none."""
    return members[-1].rpartition(".")[2] if members else ""


async def set_home(local: IPCChannelLayer, channel: str, machine: str) -> None:
    """Enter the home of a channel into the directory."""
    group = directory_group(channel)
    for old in await local.group_channels(group):
        if home_in([old]) != machine:
            await local.group_discard(group, old)
    await local.group_add(group, machine_group(machine))


def unread_channels(session: Session, seconds: float) -> list[str]:
    """Return the normal channels with a message pending for `seconds` on which nobody waits.

    It looks without the lock.
    """
    store = session.store
    now = clock.monotonic()
    found = []
    for row in store.queues.rows():
        name = store.queues.name(row).decode("ascii", "replace")
        if "!" in name or "?" in name or name.startswith(OWN_NAMES) or store.is_awaited(row):
            continue
        if store.front(row, now).age(now) > seconds:
            found.append(name)
    return sorted(found)


def _digest(channel: str) -> str:
    """Hash the name of a channel's queue: a group's name has no ``!`` and a limited length."""
    queue, mark, _ = channel.partition("!")
    return sha256((queue + mark).encode()).hexdigest()[:32]
