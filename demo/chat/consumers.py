"""The chat itself: one consumer for each browser, and a worker that counts words.

A browser is a member of its room's group; a group send reaches every member, in whichever process
it is. The worker reads a normal channel, so any number of worker processes could share the work.
"""

from asgiref.sync import async_to_sync
from channels.consumer import SyncConsumer
from channels.exceptions import ChannelFull
from channels.generic.websocket import AsyncJsonWebsocketConsumer

from . import rooms

WORD_COUNT = "word-count"
COMMAND = "/count "


class ChatConsumer(AsyncJsonWebsocketConsumer):
    """One browser in one room. Both ways it speaks JSON: {"name": ..., "text": ...}."""

    async def connect(self):
        self.group = rooms.group_of(self.scope["url_route"]["kwargs"]["room"])
        # Join first: whoever sees the connection open is already in the room.
        await self.channel_layer.group_add(self.group, self.channel_name)
        await self.accept()

    async def disconnect(self, code):
        await self.channel_layer.group_discard(self.group, self.channel_name)

    async def receive_json(self, content):
        name, text = str(content.get("name", "")), str(content.get("text", ""))
        if text.startswith(COMMAND):
            await self.count(text[len(COMMAND) :])
        else:
            await self.channel_layer.group_send(self.group, rooms.remark(name, text))

    async def count(self, text):
        """Have the worker count the words of the text; it answers this browser alone."""
        job = {"type": "words.count", "text": text, "reply_to": self.channel_name}
        try:
            await self.channel_layer.send(WORD_COUNT, job)
        except ChannelFull:
            await self.chat_remark(rooms.remark(WORD_COUNT, "Too busy, or not running."))

    async def chat_remark(self, remark):
        """A remark from the group, from the worker, or from `manage.py say`."""
        await self.send_json({"name": remark["name"], "text": remark["text"]})


class WordCounter(SyncConsumer):
    """The worker, in a process of its own: `manage.py runworker word-count`."""

    def words_count(self, job):
        answer = rooms.remark(WORD_COUNT, str(len(job["text"].split())))
        async_to_sync(self.channel_layer.send)(job["reply_to"], answer)
