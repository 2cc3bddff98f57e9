"""The adapter with the workers of Channels 1, and our worker with daphne 1.4.2."""

from __future__ import annotations

import hashlib
import http.client
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests import environments, processes
from tests.clients.channels1_site.content import large_content
from tests.waiting import LIVENESS

from .sites.content import megabytes

SITE = environments.REPOSITORY / "tests" / "clients" / "channels1_site"
BODY = random.Random(7).randbytes(700_000)
CHECKSUM = hashlib.sha256(BODY).hexdigest()

Start = Callable[..., Any]


@pytest.fixture
def start(prefix: str, tmp_path: Path) -> Iterator[Start]:
    variables = environments.child_environment(
        SITE_PREFIX=prefix,
        SITE_TIMEOUT="25",
        DJANGO_SETTINGS_MODULE="tests.clients.channels1_site.settings",
    )
    with ExitStack() as stack:

        def start(name: str, *command: object) -> processes.Process:
            log = tmp_path / f"{name}.log"
            return stack.enter_context(
                processes.running(
                    list(map(str, command)), log=log, environment=variables, folder=tmp_path
                )
            )

        yield start


def ask(port: int, path: str, body: Any = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIVENESS)
    try:
        connection.request("GET" if body is None else "POST", path, body)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_a_wsgi_server_in_front_of_workers_of_channels_1(start: Start) -> None:
    pytest.importorskip("waitress", reason="lacking: waitress")
    python = environments.environment("channels1")
    port = processes.free_port()
    front = start(
        *("front", sys.executable, "-m", "waitress", "--listen", f"127.0.0.1:{port}"),
        "tests.wsgi.sites.front:application",
    )
    worker = start("worker", python, SITE / "manage.py", "runworker")
    worker.wait_for_output("Listening on channels")
    front.wait_for_port(port)
    for number in range(20):
        assert ask(port, f"/echo/w{number}") == (200, f"you said w{number}".encode())
    assert ask(port, "/large") == (200, large_content())
    status, told = ask(port, "/upload", BODY)
    assert status == 200 and CHECKSUM.encode() in told


def test_daphne_in_front_of_a_wsgi_application(start: Start, prefix: str) -> None:
    pytest.importorskip("flask", reason="lacking: Flask")
    python = environments.environment("channels1")
    port = processes.free_port()
    application = "tests.clients.channels1_site.asgi:channel_layer"
    front = start(
        *("front", python, python.with_name("daphne"), "--bind", "127.0.0.1", "--port", port),
        application,
    )
    site = "tests.wsgi.sites.flask_site"
    worker = start("worker", sys.executable, "-m", "asgi_ipc.wsgi", site, "--prefix", prefix)
    worker.wait_for_output("is ready")
    front.wait_for_port(port)
    for number in range(20):
        told = f"you said w{number} and no more"
        assert ask(port, f"/echo/w{number}") == (200, told.encode())
    assert ask(port, "/download/10") == (200, b"".join(megabytes(10)))
    assert ask(port, "/upload", BODY) == (200, CHECKSUM.encode())
    assert ask(port, "/fail")[0] == 500
