"""Real servers in front, and four workers with real frameworks behind them.

Each server and each framework: ordinary requests, many at once, large bodies both ways, and the
death of a worker. A server and a framework meet only over the layer, so that a short run takes each
server once, and not with each framework.
"""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from asgi_ipc import IPCChannelLayer, segment
from tests.waiting import LIVENESS, until

from .site import FRAMEWORKS, SERVERS, Site, needs_wrk, running
from .sites.content import megabytes

FULL = os.environ.get("ASGI_IPC_TEST_LENGTH") == "full"
ONE_OF_EACH = [
    ("gunicorn-sync", "flask"),
    ("gunicorn-threads", "django"),
    ("waitress", "flask"),
]
COMBINATIONS = [(server, framework) for server in SERVERS for framework in FRAMEWORKS]
# MiB of a large body: enough to show in the memory of a process that keeps it.
LARGE = 100 if FULL else 50
LEEWAY = 32 << 20  # bytes by which a process may grow while they pass through it


@pytest.fixture(scope="module", params=COMBINATIONS if FULL else ONE_OF_EACH, ids="-".join)
def pair(request: pytest.FixtureRequest) -> tuple[str, str]:
    found: tuple[str, str] = request.param
    return found


@pytest.fixture(scope="module")
def site(pair: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One site for all tests that do not change it."""
    prefix = f"t{os.getpid()}-{'-'.join(pair)}"
    try:
        with running(*pair, prefix, tmp_path_factory.mktemp("site")) as site:
            yield site
    finally:
        segment.destroy(prefix)


def test_ordinary_requests(site: Site) -> None:
    answer = site.ask("/echo/caf%C3%A9?also=%E2%82%AC")
    assert answer.status == 200
    assert answer.content.decode() == "you said caf\xe9 and \u20ac"
    cookies = answer.headers.get_all("Set-Cookie")
    assert cookies and [cookie.partition(";")[0] for cookie in cookies] == ["first=1", "second=2"]
    assert answer.headers["Content-Length"] == str(len(answer.content))
    assert int(answer.headers["X-Worker"]) in [worker.pid for worker in site.workers]
    assert site.ask("/nowhere").status == 404


def test_head(site: Site) -> None:
    connection = site.connect()
    for _ in range(2):  # twice: the second must not find what the first left
        connection.request("HEAD", "/echo/hello")
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (200, b"")
    connection.close()


def test_an_application_that_fails(site: Site) -> None:
    assert site.ask("/fail").status == 500


def test_many_requests_at_once_are_all_answered_right(site: Site) -> None:
    needs_wrk()
    requests = 10_000 if FULL else 500
    told = site.load(requests)
    print(told, site.server.output())  # if it fails
    assert "WRONG" not in told
    right, _, errors = told[told.index("RIGHT ") :].strip().removeprefix("RIGHT ").partition(" ")
    assert int(right) >= requests
    assert errors == "CONNECT 0 READ 0 WRITE 0 STATUS 0 TIMEOUT 0"


@pytest.mark.parametrize("chunked", [False, True], ids=["announced", "chunked"])
def test_a_large_upload(site: Site, chunked: bool) -> None:
    site.ask("/echo/warm-up")
    before = site.peak()
    digest = hashlib.sha256()

    def body() -> Iterator[bytes]:
        for block in megabytes(LARGE):
            digest.update(block)
            yield block

    connection = site.connect()
    headers = {} if chunked else {"Content-Length": str(LARGE << 20)}
    connection.request("POST", "/upload", body(), headers)
    answer = connection.getresponse()
    assert (answer.status, answer.read().decode()) == (200, digest.hexdigest())
    connection.close()
    assert site.peak() - before < LEEWAY


def test_a_large_download(site: Site) -> None:
    site.ask("/echo/warm-up")
    before = site.peak()
    connection = site.connect()
    connection.request("GET", f"/download/{LARGE}")
    answer = connection.getresponse()
    assert answer.status == 200
    for block in megabytes(LARGE):
        assert answer.read(len(block)) == block
    assert answer.read() == b""
    connection.close()
    assert site.peak() - before < LEEWAY


def test_a_client_that_goes_away_frees_the_worker(site: Site) -> None:
    """Each worker in turn has a response that is longer than a client waits for."""
    for _ in range(2 * len(site.workers)):
        connection = site.connect()
        connection.request("GET", f"/download/{LARGE}")
        assert connection.getresponse().read(1)
        connection.close()
    assert site.ask("/echo/hello").status == 200


def test_a_client_that_takes_its_time_holds_up_nobody(site: Site) -> None:
    slow = site.connect()
    slow.request("GET", f"/download/{LARGE}")
    answer = slow.getresponse()
    assert answer.read(1)
    for number in range(20):
        assert site.ask(f"/echo/{number}").status == 200
    assert len(answer.read()) == (LARGE << 20) - 1
    slow.close()


class Load:
    """Let threads ask as long as the block lasts, and count the answers by status. A wrong answer
    counts as the negative of its status."""

    def __init__(self, site: Site, threads: int) -> None:
        self.statuses: Counter[int] = Counter()
        self._site = site
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(threads)]

    def _ask(self) -> None:
        while not self._over.is_set():
            answer = self._site.ask("/echo/hello")
            wrong = answer.status == 200 and answer.content != b"you said hello and no more"
            self.statuses[-200 if wrong else answer.status] += 1

    def total(self) -> int:
        return sum(self.statuses.values())

    def wait_for(self, more: int) -> None:
        wanted = self.total() + more
        until(lambda: self.total() >= wanted, what=f"{more} more answers")

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(LIVENESS)
            assert not thread.is_alive()


@pytest.mark.parametrize("pair", ONE_OF_EACH, ids="-".join)
def test_a_killed_worker_loses_the_request_that_it_held(
    pair: tuple[str, str], prefix: str, tmp_path: Path
) -> None:
    held = tmp_path / "held"
    held.mkdir()
    lost = []
    with running(*pair, prefix, tmp_path, timeout=4) as site:
        victim = threading.Thread(target=lambda: lost.append(site.ask(f"/hold{held}").status))
        with Load(site, threads=3) as load:
            victim.start()
            until(lambda: list(held.iterdir()), what="a worker that holds a request")
            pid = int(next(held.iterdir()).name)
            assert pid in [worker.pid for worker in site.workers]
            os.kill(pid, signal.SIGKILL)
            load.wait_for(100)
        assert set(load.statuses) == {200}
        victim.join(LIVENESS)
        assert lost == [504]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda n: n.name)
def test_workers_that_are_replaced_under_load(
    prefix: str, tmp_path: Path, number: signal.Signals
) -> None:
    """SIGTERM loses nothing. SIGKILL loses the requests of the worker: with one thread, one."""
    times = 40 if FULL else 4  # each of the workers
    with running("gunicorn-threads", "flask", prefix, tmp_path, timeout=8) as site:
        with Load(site, threads=6) as load:
            for _ in range(times):
                load.wait_for(50)
                worker = site.workers.pop(0)
                worker.wait_for_output("is ready")
                os.kill(worker.pid, number)
                assert worker.wait_for_end() == (0 if number is signal.SIGTERM else -number)
                site.workers.append(site.start_worker())
            load.wait_for(50)
        print(f"{times} times {number.name}: {dict(load.statuses)}")
        assert load.statuses.keys() <= {200, 504}
        assert load.statuses[504] <= (0 if number is signal.SIGTERM else times)
        layer = IPCChannelLayer(prefix)
        assert layer.receive(["http.request"]) == (None, None)
        layer.close()
