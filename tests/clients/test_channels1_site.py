"""A site of the time of Channels 1: real daphne 1.4.2, two real workers, real browsers' traffic.

The layer is configured as most sites had it: by its prefix alone, so with a capacity of 100.
"""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
import os
import random
import re
import signal
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from tests import environments, processes
from tests.clients.channels1_site.content import large_content
from tests.waiting import LIVENESS, until

websockets = pytest.importorskip("websockets", reason="lacking: websockets 15 or later")

SITE = Path(__file__).parent / "channels1_site"


class Answer(NamedTuple):
    status: int
    content: bytes
    worker: int


class Site:
    """Where the running site is, and a client for it that keeps nothing between requests."""

    def __init__(self, port: int, workers: list[processes.Process]) -> None:
        self.port = port
        self.workers = workers

    def request(self, path: str, body: bytes | None = None) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIVENESS)
        try:
            connection.request("GET" if body is None else "POST", path, body)
            response = connection.getresponse()
            content = response.read()
            return Answer(response.status, content, int(response.getheader("X-Worker", "0")))
        finally:
            connection.close()

    def echo(self, word: str) -> Answer:
        """A request whose answer has to belong to it."""
        answer = self.request(f"/echo/{word}")
        assert (answer.status, answer.content) == (200, f"you said {word}".encode())
        return answer

    def members(self, room: str) -> int:
        told = json.loads(self.request(f"/members/{room}").content)
        assert told["count"] == told["different"], told
        return int(told["count"])


@contextmanager
def running_site(
    python: Path,
    prefix: str,
    folder: Path,
    *server_options: str,
    settings: str = "tests.clients.channels1_site.settings",
    **variables: str,
) -> Iterator[Site]:
    """The site, up and answering: a daphne and two workers, which log to `folder`."""
    environment = environments.child_environment(
        SITE_PREFIX=prefix, DJANGO_SETTINGS_MODULE=settings, **variables
    )
    port = processes.free_port()
    with ExitStack() as stack:

        def start(name: str, *arguments: object) -> processes.Process:
            command = [python, *map(str, arguments)]
            log = folder / f"{name}.log"
            return stack.enter_context(
                processes.running(command, log=log, environment=environment, folder=folder)
            )

        server = start(
            *("daphne", python.with_name("daphne"), "--bind", "127.0.0.1", "--port", port),
            *server_options,
            "tests.clients.channels1_site.asgi:channel_layer",
        )
        workers = [
            start(f"worker-{number}", SITE / "manage.py", "runworker") for number in range(2)
        ]
        for worker in workers:
            worker.wait_for_output("Listening on channels")
        server.wait_for_port(port)
        site = Site(port, workers)
        site.echo("ready")
        yield site
        for process in (server, *site.workers):
            assert process.alive(), process.describe()
            assert not re.search("error|traceback", process.output(), re.I), process.describe()


@pytest.fixture
def site(request: pytest.FixtureRequest, prefix: str, tmp_path: Path) -> Iterator[Site]:
    """The site. A parameter of a test is one more option for daphne."""
    python = environments.environment("channels1")
    with running_site(python, prefix, tmp_path, *getattr(request, "param", ())) as site:
        yield site


@pytest.fixture(scope="module")
def shared_site(module_prefix: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The site, for all tests that end none of its processes."""
    python = environments.environment("channels1")
    with running_site(python, module_prefix, tmp_path_factory.mktemp("site")) as site:
        yield site


def test_requests_one_after_another(shared_site: Site) -> None:
    taken = []
    for number in range(50):
        began = time.perf_counter()
        shared_site.echo(f"serial{number}")
        taken.append(time.perf_counter() - began)
    print(f"median of 50 serial requests: {statistics.median(taken) * 1000:.2f} ms")


@pytest.mark.parametrize(("number", "at_once"), [(300, 8), (50, 50)])
def test_requests_at_once(shared_site: Site, number: int, at_once: int) -> None:
    with ThreadPoolExecutor(at_once) as pool:
        answers = list(pool.map(shared_site.echo, (f"parallel{n}" for n in range(number))))
    assert len(answers) == number


def test_both_workers_answer(shared_site: Site) -> None:
    seen: set[int] = set()
    with ThreadPoolExecutor(8) as pool:

        def both_seen() -> bool:
            answers = pool.map(shared_site.echo, (f"who{n}" for n in range(16)))
            seen.update(answer.worker for answer in answers)
            return seen == {worker.pid for worker in shared_site.workers}

        until(both_seen, what="an answer from each of the workers", pause=0)


def test_large_response(shared_site: Site) -> None:
    answer = shared_site.request("/large")
    assert answer.status == 200
    assert answer.content == large_content()


def test_upload(shared_site: Site) -> None:
    body = random.Random(7).randbytes(700_000)
    answer = shared_site.request("/upload", body)
    assert answer.status == 200
    assert json.loads(answer.content) == {
        "length": len(body),
        "sha256": hashlib.sha256(body).hexdigest(),
    }


def test_chat(shared_site: Site) -> None:
    """20 clients, 5 messages each: 2,000 arrive, none twice; and who has gone is no member."""
    asyncio.run(chat(shared_site, clients=20, messages=5))
    until(lambda: shared_site.members("lobby") == 0, what="an empty group")


@pytest.mark.parametrize("site", [["--force-sync"]], ids=["force-sync"], indirect=True)
def test_a_server_that_polls(site: Site) -> None:
    """daphne without its Twisted mode: it asks the blocking way, and never waits."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(site.echo, (f"polled{n}" for n in range(50))))
    asyncio.run(chat(site, clients=4, messages=5))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_a_waiting_worker_ends_and_the_other_goes_on(site: Site, number: signal.Signals) -> None:
    worker = site.workers.pop()
    os.kill(worker.pid, number)
    # Channels' handler of SIGTERM raises, out of the receive that the worker waits in.
    assert worker.wait_for_end() == (0 if number is signal.SIGTERM else -number)
    for n in range(20):
        assert site.echo(f"left{n}").worker == site.workers[0].pid


async def chat(site: Site, clients: int, messages: int) -> None:
    address = f"ws://127.0.0.1:{site.port}/chat/lobby"
    async with AsyncExitStack() as stack:
        # One after another is enough: what is tested is that all of them talk at once.
        sockets = [
            await stack.enter_async_context(websockets.connect(address, proxy=None))
            for _ in range(clients)
        ]
        assert await asyncio.to_thread(site.members, "lobby") == clients

        everybody = range(clients)
        said = sorted(f"{client}:{number}" for client in everybody for number in range(messages))

        async def speak(client: int) -> None:
            for number in range(messages):
                await sockets[client].send(f"{client}:{number}")

        async def listen(client: int) -> list[str]:
            """As many messages as were said by all."""
            return [await asyncio.wait_for(sockets[client].recv(), LIVENESS) for _ in said]

        heard, _ = await asyncio.gather(
            asyncio.gather(*map(listen, everybody)), asyncio.gather(*map(speak, everybody))
        )
        # A message that came twice would stand before this one.
        await sockets[0].send("the end")
        last = [await asyncio.wait_for(socket.recv(), LIVENESS) for socket in sockets]

    assert last == ["the end"] * clients
    assert [sorted(words) for words in heard] == [said] * clients
    print(f"{sum(map(len, heard))} of {clients * clients * messages} messages delivered")
