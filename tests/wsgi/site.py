"""A running site: a real WSGI server in front, and four workers behind."""

from __future__ import annotations

import http.client
import importlib.util
import itertools
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests import environments, processes
from tests.waiting import LIVENESS

SITES = Path(__file__).parent / "sites"
MODULES = "tests.wsgi.sites"
WORKERS = 4

# Where a test was interrupted, its request is never over: the server must not wait for it for long.
GUNICORN = ("gunicorn", "--bind", "127.0.0.1:{port}", "--graceful-timeout", "2")
# How each server is told where to listen, and how many threads it may use.
SERVERS = {
    "gunicorn-sync": (*GUNICORN, "--workers", "4"),
    "gunicorn-threads": (*GUNICORN, "--workers", "2", "--threads", "8", "--preload"),
    "waitress": ("waitress", "--listen", "127.0.0.1:{port}", "--threads", "8"),
}
FRAMEWORKS = {"flask": "flask_site", "django": "django_site"}


class Answer(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    content: bytes


class Site:
    """A running site, and a client for it."""

    def __init__(
        self, port: int, server: processes.Process, start_worker: Callable[[], processes.Process]
    ) -> None:
        self.port = port
        self.server = server
        self.start_worker = start_worker
        self.workers = [start_worker() for _ in range(WORKERS)]

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIVENESS)

    def ask(self, path: str, method: str = "GET") -> Answer:
        connection = self.connect()
        try:
            connection.request(method, path)
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()

    def all_pids(self) -> list[int]:
        """Return the pids of the server, its children, and the workers."""
        children = Path(f"/proc/{self.server.pid}/task/{self.server.pid}/children")
        found = [self.server.pid, *map(int, children.read_text().split())]
        return found + [worker.pid for worker in self.workers]

    def peak(self) -> int:
        """Return the most memory that any of its processes ever had, in bytes."""
        status = (Path(f"/proc/{pid}/status").read_text() for pid in self.all_pids())
        return max(int(re.findall(r"VmHWM:\s+(\d+) kB", text)[0]) << 10 for text in status)

    def load(self, requests: int) -> str:
        """Return what wrk, with eight connections, prints about at least `requests` requests."""
        threads = 8
        wrk = subprocess.Popen(
            [
                *("wrk", "--threads", str(threads), "--connections", str(threads)),
                *("--duration", f"{10 * LIVENESS:.0f}s"),
                *("--timeout", f"{LIVENESS:.0f}s", "--script", SITES / "check.lua"),
                *(f"http://127.0.0.1:{self.port}", "--", str(-(-requests // threads))),
            ],
            stdout=subprocess.PIPE,
            text=True,
        )
        with wrk:
            assert wrk.stdout is not None
            have_enough = 0
            while have_enough < threads and (line := wrk.stdout.readline()):
                have_enough += line == "ENOUGH\n"
            wrk.send_signal(signal.SIGINT)
            return wrk.stdout.read()


@contextmanager
def running(
    server: str, framework: str, prefix: str, folder: Path, timeout: float = 25
) -> Iterator[Site]:
    """Run a site; skip the test if something is lacking. At the end all processes have ended."""
    for module in (SERVERS[server][0], framework):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"lacking: {module}")
    port = processes.free_port()
    variables = environments.child_environment(
        SITE_PREFIX=prefix,
        SITE_TIMEOUT=str(timeout),
        HOME=str(folder),  # where gunicorn puts a socket
    )
    with ExitStack() as stack:

        def start(name: str, *arguments: str) -> processes.Process:
            return stack.enter_context(
                processes.running(
                    [sys.executable, "-m", *arguments],
                    log=folder / f"{name}.log",
                    environment=variables,
                    folder=folder,
                )
            )

        module, *options = (option.format(port=port) for option in SERVERS[server])
        front = start("server", module, *options, f"{MODULES}.front:application")
        site = f"{MODULES}.{FRAMEWORKS[framework]}"
        numbers = itertools.count()

        def start_worker() -> processes.Process:
            name = f"worker-{next(numbers)}"
            return start(name, "asgi_ipc.wsgi", site, "--prefix", prefix)

        running = Site(port, front, start_worker)
        for worker in running.workers:
            worker.wait_for_output("is ready")
        front.wait_for_port(port)
        yield running


def needs_wrk() -> None:
    if shutil.which("wrk") is None:
        pytest.skip("lacking: wrk, a load generator (Debian: apt-get install wrk)")
