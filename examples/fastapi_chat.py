"""A chat for any number of processes: uvicorn fastapi_chat:app --workers 4"""

import asyncio
import os

from fastapi import FastAPI, WebSocket, WebSocketDisconnect

from asgi_ipc.aio import IPCChannelLayer
from asgi_ipc.aio.subscription import Subscription
from asgi_ipc.errors import SegmentVanished

app = FastAPI()
layer = IPCChannelLayer(prefix=os.environ.get("CHAT_PREFIX", "chat"))

# What Starlette raises to the task that notices it, and to the other one.
BROWSER_LEFT = (WebSocketDisconnect, RuntimeError)


async def from_browser(websocket: WebSocket, room: str) -> None:
    async for text in websocket.iter_text():
        try:
            await layer.group_send(room, {"text": text})
        except SegmentVanished:  # the memory was removed; the next call creates new memory
            await layer.group_send(room, {"text": text})


async def to_browser(websocket: WebSocket, events: Subscription) -> None:
    async for event in events:
        await websocket.send_text(event["text"])


@app.websocket("/rooms/{room}")
async def chat(websocket: WebSocket, room: str) -> None:
    async with layer.subscribe(room) as events:
        await websocket.accept()  # only now, so that the socket misses nothing
        both = [
            asyncio.create_task(from_browser(websocket, room)),
            asyncio.create_task(to_browser(websocket, events)),
        ]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in both:
                task.cancel()
            results = await asyncio.gather(*both, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception) and not isinstance(result, BROWSER_LEFT):
                raise result


@app.get("/rooms/{room}")
async def who_is_there(room: str) -> list[str]:
    """Return the sockets in a room, of all processes."""
    return await layer.group_channels(room)
