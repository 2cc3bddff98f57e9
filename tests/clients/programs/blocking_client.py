"""Asks a worker, blocking, in the ways that a server and a script of Channels 1 would.

usage: python blocking_client.py PREFIX
"""

import os
import sys

from asgi_ipc import IPCChannelLayer
from tests.clients.programs.content import content

ROUNDS = 50
READERS = 5


def received(layer, channels):
    """The next message; a receive may come back without one."""
    while True:
        channel, message = layer.receive(channels, block=True)
        if channel is not None:
            return channel, message


def main(prefix: str) -> None:
    layer = IPCChannelLayer(prefix=prefix)

    # A channel of one reader, as for the answer to one question.
    for number in range(ROUNDS):
        reply_channel = layer.new_channel("answer?")
        work = ("work", "work.quiet")[number % 2]
        layer.send(
            work, {"task": "answer", "reply_channel": reply_channel, "content": content(number)}
        )
        channel, message = received(layer, [reply_channel])
        assert channel == reply_channel
        assert message == {"echo": content(number), "from": work}

    # One channel of this process for many connections, as a server has it, all in flight at once.
    mine = f"client.response.{os.getpid()}!"
    asked = {f"{mine}{number}": content(number) for number in range(READERS)}
    for reply_channel, what in asked.items():
        layer.send("work", {"task": "answer", "reply_channel": reply_channel, "content": what})
    for _ in range(READERS):
        channel, message = received(layer, [mine])
        assert message == {"echo": asked.pop(channel), "from": "work"}
    assert not asked

    # A group, to which the worker speaks.
    members = {f"{mine}{number}" for number in range(READERS)}
    for member in members:
        layer.group_add("everybody", member)
    layer.send("work", {"task": "broadcast", "group": "everybody", "content": content(-1)})
    heard = set()
    for _ in range(READERS):
        channel, message = received(layer, [mine])
        assert message == {"echo": content(-1), "from": "work"}
        heard.add(channel)
    assert heard == members == set(layer.group_channels("everybody"))
    for member in members:
        layer.group_discard("everybody", member)

    assert layer.receive([mine, "work"]) == (None, None)
    layer.send("work", {"task": "end"})


if __name__ == "__main__":
    main(sys.argv[1])
