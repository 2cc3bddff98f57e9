"""Programs that run many things in one thread without asyncio: with gevent and eventlet, a blocking
receive lets the others run; with trio, the asyncio layer says what to use instead."""

from __future__ import annotations

import subprocess

import pytest

from ..environments import child_environment, environment
from ..waiting import LIVENESS

BEGIN = {
    "gevent": """
from gevent import monkey
monkey.patch_all()
from gevent import sleep, spawn
join = lambda one: one.get()
""",
    "eventlet": """
import warnings
warnings.simplefilter("ignore")
import eventlet
eventlet.monkey_patch()
from eventlet import sleep, spawn
join = lambda one: one.wait()
""",
}

# Five green threads wait, each on a channel of its own, while a sixth runs and then sends.
GREEN = """
import sys
from asgi_ipc import IPCChannelLayer

layer = IPCChannelLayer(sys.argv[1])
waiting = [0]

def receive(number):
    waiting[0] += 1
    channels = [f"c{number}", f"mine.{number}!"]
    return [layer.receive(channels, block=True, timeout=60) for _ in range(2)]

receivers = [spawn(receive, number) for number in range(5)]
while waiting[0] < 5:
    sleep(0)
for number in range(5):
    layer.send(f"c{number}", {"n": number})
    layer.send(f"mine.{number}!local", {"n": -number})
for number, one in enumerate(receivers):
    assert sorted(join(one)) == [
        (f"c{number}", {"n": number}), (f"mine.{number}!local", {"n": -number})
    ]
assert layer.receive(["none"], block=True, timeout=0.01) == (None, None)
layer.close()
print("done")
"""

# Green threads ring the same doorbells at once; one that is full must hold up nobody.
RINGING = """
import sys
from asgi_ipc import IPCChannelLayer
from asgi_ipc.segment.doorbell import ALL

layer = IPCChannelLayer(sys.argv[1])
channels, waiting = ["c0", "c1", "c2", "c3"], [0]

def receive():
    waiting[0] += 1
    return layer.receive(channels, block=True, timeout=60)[1]["n"]

for _ in range(3):
    waiting[0] = 0
    receivers = [spawn(receive) for _ in range(20)]
    while waiting[0] < 20:
        sleep(0)
    senders = [spawn(layer.send, f"c{n % 4}", {"n": n}) for n in range(20)]
    for one in senders:
        join(one)
    assert sorted(map(join, receivers)) == list(range(20))

receiver = spawn(receive)
sleep(0)
for bell in layer._core.attach().attachment.bells.keys():
    bell.answer()
    for _ in range(20_000):
        bell.ring(ALL)
layer.send("c0", {"n": 1})
assert join(receiver) == 1
layer.close()
print("done")
"""

TRIO = """
import sys
import trio
from asgi_ipc import IPCChannelLayer, errors
from asgi_ipc.aio import IPCChannelLayer as AsyncioLayer

async def main():
    layer, blocking = AsyncioLayer(sys.argv[1]), IPCChannelLayer(sys.argv[1])
    await layer.send("a", {"n": 1})
    waits = (
        lambda: layer.receive("none"),
        lambda: layer.receive_async(["none"], 1),
        lambda: blocking.receive_async(["none"]),
        layer.close,
    )
    for wait in waits:
        try:
            await wait()
        except errors.NoEventLoop as error:
            assert isinstance(error, RuntimeError) and "asyncio" in str(error), error
            assert "trio.to_thread.run_sync" in str(error)
        else:
            raise AssertionError("it waited")
    found = await trio.to_thread.run_sync(lambda: blocking.receive(["a"], block=True))
    assert found == ("a", {"n": 1})
    blocking.close()

trio.run(main)
print("done")
"""


def run(source: str, prefix: str) -> str:
    done = subprocess.run(
        [environment("loops"), "-c", source, prefix],
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=LIVENESS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("library", BEGIN)
def test_a_blocking_receive_lets_other_green_threads_run(library: str, prefix: str) -> None:
    assert run(BEGIN[library] + GREEN, prefix) == "done\n"


@pytest.mark.parametrize("library", BEGIN)
def test_green_threads_ring_at_once(library: str, prefix: str) -> None:
    assert run(BEGIN[library] + RINGING, prefix) == "done\n"


def test_trio_is_told_what_to_use(prefix: str) -> None:
    assert run(TRIO, prefix) == "done\n"
