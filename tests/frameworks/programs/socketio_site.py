"""A Socket.IO server on asyncio, for any number of processes."""

import os
from typing import Any

import socketio

from asgi_ipc.socketio import AsyncIPCManager

manager = AsyncIPCManager(os.environ["SITE_PREFIX"])
server = socketio.AsyncServer(async_mode="asgi", client_manager=manager)
app = socketio.ASGIApp(server)


@server.event
async def who(sid: str) -> int:
    return os.getpid()


@server.event
async def enter(sid: str, room: str) -> None:
    await server.enter_room(sid, room)


@server.event
async def enter_other(sid: str, other: str, room: str) -> None:
    await server.enter_room(other, room)


@server.event
async def say(sid: str, room: str, what: Any) -> None:
    await server.emit("said", what, room=room)


@server.event
async def burst(sid: str, count: int) -> None:
    for number in range(count):
        await server.emit("number", number)


@server.event
async def ask(sid: str, other: str, question: Any) -> Any:
    return await server.call("question", question, to=other)


@server.event
async def end(sid: str, other: str) -> None:
    await server.disconnect(other)
