"""The consumer of the chat: everybody gets each message."""

from channels.generic.websocket import AsyncJsonWebsocketConsumer


class ChatConsumer(AsyncJsonWebsocketConsumer):
    groups = ["lobby"]

    async def receive_json(self, content):
        event = {"type": "chat.message", "text": content["text"]}
        await self.channel_layer.group_send("lobby", event)

    async def chat_message(self, event):
        await self.send_json({"text": event["text"]})
