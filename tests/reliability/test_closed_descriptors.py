"""A program that closes all its descriptors, as to become a daemon: its own files then get their
numbers. The layer attaches again; it never writes into these files, reads from them or closes them.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from typing import Any

import pytest

import asgi_ipc
from asgi_ipc.conformance.base import MESSAGE

from ..environments import child_environment
from ..forks import on_linux
from ..waiting import LIVENESS

pytestmark = on_linux
LOCKS = ["mutex", "file"]

BEGIN = """
import asyncio, gc, os, sys, threading, time
import asgi_ipc, asgi_ipc.aio
from asgi_ipc.errors import IPCError

prefix, lock = sys.argv[1:]
MESSAGE = {"type": "after"}
FIRST, LAST = 3, 200
layer = asgi_ipc.IPCChannelLayer(prefix, lock=lock, receive_timeout=20)

def close_all():
    '''Close all descriptors, and have them taken by files and pipes that notice everything.'''
    global files, pipes, identities
    os.closerange(FIRST, 4096)
    files, pipes, identities = [], [], {}
    while max(files + [end for pipe in pipes for end in pipe], default=0) < LAST:
        file = os.memfd_create("foreign")
        os.write(file, b"foreign")
        files.append(file)
        pipes.append(os.pipe())
    for number in [*files, *(end for pipe in pipes for end in pipe)]:
        identities[number] = os.fstat(number).st_ino

def check():
    '''Nobody has touched them.'''
    for number, inode in identities.items():
        assert os.fstat(number).st_ino == inode, number
    for file in files:
        assert os.pread(file, 100, 0) == b"foreign" and os.lseek(file, 0, os.SEEK_CUR) == 7, file
    for reading, _ in pipes:
        os.set_blocking(reading, False)
        try:
            found = os.read(reading, 100)
        except BlockingIOError:
            found = b""
        assert found == b"", (reading, found)

def until(condition):
    over = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < over
        time.sleep(0.01)
"""


def run(prefix: str, lock: str, script: str) -> str:
    code = BEGIN + textwrap.dedent(script)
    done = subprocess.run(
        [sys.executable, "-c", code, prefix, lock],
        capture_output=True,
        text=True,
        timeout=LIVENESS,
        env=child_environment(),
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


@pytest.fixture(params=LOCKS)
def lock(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_calls_go_on_and_nothing_foreign_is_touched(prefix: str, lock: str) -> None:
    """With somebody waiting in another process, who is rung, and large messages, for which memory
    is reserved."""
    outside = asgi_ipc.IPCChannelLayer(prefix, lock=lock)
    outside.send("begin", MESSAGE)
    script = """
    layer.receive(["begin"])
    layer.receive(["mine!"])
    layer.group_add("g", "mine!x")
    layer.receive(["nothing"], block=True, timeout=0.01)  # makes a doorbell
    layer.send("c", MESSAGE)
    close_all()
    for number in range(30):
        for _ in range(3):
            layer.send("c", MESSAGE)
        try:
            layer.send("large", {"data": bytes(300_000)})
        except IPCError as error:  # in the middle of a call there is no way to begin again
            assert number == 0 and "closed the file descriptors" in str(error)
        layer.send_group("g", {"number": number})
        assert layer.receive(["mine!"], block=True) == ("mine!x", {"number": number})
        time.sleep(0.05)
    check()
    assert layer.group_channels("g") == ["mine!x"]
    print(layer._core.session.attachment.process)
    layer.close()
    del layer
    gc.collect()
    check()
    """
    run(prefix, lock, script)
    for _ in range(91):
        assert outside.receive(["c"]) == ("c", {"type": "after"})
    assert outside.receive(["c"]) == (None, None)


def test_a_thread_that_is_asleep_wakes_up_and_is_woken_again(prefix: str, lock: str) -> None:
    script = """
    found = []
    def wait():
        while len(found) < 3:
            got = layer.receive(["c", "mine!"], block=True, timeout=20)
            if got[0] is not None:
                found.append(got)
    thread = threading.Thread(target=wait)
    thread.start()
    layer.send("mine!1", MESSAGE)
    until(lambda: len(found) == 1)
    time.sleep(0.1)
    close_all()
    time.sleep(2.5)  # until it has looked after itself
    layer.send("mine!2", MESSAGE)
    layer.send("c", MESSAGE)
    thread.join(20)
    assert not thread.is_alive() and len(found) == 3, found
    check()
    """
    run(prefix, lock, script)


def test_a_loop_that_begins_after_it(prefix: str, lock: str) -> None:
    script = """
    waits = asgi_ipc.aio.IPCChannelLayer(prefix, lock=lock)
    async def exchange():
        for _ in range(3):
            waiting = asyncio.ensure_future(waits.receive("c"))
            await asyncio.sleep(0.01)
            await waits.send("c", MESSAGE)
            assert await asyncio.wait_for(waiting, 20) == MESSAGE
    asyncio.run(exchange())
    close_all()
    asyncio.run(exchange())
    time.sleep(1.1)  # until it is noticed
    asyncio.run(exchange())
    check()
    """
    run(prefix, lock, script)


def test_a_layer_that_is_dropped_before_it_notices(prefix: str, lock: str) -> None:
    script = """
    layer.receive(["nothing"], block=True, timeout=0.01)
    close_all()
    layer.close()
    del layer
    gc.collect()
    check()
    asgi_ipc.IPCChannelLayer(prefix, lock=lock).send("c", MESSAGE)
    check()
    """
    run(prefix, lock, script)
    outside: Any = asgi_ipc.IPCChannelLayer(prefix, lock=lock)
    assert outside.receive(["c"]) == ("c", {"type": "after"})


def test_a_layer_within_one_process(prefix: str, lock: str) -> None:
    """Its bells are pipes, by which somebody who sleeps is rung."""
    script = """
    from asgi_ipc.testing.sync import InProcessChannelLayer
    inside = InProcessChannelLayer(prefix, lock=lock)
    found = []
    def wait():
        for _ in range(2):
            found.append(inside.receive(["c"], block=True, timeout=20))
    thread = threading.Thread(target=wait)
    thread.start()
    until(lambda: inside._core.session and inside._core.session.attachment.bells.keys())
    time.sleep(0.1)
    close_all()
    for _ in range(2):
        inside.send("c", MESSAGE)
        time.sleep(0.1)
    thread.join(20)
    assert found == [("c", MESSAGE)] * 2
    check()
    """
    run(prefix, lock, script)


def test_others_that_live_are_not_taken_for_dead(prefix: str, lock: str) -> None:
    """A file that has the number of that of the byte locks says that nobody holds one."""
    outside = asgi_ipc.IPCChannelLayer(prefix, lock=lock)
    outside.receive(["mine!"])
    outside.send("mine!x", MESSAGE)
    script = """
    layer.send("c", MESSAGE)
    close_all()
    over = time.monotonic() + 2.5
    while time.monotonic() < over:
        layer.send("mine!y", MESSAGE)
        layer.receive(["d"], block=True, timeout=0.05)
    check()
    """
    run(prefix, lock, script)
    assert outside.receive(["mine!"]) == ("mine!x", MESSAGE)
    assert outside.receive(["mine!"]) == ("mine!y", {"type": "after"})
