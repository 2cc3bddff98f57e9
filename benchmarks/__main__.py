"""Measurements of asgi_ipc and its peers, side by side in one run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator

from benchmarks.layers import redis_server
from benchmarks.layers.contenders import CONTENDERS
from benchmarks.measure import Effort, Table, report
from benchmarks.processes import ChildFailed
from benchmarks.workloads import Run
from benchmarks.workloads.costs import idle, recovery
from benchmarks.workloads.groups import broadcast
from benchmarks.workloads.growth import growth
from benchmarks.workloads.pace import pace
from benchmarks.workloads.pair import machines, pair
from benchmarks.workloads.roundtrip import roundtrip
from benchmarks.workloads.servers import servers
from benchmarks.workloads.throughput import scaling, throughput
from benchmarks.workloads.wakeups import wakeups
from benchmarks.workloads.wsgi import wsgi

Workload = Callable[[Run], Iterator[Table]]

WORKLOADS: dict[str, Workload] = {
    workload.__name__: workload
    for workload in (
        *(pair, growth, roundtrip, pace, throughput, scaling, broadcast),
        *(idle, recovery, servers, wakeups, wsgi, machines),
    )
}


def tables(run: Run, names: list[str]) -> Iterator[Table]:
    """What the workloads measure. One that fails does not take the others with it."""
    for name in names:
        try:
            yield from WORKLOADS[name](run)
        except (ChildFailed, AssertionError, OSError) as error:
            run.failures.append(name)
            print(f"\n{name} failed: {error}", file=sys.stderr, flush=True)


def main() -> None:
    listed = "\n".join(f"  {name:<11} {one.__doc__}" for name, one in WORKLOADS.items())
    options = argparse.ArgumentParser(
        "python -m benchmarks",
        description=f"{__doc__}\n\nworkloads (all, if none is named):\n{listed}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument("workload", nargs="*", help="which workloads to run")
    options.add_argument("--layer", action="append", choices=CONTENDERS, help="only these layers")
    length = options.add_mutually_exclusive_group()
    length.add_argument("--quick", action="store_true", help="fewer, shorter repetitions")
    length.add_argument("--tiny", action="store_true", help="only to see that it works")
    options.add_argument("--json", metavar="FILE", help="also write figures and samples to FILE")
    chosen = options.parse_args()
    for name in chosen.workload:
        if name not in WORKLOADS:
            options.error(f"no workload {name!r}: there are {', '.join(WORKLOADS)}")

    effort = Effort(0 if chosen.tiny else 1 if chosen.quick else 2)
    run = Run(chosen.layer or [*CONTENDERS], effort)
    with redis_server.running():
        report(tables(run, chosen.workload or [*WORKLOADS]), chosen.json)
    peers = {name for name, one in CONTENDERS.items() if not one.ours}
    failed = sorted({*run.failures} - peers)
    if failed:
        sys.exit(f"not all was measured: {', '.join(failed)} failed")


if __name__ == "__main__":
    main()
