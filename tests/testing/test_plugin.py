"""The pytest plugin, in separate pytest runs: a run disturbs nothing that runs beside it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest

from asgi_ipc import IPCChannelLayer
from tests import environments, processes

MESSAGE = {"text": "hello"}

Run = Callable[..., processes.Process]


@pytest.fixture
def run(tmp_path: Path, prefix: str) -> Iterator[Run]:
    """Return a function that runs pytest on some tests, which can use PREFIX and the layers."""
    head = f"""
        import asyncio, multiprocessing, os, subprocess, sys, time, unittest
        import pytest
        import asgi_ipc
        from asgi_ipc import IPCChannelLayer
        from asgi_ipc.aio import IPCChannelLayer as AsyncioLayer

        PREFIX = {prefix!r}
        MESSAGE = {MESSAGE!r}
        NOTHING = (None, None)
    """

    def run(tests: str, *options: str, code: int = 0, ini: str = "") -> processes.Process:
        (tmp_path / "pytest.ini").write_text(f"[pytest]\n{ini}\n", encoding="utf-8")
        source = textwrap.dedent(head) + textwrap.dedent(tests)
        (tmp_path / "test_it.py").write_text(source, encoding="utf-8")
        with processes.running(
            [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-p", "no:django"]
            + ["-W", "ignore", *options],
            log=tmp_path / "log",
            environment=environments.child_environment(PYTHONDONTWRITEBYTECODE="1"),
            folder=tmp_path,
        ) as process:
            assert process.wait_for_end() == code, process.describe()
        return process

    yield run
    left = [name for name in os.listdir("/dev/shm") if prefix in name and ".test-" in name]
    assert left == [], "a run left something in shared memory"


def test_pytest_finds_it_by_itself() -> None:
    found = [point for point in distribution("asgi_ipc").entry_points if point.group == "pytest11"]
    assert [(point.name, point.value) for point in found] == [
        ("asgi_ipc", "asgi_ipc.testing.plugin")
    ]


def test_a_run_does_not_meet_what_runs_beside_it(run: Run, prefix: str) -> None:
    site = IPCChannelLayer(prefix)
    site.send("c", {"of": "the site"})
    site.group_add("lobby", "browser")
    run(
        """
        layer = IPCChannelLayer(PREFIX)  # at import, as in many modules

        def test_it_cannot_be_received_from():
            assert layer.receive(["c"]) == NOTHING

        def test_it_cannot_be_sent_to():
            layer.send("d", MESSAGE)
            layer.send_group("lobby", MESSAGE)
            assert layer.receive(["d"]) == ("d", MESSAGE)

        def test_it_cannot_be_flushed_or_destroyed():
            layer.flush()
            asgi_ipc.segment.destroy(PREFIX)

        def test_the_layer_still_tells_its_prefix():
            assert layer.prefix == PREFIX

        class OldStyleTests(unittest.TestCase):
            def test_it_cannot_be_reached(self):
                self.assertEqual(layer.receive(["c"]), NOTHING)
        """
    )
    assert site.receive(["d", "browser"]) == (None, None)
    assert site.receive(["c"]) == ("c", {"of": "the site"})
    assert site.group_channels("lobby") == ["browser"]
    site.close()


def test_that_can_be_turned_off(run: Run, prefix: str) -> None:
    site = IPCChannelLayer(prefix)
    site.send("c", MESSAGE)
    output = run(
        """
        def test_it_meets_the_site():
            assert IPCChannelLayer(PREFIX).receive(["c"]) == ("c", MESSAGE)

        def test_but_not_with_the_fixtures(asgi_ipc_sync_layer):
            layer = IPCChannelLayer(PREFIX)
            layer.send("c", MESSAGE)
            asgi_ipc_sync_layer.send("c", MESSAGE)

        def test_which_leave_nothing_behind(asgi_ipc_sync_layer):
            assert asgi_ipc_sync_layer.receive(["c"]) == NOTHING
            assert IPCChannelLayer(PREFIX).receive(["c"]) == NOTHING
        """,
        ini="asgi_ipc_isolate = false",
    ).output()
    assert ".test-" not in output
    assert site.receive(["c"]) == (None, None)
    site.close()


def test_every_child_process_belongs_to_the_run(run: Run, prefix: str) -> None:
    """Even those of a forkserver that an earlier test started."""
    site = IPCChannelLayer(prefix)
    run(
        """
        def answer(prefix):
            layer = IPCChannelLayer(prefix, receive_timeout=60)
            channel, message = layer.receive(["question"], block=True)
            layer.send("answer", message)

        @pytest.mark.parametrize("again", [1, 2])
        @pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
        def test_multiprocessing(asgi_ipc_isolated, method, again):
            layer = IPCChannelLayer(PREFIX, receive_timeout=60)
            child = multiprocessing.get_context(method).Process(target=answer, args=(PREFIX,))
            child.start()
            layer.send("question", {"number": again})
            assert layer.receive(["answer"], block=True) == ("answer", {"number": again})
            child.join()

        def test_another_program(asgi_ipc_sync_layer):
            layer = asgi_ipc_sync_layer
            source = f"import test_it; test_it.answer({layer.prefix!r})"
            child = subprocess.Popen([sys.executable, "-c", source])
            layer.send("question", MESSAGE)
            assert layer.receive(["answer"], block=True) == ("answer", MESSAGE)
            assert child.wait() == 0
        """
    )
    assert site.receive(["question", "answer"]) == (None, None)
    site.close()


def test_the_fixtures_begin_anew_for_each_test(run: Run) -> None:
    run(
        """
        @pytest.mark.parametrize("again", [1, 2])
        def test_blocking(asgi_ipc_sync_layer, again):
            assert asgi_ipc_sync_layer.receive(["c"]) == NOTHING
            asgi_ipc_sync_layer.send("c", MESSAGE)
            asgi_ipc_sync_layer.group_add("g", "c")
            assert asgi_ipc_sync_layer.group_channels("g") == ["c"]

        @pytest.mark.parametrize("again", [1, 2])
        async def test_asyncio(asgi_ipc_layer, asgi_ipc_sync_layer, again):
            assert asgi_ipc_sync_layer.receive(["c"]) == NOTHING
            await asgi_ipc_layer.send("c", MESSAGE)
            assert asgi_ipc_sync_layer.receive(["c"]) == ("c", MESSAGE)
            await asgi_ipc_layer.send("c", MESSAGE)

        layer = AsyncioLayer(PREFIX)

        @pytest.mark.usefixtures("asgi_ipc_isolated")
        @pytest.mark.parametrize("again", [1, 2])
        async def test_a_layer_of_the_program(again):
            channel = await layer.new_channel()
            await layer.group_add("g", channel)
            await layer.group_send("g", MESSAGE)
            assert await layer.receive(channel) == MESSAGE
            assert await layer.group_channels("g") == [channel]

        @pytest.mark.usefixtures("asgi_ipc_isolated")
        class OldStyleTests(unittest.TestCase):
            def test_one(self):
                self.assertEqual(IPCChannelLayer(PREFIX).receive(["c"]), NOTHING)
                IPCChannelLayer(PREFIX).send("c", MESSAGE)

            test_two = test_one
        """,
        ini="asyncio_mode = auto",
    )


def test_asyncio_in_strict_mode_and_in_a_loop_of_the_session(run: Run) -> None:
    run(
        """
        @pytest.mark.asyncio(loop_scope="session")
        @pytest.mark.parametrize("again", [1, 2])
        async def test_it(asgi_ipc_layer, again):
            waiting = asyncio.ensure_future(asgi_ipc_layer.receive("c"))
            await asyncio.sleep(0)
            await asgi_ipc_layer.send("c", MESSAGE)
            assert await waiting == MESSAGE
        """,
        ini="asyncio_mode = strict",
    )


def test_what_a_test_leaves_behind_fails_it(run: Run) -> None:
    output = run(
        """
        STAYS = '''
        from asgi_ipc import IPCChannelLayer
        import sys
        layer = IPCChannelLayer(sys.argv[1], receive_timeout=600)
        print(layer.receive(["c"]), flush=True)
        layer.receive(["c"], block=True)
        '''

        def test_a_process(asgi_ipc_sync_layer):
            source = STAYS.replace("        ", "")
            command = [sys.executable, "-c", source, asgi_ipc_sync_layer.prefix]
            child = subprocess.Popen(command, stdout=subprocess.PIPE)
            child.stdout.readline()
            print("PID", child.pid, flush=True)

        @pytest.mark.asyncio(loop_scope="session")
        async def test_a_receive(asgi_ipc_layer):
            asyncio.ensure_future(asgi_ipc_layer.receive("c"))
            await asyncio.sleep(0)

        def test_nothing(asgi_ipc_sync_layer):
            asgi_ipc_sync_layer.send("c", MESSAGE)
        """,
        "-s",
        code=1,
    ).output()
    pid = re.search(r"PID (\d+)", output)
    assert pid is not None, output
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(pid[1]), signal.SIGKILL)
    assert re.search(rf"process {pid[1]} \(.*\) still uses it", output), output
    assert "1 receive(s) still wait in an event loop" in output
    assert re.findall(r"^ERROR \S+::(\w+)", output, re.MULTILINE) == [
        "test_a_process",
        "test_a_receive",
    ]
    assert "3 passed, 2 errors" in output


def test_what_a_run_leaves_behind_fails_it(run: Run) -> None:
    output = run(
        """
        def test_a_process_without_any_fixture():
            source = "from asgi_ipc import IPCChannelLayer as Layer;"
            source += f"layer = Layer({PREFIX!r}, receive_timeout=600);"
            source += "print(layer.receive(['c']), flush=True); layer.receive(['c'], block=True)"
            child = subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE)
            child.stdout.readline()
            print("PID", child.pid, flush=True)
        """,
        "-s",
        code=1,
    ).output()
    pid = re.search(r"PID (\d+)", output)
    assert pid is not None, output
    with contextlib.suppress(ProcessLookupError):
        os.kill(int(pid[1]), signal.SIGKILL)
    assert f"process {pid[1]} (" in output and "1 passed, 1 error" in output


def test_the_workers_of_xdist_are_apart(run: Run) -> None:
    """Both tests run at once: each waits until the other has sent, and gets its own message."""
    pytest.importorskip("xdist", reason="lacking: pytest-xdist")
    run(
        """
        @pytest.mark.parametrize("me", ["one", "other"])
        def test_it(me, asgi_ipc_isolated):
            layer = IPCChannelLayer(PREFIX)
            layer.send("c", {"of": me})
            open(me + ".sent", "w").close()
            deadline = time.monotonic() + 60
            while not (os.path.exists("one.sent") and os.path.exists("other.sent")):
                assert time.monotonic() < deadline, "the other test does not run"
                time.sleep(0.01)
            assert layer.receive(["c"]) == ("c", {"of": me})
            assert layer.receive(["c"]) == NOTHING
        """,
        *("-n", "2"),
    )


def test_a_run_inside_a_run_is_apart_from_it(run: Run) -> None:
    run(
        """
        def test_outer():
            IPCChannelLayer(PREFIX).send("c", MESSAGE)
            command = [sys.executable, "-m", "pytest", "-k", "inner", __file__]
            assert subprocess.run([*command, "-p", "no:cacheprovider"]).returncode == 0
            assert IPCChannelLayer(PREFIX).receive(["c"]) == ("c", MESSAGE)

        def test_inner():
            assert IPCChannelLayer(PREFIX).receive(["c"]) == NOTHING
        """
    )


def test_a_conftest_may_name_it(run: Run, tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["asgi_ipc.testing.plugin"]\n')
    run(
        """
        def test_it(asgi_ipc_sync_layer):
            assert ".test-" in os.environ["ASGI_IPC_PREFIX_SUFFIX"]
        """,
        *("-p", "no:asgi_ipc"),
    )


def test_the_suffix_is_gone_after_a_run_in_this_process(tmp_path: Path) -> None:
    """IDEs, and pytest's own tests of plugins, run it in this way."""
    source = """
import os, pytest
os.environ["ASGI_IPC_PREFIX_SUFFIX"] = ".mine"
class Look:
    def pytest_collection_finish(self):
        print("during", os.environ["ASGI_IPC_PREFIX_SUFFIX"])
pytest.main(["-q", "-s", "."], plugins=[Look()])
print("after", os.environ["ASGI_IPC_PREFIX_SUFFIX"])
"""
    done = subprocess.run(
        [sys.executable, "-c", source],
        cwd=tmp_path,
        env=environments.child_environment(),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert re.search(r"^during \.test-", done.stdout, re.MULTILINE), done.stdout
    assert "after .mine" in done.stdout
