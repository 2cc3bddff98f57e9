"""The blocking layer behind real WSGI servers, whatever they run requests in: processes, threads,
green threads, sub-interpreters. Each request asks a worker and waits for its own answer."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from asgi_ipc import IPCChannelLayer

from ..environments import REPOSITORY, child_environment, environment
from ..processes import free_port, running
from ..waiting import LIVENESS

PROGRAM = Path(__file__).parent / "programs" / "blocking_site.py"
ROUNDS = 6
PROCESSES = 2


@contextmanager
def answering(prefix: str, at_once: int) -> Iterator[IPCChannelLayer]:
    """Answer questions only when `at_once` of them wait, so that nobody is served alone."""
    layer = IPCChannelLayer(prefix, receive_timeout=LIVENESS)

    def work() -> None:
        for _ in range(ROUNDS):
            asked = [layer.receive(["questions"], block=True)[1] for _ in range(at_once)]
            for message in reversed(asked):
                if message is not None:
                    layer.send(message["reply"], {"to": message["reply"]})

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    yield layer
    worker.join(LIVENESS)
    assert not worker.is_alive()
    layer.close()


def ask(ports: list[str], at_once: int) -> list[str]:
    """The answers to `ROUNDS` times `at_once` requests, of which `at_once` run at any time."""

    def get(number: int) -> str:
        address = f"http://127.0.0.1:{ports[number % len(ports)]}"
        with urllib.request.urlopen(address, timeout=LIVENESS) as answer:
            return str(answer.read().decode())

    with ThreadPoolExecutor(at_once) as pool:
        answers: list[str] = []
        for _ in range(ROUNDS):
            answers += pool.map(get, range(at_once))
    return answers


def check(answers: list[str], layer: IPCChannelLayer) -> None:
    """Every request had a channel of its own, whose owner lives."""
    own = {answer.split()[1] for answer in answers}
    assert len(own) == len(answers)
    assert {f"{name}here" for name in own} == set(layer.group_channels("sites"))


# How many requests it runs at a time, however it shares them out among two processes.
GUNICORN = {
    "sync": (["-k", "sync"], 2),
    "gthread": (["-k", "gthread", "--threads", "6"], 6),
    "gevent": (["-k", "gevent"], 20),
    "eventlet": (["-k", "eventlet"], 20),
}


@pytest.mark.parametrize("preload", [[], ["--preload"]], ids=["", "preload"])
@pytest.mark.parametrize("kind", GUNICORN)
def test_every_request_gets_its_answer_from_gunicorn(
    kind: str, preload: list[str], prefix: str, tmp_path: Path
) -> None:
    arguments, at_once = GUNICORN[kind]
    port = free_port()
    command = [environment("loops"), "-m", "gunicorn", "--workers", str(PROCESSES), *arguments]
    command += [*preload, "--bind", f"127.0.0.1:{port}", "--chdir", str(PROGRAM.parent)]
    command += ["--timeout", "0", f"{PROGRAM.stem}:application"]
    variables = child_environment(PREFIX=prefix, PYTHONWARNINGS="ignore")
    with running(command, log=tmp_path / "log", environment=variables) as server:
        server.wait_for_port(port)
        with answering(prefix, at_once) as layer:
            answers = ask([str(port)], at_once)
            check(answers, layer)
        assert "Traceback" not in server.output(), server.output()


# In daemon mode: two processes, and in each the application three times, once in the interpreter of
# the process and twice in sub-interpreters.
MOD_WSGI = """
ServerRoot "{folder}"
ServerName 127.0.0.1
Listen 127.0.0.1:{port}
PidFile "{folder}/pid"
ErrorLog "{folder}/errors"
Mutex file:{folder}
LoadModule mpm_event_module {modules}/mod_mpm_event.so
LoadModule authz_core_module {modules}/mod_authz_core.so
LoadModule wsgi_module {module}
WSGISocketPrefix "{folder}/socket"
WSGIDaemonProcess site processes=2 threads=12 python-path={path}
WSGIProcessGroup site
WSGIScriptAlias /one "{program}" application-group=one
WSGIScriptAlias /two "{program}" application-group=two
WSGIScriptAlias /main "{program}" application-group=%{{GLOBAL}}
<Directory />
    Require all granted
</Directory>
"""


def test_every_interpreter_of_mod_wsgi_gets_its_answers(prefix: str, tmp_path: Path) -> None:
    apache = shutil.which("apache2", path=f"{os.environ['PATH']}:/usr/sbin")
    modules = Path("/usr/lib/apache2/modules")
    found = sorted(modules.glob("mod_wsgi.so-3.*"))
    if apache is None or not found:
        pytest.skip("lacking: mod_wsgi (Debian: apt-get install apache2 libapache2-mod-wsgi-py3)")
    python = environment("mod_wsgi")
    path = [REPOSITORY, *python.parent.parent.glob("lib/python3.*/site-packages")]
    if path[-1].parent.name != f"python{found[-1].name.rpartition('-')[2]}":
        pytest.skip(f"lacking: {path[-1].parent.name} in mod_wsgi, which has {found[-1].name}")
    port = free_port()
    configuration = tmp_path / "apache.conf"
    configuration.write_text(
        MOD_WSGI.format(
            folder=tmp_path,
            port=port,
            modules=modules,
            module=found[-1],
            path=":".join(map(str, path)),
            program=PROGRAM,
        ),
        encoding="utf-8",
    )
    command: list[str | Path] = [apache, "-f", configuration, "-D", "FOREGROUND"]
    if os.geteuid() == 0:  # as which Apache serves nobody: it is shown another number
        command = ["unshare", "--user", "--map-user=1000", "--map-group=1000", *command]
        if subprocess.run([*command[:4], "true"], check=False).returncode:
            pytest.skip("lacking: the right to make user namespaces")
    variables = {**os.environ, "PREFIX": prefix}
    with running(command, log=tmp_path / "log", environment=variables) as server:
        server.wait_for_port(port)
        with answering(prefix, at_once=6) as layer:
            answers = ask([f"{port}/{name}" for name in ("one", "two", "main")], 6)
            check(answers, layer)
        errors = (tmp_path / "errors").read_text(encoding="utf-8", errors="replace")
        assert "Traceback" not in errors, errors
