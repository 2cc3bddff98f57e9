"""Channel layers measured alike.

    python -m benchmarks.layers [workload ...] [--quick] [--json FILE]

workloads (all, where none is named):
  pair        send + receive of a chat event in one process, against InMemory
  backlog     the same with 1,000 and 10,000 messages, channels or groups beside it
  roundtrip   two processes, both blocked in receive, against bare FIFOs
  throughput  one sender, one or four receivers, every message counted
  idle        the CPU of four processes blocked in receive
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

from benchmarks.layers.contenders import CONTENDERS, Contender
from benchmarks.layers.idle import idle
from benchmarks.layers.pair import backlog, pair
from benchmarks.layers.roundtrip import roundtrip
from benchmarks.layers.throughput import throughput
from benchmarks.measure import Table, parser, report

Workload = Callable[[list[Contender], str, bool], Iterator[Table]]

WORKLOADS: dict[str, Workload] = {
    workload.__name__: workload for workload in (pair, backlog, roundtrip, throughput, idle)
}


def main() -> None:
    options = parser(__doc__ or "")
    options.add_argument("workload", nargs="*", help="which workloads to run (default: all)")
    options.add_argument("--layer", action="append", choices=CONTENDERS, help="only these layers")
    options.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio")
    chosen = options.parse_args()
    for name in chosen.workload:
        if name not in WORKLOADS:
            options.error(f"no workload {name!r}: there are {', '.join(WORKLOADS)}")

    contenders = []
    for name in chosen.layer or CONTENDERS:
        if CONTENDERS[name].missing():
            print(f"{name}: left out, {CONTENDERS[name].needs} is not installed", file=sys.stderr)
        else:
            contenders.append(CONTENDERS[name])
    report(
        (
            table
            for name in chosen.workload or WORKLOADS
            for table in WORKLOADS[name](contenders, chosen.loop, chosen.quick)
        ),
        chosen.json,
    )


if __name__ == "__main__":
    main()
