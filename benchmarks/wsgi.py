"""The WSGI adapters against the same application directly under gunicorn.

    python -m benchmarks.wsgi [--quick] [--json FILE]

Needs gunicorn, and wrk (Debian has it), which makes the load. Both ways run at once, each able to
work on the same number of requests, and are measured in turn: an application directly in gunicorn,
and gunicorn with `WsgiToAsgiAdapter` in front of `AsgiToWsgiWorker`. Server, workers and load share
the cores of this machine.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any

from asgi_ipc import IPCChannelLayer, segment
from asgi_ipc.wsgi import WsgiToAsgiAdapter

from .measure import Column, Effort, Table, effort, interleaved, paired_ratio, parser, report

# name: options of gunicorn, and of each of the four workers behind it
SERVERS = {
    "sync, 4 processes": (["--workers", "4"], ["--threads", "1"]),
    "2 processes of 8 threads": (["--workers", "2", "--threads", "8"], ["--threads", "4"]),
}
WORKERS = 4
REQUESTS = {"/": "14 bytes", "/wait": "waits 10 ms", "/megabyte": "1 MiB"}
CONNECTIONS = 1, 16
WAYS = "directly", "layer"

_IN_MS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}
_MEGABYTE = bytes(1 << 20)


def application(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """What is served both ways."""
    content = b"Hello, world!\n"
    if environ["PATH_INFO"] == "/wait":
        time.sleep(0.01)  # as for a database
    elif environ["PATH_INFO"] == "/megabyte":
        content = _MEGABYTE
    headers = [("Content-Type", "text/plain"), ("Content-Length", str(len(content)))]
    start_response("200 OK", headers)
    return [content]


_adapters: list[WsgiToAsgiAdapter] = []


def front(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """What gunicorn runs in front of the layer."""
    if not _adapters:
        _adapters.append(WsgiToAsgiAdapter(IPCChannelLayer(os.environ["BENCHMARK_PREFIX"])))
    return _adapters[0](environ, start_response)


@contextlib.contextmanager
def running(server: str) -> Iterator[dict[str, str]]:
    """Both ways of one kind of server: their addresses."""
    prefix = f"benchmark-wsgi-{os.getpid()}"
    of_gunicorn, of_worker = SERVERS[server]
    addresses = {}
    with contextlib.ExitStack() as stack:
        stack.callback(segment.destroy, prefix)

        def start(*arguments: str) -> None:
            process = subprocess.Popen(
                [sys.executable, "-m", *arguments], env={**os.environ, "BENCHMARK_PREFIX": prefix}
            )
            stack.callback(process.wait)
            stack.callback(process.terminate)

        for _ in range(WORKERS):
            module = ["asgi_ipc.wsgi", "benchmarks.wsgi:application", "--prefix", prefix]
            start(*module, *of_worker)
        for way, name in zip(WAYS, ("application", "front")):
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            options = ["--bind", f"127.0.0.1:{port}", "--log-level", "warning", *of_gunicorn]
            start("gunicorn", *options, f"benchmarks.wsgi:{name}")
            addresses[way] = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + 60
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.05)
        for address in addresses.values():
            load(address + "/", 16, 1)
        yield addresses


def load(url: str, connections: int, seconds: int) -> dict[str, float]:
    """What wrk measures: p50 and p99 in ms, and requests a second."""
    command = ["wrk", "--latency", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s"]
    told = subprocess.run([*command, url], capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in told or "Socket errors" in told:
        raise RuntimeError(f"not every request to {url} was answered:\n{told}")
    found = {}
    for key, share in (("p50", 50), ("p99", 99)):
        number, unit = re.findall(rf"^ +{share}% +([\d.]+)(\w+)$", told, re.M)[0]
        found[key] = float(number) * _IN_MS[unit]
    found["rate"] = float(re.findall(r"^Requests/sec: +([\d.]+)$", told, re.M)[0])
    return found


def measure(
    server: str, requests: list[str], repetitions: int, seconds: int
) -> Iterator[dict[str, Any]]:
    """A row for each kind of request and number of connections."""
    with running(server) as addresses:
        for path in requests:
            for connections in CONNECTIONS:
                samples: dict[str, dict[str, list[float]]] = {
                    way: defaultdict(list) for way in WAYS
                }
                for way in interleaved(repetitions, WAYS):
                    for key, value in load(addresses[way] + path, connections, seconds).items():
                        samples[way][key].append(value)
                direct, layer = (samples[way] for way in WAYS)
                row: dict[str, Any] = {
                    "server": server,
                    "request": REQUESTS[path],
                    "at once": connections,
                }
                for key in ("p50", "p99"):
                    row[f"direct {key}"] = statistics.median(direct[key])
                    row[f"layer {key}"] = statistics.median(layer[key])
                    added = [one - other for one, other in zip(layer[key], direct[key])]
                    row[f"added {key}"] = statistics.median(added)
                row["direct rate"] = statistics.median(direct["rate"])
                row["layer rate"] = statistics.median(layer["rate"])
                row["share"] = paired_ratio(layer["rate"], direct["rate"])
                yield {**row, "samples": samples}


def table(length: Effort) -> Table:
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
    lacking = [what for what in ("wrk", "gunicorn") if not there(what)]
    if lacking:
        made.note = f"without figures: {' and '.join(lacking)} missing"
        return made
    # One of each says that it works.
    for server in length([*SERVERS][:1], [*SERVERS], [*SERVERS]):
        requests = length([*REQUESTS][:1], [*REQUESTS], [*REQUESTS])
        made.rows += measure(server, requests, length(1, 2, 5), length(1, 1, 3))
    return made


def there(what: str) -> bool:
    return shutil.which(what) is not None or importlib.util.find_spec(what) is not None


def main() -> None:
    options = parser(__doc__ or "").parse_args()
    report((table(effort(options)) for _ in range(1)), options.json)


if __name__ == "__main__":
    main()
