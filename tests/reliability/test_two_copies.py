"""Two copies of the package in one process, which know nothing of each other: imported twice, or in
a sub-interpreter. Each is a process of its own to the other, and neither is taken for dead."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import asgi_ipc
from asgi_ipc import segment
from asgi_ipc.conformance.base import MESSAGE
from asgi_ipc.segment.files import Members
from asgi_ipc.segment.paths import Paths
from asgi_ipc.store.layout import MAX_PROCESSES, P_GENERATION, S_BURY_AT

from ..environments import run_python
from ..forks import Line, child, in_child, on_linux
from ..waiting import LIVENESS

pytestmark = on_linux  # macOS has no locks that belong to an open file
ROUNDS = 200


@pytest.fixture(scope="module")
def other() -> Any:
    """The package, imported once more."""

    def ours() -> dict[str, Any]:
        return {name: sys.modules[name] for name in sys.modules if name.split(".")[0] == "asgi_ipc"}

    before = ours()
    for name in before:
        del sys.modules[name]
    try:
        copy = importlib.import_module("asgi_ipc")
        importlib.import_module("asgi_ipc.sync")
        assert copy is not asgi_ipc
        return copy
    finally:
        for name in ours():
            del sys.modules[name]
        sys.modules.update(before)


@pytest.fixture
def layers(prefix: str, other: Any) -> Iterator[tuple[Any, Any]]:
    """A layer of each copy, both used."""
    pair = (
        asgi_ipc.IPCChannelLayer(prefix, receive_timeout=LIVENESS),
        other.IPCChannelLayer(prefix, receive_timeout=LIVENESS),
    )
    for layer in pair:
        layer.send("c", MESSAGE)
        assert layer.receive(["c"]) == ("c", MESSAGE)
    yield pair
    for layer in pair:
        layer.close()


def look_after_the_dead(layer: Any) -> None:
    session = layer._core.attach()
    attachment = session.attachment
    attachment.upkeep.check_at = attachment.store.doubles[S_BURY_AT] = 0.0
    attachment.do_upkeep(asgi_ipc.clock.monotonic(), 0.0, session.section)


def row_lives(layer: Any) -> bool:
    attachment = layer._core.attach().attachment
    return bool(attachment.store.words[attachment.process + P_GENERATION])


def seen_from_outside(prefix: str) -> int:
    """How many bytes a third process sees held."""

    def look() -> int:
        members = Members.open(Paths(prefix).members, 0o600)
        return sum(members.held(index) for index in range(MAX_PROCESSES))

    return int(in_child(look))


def descriptors(prefix: str) -> list[str]:
    links = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            links.append(os.readlink(f"/proc/self/fd/{number}"))
    return [link for link in links if prefix in link]


def test_both_send_receive_and_hear_their_groups(layers: tuple[Any, Any]) -> None:
    first, second = layers
    for one, another, name in ((first, second, "a!"), (second, first, "b!")):
        assert one.receive([name]) == (None, None)
        one.group_add("all", f"{name}x")
        another.send(f"{name}x", {"to": name})
        assert one.receive([name], block=True) == (f"{name}x", {"to": name})
    for layer in layers:
        look_after_the_dead(layer)
    assert row_lives(first) and row_lives(second)
    assert sorted(second.group_channels("all")) == ["a!x", "b!x"]
    first.send_group("all", MESSAGE)
    assert first.receive(["a!"], block=True) == ("a!x", MESSAGE)
    assert second.receive(["b!"], block=True) == ("b!x", MESSAGE)


def test_neither_replaces_the_segment_of_the_other(
    layers: tuple[Any, Any], other: Any, prefix: str
) -> None:
    first, second = layers
    second.close()
    gc.collect()
    again = other.IPCChannelLayer(prefix, message_memory=8 << 20)
    again.send("c", MESSAGE)
    segments = [layer._core.attach().attachment.segment for layer in (first, again)]
    assert segments[0].nonce == segments[1].nonce
    assert first.receive(["c"]) == ("c", MESSAGE)
    again.close()


def leaves(layer: Any, other: Any, prefix: str) -> None:
    layer.close()


def looks(layer: Any, other: Any, prefix: str) -> None:
    layer.close()
    gc.collect()
    other.attachment.process.attached_processes(Paths(prefix).members)


@pytest.mark.parametrize("what", [leaves, looks])
def test_one_stays_alive_to_others_when_the_other_closes_the_file(
    layers: tuple[Any, Any], other: Any, prefix: str, what: Callable[..., None]
) -> None:
    """The kernel would drop all fcntl locks of the process with it."""
    first, second = layers
    assert seen_from_outside(prefix) == 2
    what(second, other, prefix)
    gc.collect()
    assert seen_from_outside(prefix) == 1
    assert sorted(asgi_ipc.attachment.process.attached_processes(Paths(prefix).members)) == [
        first._core.attach().attachment._resources._index
    ]
    second.send("c", MESSAGE)
    assert seen_from_outside(prefix) == 2
    assert first.receive(["c"]) == ("c", MESSAGE)
    for layer in layers:
        layer.close()
    gc.collect()
    assert seen_from_outside(prefix) == 0


def test_what_one_left_open_for_the_other_it_closes_later(
    layers: tuple[Any, Any], prefix: str
) -> None:
    for layer in layers:
        layer.close()  # where the other has a claim, the file stays open
        gc.collect()
    assert segment.destroy(prefix)
    layers[0].send("c", MESSAGE)  # which opens another file
    layers[0].close()
    gc.collect()
    assert descriptors(prefix) == []


def test_one_works_while_the_other_comes_and_goes(layers: tuple[Any, Any], prefix: str) -> None:
    """A third process looks after the dead meanwhile, and none is found."""
    first, second = layers
    first.group_add("all", "a!x")
    assert first.receive(["a!"]) == (None, None)
    stop = threading.Event()
    rounds = [0]

    def work() -> None:
        while not stop.is_set():
            first.send_group("all", {"number": rounds[0]})
            assert first.receive(["a!"], block=True) == ("a!x", {"number": rounds[0]})
            rounds[0] += 1

    def watch(line: Line) -> bool:
        third = asgi_ipc.IPCChannelLayer(prefix)
        third.send("c", MESSAGE)
        line.say("there")
        found = True
        while found and not line._connection.poll(0):
            look_after_the_dead(third)
            found = third.group_channels("all") == ["a!x"]
        return found

    with child(watch) as watcher:
        watcher.hear()
        worker = threading.Thread(target=work)
        worker.start()
        try:
            for _ in range(ROUNDS):
                second.send("d", MESSAGE)
                assert second.receive(["d"]) == ("d", MESSAGE)
                second.close()
        finally:
            stop.set()
            worker.join(LIVENESS)
        watcher.say()
        assert watcher.hear() is True
    assert rounds[0] > 0
    assert sum(link.endswith("members") for link in descriptors(prefix)) == 2


def test_a_call_inside_a_call_of_the_other_is_refused(layers: tuple[Any, Any], other: Any) -> None:
    """As by a finalizer that runs in a section."""
    first, second = layers

    def call() -> None:
        with pytest.raises(other.errors.Reentered):
            second.send("c", MESSAGE)

    first._core.attach().section(call)
    second.send("c", MESSAGE)
    assert first.receive(["c"]) == ("c", MESSAGE)


def test_neither_takes_the_lock_from_a_thread_of_the_other(
    layers: tuple[Any, Any], other: Any
) -> None:
    """Where a call is not to wait for long, it asks early whether the holder is dead. This one is
    not, though it took the lock at an address where the other copy has nothing."""
    holder, waits = layers[0]._core.attach(), layers[1]._core.attach().attachment
    inside, over = threading.Event(), threading.Event()
    kept = []

    def hold() -> None:
        inside.set()
        assert over.wait(LIVENESS)
        kept.append(holder.attachment.lock.mine())

    thread = threading.Thread(target=holder.section, args=(hold,))
    thread.start()
    try:
        assert inside.wait(LIVENESS)
        impatient = waits.make_section(other.segment.section.Waits(0.01, LIVENESS))
        with pytest.raises(other.errors.LockBusy):
            impatient(int)
    finally:
        over.set()
        thread.join()
    assert kept == [True]
    assert impatient(int) == 0


@pytest.mark.parametrize("fork", [os.fork, ctypes.PyDLL(None).fork], ids=["python", "c"])
def test_children_of_a_fork_attach_in_both(
    layers: tuple[Any, Any], fork: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each copy lets go of what is its own, and of nothing that the other has opened since."""
    monkeypatch.setattr(os, "fork", fork)

    def work(line: Line) -> list[Any]:
        got = []
        for layer in layers:
            layer.send("c", MESSAGE)
            got.append(layer.receive(["c"], block=True))
        for layer in layers:
            look_after_the_dead(layer)
        return [*got, *map(row_lives, layers)]

    with child(work) as forked:
        assert forked.hear() == [("c", MESSAGE), ("c", MESSAGE), True, True]
    for layer in layers:
        look_after_the_dead(layer)
        assert row_lives(layer)


