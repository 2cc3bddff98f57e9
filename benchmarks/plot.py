"""The plot of the README, in SVG. The same figures always give the same file."""

from __future__ import annotations

from pathlib import Path

import matplotlib

from benchmarks.measure import Figures, Row

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

matplotlib.rcParams.update(
    {
        "svg.hashsalt": "asgi_ipc",
        "svg.fonttype": "none",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.constrained_layout.use": True,
    }
)

COLORS = {
    "asgi_ipc-blocking": "#0b6e4f",
    "asgi_ipc-asyncio": "#21a179",
    "InMemory": "#7a7a7a",
    "channels_redis": "#b3001b",
    "channels_redis-pubsub": "#e4572e",
    "asgi_redis-1.4.3": "#f3a712",
    "asgi_ipc-1.4.2": "#29335c",
    "multiprocessing.Queue": "#8d6a9f",
    "zmq-ipc": "#b497bd",
}
FLOOR = "#c8c8c8"


def _bars(axes: Axes, rows: list[Row], key: str, title: str, form: str = ",.0f") -> None:
    """One bar for each layer, on a logarithmic scale, with its figure behind it."""
    known = [row for row in rows if row.get(key)][::-1]
    names, values = [row["layer"] for row in known], [row[key] for row in known]
    bars = axes.barh(names, values, color=[COLORS.get(name, FLOOR) for name in names])
    axes.bar_label(bars, [format(value, form) for value in values], padding=3, fontsize=8)
    axes.set_xscale("log")
    axes.margins(x=0.2)
    axes.set_title(title, fontsize=9, loc="left")
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)


def draw(figures: Figures, path: Path) -> None:
    """Four panels: what each layer takes for a pair, a round trip, a message, a group send."""
    figure, axes = plt.subplots(2, 2, figsize=(10, 6))
    _bars(axes[0, 0], figures.rows("pair"), "pair", "send + receive in one process, µs", ",.1f")
    trips = figures.rows("roundtrip", way="two cores") or figures.rows("roundtrip")
    _bars(axes[0, 1], trips, "p50", "round trip of two processes, µs")
    rates = figures.rows("throughput", receivers=1)
    _bars(axes[1, 0], rates, "rate", "one sender, one receiver: messages a second")
    rows = figures.rows("broadcast")
    _bars(axes[1, 1], rows, "last", "group send: the last of 5,000 has it, ms")
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
