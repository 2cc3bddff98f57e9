"""Sends numbers to a channel and ends, with nothing but asyncio and the layer.

usage: python producer.py PREFIX COUNT
"""

import asyncio
import json
import sys

from asgi_ipc.aio import IPCChannelLayer


async def main(prefix: str, count: int) -> None:
    layer = IPCChannelLayer(prefix=prefix)
    refused = 0
    for number in range(count):
        while True:
            try:
                await layer.send("numbers", {"number": number, "last": number == count - 1})
                break
            except layer.ChannelFull:
                # A full channel means: slower.
                refused += 1
                await asyncio.sleep(0.005)
    await layer.close()
    print(json.dumps({"refused": refused, "modules": sorted(sys.modules)}))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
