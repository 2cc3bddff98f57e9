"""One attachment for each prefix: the layers of a process share it, a forked child does not inherit
it, and it is released without a trace."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
from typing import Any

import pytest

from asgi_ipc import segment
from asgi_ipc.aio import session
from asgi_ipc.attachment import process
from asgi_ipc.attachment.weak import WeakKeys
from asgi_ipc.conformance.base import MESSAGE
from asgi_ipc.errors import IncompatibleSegment, NotOwner, Reentered
from asgi_ipc.segment import doorbell
from asgi_ipc.segment import lock as lock_module
from asgi_ipc.segment.files import Descriptor
from asgi_ipc.segment.lock import robust_mutexes
from asgi_ipc.store.layout import MAX_WAITERS

from ..forks import Line, bounded, child, in_child, on_linux
from ..unit.support import KIB, contents
from ..waiting import LIVENESS, in_threads, until
from .layers import LOCKS, NOTHING, SHM, SOON, Make

pytestmark = on_linux  # where a test can see what a process has open


# -- one for a process ----------------------------------------------------------------------------


def test_a_layer_that_is_not_used_attaches_to_nothing(make: Make) -> None:
    make()
    make.asyncio()
    assert not list(SHM.glob(f"asgi_ipc.{make.prefix}*"))


def test_the_layers_of_a_process_share_one_attachment(make: Make) -> None:
    make().send("c", MESSAGE)
    once = make.descriptors()
    for _ in range(5):
        make().send("c", MESSAGE)
    asyncio.run(make.asyncio().send("c", MESSAGE))
    assert make.descriptors() == once
    assert make.processes() == [os.getpid()]


def test_threads_that_attach_at_once_share_it_too(make: Make) -> None:
    layers = [make() for _ in range(8)]
    in_threads([lambda layer=layer: layer.send("c", MESSAGE) for layer in layers])
    assert make.processes() == [os.getpid()]
    assert len(contents(make.look()).messages[b"c"]) == 8


def test_other_sizes_in_the_same_process_are_warned_of(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    make().send("c", MESSAGE)
    make(message_memory=512 * KIB).send("c", MESSAGE)
    assert str(256 * KIB) in caplog.text and "apply to all" in caplog.text
    assert len(contents(make.look()).messages[b"c"]) == 2


def test_another_lock_in_the_same_process_is_refused(make: Make) -> None:
    make(lock="file").send("c", MESSAGE)
    with pytest.raises(IncompatibleSegment, match="lock="):
        make(lock="mutex" if robust_mutexes() else "file").send("c", MESSAGE)


# -- fork -----------------------------------------------------------------------------------------


def wait_for_a_message(layer: Any) -> threading.Thread:
    """Start a thread that waits for a message."""
    thread = threading.Thread(target=layer.receive, args=(["quiet"],), kwargs={"block": True})
    thread.start()
    return thread


@pytest.mark.parametrize("lock", LOCKS)
def test_a_child_holds_nothing_of_its_parents(make: Make, lock: str) -> None:
    layer, other = make(lock=lock, receive_timeout=60), make.asyncio(lock=lock)
    layer.send("c", MESSAGE)
    thread = wait_for_a_message(layer)
    until(make.bells)
    asyncio.run(other.send("c", MESSAGE))
    assert make.descriptors()
    left = in_child(lambda: (gc.collect(), make.descriptors())[1])
    layer.send("quiet", MESSAGE)
    thread.join(LIVENESS)
    # The mapping has a descriptor of its own, which is closed when nothing refers to it.
    assert [name for name in left if not name.endswith(make.prefix)] == []


@pytest.mark.parametrize("lock", LOCKS)
def test_a_child_holds_nothing_that_its_parent_was_just_opening(
    make: Make, lock: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread has opened its doorbell, or the lock, and no object knows of the descriptor yet."""
    layer = make(lock=lock, receive_timeout=60)
    layer.send("c", MESSAGE)
    opened, go_on = threading.Event(), threading.Event()

    class Slow(Descriptor):
        __slots__ = ()

        def __init__(self, number: int) -> None:
            opened.set()
            go_on.wait(LIVENESS)
            super().__init__(number)

    monkeypatch.setattr(doorbell if lock == "mutex" else lock_module, "Descriptor", Slow)
    thread = wait_for_a_message(layer)
    assert opened.wait(LIVENESS)
    left = in_child(lambda: (gc.collect(), make.descriptors())[1])
    go_on.set()
    assert [name for name in left if not name.endswith(make.prefix)] == []
    layer.send("quiet", MESSAGE)
    thread.join(LIVENESS)
    assert not thread.is_alive()


