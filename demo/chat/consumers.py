"""The chat itself: one consumer for each browser, one for each board, and a worker.

A browser is a member of its room's group. A group send reaches every member, in all processes. The
worker receives from a normal channel, so any number of worker processes could share the work.
"""

from __future__ import annotations

from urllib.parse import parse_qs
from weakref import WeakValueDictionary

from channels.consumer import AsyncConsumer
from channels.exceptions import ChannelFull
from channels.generic.websocket import AsyncJsonWebsocketConsumer

from . import rooms
from .board import Board
from .watch import Watch

WORD_COUNT = "word-count"
COMMAND = "/count "

# What the browsers of this process watch, by room, while there is a browser; "" is the board.
watches: WeakValueDictionary[str, Watch] = WeakValueDictionary()


def people_in(layer, room):
    """Return a function that asks who is in a room. Ask repeatedly: nothing reports a `kill -9`."""

    async def look():
        return rooms.people(await layer.group_channels(rooms.here(room)))

    return look


class ChatConsumer(AsyncJsonWebsocketConsumer):
    """One browser in one room.

    The browser sends {"text": ...}. It gets {"remark": {"name": ..., "text": ...}} and
    {"people": [{"name": ..., "server": ...}, ...]}.
    """

    async def connect(self):
        self.room = self.scope["url_route"]["kwargs"]["room"]
        asked = parse_qs(self.scope["query_string"].decode(errors="replace")).get("name", [""])
        port = str(self.scope["server"][1])
        self.person = rooms.Person(rooms.person_name(asked[0]), server=port)
        self.entry = rooms.entry(self.channel_name, self.person)
        # Join first, so that the browser is in the room when its connection opens.
        await self.channel_layer.group_add(rooms.group_of(self.room), self.channel_name)
        await self.channel_layer.group_add(rooms.here(self.room), self.entry)
        await self.accept()
        self.watch = watches.setdefault(self.room, Watch(people_in(self.channel_layer, self.room)))
        self.watch.add(self.show_people)
        await self.people_have_changed()

    async def disconnect(self, code):
        await self.channel_layer.group_discard(rooms.group_of(self.room), self.channel_name)
        await self.channel_layer.group_discard(rooms.here(self.room), self.entry)
        self.watch.remove(self.show_people)
        await self.people_have_changed()

    async def receive_json(self, content):
        text = str(content.get("text", ""))
        if text.startswith(COMMAND):
            await self.count(text[len(COMMAND) :])
        else:
            remark = rooms.remark(self.person.name, text)
            await self.channel_layer.group_send(rooms.group_of(self.room), remark)

    async def count(self, text):
        """Have the worker count the words of the text, and answer only this browser."""
        job = {"type": "words.count", "text": text, "reply_to": self.channel_name}
        try:
            await self.channel_layer.send(WORD_COUNT, job)
        except ChannelFull:
            await self.chat_remark(rooms.remark(WORD_COUNT, "Too busy, or not running."))

    async def chat_remark(self, remark):
        """A remark from the group, from the worker, or from `manage.py say`."""
        await self.send_json({"remark": {"name": remark["name"], "text": remark["text"]}})

    # -- who is here --------------------------------------------------------------------------

    async def people_have_changed(self):
        """Tell all processes that serve this room to look now."""
        event = {"type": "people.changed"}
        await self.channel_layer.group_send(rooms.group_of(self.room), event)

    async def people_changed(self, event):
        self.watch.nudge()

    async def show_people(self, people):
        await self.send_json({"people": [person._asdict() for person in people]})


class BoardConsumer(AsyncJsonWebsocketConsumer):
    """One browser that watches the board. It sends nothing."""

    async def connect(self):
        await self.accept()
        self.watch = watches.setdefault("", Watch(Board(self.channel_layer).figures))
        self.watch.add(self.send_json)

    async def disconnect(self, code):
        self.watch.remove(self.send_json)


class WordCounter(AsyncConsumer):
    """The worker, in a separate process: `manage.py runworker word-count`."""

    async def words_count(self, job):
        answer = rooms.remark(WORD_COUNT, str(len(job["text"].split())))
        await self.channel_layer.send(job["reply_to"], answer)
