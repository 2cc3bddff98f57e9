"""The worker of blocking_worker.py as an asyncio program.

usage: python asyncio_worker.py PREFIX
"""

import asyncio
import sys

from asgi_ipc.aio import IPCChannelLayer


async def main(prefix: str) -> None:
    layer = IPCChannelLayer(prefix=prefix)
    print("ready", flush=True)
    while True:
        channel, message = await layer.receive_async(["work.quiet", "work"])
        if channel is None:
            continue
        task = message["task"]
        if task == "end":
            break
        if task == "answer":
            await layer.send(
                message["reply_channel"], {"echo": message["content"], "from": channel}
            )
        elif task == "broadcast":
            await layer.group_send(message["group"], {"echo": message["content"], "from": channel})
    await layer.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
