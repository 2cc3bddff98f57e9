"""`servers`: how much of a layer's speed is left behind real servers.

HTTP: a site of Channels 1, served by daphne 1.4.2 and two workers. WebSockets: a room on Channels
4, its sockets spread over two processes of daphne 4. The load comes from this process, which costs
every layer the same.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.layers import redis_server
from benchmarks.layers.contenders import PEERS_OF_CHANNELS_1, Contender, new_prefix
from benchmarks.measure import Column, Row, Table, quantile
from benchmarks.processes import REPOSITORY, spent
from benchmarks.workloads import Run
from tests import environments, processes

if TYPE_CHECKING:
    from websockets import ClientConnection

SITES = Path(REPOSITORY) / "benchmarks" / "sites"
WORKERS = 2
CLIENTS = 8  # HTTP connections that ask at the same time
SERVERS = 2
SOCKETS = 50  # on each of the servers
POLLED = "asgi_ipc 1.4.2, and asgi_redis as pip installs it, every 50 ms"
ROUND_WITHIN = 30.0  # seconds

COLUMNS = (
    Column("layer", "layer"),
    Column("rate", "a second", ",.0f"),
    Column("cpu", "µs of CPU each", ",.0f"),  # of all processes together, but the clients
    Column("p50", "p50, ms", ",.2f"),
    Column("p99", "p99, ms", ",.2f"),
)


def percentiles(taken: list[float]) -> Row:
    """In milliseconds, of seconds."""
    ordered = sorted(taken)
    return {"p50": quantile(ordered, 0.5) * 1e3, "p99": quantile(ordered, 0.99) * 1e3}


class Site:
    """The processes of a site of ours, with one layer; `start` starts one of them."""

    def __init__(self, one: Contender, name: str, backend: str, stack: ExitStack) -> None:
        prefix = new_prefix(f"site-{one.name}")
        stack.callback(one.destroy, prefix)
        config: dict[str, Any] = {"prefix": prefix, "capacity": 100}
        if one.store == "redis":
            config["hosts"] = [["127.0.0.1", redis_server.port()]]
        if one.name == "channels_redis-pubsub":
            del config["capacity"]  # it has no such thing
        self.folder = SITES / name
        self._logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-site-")))
        self._stack = stack
        self.pids: list[int] = redis_server.pids()
        self._variables = environments.child_environment(
            PYTHONPATH=f"{self.folder}:{REPOSITORY}" if one.ours else str(self.folder),
            DJANGO_SETTINGS_MODULE="settings",
            SITE_LAYER=json.dumps({"BACKEND": backend, "CONFIG": config}),
        )

    def start(self, name: str, *command: str | Path) -> processes.Process:
        log = self._logs / f"{name}.log"
        started = self._stack.enter_context(
            processes.running(command, log=log, environment=self._variables, folder=self._logs)
        )
        self.pids.append(started.pid)
        return started


# -- Channels 1 -----------------------------------------------------------------------------------

# An environment, and the layer's name in it.
CHANNELS_1 = {
    "asgi_ipc-blocking": ("channels1", "asgi_ipc.IPCChannelLayer"),
    "asgi_redis-1.4.3": (PEERS_OF_CHANNELS_1, "asgi_redis.RedisChannelLayer"),
    "asgi_ipc-1.4.2": (PEERS_OF_CHANNELS_1, "asgi_ipc.IPCChannelLayer"),
}


@contextmanager
def channels_1(one: Contender, workers: int) -> Iterator[tuple[int, Site]]:
    """The port of the running site, and its processes."""
    environment, backend = CHANNELS_1[one.name]
    python, port = environments.build(environment), processes.free_port()
    with ExitStack() as stack:
        site = Site(one, "channels1", backend, stack)
        daphne, where = python.with_name("daphne"), ("--bind", "127.0.0.1", "--port", str(port))
        server = site.start("server", python, daphne, *where, "asgi:channel_layer")
        started = [
            site.start(f"worker-{number}", python, site.folder / "manage.py", "runworker")
            for number in range(workers)
        ]
        for worker in started:
            worker.wait_for_output("Listening on channels")
        server.wait_for_port(port)
        yield port, site


async def ask(port: int, clients: int, seconds: float) -> list[float]:
    """Seconds that each request took. Each client asks again when it has its answer."""
    taken: list[float] = []
    request = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    end = time.perf_counter() + seconds

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            while (start := time.perf_counter()) < end:
                writer.write(request)
                answer = await reader.readuntil(b"hello")
                if not answer.startswith(b"HTTP/1.1 200"):
                    raise AssertionError(f"the site answered {answer!r}")
                taken.append(time.perf_counter() - start)
        finally:
            writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return taken


def http(run: Run, one: Contender, workers: int) -> list[Row]:
    """The rows of one layer."""
    seconds, rows = run.effort(0.2, 1.0, 3.0), []
    with channels_1(one, workers) as (port, site):
        asyncio.run(ask(port, 1, seconds / 4))
        for clients in (1, CLIENTS):
            before = spent(site.pids)
            taken = asyncio.run(ask(port, clients, seconds))
            cpu = (spent(site.pids) - before) / len(taken) * 1e6
            row: Row = {"layer": one.name, "clients": clients, "rate": len(taken) / seconds}
            row["cpu"] = cpu
            rows.append({**row, **percentiles(taken)})
    return rows


# -- Channels 4 -----------------------------------------------------------------------------------

CHANNELS_4 = {
    "asgi_ipc-asyncio": "asgi_ipc.aio.IPCChannelLayer",
    "channels_redis": "channels_redis.core.RedisChannelLayer",
    "channels_redis-pubsub": "channels_redis.pubsub.RedisPubSubChannelLayer",
}


@contextmanager
def channels_4(one: Contender) -> Iterator[tuple[list[int], Site]]:
    """The ports of the running servers, and their processes."""
    with ExitStack() as stack:
        site = Site(one, "channels4", CHANNELS_4[one.name], stack)
        ports = [processes.free_port() for _ in range(SERVERS)]
        daphne = [sys.executable, "-m", "daphne", "room:application", "-b", "127.0.0.1", "-p"]
        servers = [site.start(f"{port}", *daphne, str(port)) for port in ports]
        for server, port in zip(servers, ports):
            server.wait_for_port(port)
        yield ports, site


async def heard(sockets: list[ClientConnection], what: str) -> None:
    for socket in sockets:
        while await socket.recv() != what:
            pass


async def talk(
    ports: list[int], sockets: int, seconds: float, pids: list[int]
) -> tuple[list[float], float]:
    """Seconds until all have heard what one of them said, one after another; and those of CPU that
    the processes spent for each of these rounds."""
    import websockets

    taken: list[float] = []
    before = 0.0
    async with AsyncExitStack() as stack:
        everybody = [
            await stack.enter_async_context(
                websockets.connect(
                    f"ws://127.0.0.1:{ports[number % len(ports)]}/", proxy=None, compression=None
                )
            )
            for number in range(sockets)
        ]
        end, number = time.perf_counter() + seconds, 0
        while (start := time.perf_counter()) < end or not taken:
            await everybody[number % sockets].send(f"{number}")
            await asyncio.wait_for(heard(everybody, f"{number}"), ROUND_WITHIN)
            if number:
                taken.append(time.perf_counter() - start)
            else:
                before = spent(pids)
            number += 1
        cpu = (spent(pids) - before) / len(taken)
    return taken, cpu


def websocket(run: Run, one: Contender, sockets: int) -> Row:
    """The row of one layer."""
    with channels_4(one) as (ports, site):
        seconds = run.effort(0.2, 1.0, 4.0)
        taken, cpu = asyncio.run(talk(ports, sockets, seconds, site.pids))
    row = {"layer": one.name, "rate": sockets / statistics.mean(taken), "cpu": cpu / sockets * 1e6}
    return {**row, **percentiles(taken)}


def servers(run: Run) -> Iterator[Table]:
    """HTTP through daphne and workers, WebSockets through Channels 4"""
    workers = run.effort(1, WORKERS, WORKERS)
    entrants = [one for one in run.contenders if one.name in CHANNELS_1]
    note = f"{CLIENTS} clients ask at the same time, or one alone. daphne polls {POLLED}"
    try:
        environments.build("channels1")
    except LookupError as error:
        entrants, note = [], f"left out: {error}"
    yield Table(
        "http",
        f"HTTP: a site of Channels 1, daphne and {workers} workers, requests",
        (COLUMNS[0], Column("clients", "clients", "d"), *COLUMNS[1:]),
        [
            row
            for one in entrants
            for rows in run.attempt(one.name, http, run, one, workers)
            for row in rows
        ],
        note,
    )

    entrants = [one for one in run.contenders if one.name in CHANNELS_4]
    sockets = SERVERS * run.effort(1, SOCKETS, SOCKETS)
    note = f"{sockets} sockets; p50 and p99: until the last of them has the message"
    lacking = [one for one in ("daphne", "websockets", "channels") if find_spec(one) is None]
    if lacking:
        entrants, note = [], f"left out, not installed: {', '.join(lacking)}"
    yield Table(
        "websocket",
        f"WebSockets: a room on Channels 4, {SERVERS} servers, messages delivered",
        COLUMNS,
        [row for one in entrants for row in run.attempt(one.name, websocket, run, one, sockets)],
        note,
    )
