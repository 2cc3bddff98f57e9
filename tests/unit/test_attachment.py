"""A process's presence in a segment: shared by its layers, not inherited by its children, gone
without a trace, and looked after by the others when it dies."""

from __future__ import annotations

import asyncio
import errno
import gc
import inspect
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import asgi_ipc
import asgi_ipc.aio
from asgi_ipc import segment
from asgi_ipc.attachment import process as attaching
from asgi_ipc.errors import IncompatibleSegment, LockTimeout, NotOwner, Reentered, SegmentVanished
from asgi_ipc.segment.lock import robust_mutexes
from asgi_ipc.store import waiters
from asgi_ipc.store.layout import (
    H_GROUP_MEMORY,
    H_MAX_MESSAGE,
    H_MESSAGE_MEMORY,
    MAX_WAITERS,
    P_GENERATION,
    P_PID,
    Layout,
)
from asgi_ipc.store.store import Store

from ..contract import LIVENESS, MESSAGE, in_threads, until
from .processes import Line, bounded, child, children, in_child, on_linux, rests
from .support import KIB, contents

pytestmark = on_linux  # where what a process holds can be looked at

SHM = Path("/dev/shm")
NOTHING = (None, None)
SOON = 4.0  # seconds in which something that is noticed "within a second" must have been

LOCKS = [
    pytest.param(
        "mutex",
        marks=pytest.mark.skipif(not robust_mutexes(), reason="lacking: robust mutexes"),
    ),
    "file",
]


class Make:
    """Makes small layers of one prefix."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.made: list[Any] = []

    def __call__(self, cls: Any = asgi_ipc.IPCChannelLayer, **options: Any) -> Any:
        defaults = {
            "message_memory": 256 * KIB,
            "group_memory": 64 * KIB,
            "max_message_size": 4 * KIB,
            "receive_timeout": 0.2,
        }
        self.made.append(cls(self.prefix, **{**defaults, **options}))
        return self.made[-1]

    def asyncio(self, **options: Any) -> Any:
        return self(asgi_ipc.aio.IPCChannelLayer, **options)

    def drop(self) -> None:
        """Let go of all layers, without closing them."""
        self.made.clear()
        gc.collect()

    def look(self) -> Store:
        """A copy of what the segment holds now."""
        memory = bytearray((SHM / f"asgi_ipc.{self.prefix}").read_bytes())
        words = memoryview(memory).cast("Q")
        sizes = [words[at] for at in (H_MESSAGE_MEMORY, H_GROUP_MEMORY, H_MAX_MESSAGE)]
        words.release()
        return Store(memory, Layout(*sizes))

    def processes(self) -> list[int]:
        """The pids of those whose rows are in use."""
        store = self.look()
        rows = [store.process_row(index) for index in range(64)]
        return [store.words[row + P_PID] for row in rows if store.words[row + P_GENERATION]]

    def descriptors(self) -> list[str]:
        """What this process has open of the segment and the files beside it."""
        found = []
        for number in os.listdir("/proc/self/fd"):
            try:
                target = os.readlink(f"/proc/self/fd/{number}")
            except OSError:
                continue
            if f"asgi_ipc.{self.prefix}" in target:
                found.append(target)
        return sorted(found)

    def bells(self) -> list[str]:
        """The names of the doorbells that there are, whoever made them."""
        folder = SHM / f"asgi_ipc.{self.prefix}.d"
        return sorted(path.name for path in folder.glob("*") if path.is_fifo())

    def remove_segment(self) -> None:
        """As systemd or somebody's rm does."""
        (SHM / f"asgi_ipc.{self.prefix}").unlink()


@pytest.fixture
def make(prefix: str) -> Iterator[Make]:
    made = Make(prefix)
    yield made
    for layer in made.made:
        closing = layer.close()
        if inspect.isawaitable(closing):
            asyncio.run(closing)
    made.drop()


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
    assert str(256 * KIB) in caplog.text and "hold for all" in caplog.text
    assert len(contents(make.look()).messages[b"c"]) == 2


def test_another_lock_in_the_same_process_is_refused(make: Make) -> None:
    make(lock="file").send("c", MESSAGE)
    with pytest.raises(IncompatibleSegment, match="lock="):
        make(lock="mutex" if robust_mutexes() else "file").send("c", MESSAGE)


# -- fork -----------------------------------------------------------------------------------------


def wait_for_a_message(layer: Any) -> threading.Thread:
    """A thread that has a bell and sleeps."""
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
    # The mapping has a descriptor of its own, which goes with whatever refers to it.
    assert [name for name in left if not name.endswith(make.prefix)] == []


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

    until(lambda: ids() <= 1, SOON)


def test_a_process_that_leaves_frees_its_row(make: Make) -> None:
    def use() -> None:
        layer = make()
        layer.send("c", MESSAGE)
        layer.close()
        gc.collect()

    in_child(use)
    assert make.processes() == []


# -- death ----------------------------------------------------------------------------------------


