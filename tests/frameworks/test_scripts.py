"""Sending without an event loop: from a script, and from the tasks of a real Celery worker."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from asgi_ipc.aio import IPCChannelLayer
from tests import environments, processes
from tests.waiting import LIVENESS

EXAMPLES = environments.REPOSITORY / "examples"
FULL = os.environ.get("ASGI_IPC_TEST_LENGTH") == "full"


async def heard_by(layer: IPCChannelLayer, channel: str) -> object:
    channels = [channel.partition("!")[0] + "!"]
    return (await layer.receive_async(channels, timeout=LIVENESS))[1]


async def test_a_script_reaches_connected_clients(prefix: str) -> None:
    browser = IPCChannelLayer(prefix)
    channel = await browser.new_channel()
    await browser.group_add("lobby", channel)
    subprocess.run(
        [sys.executable, EXAMPLES / "announce.py", "We", "close."],
        env=environments.child_environment(CHAT_PREFIX=prefix),
        check=True,
    )
    assert await heard_by(browser, channel) == {"type": "chat.message", "text": "We close."}
    await browser.close()


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"] if FULL else ["prefork", "threads"])
async def test_a_celery_task_reaches_connected_clients(
    pool: str, prefix: str, tmp_path: Path
) -> None:
    pytest.importorskip("celery", reason="lacking: Celery")
    (tmp_path / "broker").mkdir()
    # A folder is Celery's broker for one machine without a server.
    (tmp_path / "celery_config.py").write_text(
        f"""
broker_url = "filesystem://"
folder = {str(tmp_path / "broker")!r}
broker_transport_options = {{
    "data_folder_in": folder, "data_folder_out": folder, "control_folder": folder + "/control"
}}
"""
    )
    variables = environments.child_environment(
        CHAT_PREFIX=prefix,
        CELERY_CONFIG_MODULE="celery_config",
        PYTHONPATH=os.pathsep.join([str(environments.REPOSITORY), str(EXAMPLES), str(tmp_path)]),
    )
    browser = IPCChannelLayer(prefix)
    channel = await browser.new_channel()
    await browser.group_add("lobby", channel)
    # Before the worker starts: it may read a file of the broker that is not written yet.
    source = "import celery_tasks as t; [t.make_thumbnail.delay(number) for number in range(6)]"
    subprocess.run([sys.executable, "-c", source], env=variables, cwd=tmp_path, check=True)
    command = ["-m", "celery", "--app", "celery_tasks", "worker", "--pool", pool]
    with processes.running(
        [sys.executable, *command, "--concurrency", "2", "--loglevel", "INFO"],
        log=tmp_path / "worker.log",
        environment=variables,
        folder=tmp_path,
    ) as worker:
        texts = {(await heard_by(browser, channel))["text"] for _ in range(6)}  # type: ignore[index]
        assert texts == {f"Photo {number} is ready." for number in range(6)}
        assert "Traceback" not in worker.output()
    await browser.close()
