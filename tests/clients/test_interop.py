"""A blocking program and an asyncio program on one prefix answer each other.

Once on the Python of the tests alone, and once with the worker on the oldest Python there is:
neither the version of Python nor that of msgpack may show in what is shared.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests import environments, processes

PROGRAMS = Path(__file__).parent / "programs"


@pytest.mark.parametrize("worker_python", ["this", "asgiref1-oldest"])
@pytest.mark.parametrize(
    ("worker", "client"),
    [
        ("blocking_worker.py", "asyncio_client.py"),
        ("asyncio_worker.py", "blocking_client.py"),
        ("blocking_worker.py", "blocking_client.py"),
        ("asyncio_worker.py", "asyncio_client.py"),
    ],
)
def test_answers(prefix: str, tmp_path: Path, worker: str, client: str, worker_python: str) -> None:
    this = Path(sys.executable)
    other = this if worker_python == "this" else environments.environment(worker_python)
    variables = environments.child_environment()
    with processes.running(
        [other, PROGRAMS / worker, prefix], log=tmp_path / "worker.log", environment=variables
    ) as answering:
        answering.wait_for_output("ready")
        with processes.running(
            [this, PROGRAMS / client, prefix], log=tmp_path / "client.log", environment=variables
        ) as asking:
            asking.wait()
        assert answering.wait() == "ready\n"
