"""Channels 1 on several machines: asgi_redis 1.4.3 uses this package in place of asgi_ipc 1.4.

It is installed from the package registry beside this package, with redis-py 2.10.6, on Python 3.9.
"""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests import environments, processes
from tests.clients.test_channels1_site import chat, running_site

from ..waiting import until
from .servers import Server

SUITE = Path(__file__).parent / "programs" / "conformance.py"
ALL_PASS = {"run": 18, "failed": [], "skipped": []}


def conformance(tmp_path: Path, environment: str, *arguments: str) -> object:
    with processes.running(
        [environments.environment(environment), SUITE, *arguments],
        log=tmp_path / "suite.log",
        environment=environments.child_environment(),
        folder=tmp_path,
    ) as suite:
        return json.loads(suite.wait().splitlines()[-1])


def test_the_conformance_suite_on_asgi_redis(prefix: str, server: Server, tmp_path: Path) -> None:
    """Its RedisLocalChannelLayer uses our layer for local messages; it drops the colon."""
    assert (
        conformance(tmp_path, "asgi_redis-local", "asgi_redis", f"{prefix}:", server.url)
        == ALL_PASS
    )


def test_the_conformance_suite_on_our_twin(prefix: str, tmp_path: Path) -> None:
    """The remote layer may be any layer for Channels 4, even that of this package."""
    from asgi_ipc import segment

    other = f"{prefix}-remote"
    try:
        assert conformance(tmp_path, "asgiref1-oldest", "twin", prefix, other) == ALL_PASS
    finally:
        segment.destroy(other)


def test_the_site_on_asgi_redis(prefix: str, server: Server, tmp_path: Path) -> None:
    """daphne and two workers: requests, a chat of 2,000 messages, and an upload in parts."""
    with running_site(
        environments.environment("asgi_redis-local"),
        prefix,
        tmp_path,
        settings="tests.machines.asgi_redis_settings",
        SITE_REDIS=server.url,
    ) as site:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(site.echo, (f"parallel{n}" for n in range(100))))
        assert json.loads(site.request("/upload", bytes(700_000)).content)["length"] == 700_000
        asyncio.run(chat(site, clients=20, messages=5))
        until(lambda: site.members("lobby") == 0, what="an empty group")
        # Requests went through shared memory: the server does not know that channel.
        assert "cmdstat_" in server.ask("INFO", "commandstats")
        assert "http.request\r\n" not in server.ask("KEYS", f"{prefix}:*")
