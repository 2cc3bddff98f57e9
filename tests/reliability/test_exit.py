"""The end of an interpreter: a process leaves its layers. Code that runs after that, in a handler
or a daemon thread, attaches again or is told so. Nothing of it is called damage."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

import asgi_ipc
from asgi_ipc.conformance.base import MESSAGE
from asgi_ipc.inspection.locked import complaints
from asgi_ipc.inspection.view import View

from ..environments import child_environment
from ..waiting import LIVENESS

KINDS = ["blocking", "asyncio"]

# A layer of either kind, and calls that do the same for both.
BEGIN = """
import asyncio, atexit, os, sys, threading, time
import asgi_ipc, asgi_ipc.aio
from asgi_ipc.errors import CorruptStore, IPCError, SegmentError

prefix, kind = sys.argv[1:]
MESSAGE = {"type": "after"}

def new_layer():
    return (asgi_ipc if kind == "blocking" else asgi_ipc.aio).IPCChannelLayer(prefix)

def do(result):
    return result if kind == "blocking" else asyncio.run(result)

layer = new_layer()
"""


def run(prefix: str, kind: str, script: str, begin: str = "") -> str:
    """Run a script to its end, which must be a quiet one. Returns what it printed.

    `begin` comes first: what it registers with `atexit` runs after the package's own handler."""
    code = textwrap.dedent(begin) + BEGIN + textwrap.dedent(script)
    done = subprocess.run(
        [sys.executable, "-c", code, prefix, kind],
        capture_output=True,
        text=True,
        timeout=LIVENESS,
        env=child_environment(),
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def received(prefix: str, channel: str) -> int:
    """How many messages of a channel are left; each must be whole."""
    layer, found = asgi_ipc.IPCChannelLayer(prefix), 0
    while layer.receive([channel])[0] is not None:
        found += 1
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_handler_that_runs_after_the_process_left_attaches_again(prefix: str, kind: str) -> None:
    script = """
    def handler():
        do(layer.send("c", MESSAGE))
        do(layer.group_add("g", "c"))
        print(do(layer.group_channels("g")))
    atexit.register(handler)  # this one runs before
    do(layer.send("c", MESSAGE))
    """
    begin = "import atexit\natexit.register(lambda: handler())"
    assert run(prefix, kind, script, begin) == "['c']\n['c']\n"
    assert received(prefix, "c") == 3


def test_handlers_that_run_after_it_exchange_messages(prefix: str) -> None:
    script = """
    def send():
        layer.send("c", MESSAGE)
    def receive():
        print(layer.receive(["c"], block=True, timeout=1), new_layer().receive(["c"]))
    layer.receive(["c"])
    """
    begin = """
    import atexit
    atexit.register(lambda: receive())
    atexit.register(lambda: send())
    """
    said = run(prefix, "blocking", script, begin)
    assert said == "('c', {'type': 'after'}) (None, None)\n"


@pytest.mark.parametrize("kind", KINDS)
def test_daemon_threads_that_go_on_are_told_or_attach_again(prefix: str, kind: str) -> None:
    """They call while the process leaves, and after that. Each receives once for each message that
    it sends, so there is one for it: none waits, and the channel does not fill."""
    script = """
    seen = set()
    def keep_on():
        async def loop():
            while True:
                await step(layer.send("c", MESSAGE))
                await step(layer.receive_async(["c"], timeout=20))
        async def step(call):
            try:
                await call
            except BaseException as error:
                note(error)
        while kind == "blocking":
            try:
                layer.send("c", MESSAGE)
                layer.receive(["c"], block=True, timeout=20)
            except BaseException as error:
                note(error)
        asyncio.run(loop())
    def note(error):
        seen.add(type(error).__name__ + ": " + str(error))
    def last():
        time.sleep(0.2)
        print("\\n".join(sorted(seen)))
    for _ in range(4):
        threading.Thread(target=keep_on, daemon=True).start()
    time.sleep(0.2)
    """
    begin = "import atexit\natexit.register(lambda: last())"
    for _ in range(3):
        for line in filter(None, run(prefix, kind, script, begin).splitlines()):
            assert line.startswith("SegmentError: this process has left the segment"), line
        assert received(prefix, "c") < 50  # recovers, if the process ended in a change
        asgi_ipc.IPCChannelLayer(prefix).send("c", MESSAGE)
        assert received(prefix, "c") == 1
        assert complaints(View(prefix), LIVENESS) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_daemon_thread_that_waits_is_told_within_a_second_or_so(prefix: str, kind: str) -> None:
    script = """
    def wait():
        try:
            if kind == "blocking":
                layer.receive(["quiet"], block=True, timeout=60)
            else:
                do(layer.receive("quiet"))
        except BaseException as error:
            print(type(error).__name__, error)
    threading.Thread(target=wait, daemon=True).start()
    time.sleep(0.3)
    """
    begin = "import atexit, time\natexit.register(lambda: time.sleep(1.7))"
    said = run(prefix, kind, script, begin)
    assert said.startswith("SegmentError this process has left the segment")


@pytest.mark.parametrize("kind", KINDS)
def test_os_exit_in_a_handler_is_a_death_like_any_other(prefix: str, kind: str) -> None:
    run(
        prefix,
        kind,
        """
        def handler():
            do(layer.send("c", MESSAGE))
            os._exit(0)
        atexit.register(handler)
        do(layer.send("c", MESSAGE))
        """,
    )
    assert received(prefix, "c") == 2


def test_a_sub_interpreter_leaves_at_its_end(prefix: str) -> None:
    pytest.importorskip(
        "_xxsubinterpreters", reason="lacking: sub-interpreters that can be made from Python"
    )
    inner = BEGIN.replace("sys.argv[1:]", "PREFIX, 'blocking'") + (
        "\natexit.register(layer.send, 'c', MESSAGE)\nlayer.send('c', MESSAGE)\n"
    )
    script = f"""
    import _xxsubinterpreters
    inner = {inner!r}
    one = _xxsubinterpreters.create()
    _xxsubinterpreters.run_string(one, inner.replace("PREFIX", repr(prefix)))
    _xxsubinterpreters.destroy(one)
    layer.send("c", MESSAGE)
    """
    run(prefix, "blocking", script)
    assert received(prefix, "c") == 3


def test_modules_that_are_taken_down_under_a_layer(prefix: str) -> None:
    """An interpreter that ends without its `atexit` handlers, as sub-interpreters of uWSGI do: the
    names of a module become None while objects of it are still to be finalized."""
    script = """
        import gc
        from asgi_ipc.testing.sync import InProcessChannelLayer

        layers = [layer, InProcessChannelLayer(prefix), asgi_ipc.IPCChannelLayer(prefix + "-2")]
        layers.append(InProcessChannelLayer(prefix + "-3", lock="file"))
        for one in layers:
            one.send("a", MESSAGE)
            assert one.receive(["a"], block=True) == ("a", MESSAGE)
            assert one.receive(["none", "mine!"], block=True, timeout=0.001) == (None, None)

        async def wait(one=asgi_ipc.aio.IPCChannelLayer(prefix)):
            try:
                await asyncio.wait_for(one.receive("none"), 0.001)
            except asyncio.TimeoutError:
                pass

        loop = asyncio.new_event_loop()
        loop.run_until_complete(wait())
        asgi_ipc.segment.destroy(prefix + "-2")
        atexit._clear()
        for name, module in list(sys.modules.items()):
            if name.split(".")[0] == "asgi_ipc":
                names = [one for one in vars(module) if not one.startswith("__")]
                for one in sorted(names, key=lambda one: not one.startswith("_")):
                    setattr(module, one, None)
        del layer, layers, one, wait
        gc.collect()
        loop.close()
        del loop
        gc.collect()
        print("done")
    """
    assert run(prefix, "blocking", script) == "done\n"


def test_a_subscription_that_is_read_after_it_says_what_happened(prefix: str) -> None:
    """The process left its groups, nothing was flushed, and the subscription joins again."""
    script = """
    import logging
    logging.basicConfig(stream=sys.stdout, format="%(message)s")
    events = layer.subscribe("news").__enter__()
    def read():
        try:
            events.get(timeout=0)
        except TimeoutError:
            layer.send_group("news", MESSAGE)
            print(events.get(timeout=20), events.gaps)
    """
    said = run(prefix, "blocking", script, "import atexit\natexit.register(lambda: read())")
    assert "this process had left the shared memory" in said
    assert said.endswith("{'type': 'after'} 1\n")
