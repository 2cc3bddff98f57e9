"""The tests of the example site, run as its developer would, while a server of the site runs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import environments, processes
from tests.waiting import LIVENESS

for module in ("channels", "daphne", "pytest_django", "xdist"):
    pytest.importorskip(module, reason=f"lacking: {module}")
client = pytest.importorskip("websockets.sync.client", reason="lacking: websockets 15 or later")

SITE = environments.REPOSITORY / "examples" / "chatsite"


class Browser:
    """Somebody in the lobby of the running site."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket

    def hears_only_itself(self, text: str) -> bool:
        self._socket.send(json.dumps({"text": text}))
        return bool(json.loads(self._socket.recv(timeout=LIVENESS)) == {"text": text})


@pytest.fixture
def variables(prefix: str, tmp_path: Path) -> dict[str, str]:
    return environments.child_environment(
        CHAT_PREFIX=prefix,
        CHAT_DATABASE=str(tmp_path / "chat.sqlite3"),
        PYTHONDONTWRITEBYTECODE="1",
    )


@pytest.fixture
def browser(variables: dict[str, str], tmp_path: Path) -> Iterator[Browser]:
    """A browser of a site on ``manage.py runserver``."""
    port = processes.free_port()
    command = [sys.executable, "-u", "manage.py", "runserver", "--noreload", f"127.0.0.1:{port}"]
    with processes.running(
        command, log=tmp_path / "site.log", environment=variables, folder=SITE
    ) as site:
        site.wait_for_port(port)
        with client.connect(f"ws://127.0.0.1:{port}/chat", proxy=None) as socket:
            yield Browser(socket)


@pytest.mark.parametrize(
    ("command", "result"),
    [
        (["manage.py", "test"], "Ran 4 tests"),
        (["manage.py", "test", "--parallel", "2", "--exclude-tag", "live"], "Ran 2 tests"),
        (["-m", "pytest", "-p", "no:cacheprovider"], "7 passed"),
        (["-m", "pytest", "-p", "no:cacheprovider", "-n", "2"], "7 passed"),
    ],
    ids=["manage.py test", "manage.py test --parallel", "pytest", "pytest -n"],
)
def test_its_tests_pass_and_do_not_disturb_the_site(
    command: list[str],
    result: str,
    browser: Browser,
    variables: dict[str, str],
    prefix: str,
    tmp_path: Path,
) -> None:
    assert browser.hears_only_itself("before")
    with processes.running(
        [sys.executable, *command], log=tmp_path / "tests.log", environment=variables, folder=SITE
    ) as tests:
        output = tests.wait()
    assert result in output
    assert browser.hears_only_itself("after")
    assert [name for name in os.listdir("/dev/shm") if prefix in name and ".test-" in name] == []


Django = Callable[..., processes.Process]


@pytest.fixture
def django(tmp_path: Path) -> Iterator[Django]:
    """Return a function that runs tests with our runner for Django, without a site."""
    with contextlib.ExitStack() as stack:

        def run(tests: str, *options: str) -> processes.Process:
            (tmp_path / "settings.py").write_text('SECRET_KEY = "of a test"\nDATABASES = {}\n')
            (tmp_path / "test_it.py").write_text(tests)
            command = ["-m", "django", "test", "--settings", "settings", *options]
            command += ["--testrunner", "asgi_ipc.testing.django.DiscoverRunner"]
            path = f"{environments.REPOSITORY}:{tmp_path}"
            return stack.enter_context(
                processes.running(
                    [sys.executable, *command],
                    log=tmp_path / "log",
                    environment=environments.child_environment(PYTHONPATH=path),
                    folder=tmp_path,
                )
            )

        yield run


def test_a_process_that_a_test_leaves_behind_is_a_failure(django: Django) -> None:
    """For Django's runner, too."""
    tests = django(LEAVES_A_PROCESS)
    assert tests.wait_for_end() == 1
    output = tests.output()
    assert "Ran 1 test" in output and "OK" in output
    assert re.search(r"left behind: .* process \d+ \(.*\) still uses it", output), output


def test_parallel_tests_do_not_meet(django: Django) -> None:
    """Both run at once: each waits until the other has sent, and receives only its own message."""
    assert "Ran 2 tests" in django(MEET, "--parallel", "2").wait()


LEAVES_A_PROCESS = """
import subprocess, sys
from django.test import SimpleTestCase

SOURCE = '''
from asgi_ipc import IPCChannelLayer
layer = IPCChannelLayer("left", receive_timeout=600)
layer.send("c", {})
print("ready", flush=True)
layer.receive(["nothing"], block=True)
'''

class Tests(SimpleTestCase):
    def test_it(self):
        command = [sys.executable, "-W", "ignore", "-c", SOURCE]
        child = subprocess.Popen(command, stdout=subprocess.PIPE)
        self.assertEqual(child.stdout.readline(), b"ready\\n")
"""


MEET = """
import os, time
from asgi_ipc import IPCChannelLayer
from django.test import SimpleTestCase

class One(SimpleTestCase):
    def test_it(self):
        me = type(self).__name__
        layer = IPCChannelLayer("meet")
        layer.send("c", {"of": me})
        open(me, "w").close()
        deadline = time.monotonic() + 60
        while not (os.path.exists("One") and os.path.exists("Other")):
            self.assertLess(time.monotonic(), deadline, "the other test does not run")
            time.sleep(0.01)
        self.assertEqual(layer.receive(["c"]), ("c", {"of": me}))
        self.assertEqual(layer.receive(["c"]), (None, None))

class Other(One):
    pass
"""
