"""Channel layers measured alike.

    python -m benchmarks.layers [workload ...] [--quick] [--layer NAME ...] [--json FILE]

workloads (all, where none is named):
  pair        send + receive of a chat event in one process, against InMemory
  backlog     the same with up to 100,000 messages, channels or groups beside it
  sizes       the same with messages of up to 1 MB
  roundtrip   two processes, both blocked in receive, against bare FIFOs
  pace        messages at a steady pace: how long each takes, and how busy that keeps a process
  throughput  one sender, one or four receivers, every message counted
  scaling     one to eight senders and receivers, on one channel and on many
  broadcast   a group send to 5,000 sockets of another process
  churn       joins and leaves between the sends to a group of 10,000
  idle        the CPU of four processes blocked in receive
  memory      what a layer takes up, idle and with messages waiting
  attach      the first call of a process
  recovery    the next call after a process was killed in the middle of one
  servers     HTTP through daphne and workers, WebSockets through Channels 4
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

from benchmarks.layers import Run, redis_server
from benchmarks.layers.contenders import CONTENDERS, contender
from benchmarks.layers.costs import attach, idle, memory, recovery
from benchmarks.layers.groups import broadcast, churn
from benchmarks.layers.pace import pace
from benchmarks.layers.pair import pair
from benchmarks.layers.roundtrip import roundtrip
from benchmarks.layers.servers import servers
from benchmarks.layers.slopes import backlog, sizes
from benchmarks.layers.throughput import scaling, throughput
from benchmarks.measure import Table, effort, parser, report

Workload = Callable[[Run], Iterator[Table]]

WORKLOADS: dict[str, Workload] = {
    workload.__name__: workload
    for workload in (
        pair,
        backlog,
        sizes,
        roundtrip,
        pace,
        throughput,
        scaling,
        broadcast,
        churn,
        idle,
        memory,
        attach,
        recovery,
        servers,
    )
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
        missing = CONTENDERS[name].missing()
        if missing:
            print(f"{name} is left out. {missing}", file=sys.stderr)
        else:
            contenders.append(CONTENDERS[name])
    run = Run(contenders, chosen.loop, effort(chosen))
    with redis_server.running():
        report(
            (table for name in chosen.workload or WORKLOADS for table in WORKLOADS[name](run)),
            chosen.json,
        )
    if any(contender(name).ours for name in run.failures):
        sys.exit(f"not all was measured: {', '.join(sorted(set(run.failures)))} failed")


if __name__ == "__main__":
    main()
