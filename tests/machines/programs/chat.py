"""One server process of a chat, with several sockets in one room that all speak at once.

usage: python -m tests.machines.programs.chat PREFIX REMOTE SOCKETS MESSAGES
It prints "ready", speaks when "go" comes, prints "spoken", listens until "end" comes, and prints as
JSON what each socket heard. REMOTE is the CHANNEL_LAYERS entry of the remote layer, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

from asgi_ipc.aio import LocalAndRemoteChannelLayer

ROOM = "lobby"


async def main(prefix: str, remote: dict[str, Any], sockets: int, messages: int) -> None:
    layer = LocalAndRemoteChannelLayer(remote, {"prefix": prefix, "capacity": 10_000})
    go = asyncio.Event()

    async def listen(channel: str) -> list[str]:
        heard = []
        while True:
            event = await layer.receive(channel)
            if event["type"] == "end":
                return heard
            if event["type"] == "go":
                go.set()
            else:
                heard.append(event["text"])

    async def speak(socket: int) -> None:
        for number in range(messages):
            text = f"{os.getpid()}.{socket}.{number}"
            await layer.group_send(ROOM, {"type": "said", "text": text})

    listening = []
    for _ in range(sockets):
        channel = await layer.new_channel()
        await layer.group_add(ROOM, channel)
        listening.append(asyncio.ensure_future(listen(channel)))
    print("ready", flush=True)
    await go.wait()
    await asyncio.gather(*map(speak, range(sockets)))
    print("spoken", flush=True)
    print(json.dumps(await asyncio.gather(*listening)), flush=True)
    await layer.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])))
