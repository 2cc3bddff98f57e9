"""Asks a worker from an asyncio program: many conversations at once, each on its own channel.

usage: python asyncio_client.py PREFIX
"""

import asyncio
import sys

from asgi_ipc.aio import IPCChannelLayer
from tests.clients.programs.content import content

ROUNDS = 10
READERS = 5


async def converse(layer, reader: int) -> None:
    """Rounds of question and answer, of which no other reader's answer may be a part."""
    reply_channel = await layer.new_channel("conversation")
    for number in range(reader * ROUNDS, (reader + 1) * ROUNDS):
        work = ("work", "work.quiet")[number % 2]
        await layer.send(
            work, {"task": "answer", "reply_channel": reply_channel, "content": content(number)}
        )
        message = await layer.receive(reply_channel)
        assert message == {"echo": content(number), "from": work}


async def main(prefix: str) -> None:
    layer = IPCChannelLayer(prefix=prefix)
    await asyncio.gather(*(converse(layer, reader) for reader in range(READERS)))

    # A group, to which the worker speaks.
    members = [await layer.new_channel("listener") for _ in range(READERS)]
    for member in members:
        await layer.group_add("everybody", member)
    await layer.send("work", {"task": "broadcast", "group": "everybody", "content": content(-1)})
    heard = await asyncio.gather(*map(layer.receive, members))
    assert heard == [{"echo": content(-1), "from": "work"}] * READERS
    assert sorted(await layer.group_channels("everybody")) == sorted(members)
    for member in members:
        await layer.group_discard("everybody", member)

    await layer.send("work", {"task": "end"})
    await layer.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