INTERPRETERS = """
import asgi_ipc, gc
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
try:
    made = interpreters.create("legacy")
except TypeError:
    made = interpreters.create(isolated=False)
layer = asgi_ipc.IPCChannelLayer({prefix!r}, receive_timeout=60)
assert layer.receive(["own!"]) == (None, None)
layer.group_add("all", "own!a")
interpreters.run_string(made, '''
import asgi_ipc
layer = asgi_ipc.IPCChannelLayer({prefix!r}, receive_timeout=60)
layer.send_group("all", {{"from": "inside"}})
layer.send("c", {{}})
assert layer.receive(["c"], block=True) == ("c", {{}})
assert layer.group_channels("all") == ["own!a"]
layer.close()
''')
assert layer.receive(["own!"], block=True) == ("own!a", {{"from": "inside"}})
interpreters.destroy(made)
layer.send("own!a", {{}})
assert layer.receive(["own!"], block=True) == ("own!a", {{}})
print("done")
"""


@pytest.mark.skipif(
    sys.version_info < (3, 10), reason="lacking: sub-interpreters of this kind (Python 3.10)"
)
def test_a_sub_interpreter(prefix: str, tmp_path: Path) -> None:
    assert run_python(INTERPRETERS.format(prefix=prefix)).endswith("done")
