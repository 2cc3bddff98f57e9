"""`wsgi`: the WSGI adapters against the same application directly under gunicorn.

Needs gunicorn, and wrk (Debian has it), which makes the load. Both ways run at once and are
measured in turn: an application directly in gunicorn, and gunicorn with `WsgiToAsgiAdapter` in
front of `AsgiToWsgiWorker`. Each can work on the same number of requests. Servers, workers and load
share the cores of this machine.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from benchmarks.layers.contenders import new_prefix
from benchmarks.measure import Column, Row, Table, interleaved, medians, paired_ratio
from benchmarks.processes import REPOSITORY
from benchmarks.workloads import Run
from tests import environments, processes


class Server(NamedTuple):
    name: str
    gunicorn: list[str]  # options of gunicorn
    workers: int  # behind it, and
    worker: list[str]  # their options


TINY = Server("sync", ["--workers", "1"], 1, ["--threads", "1"])
SYNC = Server("sync, 4 processes", ["--workers", "4"], 4, ["--threads", "1"])
_THREADS = ["--workers", "2", "--threads", "8"]
THREADED = Server("2 processes of 8 threads", _THREADS, 4, ["--threads", "4"])

REQUESTS = {"/": "14 bytes", "/wait": "waits 10 ms", "/megabyte": "1 MiB"}
CONNECTIONS = 1, 16
WAYS = DIRECT, LAYER = "application", "front"  # what gunicorn serves: names in sites/wsgi

_IN_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}


class Load(NamedTuple):
    """What wrk measures."""

    p50: float  # ms
    p99: float
    rate: float  # requests a second


@contextlib.contextmanager
def running(server: Server) -> Iterator[dict[str, str]]:
    """Both ways of one kind of server: their addresses."""
    from asgi_ipc import segment

    prefix = new_prefix("wsgi")
    with contextlib.ExitStack() as stack:
        stack.callback(segment.destroy, prefix)
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-wsgi-")))
        variables = environments.child_environment(
            PYTHONPATH=f"{REPOSITORY}/benchmarks/sites/wsgi:{REPOSITORY}", PREFIX=prefix
        )

        def start(name: str, *arguments: str) -> processes.Process:
            command, log = (sys.executable, "-m", *arguments), logs / name
            return stack.enter_context(
                processes.running(command, log=log, environment=variables, folder=logs)
            )

        for number in range(server.workers):
            module = ("asgi_ipc.wsgi", f"hello:{DIRECT}", "--prefix", prefix)
            start(f"worker-{number}", *module, *server.worker)
        ports, gunicorns = {way: processes.free_port() for way in WAYS}, {}
        for way, port in ports.items():
            options = ["--bind", f"127.0.0.1:{port}", "--log-level", "warning", *server.gunicorn]
            gunicorns[port] = start(way, "gunicorn", *options, f"hello:{way}")
        for port, gunicorn in gunicorns.items():
            gunicorn.wait_for_port(port)
        yield {way: f"http://127.0.0.1:{port}" for way, port in ports.items()}


def load(url: str, connections: int, seconds: int) -> Load:
    command = ["wrk", "--latency", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s"]
    told = subprocess.run([*command, url], capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in told or "Socket errors" in told:
        raise AssertionError(f"not every request to {url} was answered:\n{told}")
    shares = {
        share: float(number) * _IN_MS[unit]
        for share, number, unit in re.findall(r"^ +(\d+)% +([\d.]+)(\w+)$", told, re.M)
    }
    rate = float(re.findall(r"^Requests/sec: +([\d.]+)$", told, re.M)[0])
    return Load(shares["50"], shares["99"], rate)


def measure(
    addresses: dict[str, str], path: str, connections: int, repetitions: int, seconds: int
) -> Row:
    samples: dict[str, list[Load]] = {way: [] for way in WAYS}
    for way in interleaved(repetitions, WAYS):
        samples[way].append(load(addresses[way] + path, connections, seconds))
    direct, layer = samples[DIRECT], samples[LAYER]
    added = [(one.p50 - other.p50, one.p99 - other.p99) for one, other in zip(layer, direct)]
    return {
        "request": REQUESTS[path],
        "at once": connections,
        **medians(("direct p50", "direct p99", "direct rate"), direct),
        **medians(("layer p50", "layer p99", "layer rate"), layer),
        **medians(("added p50", "added p99"), added),
        "share": paired_ratio([one.rate for one in layer], [one.rate for one in direct]),
        "samples": samples,
    }


def wsgi(run: Run) -> Iterator[Table]:
    """the WSGI adapters next to plain gunicorn"""
    made = Table(
        "wsgi",
        "WSGI: over the layer to workers, and directly",
        (
            Column("server", "gunicorn"),
            Column("request", "request"),
            Column("at once", "at once", "d"),
            Column("direct p50", "p50, ms", ",.2f"),
            Column("added p50", "added", "+,.2f"),
            Column("direct p99", "p99, ms", ",.2f"),
            Column("added p99", "added", "+,.2f"),
            Column("direct rate", "requests/s", ",.0f"),
            Column("layer rate", "over layer", ",.0f"),
            Column("share", "share", ".2f"),
        ),
    )
    lacking = [one for one in ("wrk", "gunicorn") if not (shutil.which(one) or find_spec(one))]
    if lacking:
        made.note = f"left out: {' and '.join(lacking)} missing"
    else:
        repetitions, seconds = run.effort(1, 2, 5), run.effort(1, 1, 3)
        for server in run.effort([TINY], [SYNC, THREADED], [SYNC, THREADED]):
            with running(server) as addresses:
                for address in addresses.values() if run.effort.level else ():
                    load(address + "/", 16, 1)  # to warm up
                for path in run.effort([*REQUESTS][:1], [*REQUESTS], [*REQUESTS]):
                    for connections in run.effort(CONNECTIONS[:1], CONNECTIONS, CONNECTIONS):
                        row = measure(addresses, path, connections, repetitions, seconds)
                        made.rows.append({"server": server.name, **row})
    yield made
