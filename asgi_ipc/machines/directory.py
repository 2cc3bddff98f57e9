"""Which machine a channel belongs to. Asks the local layer alone, and never waits for another.

A name that this mode makes carries its machine: ``specific.m<id>.<process>!<socket>`` and
``reply?m<id>.<random>``. Other names with a ``!`` or ``?`` (daphne 1.x makes up its own) are looked
up in a directory: a group of the local layer for each such channel, whose one member names the
machine where it is read.
"""

from __future__ import annotations

import re
import time
from hashlib import sha256

from ..aio.layer import IPCChannelLayer
from ..aio.loop import ASYNCIO
from ..aio.session import Session
from ..store.layout import L_SENT, Q_FIRST, Q_PENDING, Q_WAITING

OWN_NAMES = "asgi_ipc."  # what names of this mode begin with, on both layers
HOME = OWN_NAMES + "home."  # local groups: where a channel is read
READER = OWN_NAMES + "reader."  # remote groups: the machine where a channel is read

_CARRIED = re.compile(r"\.m([0-9a-f]{16})\.[0-9a-f]{16}!|\?m([0-9a-f]{16})\.")


async def attached(local: IPCChannelLayer) -> Session:
    """What is known while attached, however long the lock is busy."""
    core = local._core
    return core.session or await core.attach_patiently(ASYNCIO)


def machine_id(session: Session) -> str:
    """What tells this machine from all others: the nonce of its segment."""
    return f"{session.attachment.segment.nonce:016x}"


def carried(channel: str) -> str:
    """The machine that the name of a channel carries; empty if it carries none."""
    found = _CARRIED.search(channel)
    return (found[1] or found[2]) if found else ""


def machine_group(machine: str) -> str:
    """The remote group that has one member, the relay of a machine."""
    return f"{OWN_NAMES}machine.{machine}"


def beat_group(machine: str, number: int) -> str:
    """A remote group of one machine alone. Through a good hash: layers choose the shard of a group
    by a CRC of its name, which puts names that differ in their last digit on one and the same."""
    return f"{OWN_NAMES}beat.{sha256(f'{machine}.{number}'.encode()).hexdigest()[:32]}"


def address_of(machine: str) -> str:
    """The remote channel of a machine, on layers where it has one for all its life."""
    return f"{OWN_NAMES}{machine}!"


def home_group(channel: str) -> str:
    return HOME + _digest(channel)


def reader_group(channel: str) -> str:
    return READER + _digest(channel)


def home_in(members: list[str]) -> str:
    """The machine that is entered in a directory group; empty if none is."""
    return members[-1].rpartition(".")[2] if members else ""


async def set_home(local: IPCChannelLayer, channel: str, machine: str) -> None:
    """Enter the machine where a channel is read."""
    group = home_group(channel)
    for old in await local.group_channels(group):
        if home_in([old]) != machine:
            await local.group_discard(group, old)
    await local.group_add(group, machine_group(machine))


def unread_channels(session: Session, seconds: float) -> list[str]:
    """Normal channels in which a message has waited for so long, and on which nobody waits.

    A glance, unlocked.
    """
    store = session.store
    words, now = store.words, time.monotonic()
    found = []
    for row in store.queues.rows():
        name = store.queues.name(row).decode("ascii", "replace")
        if "!" in name or "?" in name or name.startswith(OWN_NAMES) or words[row + Q_WAITING]:
            continue
        at = words[row + Q_FIRST]
        if words[row + Q_PENDING] and store.log.start <= at < store.log.end:
            if now - store.doubles[at + L_SENT] > seconds:
                found.append(name)
    return sorted(found)


def _digest(channel: str) -> str:
    """A channel's queue as part of a group's name, which has no ``!`` and a limited length."""
    queue, mark, _ = channel.partition("!")
    return sha256((queue + mark).encode()).hexdigest()[:32]
