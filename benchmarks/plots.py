"""Figures as plots, in SVG. The same figures give the same files, byte by byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.figures import Figures

matplotlib.use("svg")
import matplotlib.pyplot as plt

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


def _color(layer: str) -> str:
    return COLORS.get(layer, FLOOR)


def _bars(axes: Any, rows: list[dict[str, Any]], key: str, title: str, form: str = ",.0f") -> None:
    """One bar for each layer, on a logarithmic scale, with its figure behind it."""
    known = [row for row in rows if row.get(key)][::-1]
    values = [row[key] for row in known]
    bars = axes.barh(
        [row["layer"] for row in known], values, color=[_color(row["layer"]) for row in known]
    )
    axes.bar_label(bars, [format(value, form) for value in values], padding=3, fontsize=8)
    axes.set_xscale("log")
    axes.margins(x=0.2)
    axes.set_title(title, fontsize=9, loc="left")
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)


def overview(figures: Figures) -> Any:
    figure, axes = plt.subplots(2, 2, figsize=(10, 6))
    _bars(axes[0, 0], figures.rows("pair"), "pair", "send + receive in one process, µs", ",.1f")
    trips = figures.rows("roundtrip", way="two cores") or figures.rows("roundtrip")
    _bars(axes[0, 1], trips, "p50", "round trip of two processes, µs")
    rates = figures.rows("throughput", receivers=1)
    _bars(axes[1, 0], rates, "rate", "one sender, one receiver: messages a second")
    rows = figures.rows("broadcast")
    _bars(axes[1, 1], rows, "last", "group send: the last of 5,000 has it, ms")
    return figure


def _lines(axes: Any, figures: Figures, table: str, title: str) -> None:
    """A line for each layer over the columns whose keys are numbers."""
    for row in figures.rows(table):
        sizes = sorted(int(key) for key in row if key.isdigit())
        axes.plot(
            [max(size, 1) for size in sizes],
            [row[str(size)] for size in sizes],
            marker=".",
            label=row["layer"],
            color=_color(row["layer"]),
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_title(title, fontsize=9, loc="left")
    axes.set_ylabel("µs")


def backlog(figures: Figures) -> Any:
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.4), sharey=True)
    _lines(axes[0], figures, "messages", "a pair beside n messages")
    _lines(axes[1], figures, "channels", "a pair over n channels")
    _lines(axes[2], figures, "groups", "a pair beside n groups")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def sizes(figures: Figures) -> Any:
    figure, axes = plt.subplots(figsize=(7, 4))
    _lines(axes, figures, "sizes", "a pair by the size of its message, bytes")
    axes.legend(fontsize=7)
    return figure


def scaling(figures: Figures) -> Any:
    kinds = [*dict.fromkeys(row["on"] for row in figures.rows("scaling"))]
    figure, axes = plt.subplots(1, len(kinds), figsize=(10, 3.4), sharey=True, squeeze=False)
    for axis, kind in zip(axes[0], kinds):
        for layer in dict.fromkeys(row["layer"] for row in figures.rows("scaling", on=kind)):
            rows = figures.rows("scaling", on=kind, layer=layer)
            if kind != kinds[0]:  # with one of each it is all the same
                rows = figures.rows("scaling", on=kinds[0], layer=layer, n=1) + rows
            known = [row for row in rows if row["rate"]]
            axis.plot(
                [row["n"] for row in known],
                [row["rate"] for row in known],
                marker=".",
                label=layer,
                color=_color(layer),
            )
        axis.set_yscale("log")
        axis.set_xlabel("senders, and as many receivers")
        axis.set_title(f"messages a second on {kind}", fontsize=9, loc="left")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def servers(figures: Figures) -> Any:
    figure, axes = plt.subplots(1, 3, figsize=(10, 2.4))
    one, most = (figures.rows("http", clients=clients) for clients in (1, 8))
    _bars(axes[0], one, "p50", "HTTP, one client: p50, ms", ",.2f")
    _bars(axes[1], most, "rate", "HTTP, eight clients: requests a second")
    _bars(axes[2], figures.rows("websocket"), "rate", "WebSockets: messages delivered a second")
    return figure


def profile(figures: Figures) -> Any:
    contracts = ("blocking", "asyncio")
    figure, axes = plt.subplots(1, 2, figsize=(10, 4))
    for axis, contract in zip(axes, contracts):
        rows = figures.rows(f"profile-{contract}")[::-1]
        names = [f"{row['call']}: {row['what'].rpartition('<locals>.')[2]}" for row in rows]
        colors = {"send": "#0b6e4f", "receive": "#e4572e"}
        bars = axis.barh(
            range(len(rows)),
            [row["ns"] for row in rows],
            color=[colors.get(row["call"], FLOOR) for row in rows],
        )
        axis.set_yticks(range(len(rows)), names, fontsize=8)
        axis.bar_label(bars, fmt="%.0f", padding=3, fontsize=8)
        axis.margins(x=0.15)
        axis.set_title(f"a pair, {contract}: ns by function", fontsize=9, loc="left")
    return figure


PLOTS = (overview, backlog, sizes, scaling, servers, profile)


def draw(figures: Figures, folder: Path) -> list[str]:
    """Write all plots into `folder`; the names of the files."""
    written = []
    for plot in PLOTS:
        figure = plot(figures)
        name = f"{plot.__name__}.svg"
        figure.savefig(folder / name, metadata={"Date": None})
        plt.close(figure)
        written.append(name)
    return written
