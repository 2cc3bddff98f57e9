"""A living thread keeps the lock: `verify` beside traffic.

`verify` is not attached, so the processes of the layer do not know it. They must not take the lock
away from it, however long its copy takes, and must still find out that a holder died.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import mmap
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

import asgi_ipc
import asgi_ipc.aio
from asgi_ipc.conformance.base import MESSAGE
from asgi_ipc.inspection import locked
from asgi_ipc.inspection.view import View
from asgi_ipc.segment.lock import Mutex, robust_mutexes
from asgi_ipc.segment.paths import Paths
from asgi_ipc.store.layout import H_LOCK, PAGE, WORD

from ..forks import Line, child, children
from ..waiting import LIVENESS

pytestmark = pytest.mark.skipif(not robust_mutexes(), reason="lacking: robust mutexes")

SECONDS = 3.0  # of traffic
LONG = 0.05  # seconds that a copy takes: longer than an asyncio call waits in a row


async def chat(prefix: str, channel: str) -> int:
    layer = asgi_ipc.aio.IPCChannelLayer(prefix)
    over, count = time.monotonic() + SECONDS, 0
    while time.monotonic() < over:
        await layer.send(channel, {"number": count})
        assert await layer.receive(channel) == {"number": count}
        await layer.group_add("g", channel)
        count += 1
    await layer.close()
    return count


@contextlib.contextmanager
def traffic(prefix: str) -> Iterator[None]:
    def chatting(channel: str) -> Any:
        def run(line: Line) -> int:
            line.say()
            return asyncio.run(chat(prefix, channel))

        return run

    with children([chatting("one"), chatting("two")]) as processes:
        for process in processes:
            process.hear()
        yield
        for process in processes:
            assert process.hear() > 0


@pytest.mark.parametrize("duration", [0.0, LONG])
def test_verify_keeps_the_lock_beside_asyncio(
    prefix: str, monkeypatch: pytest.MonkeyPatch, duration: float
) -> None:
    """It never loses the lock, and never finds damage where there is none."""
    layer = asgi_ipc.IPCChannelLayer(prefix)
    layer.send("here", MESSAGE)
    copy, verify = locked._copy, locked.verify
    verified, kept = 0, []
    with open(Paths(prefix).file, "r+b") as file:
        lock = Mutex(mmap.mmap(file.fileno(), PAGE), H_LOCK * WORD)

    def copy_slowly(view: View, store: Any) -> float:
        under_lock = lock.mine()
        time.sleep(duration * under_lock)
        now = copy(view, store)
        if under_lock:
            kept.append(lock.mine())
        return now

    def verify_as_if_torn(store: Any, now: float) -> list[str]:
        """What the first of two copies says: so it makes one under the lock."""
        nonlocal verified
        verified += 1
        return ["torn"] if verified % 2 else verify(store, now)

    def keep_looking(line: Line) -> list[bool]:
        over = time.monotonic() + SECONDS * 0.9
        while time.monotonic() < over:
            assert locked.complaints(View(prefix), LIVENESS) == []
        return kept

    monkeypatch.setattr(locked, "_copy", copy_slowly)
    monkeypatch.setattr(locked, "verify", verify_as_if_torn)
    with traffic(prefix), child(keep_looking) as looking:  # which is not attached
        looked = looking.hear()
    assert looked and all(looked)


def test_a_death_that_nobody_reported_heals_beside_verify(prefix: str) -> None:
    """The victim is as one of the OOM killer before Linux 5.18: the kernel does not know its list
    of held mutexes any more."""
    layer = asgi_ipc.aio.IPCChannelLayer(prefix)
    asyncio.run(layer.send("here", MESSAGE))

    def die(line: Line) -> None:
        own = asgi_ipc.IPCChannelLayer(prefix)
        own.send("there", MESSAGE)
        lock = own._core.attach().attachment.lock
        assert lock.trylock(lock.handle) == 0
        head = ctypes.create_string_buffer(24)
        set_robust_list = {"x86_64": 273, "aarch64": 99}[os.uname().machine]
        ctypes.CDLL(None).syscall(set_robust_list, head, 24)
        ctypes.memmove(head, ctypes.addressof(head).to_bytes(8, "little"), 8)

    with child(die) as victim:
        victim.hear()
        victim.wait()
        began = time.monotonic()
        asyncio.run(layer.send("here", MESSAGE))
        assert time.monotonic() - began < LIVENESS / 2
    assert asyncio.run(layer.receive("here")) == MESSAGE
    assert asgi_ipc.IPCChannelLayer(prefix).receive(["there"]) == ("there", MESSAGE)
    assert locked.complaints(View(prefix), LIVENESS) == []
