"""The names of rooms and of their groups, the people in a room, and the remarks.

Each room has two groups. All remarks go to ``room.NAME``. Nothing is ever sent to ``here.NAME``: it
is the list of the people in the room. An entry of the list is a process-specific channel of the
person's server, whose name contains the server and the person. So an entry disappears when it is
discarded, and also when its process dies in any way.
"""

from __future__ import annotations

import base64
from typing import NamedTuple

# Short enough that the group's name has fewer than 100 characters.
NAME = "[A-Za-z0-9_-]{1,50}"
# The page of a room and its WebSocket share one address.
PATH = rf"^room/(?P<room>{NAME})/$"
SUGGESTED = ("lobby", "kitchen", "garden")
# Bytes of UTF-8: an entry of the list must be short enough for the name of a channel.
LONGEST_PERSON = 32


class Person(NamedTuple):
    """A person in a room. Two windows of one person count as two, even on one server."""

    name: str
    server: str


def group_of(room: str) -> str:
    """Return the group of everybody in the room, from all processes."""
    return f"room.{room}"


def here(room: str) -> str:
    """Return the group whose members are the entries of the list of people."""
    return f"here.{room}"


def entry(channel: str, person: Person) -> str:
    """Return the channel that represents `person`, connected by process-specific `channel`."""
    name = base64.urlsafe_b64encode(person.name.encode()).decode().rstrip("=")
    return f"{channel}.{person.server}.{name}"


def people(entries: list[str]) -> list[Person]:
    """Return the people in the room, in alphabetical order, from the result of `group_channels`."""
    found = []
    for channel in entries:
        _, server, name = channel.rsplit(".", 2)
        found.append(
            Person(base64.urlsafe_b64decode(name + "=" * (-len(name) % 4)).decode(), server)
        )
    return sorted(found)


def person_name(asked: str) -> str:
    """Return the name that was asked for, cut to length, or "guest"."""
    cut = asked.strip().encode()[:LONGEST_PERSON].decode(errors="ignore")
    return cut or "guest"


def remark(name: str, text: str) -> dict[str, str]:
    """Return a message to the group, or to one member; ChatConsumer.chat_remark handles it."""
    return {"type": "chat.remark", "name": name, "text": text}
