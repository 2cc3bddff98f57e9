"""The plot of the README, in SVG. The same figures always give the same file."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import escape

from benchmarks.measure import Figures, Row

COLORS = {
    "asgi_ipc-blocking": "#0b6e4f",
    "asgi_ipc-asyncio": "#21a179",
    "asgi_ipc-blocking-pure": "#6ba292",
    "asgi_ipc-asyncio-pure": "#9ad1bd",
    "InMemory": "#7a7a7a",
    "channels_redis": "#b3001b",
    "channels_redis-pubsub": "#e4572e",
    "asgi_redis-1.4.3": "#f3a712",
    "asgi_ipc-1.4.2": "#29335c",
    "multiprocessing.Queue": "#8d6a9f",
    "zmq-ipc": "#b497bd",
}
FLOOR = "#c8c8c8"

# In pixels.
PANEL, HEIGHT = 500, 300  # of each of the four panels
NAMES, LONGEST = 150, 270  # the names of the layers, and the longest bar
TITLE, BELOW = 28, 12

HEAD = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" \
font-size="12">
<rect width="100%" height="100%" fill="white"/>
"""


def _bars(
    left: int, top: int, rows: list[Row], key: str, title: str, form: str = ",.0f"
) -> Iterator[str]:
    """One bar for each layer, on a logarithmic scale, with its figure behind it."""
    title = escape(f"{title} (logarithmic)")
    yield f'<text x="{left + NAMES}" y="{top + 16}" font-size="13">{title}</text>'
    known = {row["layer"]: row[key] for row in rows if row.get(key)}
    if not known:
        return
    least, most = min(known.values()) / 2, max(known.values())
    step = (HEIGHT - TITLE - BELOW) / len(known)
    yield f'<path d="M{left + NAMES - 0.5} {top + TITLE}v{HEIGHT - TITLE - BELOW}" stroke="black"/>'
    for number, (name, value) in enumerate(known.items()):
        begin, middle = left + NAMES, top + TITLE + step * (number + 0.5)
        length = LONGEST * math.log(value / least) / math.log(most / least)
        text = f'y="{middle + 4:.1f}"'
        yield (
            f'<text x="{begin - 6}" {text} text-anchor="end">{escape(name)}</text>'
            f'<rect x="{begin}" y="{middle - 0.4 * step:.1f}" width="{length:.1f}" '
            f'height="{0.8 * step:.1f}" fill="{COLORS.get(name, FLOOR)}"/>'
            f'<text x="{begin + length + 5:.1f}" {text}>{format(value, form)}</text>'
        )


def draw(figures: Figures, path: Path) -> None:
    """Four panels: what each layer takes for a pair, a round trip, a message, a group send."""
    trips = figures.rows("roundtrip", way="two cores") or figures.rows("roundtrip")
    rates, broadcasts = figures.rows("throughput", receivers=1), figures.rows("broadcast")
    lines = [
        *_bars(0, 0, figures.rows("pair"), "pair", "send + receive in one process, µs", ",.1f"),
        *_bars(PANEL, 0, trips, "p50", "round trip of two processes, µs"),
        *_bars(0, HEIGHT, rates, "rate", "one sender, one receiver: messages a second"),
        *_bars(PANEL, HEIGHT, broadcasts, "last", "group send to 5,000 sockets: last delivery, ms"),
    ]
    head = HEAD.format(width=2 * PANEL, height=2 * HEIGHT)
    path.write_text(head + "\n".join(lines) + "\n</svg>\n", encoding="utf-8")
