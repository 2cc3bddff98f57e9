"""Receives numbers from a channel up to the last, with nothing but asyncio and the layer.

usage: python consumer.py PREFIX
"""

import asyncio
import json
import sys

from asgi_ipc.aio import IPCChannelLayer


async def main(prefix: str) -> None:
    layer = IPCChannelLayer(prefix=prefix)
    print("ready", flush=True)
    numbers = []
    while True:
        message = await layer.receive("numbers")
        numbers.append(message["number"])
        if message["last"]:
            break
    await layer.close()
    print(json.dumps({"numbers": numbers, "modules": sorted(sys.modules)}))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
