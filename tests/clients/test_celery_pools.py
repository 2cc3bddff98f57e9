"""The blocking layer in each pool of Celery: tasks that ask a worker and wait for its answer."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from asgi_ipc import IPCChannelLayer

from ..environments import child_environment, environment
from ..machines.servers import Server, servers
from ..processes import running
from ..waiting import LIVENESS

PROGRAMS = Path(__file__).parent / "programs"
ROUNDS = 3
FULL = os.environ.get("ASGI_IPC_TEST_LENGTH") == "full"

# How many tasks run at a time.
POOLS = {"prefork": 2, "threads": 6, "solo": 1, "gevent": 20, "eventlet": 20}

CONFIGURATION = """
broker_url = "{url}"
worker_prefetch_multiplier = 1
"""


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with servers(tmp_path_factory.mktemp("redis")) as (server,):
        yield server


@pytest.mark.parametrize("pool", [pool for pool in POOLS if FULL or pool != "solo"])
def test_every_task_gets_its_answer(pool: str, broker: Server, prefix: str, tmp_path: Path) -> None:
    at_once = POOLS[pool]
    python = environment("loops")
    broker.ask("FLUSHALL")
    configuration = CONFIGURATION.format(url=broker.url)
    (tmp_path / "celery_config.py").write_text(configuration, encoding="utf-8")
    variables = child_environment(
        PREFIX=prefix, CELERY_CONFIG_MODULE="celery_config", PYTHONWARNINGS="ignore"
    )
    variables["PYTHONPATH"] += f":{PROGRAMS}:{tmp_path}"
    command = [python, "-m", "celery", "--app", "celery_asks", "worker", "--pool", pool]
    command += ["--concurrency", str(at_once), "--loglevel", "INFO", "--without-mingle"]
    layer = IPCChannelLayer(prefix, receive_timeout=LIVENESS)
    with running(command, log=tmp_path / "log", environment=variables, folder=tmp_path) as worker:
        worker.wait_for_output(" ready.")
        source = f"import celery_asks as t; [t.ask.delay(n) for n in range({ROUNDS * at_once})]"
        subprocess.run([python, "-c", source], env=variables, cwd=tmp_path, check=True)
        # Answered only when as many wait as may run, so that no task is alone.
        for _ in range(ROUNDS):
            asked = [layer.receive(["questions"], block=True)[1] for _ in range(at_once)]
            for message in reversed(asked):
                assert message is not None, worker.describe()
                layer.send(message["reply"], {"to": message["reply"]})
        answers = [layer.receive(["answers"], block=True)[1] for _ in range(ROUNDS * at_once)]
        assert "Traceback" not in worker.output(), worker.output()
    assert {answer["number"] for answer in answers if answer} == set(range(ROUNDS * at_once))
    assert len({answer["from"] for answer in answers if answer}) == len(answers)
    layer.close()
