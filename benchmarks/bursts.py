"""How much of a burst finds room: ``python -m benchmarks.bursts``.

A burst is sent to 150 process-specific channels of one process, in turn, without a pause. That
process is the sender itself, or another one, whose event loop is busy meanwhile, or receives. The
capacity is 100, the default.
"""

from __future__ import annotations

import argparse
import asyncio
import secrets
import subprocess
import sys
from typing import Any

import asgi_ipc
from asgi_ipc import segment
from asgi_ipc.aio import IPCChannelLayer

CHANNELS = 150
PATIENCE = 60.0  # seconds that a send waits which may wait
LONG = 100  # times 150 messages, where the reader receives

OWN, BUSY, RECEIVES, WAITS = (
    "to the sender's own process",
    "to another process, which is busy",
    "to another process, which receives",
    f"to another process, timeout={PATIENCE:g}",
)


def burst(prefix: str, queue: str, messages: int, timeout: float | None) -> int:
    """Send a burst with blocking calls; return how many messages found room."""
    sent = 0
    with asgi_ipc.IPCChannelLayer(prefix) as layer:
        for number in range(messages):
            try:
                layer.send(f"{queue}{number % CHANNELS}", {"number": number}, timeout=timeout)
                sent += 1
            except layer.ChannelFull:
                pass
    return sent


async def own(layer: Any, queue: str) -> int:
    sent = 0
    for number in range(CHANNELS):
        try:
            await layer.send(f"{queue}{number}", {"number": number})
            sent += 1
        except layer.ChannelFull:
            pass
    return sent


async def elsewhere(
    prefix: str, queue: str, messages: int, timeout: float | None, busy: bool
) -> int:
    """Have another process send a burst."""
    command = [sys.executable, "-m", "benchmarks.bursts", "--send", prefix, queue, str(messages)]
    if timeout is not None:
        command.append(str(timeout))
    if busy:
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    sender = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    written, _ = await sender.communicate()
    return int(written)


async def measure(what: str) -> tuple[int, int]:
    """How many messages found room, and of how many."""
    prefix = f"bursts-{secrets.token_hex(8)}"
    messages = CHANNELS if what in (OWN, BUSY) else LONG * CHANNELS
    layer = IPCChannelLayer(prefix)
    try:
        queue = (await layer.new_channel()).partition("!")[0] + "!"
        receives = [
            asyncio.create_task(_receive(layer, f"{queue}{number}")) for number in range(CHANNELS)
        ]
        await asyncio.sleep(0)
        if what == OWN:
            sent = await own(layer, queue)
        else:
            timeout = PATIENCE if what == WAITS else None
            sent = await elsewhere(prefix, queue, messages, timeout, what == BUSY)
        for receive in receives:
            receive.cancel()
        await asyncio.gather(*receives, return_exceptions=True)
    finally:
        await layer.close()
        segment.destroy(prefix)
    return sent, messages


async def _receive(layer: IPCChannelLayer, channel: str) -> None:
    while True:
        await layer.receive(channel)


def main() -> None:
    options = argparse.ArgumentParser("python -m benchmarks.bursts", description=__doc__)
    options.add_argument("--send", nargs="+", help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.send:
        prefix, queue, messages, *timeout = chosen.send
        print(burst(prefix, queue, int(messages), float(timeout[0]) if timeout else None))
        return
    print(f"a burst to {CHANNELS} channels of one process{'':9}messages   sent  refused")
    for what in (OWN, BUSY, RECEIVES, WAITS):
        sent, messages = asyncio.run(measure(what))
        print(f"{what:<48}{messages:>8,}{sent:>8,}{messages - sent:>8,}")


if __name__ == "__main__":
    main()
