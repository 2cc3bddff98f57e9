"""A room on Channels 4: what one socket says, all sockets hear, on whichever server they are."""

import json
import os

import django
from django.conf import settings

settings.configure(CHANNEL_LAYERS={"default": json.loads(os.environ["SITE_LAYER"])})
django.setup()

from channels.generic.websocket import AsyncWebsocketConsumer  # noqa: E402


class Room(AsyncWebsocketConsumer):
    groups = ["room"]

    async def receive(self, text_data=None, bytes_data=None):
        await self.channel_layer.group_send("room", {"type": "said", "text": text_data})

    async def said(self, event):
        await self.send(text_data=event["text"])


application = Room.as_asgi()
