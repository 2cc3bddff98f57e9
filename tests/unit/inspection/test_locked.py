"""Verifying a segment from outside: when its lock is taken, and when it must not be."""

from __future__ import annotations

import ctypes
import re
import sys
import threading

import pytest

from asgi_ipc import IPCChannelLayer
from asgi_ipc.errors import IncompatibleSegment, LockTimeout
from asgi_ipc.inspection import locked
from asgi_ipc.inspection.locked import complaints
from asgi_ipc.inspection.view import View
from asgi_ipc.segment.header import Fault, Header
from asgi_ipc.store.layout import H_LOCK, LOCK_BYTES, Q_PENDING, WORD
from asgi_ipc.store.store import Store

from ...waiting import LIVENESS

DAMAGE = ["queue 'c': 5 messages are counted as pending, not 1"]


@pytest.fixture(params=["mutex", "file"])
def layer(request: pytest.FixtureRequest, prefix: str) -> IPCChannelLayer:
    layer = IPCChannelLayer(prefix, lock=request.param, message_memory=8 << 20)
    layer.send("c", {})
    return layer


def damage(layer: IPCChannelLayer) -> None:
    store = layer._core.attach().store
    store.words[store.queues.find(b"c") + Q_PENDING] = 5


def test_all_invariants_hold(layer: IPCChannelLayer) -> None:
    assert complaints(View(layer.prefix), LIVENESS) == []


def test_damage_in_words_and_nothing_is_changed(layer: IPCChannelLayer) -> None:
    damage(layer)
    view = View(layer.prefix)
    before = view.words(0, view.layout.log)
    assert complaints(view, LIVENESS) == DAMAGE
    after = view.words(0, view.layout.log)
    changed = {at for at in range(len(after)) if after[at] != before[at]}
    assert changed <= set(range(H_LOCK, H_LOCK + LOCK_BYTES // WORD))


def test_the_lock_is_taken_only_if_something_seems_wrong(layer: IPCChannelLayer) -> None:
    section = layer._core.attach().section
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        held.set()
        done.wait(LIVENESS)

    holder = threading.Thread(target=section, args=(hold,))
    holder.start()
    try:
        assert held.wait(LIVENESS)
        assert complaints(View(layer.prefix), 0.01) == []
        damage(layer)
        with pytest.raises(LockTimeout):
            complaints(View(layer.prefix), 0.01)
    finally:
        done.set()
        holder.join(LIVENESS)
    assert complaints(View(layer.prefix), LIVENESS) == DAMAGE


def test_a_copy_under_traffic_is_made_again_under_the_lock(
    layer: IPCChannelLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the first copy says may only be that it is not of one moment."""
    copies = []
    verify = locked.verify

    def torn_at_first(store: object, now: float) -> list[str]:
        copies.append(now)
        return ["torn"] if len(copies) == 1 else verify(store, now)

    monkeypatch.setattr(locked, "verify", torn_at_first)
    assert complaints(View(layer.prefix), LIVENESS) == []
    assert len(copies) == 2


def test_a_foreign_lock_is_not_taken(
    layer: IPCChannelLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = Fault(IncompatibleSegment, "was made in another world")
    monkeypatch.setattr(Header, "sharing_fault", lambda header: fault)
    assert complaints(View(layer.prefix), LIVENESS) == []  # which it sees without
    damage(layer)
    with pytest.raises(IncompatibleSegment, match="another world"):
        complaints(View(layer.prefix), LIVENESS)


@pytest.mark.skipif(sys.platform != "linux", reason="lacking: /proc/self/smaps")
def test_nothing_is_reserved_for_the_copy(
    layer: IPCChannelLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A segment may be larger than the memory of the machine."""
    flags = []

    def note(store: Store, now: float) -> list[str]:
        start = ctypes.addressof(ctypes.c_char.from_buffer(store.buffer))
        with open("/proc/self/smaps", encoding="utf-8") as maps:
            mappings = re.findall(
                r"^([0-9a-f]+)-([0-9a-f]+) rw-p .*(?:\n[A-Z].*)*?\nVmFlags:(.*)", maps.read(), re.M
            )
        # The kernel may have made one mapping of this and its neighbours.
        (found,) = (words for low, high, words in mappings if int(low, 16) <= start < int(high, 16))
        flags.append(found.split())
        return ["seems wrong"]

    monkeypatch.setattr(locked, "verify", note)
    complaints(View(layer.prefix), LIVENESS)
    assert len(flags) == 2  # without the lock, and under it
    assert all("nr" in words for words in flags), flags
