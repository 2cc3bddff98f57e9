"""What asgi_ipc is meant to reach, each as a ratio to something measured in the same run.

    python -m benchmarks.targets FILE ...

Reads the JSON files of `python -m benchmarks.layers --json`; what they lack is left out.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.figures import Figures
from benchmarks.layers.contenders import CONTENDERS
from benchmarks.measure import Column, Table

TWO_CONTRACTS = [one for one in CONTENDERS.values() if one.ours]
AT_MOST, AT_LEAST = "at most", "at least"


@dataclass(frozen=True)
class Target:
    """`measured(figures, layer)` is to be `bound` `limit`; None where it was not measured."""

    what: str
    bound: str
    limit: float
    measured: Callable[[Figures, str], float | None]

    def reached(self, value: float) -> bool:
        return value <= self.limit if self.bound == AT_MOST else value >= self.limit


def plain(table: str, key: str, **where: object) -> Callable[[Figures, str], float | None]:
    """A figure that stands in a table as it is."""
    return lambda figures, layer: figures.get(table, key, layer=layer, **where)


def p99(way: str) -> Callable[[Figures, str], float | None]:
    """What is above 1.5 times the floor's p99, in pairs."""

    def measured(figures: Figures, layer: str) -> float | None:
        mine, floor, pair = (
            figures.get("roundtrip", key, way=way, layer=layer)
            for key in ("p99", "floor p99", "pair")
        )
        if mine is None or floor is None or pair is None:
            return None
        return (mine - 1.5 * floor) / pair

    return measured


def in_pairs(key: str) -> Callable[[Figures, str], float | None]:
    """Milliseconds of a group send, in times of the pair that was measured with it."""

    def measured(figures: Figures, layer: str) -> float | None:
        taken, pair = (figures.get("broadcast", name, layer=layer) for name in (key, "pair"))
        return None if taken is None or pair is None else taken * 1e3 / pair

    return measured


def faults(figures: Figures, layer: str) -> float | None:
    """Messages lost, doubled or out of order in all of `throughput` and `scaling`."""
    rows = [*figures.rows("throughput", layer=layer), *figures.rows("scaling", layer=layer)]
    kinds = ("lost", "doubled", "disordered")
    return float(sum(row[kind] for row in rows for kind in kinds)) if rows else None


TARGETS = (
    Target("a pair, × InMemory", AT_MOST, 0.7, plain("pair", "ratio")),
    Target(
        "a pair beside the most messages, × beside none",
        AT_MOST,
        1.1,
        plain("messages", "flatness"),
    ),
    Target(
        "a pair over the most channels, × over one", AT_MOST, 1.1, plain("channels", "flatness")
    ),
    Target(
        "a pair beside the most groups, × beside one", AT_MOST, 1.1, plain("groups", "flatness")
    ),
    *(
        target
        for way in ("one core", "two cores")
        for target in (
            Target(
                f"round trip on {way}: p50 above the FIFO's, in pairs",
                AT_MOST,
                3,
                plain("roundtrip", "pairs", way=way),
            ),
            Target(
                f"round trip on {way}: p99 above 1.5 × the FIFO's, in pairs", AT_MOST, 3, p99(way)
            ),
        )
    ),
    Target(
        "one sender, one receiver: messages in the time of a pair",
        AT_LEAST,
        0.6,
        plain("throughput", "pairs", receivers=1),
    ),
    Target(
        "one sender, four receivers: messages in the time of a pair",
        AT_LEAST,
        0.5,
        plain("throughput", "pairs", receivers=4),
    ),
    Target("messages lost, doubled or out of order", AT_MOST, 0, faults),
    Target(
        "a group send, the call, in pairs",
        AT_MOST,
        33,
        in_pairs("call"),
    ),
    Target(
        "the same, the last socket has it, in pairs",
        AT_MOST,
        5_500,
        in_pairs("last"),
    ),
    Target(
        "the same, the call after one left and joined, in pairs",
        AT_MOST,
        220,
        in_pairs("after"),
    ),
    Target(
        "a pair of the largest message, × msgpack both ways + 2 copies",
        AT_MOST,
        2.5,
        plain("sizes", "ratio"),
    ),
    Target("four blocked processes, ms of CPU in 5 s", AT_MOST, 5, plain("idle", "together")),
    Target("to attach, ms", AT_MOST, 3, plain("attach", "attach")),
    Target(
        "to recover with the most messages waiting, ms", AT_MOST, 500, plain("recovery", "next")
    ),
)


def rows(figures: Figures) -> Iterator[dict[str, object]]:
    for target in TARGETS:
        values = {one.contract: target.measured(figures, one.name) for one in TWO_CONTRACTS}
        known = [value for value in values.values() if value is not None]
        if not known:
            continue
        row: dict[str, object] = {"what": target.what, **values}
        row["limit"] = f"{target.bound} {target.limit:,g}"
        missed = [
            contract
            for contract, value in values.items()
            if value is not None and not target.reached(value)
        ]
        row["reached"] = f"not {' nor '.join(missed)}" if missed else "yes"
        yield row


def table(figures: Figures) -> Table:
    return Table(
        "targets",
        "targets: ratios within this run, blocking and asyncio",
        (
            Column("what", "what"),
            Column("limit", "meant to be"),
            Column("blocking", "blocking", ",.2f"),
            Column("asyncio", "asyncio", ",.2f"),
            Column("reached", "reached"),
        ),
        list(rows(figures)),
    )


def main() -> None:
    if len(sys.argv) < 2:
        sys.exit((__doc__ or "").strip())
    print(table(Figures.read(sys.argv[1:])))


if __name__ == "__main__":
    main()