@pytest.mark.parametrize("lock", LOCKS)
def test_a_child_attaches_for_itself(make: Make, lock: str) -> None:
    layer = make(lock=lock, receive_timeout=LIVENESS)
    layer.send("to.child", MESSAGE)

    def talk(line: Line) -> list[int]:
        assert layer.receive(["to.child"]) == ("to.child", MESSAGE)
        layer.send("to.parent", {"pid": os.getpid()})
        return make.processes()

    with child(talk) as process:
        assert sorted(process.hear()) == sorted([os.getpid(), process.pid])
        assert layer.receive(["to.parent"], block=True)[1] == {"pid": process.pid}


@pytest.mark.parametrize("lock", LOCKS)
def test_a_child_that_ends_leaves_its_parent_alive(make: Make, lock: str) -> None:
    layer = make(lock=lock)
    layer.receive(["own!"])

    def end() -> None:
        layer.send("c", MESSAGE)

    in_child(end)

    def attempt() -> str:
        """Another process asks the kernel whether the owner of the queue lives."""
        try:
            make(lock=lock).receive(["own!"])
        except NotOwner as error:
            return str(error)
        return "taken over"

    assert str(os.getpid()) in in_child(attempt)


def test_a_child_does_not_see_what_its_parent_has_drained(make: Make) -> None:
    layer = make()
    layer.receive(["own!"])
    for i in range(3):
        layer.send(f"own!{i}", MESSAGE)
    assert layer.receive(["own!"])[0] == "own!0"

    def attempt() -> str:
        try:
            return str(layer.receive(["own!"]))
        except NotOwner:
            return "refused"

    assert in_child(attempt) == "refused"
    assert [layer.receive(["own!"])[0] for _ in range(2)] == ["own!1", "own!2"]


def test_a_child_of_a_child_is_a_process_of_its_own(make: Make) -> None:
    layer = make()
    layer.send("c", MESSAGE)

    def inner() -> int:
        layer.send("c", MESSAGE)
        return len(make.processes())

    def outer() -> int:
        layer.send("c", MESSAGE)
        return int(in_child(inner))

    assert in_child(outer) == 3
    assert len(contents(make.look()).messages[b"c"]) == 3


def test_forks_while_other_threads_attach_and_leave(make: Make) -> None:
    stop = threading.Event()

    def come_and_go() -> int:
        rounds = 0
        while not stop.is_set():
            layer = make()
            layer.send("c", MESSAGE)
            layer.receive(["c"])
            layer.close()
            make.made.remove(layer)
            rounds += 1
        return rounds

    def forks() -> int:
        try:
            for _ in range(15):
                layer = make()
                assert in_child(lambda: layer.send("from.child", MESSAGE)) is None  # noqa: B023
        finally:
            stop.set()
        return 15

    with bounded():
        results = in_threads([come_and_go, come_and_go, forks])
    assert all(results)
    assert len(contents(make.look()).messages[b"from.child"]) == 15


# -- leaving --------------------------------------------------------------------------------------


@pytest.mark.parametrize("lock", LOCKS)
def test_blocking_layers_that_are_dropped_leave_nothing(make: Make, lock: str) -> None:
    for _ in range(10):
        layer = make(lock=lock, receive_timeout=0.01)
        layer.send("c", MESSAGE)
        assert layer.receive(["c", "own!"], block=True) == ("c", MESSAGE)
        assert layer.receive(["c", "own!"], block=True) == NOTHING
        assert make.bells()
        del layer
        make.drop()
        assert make.descriptors() == []
        assert make.bells() == []


