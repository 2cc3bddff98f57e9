"""A process that waits on a channel where nothing comes, and so only acts as the relay.

usage: python -m tests.machines.programs.waits PREFIX REMOTE
It prints "relay" when it is the relay.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from asgi_ipc.aio import LocalAndRemoteChannelLayer


async def main(prefix: str, remote: dict[str, Any]) -> None:
    layer = LocalAndRemoteChannelLayer(remote, {"prefix": prefix})
    waiting = asyncio.ensure_future(layer.receive("nothing.comes.here"))
    while layer._gateway.relay is None or not layer._gateway.relay.up:
        await asyncio.sleep(0.01)
    print("relay", flush=True)
    await waiting


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], json.loads(sys.argv[2])))
