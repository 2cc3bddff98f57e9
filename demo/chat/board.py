"""What the layer does, in figures, for the board.

Everything is read from shared memory, so it is the same on every server, and nobody else notices.
"""

from __future__ import annotations

import time
from typing import Any

from . import rooms

CHANNELS = 12  # at the most, the fullest first


async def figures(layer: Any) -> dict[str, Any]:
    """One look at the layer, as JSON takes it. Times are in seconds."""
    totals = await layer.global_statistics()
    return {
        "rate": round(totals["messages_count_per_second"], 1),
        "count": totals["messages_count"],
        "waiting": totals["messages_pending"],
        "oldest": round(totals["messages_max_age"], 1),
        "refused": totals["channel_full_count"],
        "rooms": {
            room: len(await layer.group_channels(rooms.here(room))) for room in rooms.SUGGESTED
        },
        **inside(layer),
    }


def inside(layer: Any) -> dict[str, Any]:
    """Drops, processes and channels, which the contracts of a channel layer do not speak of."""
    from asgi_ipc import layout

    session = layer._core.attach()
    store, now = session.store, time.monotonic()
    words, doubles = store.words, store.doubles
    rows = [store.process_row(index) for index in range(layout.MAX_PROCESSES)]
    channels = [
        {
            "name": store.queues.name(row).decode(),
            "waiting": words[row + layout.Q_COUNT],
            "total": words[row + layout.Q_TOTAL],
            "dropped": words[row + layout.Q_DROPS],
        }
        for row in store.queues.rows()
    ]
    for channel in channels:
        channel["capacity"] = layer._core.capacity_of(channel["name"])
    channels.sort(key=lambda channel: (-channel["waiting"], -channel["total"], channel["name"]))
    return {
        "drops": {
            reason: words[layout.S_DROPS + number]
            for number, reason in enumerate(layout.DROP_REASONS)
        },
        "processes": [
            {
                "pid": words[row + layout.P_PID],
                "age": round(now - doubles[row + layout.P_ATTACHED]),
                "dead": doubles[row + layout.P_DEAD_SINCE] > 0,
            }
            for row in rows
            if words[row + layout.P_GENERATION]
        ],
        "channels": channels[:CHANNELS],
    }
