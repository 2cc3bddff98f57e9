"""A chat for any number of processes: uvicorn fastapi_chat:app --workers 4"""

import asyncio
import os

from fastapi import FastAPI, WebSocket

from asgi_ipc.aio import IPCChannelLayer

app = FastAPI()
layer = IPCChannelLayer(prefix=os.environ.get("CHAT_PREFIX", "chat"))


async def from_browser(websocket: WebSocket, room: str) -> None:
    async for text in websocket.iter_text():
        await layer.group_send(room, {"text": text})


async def to_browser(websocket: WebSocket, channel: str) -> None:
    while True:
        message = await layer.receive(channel)
        await websocket.send_text(message["text"])


@app.websocket("/rooms/{room}")
async def chat(websocket: WebSocket, room: str) -> None:
    channel = await layer.new_channel()  # only this process receives on it
    await layer.group_add(room, channel)
    sending = None
    try:
        await websocket.accept()  # only now, so that the socket misses nothing
        sending = asyncio.create_task(to_browser(websocket, channel))
        await from_browser(websocket, room)
    finally:
        if sending is not None:
            sending.cancel()
        await layer.group_discard(room, channel)


@app.get("/rooms/{room}")
async def who_is_there(room: str) -> list[str]:
    """Return the sockets in a room, of all processes, but not those of killed processes."""
    return await layer.group_channels(room)