def owner_of(make: Make, queue: str, **options: Any) -> Callable[[Line], None]:
    """A child that owns a queue and has its members in a group."""

    def own(line: Line) -> None:
        layer = make(**options)
        layer.receive([queue])
        layer.group_add("group", f"{queue}socket")
        rests(line)

    return own


def test_the_queue_of_a_dead_process_is_dropped_and_its_memberships_after_expiry(
    make: Make,
) -> None:
    layer = make(expiry=1.5)
    layer.group_add("group", "alive")
    with child(owner_of(make, "own!")) as process:
        process.hear()
        layer.send("own!socket", MESSAGE)
        assert sorted(layer.group_channels("group")) == ["alive", "own!socket"]
        process.kill()
        died = time.monotonic()

    def dropped() -> bool:
        layer.receive(["c"])
        return not contents(make.look()).messages

    def gone() -> bool:
        return bool(layer.group_channels("group") == ["alive"])

    until(dropped, SOON)
    until(gone, 1.5 + SOON)
    assert time.monotonic() - died >= 1.5
    until(lambda: layer.receive(["c"]) and make.processes() == [os.getpid()], SOON)


def test_the_queue_of_a_dead_process_can_be_received_by_the_next_at_once(make: Make) -> None:
    with child(owner_of(make, "own!")) as process:
        process.hear()
        layer = make()
        with pytest.raises(NotOwner, match=str(process.pid)):
            layer.receive(["own!"])
        process.kill()
        assert layer.receive(["own!"]) == NOTHING
        layer.send("own!a", MESSAGE)
        assert layer.receive(["own!"]) == ("own!a", MESSAGE)


def test_the_bells_of_a_dead_process_are_removed(make: Make) -> None:
    def wait(line: Line) -> None:
        layer = make(receive_timeout=60)
        line.say("waits")
        layer.receive(["quiet"], block=True)

    layer = make(expiry=0.5)
    for _ in range(3):
        with child(wait) as process:
            process.hear()
            until(make.bells)
            process.kill()
    until(lambda: layer.receive(["c"]) and not make.bells(), SOON)


def test_a_message_for_a_dead_waiter_wakes_a_living_one(make: Make) -> None:
    def wait(line: Line) -> Any:
        layer = make(receive_timeout=60)
        line.say("waits")
        return layer.receive(["c"], block=True)

    with children([wait] * 3) as waiting:
        for process in waiting:
            process.hear()
        until(lambda: len(make.bells()) == 3)
        for process in waiting[:2]:
            process.kill()
        make().send("c", MESSAGE)
        assert waiting[2].hear() == ("c", MESSAGE)


# -- a segment that vanishes ----------------------------------------------------------------------


@pytest.mark.parametrize("way", ["segment", "everything"])
def test_a_blocked_receive_says_so_when_the_segment_vanishes(make: Make, way: str) -> None:
    layer = make(receive_timeout=60)
    answers: list[Any] = []

    def wait() -> None:
        try:
            answers.append(layer.receive(["quiet"], block=True))
        except SegmentVanished as error:
            answers.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    until(make.bells)
    if way == "segment":
        make.remove_segment()
    else:
        segment.destroy(make.prefix)
    thread.join(SOON)
    assert len(answers) == 1 and isinstance(answers[0], SegmentVanished)
    assert make.prefix in str(answers[0])
    layer.send("c", MESSAGE)
    assert layer.receive(["c"]) == ("c", MESSAGE)


@pytest.mark.parametrize("way", ["segment", "everything"])
def test_every_receive_of_a_loop_says_so_when_the_segment_vanishes(make: Make, way: str) -> None:
    async def use() -> None:
        layer = make.asyncio()
        mine = await layer.new_channel()
        waiting = [
            asyncio.ensure_future(layer.receive("quiet")),
            asyncio.ensure_future(layer.receive(mine)),
            asyncio.ensure_future(layer.receive_async(["quiet", "other"], timeout=60)),
        ]
        await asyncio.sleep(0)
        while not make.bells():
            await asyncio.sleep(0.01)
        if way == "segment":
            make.remove_segment()
        else:
            segment.destroy(make.prefix)
        _, late = await asyncio.wait(waiting, timeout=SOON)
        assert not late
        assert [type(receive.exception()) for receive in waiting] == [SegmentVanished] * 3
        await layer.send("c", MESSAGE)
        assert await layer.receive("c") == MESSAGE
        await layer.close()

    asyncio.run(use())


def test_a_sender_says_so_when_the_segment_vanishes_and_then_works(make: Make) -> None:
    layer = make(capacity=1 << 30)
    layer.send("c", MESSAGE)
    make.remove_segment()

    def send() -> bool:
        try:
            layer.send("c", MESSAGE)
        except SegmentVanished:
            return True
        return False

    until(send, SOON)
    layer.send("c", {"in": "the new one"})
    assert layer.receive(["c"]) == ("c", {"in": "the new one"})
    gc.collect()
    assert not any("(deleted)" in name for name in make.descriptors())


