"""What a room is called, in addresses and as a group, who is in it, and what is said there.

Each room has two groups. To ``room.NAME`` everything that is said is sent. To ``here.NAME`` nothing
is ever sent: it is the list of who is here. An entry of it is a process-specific channel of the
server that the person is connected to, with the server and the name as part of the channel's own
name. So an entry goes when it is discarded, and also when its process dies, however that dies.
"""

from __future__ import annotations

import base64
from typing import NamedTuple

# Short enough that the group's name stays under the 100 characters that a layer allows.
NAME = "[A-Za-z0-9_-]{1,50}"
# The page of a room and its WebSocket share one address.
PATH = rf"^room/(?P<room>{NAME})/$"
SUGGESTED = ("lobby", "kitchen", "garden")
# Bytes of UTF-8, so that an entry of the list is still the name of a channel.
LONGEST_PERSON = 32


class Person(NamedTuple):
    """Somebody in a room. Two windows of one person are two of these, on one server or on two."""

    name: str
    server: str


def group_of(room: str) -> str:
    """The group that everyone in the room is in, whichever process serves them."""
    return f"room.{room}"


def here(room: str) -> str:
    """The group whose members are the entries of the list of people."""
    return f"here.{room}"


def entry(channel: str, person: Person) -> str:
    """The channel that stands for `person`, connected by the process-specific `channel`."""
    name = base64.urlsafe_b64encode(person.name.encode()).decode().rstrip("=")
    return f"{channel}.{person.server}.{name}"


def people(entries: list[str]) -> list[Person]:
    """Who is in the room, in alphabetical order, from what `group_channels` says of it."""
    found = []
    for channel in entries:
        _, server, name = channel.rsplit(".", 2)
        found.append(
            Person(base64.urlsafe_b64decode(name + "=" * (-len(name) % 4)).decode(), server)
        )
    return sorted(found)


def person_name(asked: str) -> str:
    """The name to go by: what was asked for, cut to length, or "guest"."""
    cut = asked.strip().encode()[:LONGEST_PERSON].decode(errors="ignore")
    return cut or "guest"


def remark(name: str, text: str) -> dict[str, str]:
    """What is sent to the group, or to one member of it; ChatConsumer.chat_remark passes it on."""
    return {"type": "chat.remark", "name": name, "text": text}
