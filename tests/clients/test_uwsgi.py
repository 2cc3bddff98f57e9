"""uWSGI, which forks its workers in C: Python's fork handlers do not run there."""

from __future__ import annotations

import shutil
import sys
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from asgi_ipc import IPCChannelLayer

from ..environments import child_environment
from ..processes import free_port, running
from ..waiting import LIVENESS

PROGRAM = Path(__file__).parent / "programs" / "uwsgi_site.py"
REQUESTS = 60


@pytest.mark.parametrize("lock", ["mutex", "file"])
@pytest.mark.parametrize("options", [[], ["--lazy-apps"], ["--enable-threads"]], ids=" ".join)
def test_every_worker_gets_its_own_answers(
    prefix: str, tmp_path: Path, options: list[str], lock: str
) -> None:
    uwsgi = shutil.which("uwsgi") or shutil.which("uwsgi", path=str(Path(sys.executable).parent))
    if uwsgi is None:
        pytest.skip("lacking: uwsgi (pip installs it where there is a C compiler)")
    port = free_port()
    command = [uwsgi, "--http-socket", f"127.0.0.1:{port}", "--wsgi-file", PROGRAM, "--master"]
    command += ["--processes", "3", "--die-on-term", "--virtualenv", sys.prefix, *options]
    layer = IPCChannelLayer(prefix, lock=lock, receive_timeout=LIVENESS)

    def work() -> None:
        for _ in range(REQUESTS):
            message = layer.receive(["questions"], block=True)[1]
            if message is not None:
                layer.send(message["reply"], {"to": message["reply"]})

    def ask(number: int) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=LIVENESS) as answer:
            return str(answer.read().decode())

    environment = child_environment(PREFIX=prefix, LOCK=lock)
    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    with running(command, log=tmp_path / "log", environment=environment) as server:
        server.wait_for_port(port)
        with ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(ask, range(REQUESTS)))
        workers = {answer.split()[0] for answer in answers}
        assert len(set(answers)) == len(workers) <= 3, answers
        # Members of the group that live: the sockets of the requests, each in its worker's queue.
        queues = {name.partition("!")[0] for name in layer.group_channels("sites")}
        assert len(queues) == len(workers)
    worker.join(LIVENESS)
    layer.close()