def test_a_layer_made_after_the_segment_vanished_gets_a_new_one(make: Make) -> None:
    old = make()
    old.send("c", MESSAGE)
    make.remove_segment()
    new = make()
    assert new.receive(["c"]) == NOTHING
    new.send("c", {"in": "the new one"})
    assert contents(make.look()).messages[b"c"]


# -- waiters run out ------------------------------------------------------------------------------


def test_without_a_waiter_id_a_receive_looks_by_itself_with_one_warning(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(waiters, "MAX_WAITERS", 1)
    layer, other = make(receive_timeout=LIVENESS), make.asyncio()

    async def wait() -> Any:
        receiving = asyncio.ensure_future(other.receive("b"))
        await asyncio.sleep(0.01)
        await other.send("b", MESSAGE)
        found = await asyncio.wait_for(receiving, LIVENESS)
        await other.close()
        return found

    def send_later() -> None:
        time.sleep(0.01)
        layer.send("a", MESSAGE)

    assert in_threads([lambda: layer.receive(["a"], block=True), send_later])[0] == ("a", MESSAGE)
    assert asyncio.run(wait()) == MESSAGE
    assert make.bells() == []
    assert len([r for r in caplog.records if r.levelno == logging.WARNING]) == 1
    assert "50 ms" in caplog.text


# -- calls while the process attaches -------------------------------------------------------------


def test_a_call_from_a_signal_handler_while_its_thread_attaches_is_refused(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = make()
    refused: list[Exception] = []
    real = attaching.attach_segment

    def interrupted(*arguments: Any) -> Any:
        monkeypatch.setattr(attaching, "attach_segment", real)
        signal.raise_signal(signal.SIGUSR1)
        return real(*arguments)

    def handler(number: int, frame: Any) -> None:
        try:
            layer.send("c", MESSAGE)
        except Exception as error:
            refused.append(error)

    monkeypatch.setattr(attaching, "attach_segment", interrupted)
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
    real = attaching.attach_segment

    def dropping(*arguments: Any) -> Any:
        monkeypatch.setattr(attaching, "attach_segment", real)
        other.drop()
        return real(*arguments)

    monkeypatch.setattr(attaching, "attach_segment", dropping)
    try:
        with bounded():
            make().send("c", MESSAGE)
        assert other.descriptors() == []
    finally:
        segment.destroy(other.prefix)


# -- the mutex, made anew -------------------------------------------------------------------------


@pytest.fixture
def held(make: Make) -> Iterator[tuple[Any, Any]]:
    """An attachment, and a process that holds the lock of its segment."""
    if not robust_mutexes():
        pytest.skip("lacking: robust mutexes")
    layer = make()
    layer.send("c", MESSAGE)

    def hold(line: Line) -> None:
        mine = make()
        mine.send("c", MESSAGE)
        found = attaching._attachments[make.prefix]
        found.section(rests, line)

    with child(hold) as process:
        process.hear()
        yield attaching._attachments[make.prefix], process


def renew(found: Any, holder: int) -> bool:
    return found._resources.renew_lock(holder)


def test_a_mutex_that_somebody_made_anew_already_is_left_alone(held: tuple[Any, Any]) -> None:
    """Two find it unrecoverable; the second comes when the first holds the new one."""
    found, process = held
    renew(found, 0)
    assert found.lock.trylock(found.lock.handle) == errno.EBUSY
    process.say()
    process.hear()


def test_the_mutex_of_a_living_holder_is_left_alone(held: tuple[Any, Any]) -> None:
    found, process = held
    assert not renew(found, found.lock.holder())
    assert found.lock.trylock(found.lock.handle) == errno.EBUSY
    process.say()
    process.hear()


def test_the_mutex_of_a_dead_holder_is_made_anew(make: Make) -> None:
    if not robust_mutexes():
        pytest.skip("lacking: robust mutexes")
    layer = make(lock_timeout=0.05)
    layer.send("c", MESSAGE)
    found = attaching._attachments[make.prefix]
    nobody = next(pid for pid in range(2**22 - 1, 1, -1) if not Path(f"/proc/{pid}").exists())
    found.lock._futex.value = nobody
    layer.send("c", MESSAGE)
    assert len(contents(make.look()).messages[b"c"]) == 2


def test_a_stopped_holder_is_named_by_every_call(make: Make, held: tuple[Any, Any]) -> None:
    _, process = held
    layer = make(lock_timeout=0.05)
    process.kill(signal.SIGSTOP)
    for call in (
        lambda: layer.send("c", MESSAGE),
        lambda: layer.receive(["c"]),
        lambda: layer.group_add("g", "c"),
        lambda: layer.flush(),
    ):
        with pytest.raises(LockTimeout, match=rf"\b{process.pid}\b"):
            call()
    process.kill(signal.SIGCONT)
    process.say()
    process.hear()
    assert layer.receive(["c"]) == ("c", MESSAGE)