def test_a_forked_child_uses_no_dict_that_a_thread_of_its_parent_may_have_locked(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the GIL, it would wait for ever."""
    parent = os.getpid()

    class Locked(dict[Any, Any]):
        def copy(self) -> Any:
            assert os.getpid() == parent
            return super().copy()

        def clear(self) -> None:
            assert os.getpid() == parent
            super().clear()

    layer = make()
    layer.send("c", MESSAGE)
    monkeypatch.setattr(process, "_held", Locked(process._held))
    monkeypatch.setattr(process._users, "entries", Locked(process._users.entries))

    def use() -> Any:
        layer.send("c", MESSAGE)
        return [layer.receive(["c"]) for _ in range(2)]

    assert in_child(use) == [("c", MESSAGE)] * 2


@pytest.mark.parametrize("listed", [True, False])
def test_a_child_knows_a_layer_that_another_thread_made_during_the_fork(
    make: Make, monkeypatch: pytest.MonkeyPatch, listed: bool
) -> None:
    """Otherwise both processes would use the same names. `listed`: the layer comes once the fork
    handler has listed the others; else while it does."""
    layers: list[Any] = []

    class Listed(WeakKeys[Any, None]):
        def keys(self) -> list[Any]:
            found = super().keys()
            if not layers:
                layers.append(make())
            return found

    def fork() -> tuple[str, str, bool]:
        if not listed:
            monkeypatch.setattr(process, "_users", Listed())
        process._before_fork()
        if listed:
            layers.append(make())
        before = layers[0]._core.client_prefix
        process._after_fork_in_child()
        core = layers[0]._core
        return before, core.client_prefix, core in process._users.keys()

    before, after, known = in_child(fork)
    assert after != before and known


def test_another_fork_handler_may_attach(make: Make) -> None:
    """One that was registered before, and so runs while the guard is held."""
    layer = make()
    process._before_fork()
    layer.send("c", MESSAGE)
    process._after_fork_in_parent()
    assert in_child(lambda: layer.receive(["c"])) == ("c", MESSAGE)


def test_a_layer_is_not_forgotten_by_the_handler_of_a_child_that_was_interrupted(
    make: Make,
) -> None:
    def resume() -> bool:
        process._at_fork = [], []  # what the parent left, and the handler did not get to remove
        process._here[()] = 0.0
        layer = make()
        layer.send("c", MESSAGE)
        return layer._core in process._users.keys()

    assert in_child(resume)


@pytest.mark.parametrize("lock", LOCKS)
def test_asyncio_layers_that_are_dropped_leave_nothing(make: Make, lock: str) -> None:
    async def use() -> None:
        layer = make.asyncio(lock=lock)
        await layer.send("c", MESSAGE)
        assert await layer.receive("c") == MESSAGE
        assert await layer.receive_async(["c", "own!"], timeout=0.01) == NOTHING
        assert make.bells()

    for _ in range(10):
        asyncio.run(use())
        make.drop()
        assert make.descriptors() == []
        assert make.bells() == []


@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
def test_a_layer_that_is_closed_attaches_again(make: Make, kind: str) -> None:
    def attached() -> bool:
        return bool(make.descriptors())

    if kind == "blocking":
        layer = make()
        for _ in range(3):
            layer.send("c", MESSAGE)
            assert attached()
            layer.close()
            gc.collect()
            assert not attached()
    else:

        async def use() -> None:
            layer = make.asyncio()
            for _ in range(3):
                await layer.send("c", MESSAGE)
                assert attached()
                await layer.close()
                gc.collect()
                assert not attached()

        asyncio.run(use())
    assert len(contents(make.look()).messages[b"c"]) == 3


def test_what_another_thread_has_not_released_yet_is_released_by_the_next_that_attaches(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that drops the last reference may be held up before the finalizer of it runs. Until
    then this process owns its queues, and keeps its messages."""
    layer = make()
    with monkeypatch.context() as patch:
        held_up: list[object] = []
        patch.setattr(process, "_release_later", held_up.append)
        layer.send("own!a", MESSAGE)
        layer.send("own!b", MESSAGE)
        assert layer.receive(["own!"]) == ("own!a", MESSAGE)
        layer.close()
        gc.collect()
        assert held_up
    assert layer.receive(["own!"]) == ("own!b", MESSAGE)
    process._release_later(None)
    assert layer.receive(["own!"]) == NOTHING


def test_a_thread_that_attaches_while_another_detaches_attaches_again(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = make()
    attach = session.attach

    def meanwhile(*args: Any) -> Any:
        attachment = attach(*args)
        process.detach(attachment)
        return attachment

    with monkeypatch.context() as patch:
        patch.setattr(session, "attach", meanwhile)
        layer.send("c", MESSAGE)
        assert layer._core.session is None
    layer.send("c", MESSAGE)
    assert not layer._core.session.attachment.detached
    assert len(contents(make.look()).messages[b"c"]) == 2


def test_one_layer_that_is_closed_leaves_the_others_attached(make: Make) -> None:
    first, second = make(), make()
    first.send("c", MESSAGE)
    second.receive(["own!"])
    first.close()
    second.send("c", MESSAGE)
    assert make.processes() == [os.getpid()]
    assert contents(make.look()).owners == {b"own!": os.getpid()}


def test_threads_that_ended_give_back_their_bells_and_ids(make: Make) -> None:
    layer = make(receive_timeout=0.01)
    for _ in range(30):
        in_threads([lambda: layer.receive(["c"], block=True)])
    gc.collect()
    until(lambda: len(make.bells()) <= 1)

    def ids() -> int:
        layer.receive(["c"])  # upkeep comes with calls
        store = make.look()
        return sum(bool(store.waiter_generation(index)) for index in range(MAX_WAITERS))

    until(lambda: ids() <= 1, bound=SOON)


def test_a_process_that_leaves_frees_its_row(make: Make) -> None:
    def use() -> None:
        layer = make()
        layer.send("c", MESSAGE)
        layer.close()
        gc.collect()

    in_child(use)
    assert make.processes() == []


# -- calls while the process attaches -------------------------------------------------------------


def test_a_call_from_a_signal_handler_while_its_thread_attaches_is_refused(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = make()
    refused: list[Exception] = []
    real = process.attach_segment

    def interrupted(*arguments: Any) -> Any:
        monkeypatch.setattr(process, "attach_segment", real)
        signal.raise_signal(signal.SIGUSR1)
        return real(*arguments)

    def handler(number: int, frame: Any) -> None:
        try:
            layer.send("c", MESSAGE)
        except Exception as error:
            refused.append(error)

    monkeypatch.setattr(process, "attach_segment", interrupted)
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with bounded():
            layer.send("c", MESSAGE)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert [type(error) for error in refused] == [Reentered]
    assert len(contents(make.look()).messages[b"c"]) == 1


def test_a_layer_that_is_dropped_while_its_thread_attaches_is_let_go_after(
    make: Make, monkeypatch: pytest.MonkeyPatch, prefix: str
) -> None:
    other = Make(f"{prefix}.other")
    other().send("c", MESSAGE)
    assert other.descriptors()
    real = process.attach_segment

    def dropping(*arguments: Any) -> Any:
        monkeypatch.setattr(process, "attach_segment", real)
        other.drop()
        return real(*arguments)

    monkeypatch.setattr(process, "attach_segment", dropping)
    try:
        with bounded():
            make().send("c", MESSAGE)
        assert other.descriptors() == []
    finally:
        segment.destroy(other.prefix)


@pytest.mark.parametrize("nested", ["release_gone", "run"])
def test_a_call_inside_one_that_looks_for_the_gone_leaves_the_guard_free(
    nested: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finalizer, or a signal handler: it may run where the outer call does not hold the guard."""
    guard, gone, looks = process._Guard(), [object()], []

    def look() -> list[object]:
        looks.append(nested)
        if len(looks) == 1:
            guard.release_gone() if nested == "release_gone" else guard.run(gone.clear)
            return []
        return gone.copy()

    monkeypatch.setattr(process, "_gone", look)
    monkeypatch.setattr(process, "_release", lambda resources: gone.clear())
    guard.release_gone()
    assert not gone
    assert in_threads([lambda: guard._lock.acquire(False)]) == [True]
