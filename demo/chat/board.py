"""The figures of the layer, for the board.

They are read from shared memory without the lock, as the command ``asgi-ipc`` reads them. So they
are the same on every server, and no process is disturbed.
"""

from __future__ import annotations

from typing import Any

from asgi_ipc.inspection.snapshot import Snapshot
from asgi_ipc.inspection.view import View

from . import rooms

CHANNELS = 12  # on the board at most, fullest first


class Board:
    """The figures of one layer. Rates are since the previous look."""

    def __init__(self, layer: Any) -> None:
        self._layer = layer
        self._before: Snapshot | None = None

    async def figures(self) -> dict[str, Any]:
        """Look once, and return the figures for JSON. Times are in seconds."""
        # This comes first: it attaches, so that there is shared memory to look at.
        people = {
            room: len(await self._layer.group_channels(rooms.here(room)))
            for room in rooms.SUGGESTED
        }
        now = Snapshot(View(self._layer.prefix))
        before, self._before = self._before, now
        stats = now.stats(before.totals() if before else None)
        channels = sorted(now.channels(), key=lambda one: (-one.fill, -one.sent, one.name))
        return {
            "rate": round(stats.rates.sent, 1),
            "count": stats.sent,
            "pending": stats.pending,
            "oldest": round(stats.oldest, 1),
            "drops": stats.dropped,
            "rooms": people,
            "processes": [
                {
                    "pid": process.pid,
                    "command": command(process.command),
                    "age": round(process.attached),
                    "state": process.state,
                }
                for process in now.processes()
            ],
            "channels": [
                {
                    "name": channel.name,
                    "pending": channel.pending,
                    "capacity": channel.capacity or self._layer.capacity,
                    "sent": channel.sent,
                    "dropped": sum(channel.dropped.values()),
                }
                for channel in channels[:CHANNELS]
            ],
        }


def command(line: str) -> str:
    """Return a command line without its interpreter: "daphne -p 8001 chat.asgi"."""
    words = line.split()
    while words and (words[0].startswith("-") or "python" in words[0]):
        words.pop(0)
    return " ".join(words)
