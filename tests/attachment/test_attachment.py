"""An attachment: what others do when its process dies, what it does when its segment vanishes, and
how the lock is renewed."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from asgi_ipc import segment
from asgi_ipc.conformance.base import MESSAGE
from asgi_ipc.errors import (
    ForeignSegment,
    IncompatibleSegment,
    LimitReached,
    LockTimeout,
    NotOwner,
    SegmentVanished,
)
from asgi_ipc.inspection.locked import complaints
from asgi_ipc.inspection.view import View
from asgi_ipc.segment import files
from asgi_ipc.segment.lock import Mutex, has_gil, robust_mutexes
from asgi_ipc.segment.paths import Paths
from asgi_ipc.store import waiters
from asgi_ipc.store.layout import H_LOCK, PAGE, Q_WAITING, WORD
from asgi_ipc.store.queues import Target

from ..environments import child_environment
from ..forks import (
    NOBODY,
    Line,
    another_clock,
    bounded,
    child,
    children,
    in_child,
    is_root,
    on_linux,
    or_skip,
    rests,
)
from ..unit.support import contents
from ..waiting import LIVENESS, in_threads, until
from .layers import LOCKS, NOTHING, SHM, SOON, Make

pytestmark = on_linux  # where a test can see what a process has open


# -- death ----------------------------------------------------------------------------------------


def owner_of(make: Make, queue: str, **options: Any) -> Callable[[Line], None]:
    """What a child does that owns a queue with a member in a group."""

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

    until(dropped, bound=SOON)
    until(gone, bound=1.5 + SOON)
    assert time.monotonic() - died >= 1.5
    until(lambda: layer.receive(["c"]) and make.processes() == [os.getpid()], bound=SOON)


def test_a_process_may_die_before_it_receives_on_a_channel_that_it_added_to_a_group(
    make: Make,
) -> None:
    def add(line: Line) -> None:
        layer = make()
        layer.group_add("group", layer.new_channel("specific!"))
        rests(line)

    layer = make(expiry=0.1)
    layer.group_add("group", "alive")
    with child(add) as process:
        process.hear()
        assert len(layer.group_channels("group")) == 2
        process.kill()
    until(lambda: layer.group_channels("group") == ["alive"], bound=SOON)


def test_a_channel_that_does_not_fit_into_a_group_leaves_no_queue(make: Make) -> None:
    layer = make()
    store = layer._core.attach().store
    for number in range(store.members.max_rows):
        layer.group_add("group", f"member{number}")
    before = contents(store)
    with pytest.raises(LimitReached):
        layer.group_add("group", layer.new_channel())
    assert contents(store) == before


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
    until(lambda: layer.receive(["c"]) and not make.bells(), bound=SOON)


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

    until(send, bound=SOON)
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


# -- renewing the mutex ---------------------------------------------------------------------------


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
        mine._core.session.attachment.section(rests, line)

    with child(hold) as process:
        process.hear()
        yield layer._core.session.attachment, process


def renew(found: Any, holder: int) -> bool:
    return found._resources.renew_lock(holder)


def nobody() -> int:
    """The id of a thread that does not exist."""
    return next(pid for pid in range(2**22 - 1, 1, -1) if not Path(f"/proc/{pid}").exists())


def test_a_mutex_that_somebody_made_anew_already_is_left_alone(held: tuple[Any, Any]) -> None:
    """Two processes find it unrecoverable; the second tries to renew it when the first holds it."""
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
    found = layer._core.session.attachment
    found.lock._futex.value = nobody()
    layer.send("c", MESSAGE)
    assert len(contents(make.look()).messages[b"c"]) == 2


@pytest.fixture
def visited(make: Make) -> Iterator[tuple[Any, Any]]:
    """The same with a holder that is not attached."""
    if not robust_mutexes():
        pytest.skip("lacking: robust mutexes")
    layer = make()
    layer.send("c", MESSAGE)

    def visit(line: Line) -> None:
        file = os.open(SHM / f"asgi_ipc.{make.prefix}", os.O_RDWR)
        lock = Mutex(mmap.mmap(file, PAGE), H_LOCK * WORD)
        assert lock.trylock(lock.handle) == 0
        rests(line)
        lock.unlock(lock.handle)

    with child(visit) as process:
        process.hear()
        yield layer._core.session.attachment, process


def test_the_mutex_of_a_living_holder_that_is_not_attached_is_left_alone(
    visited: tuple[Any, Any],
) -> None:
    found, process = visited
    assert process.pid not in found.segment.members.pids()
    assert not renew(found, found.lock.holder())
    assert found.lock.trylock(found.lock.handle) == errno.EBUSY
    process.say()
    process.hear()
    assert found.lock.trylock(found.lock.handle) == 0
    found.lock.unlock(found.lock.handle)


def test_a_holder_that_let_go_just_now_costs_the_next_one_nothing(
    held: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read from the mutex, lets go and ends, and another takes the lock; all this before the
    first look at it, or before the second."""
    found, process = held
    assert renew(found, nobody())
    lives = [False, True]
    monkeypatch.setattr(found._resources, "_may_live", lambda holder: lives.pop(0))
    assert renew(found, found.lock.holder())
    assert not lives
    assert found.lock.trylock(found.lock.handle) == errno.EBUSY
    process.say()
    process.hear()


def test_nobody_renews_while_another_attaches_or_verifies(make: Make) -> None:
    if not robust_mutexes():
        pytest.skip("lacking: robust mutexes")
    layer = make(lock_timeout=0.05)
    layer.send("c", MESSAGE)
    found = layer._core.session.attachment
    found.lock._futex.value = nobody()

    def hold(line: Line) -> None:
        with files.attach_lock(Paths(make.prefix), None):
            rests(line)

    with child(hold) as process:
        process.hear()
        with pytest.raises(LockTimeout):
            layer.send("c", MESSAGE)
        process.say()
        process.hear()
    layer.send("c", MESSAGE)


@pytest.mark.parametrize("then", ["a zombie", "another program"])
def test_the_thread_id_of_a_dead_holder_that_still_stands_for_something(
    make: Make, then: str
) -> None:
    if not robust_mutexes():
        pytest.skip("lacking: robust mutexes")
    layer = make(lock_timeout=0.05)
    layer.send("c", MESSAGE)
    source = "pass" if then == "a zombie" else "import time; time.sleep(60)"
    with subprocess.Popen([sys.executable, "-S", "-c", source]) as process:
        if then == "a zombie":
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        else:
            until(lambda: make.prefix not in Path(f"/proc/{process.pid}/maps").read_text())
        layer._core.session.attachment.lock._futex.value = process.pid
        layer.send("c", MESSAGE)
        process.kill()
    assert len(contents(make.look()).messages[b"c"]) == 2


DIE_UNREPORTED = """
import ctypes, os, sys, asgi_ipc
layer = asgi_ipc.IPCChannelLayer(sys.argv[1])
layer.send("c", {"text": "of the victim"})
lock = layer._core.session.attachment.lock
assert lock.trylock(lock.handle) == 0
set_robust_list = {"x86_64": 273, "aarch64": 99}[os.uname().machine]
assert ctypes.CDLL(None).syscall(set_robust_list, ctypes.create_string_buffer(24), 24) == 0
os._exit(0)
"""


@pytest.mark.parametrize("whose", ["the caller", "another thread", "another process"])
@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
def test_the_thread_id_of_a_dead_holder_was_given_to_a_thread_of_the_layer(
    make: Make, kind: str, whose: str
) -> None:
    """Its death was not reported. What it left in the mutex are addresses of its own memory."""
    if not robust_mutexes() or os.uname().machine not in ("x86_64", "aarch64"):
        pytest.skip("lacking: robust mutexes, and the numbers of system calls")
    if whose == "another thread" and not has_gil():
        pytest.skip("lacking: a GIL, without which only a thread itself can tell what it holds")
    layer = make(lock_timeout=0.2)
    layer.send("c", MESSAGE)
    lock = layer._core.session.attachment.lock
    done = threading.Event()

    def call() -> bool:
        if kind == "asyncio":
            asyncio.run(make.asyncio().send("c", MESSAGE))
        else:
            make(lock_timeout=0.2).send("c", MESSAGE)
        return True

    def attached(line: Line) -> bool:
        make().send("here", MESSAGE)
        line.say(threading.get_native_id())
        line.hear()
        return call()

    with child(attached) as process:
        other = process.hear()
        run = [sys.executable, "-c", DIE_UNREPORTED, make.prefix]
        subprocess.run(run, env=child_environment(), check=True)
        assert lock.holder() not in (0, threading.get_native_id())
        thread = threading.Thread(target=done.wait)
        thread.start()
        ids = {"the caller": threading.get_native_id(), "another thread": thread.native_id}
        lock._futex.value = ids.get(whose, other)
        if whose == "another process":
            process.say()  # which finds out for all
            assert process.hear()
        else:
            assert call()
        done.set()
        thread.join()
    layer.send("c", MESSAGE)
    assert len(contents(make.look()).messages[b"c"]) == 3 + 1
    assert complaints(View(make.prefix), LIVENESS) == []


def test_the_thread_id_of_a_dead_holder_was_given_to_a_process_that_waits_for_messages(
    make: Make,
) -> None:
    """Nobody else can tell. It looks once a second, and finds it out before the others give up."""
    if not robust_mutexes() or os.uname().machine not in ("x86_64", "aarch64"):
        pytest.skip("lacking: robust mutexes, and the numbers of system calls")
    layer = make(lock_timeout=LIVENESS / 2)
    layer.send("c", MESSAGE)
    session = layer._core.session
    lock = session.attachment.lock

    def parked() -> bool:
        row = session.section(session.store.find, Target(b"there"))
        return bool(row and session.store.words[row + Q_WAITING])

    def wait(line: Line) -> Any:
        waits = make(lock_timeout=LIVENESS / 2)
        line.say(threading.get_native_id())
        return waits.receive(["there"], block=True, timeout=LIVENESS)

    with child(wait) as process:
        other = process.hear()
        until(parked, what="it to wait")
        run = [sys.executable, "-c", DIE_UNREPORTED, make.prefix]
        subprocess.run(run, env=child_environment(), check=True)
        lock._futex.value = other
        layer.send("there", MESSAGE)
        assert process.hear() == ("there", MESSAGE)
    assert complaints(View(make.prefix), LIVENESS) == []


def test_processes_that_try_a_mutex_while_it_is_renewed_exclude_each_other(make: Make) -> None:
    if not robust_mutexes():
        pytest.skip("lacking: robust mutexes")
    layer = make()
    layer.send("c", MESSAGE)
    found, dead = layer._core.session.attachment, nobody()
    lock, words = found.lock, memoryview(mmap.mmap(-1, PAGE)).cast("Q")

    def compete(line: Line) -> None:
        line.say()
        while not words[1]:
            code = lock.trylock(lock.handle)
            if code in (0, errno.EOWNERDEAD):
                lock.consistent(lock.handle)
                words[0] += 1
                assert words[0] == 1, "two hold it"
                words[0] = 0
                lock.unlock(lock.handle)

    def die_unreported(line: Line) -> None:
        with bounded(SOON):
            while lock.trylock(lock.handle) not in (0, errno.EOWNERDEAD):
                time.sleep(0.0001)
        lock.consistent(lock.handle)
        lock._futex.value = dead  # so the kernel does not find out who held it

    with children([compete] * 2) as processes:
        for process in processes:
            process.hear()
        for _ in range(30):
            with child(die_unreported) as victim:
                victim.hear()
            assert renew(found, dead)
        words[1] = 1
        for process in processes:
            process.hear()


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


# -- standard streams that are closed -------------------------------------------------------------


@pytest.mark.parametrize("low", [(0, 1, 2), (2,)])
@pytest.mark.parametrize("lock", LOCKS)
def test_no_descriptor_is_one_of_a_closed_standard_stream(
    make: Make, lock: str, low: tuple[int, ...]
) -> None:
    """One line to it would damage the segment for everybody."""

    def live() -> list[str]:
        for number in low:
            os.close(number)
        opened: list[str] = []
        layer, other = make(lock=lock), make.asyncio(lock=lock)

        async def wait() -> None:
            receiving = asyncio.ensure_future(other.receive("b"))
            await asyncio.sleep(0.01)
            layer.send("b", MESSAGE)
            await receiving
            await asyncio.sleep(0.01)
            await asyncio.to_thread(look)

        def look() -> None:
            assert layer.receive(["nothing"], block=True, timeout=0.01) == NOTHING
            assert complaints(View(make.prefix), LIVENESS) == []
            for number in low:
                try:
                    opened.append(os.readlink(f"/proc/self/fd/{number}"))
                except OSError:
                    continue

        layer.send("a", MESSAGE)
        look()
        asyncio.run(wait())
        assert len(make.descriptors()) >= 4
        return opened

    assert [path for path in in_child(live) if make.prefix in path] == []


# -- another user ---------------------------------------------------------------------------------


@is_root
@pytest.mark.parametrize("call", ["send", "receive"])
@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
def test_a_process_that_changed_its_user_is_told_why_it_may_not_go_on(
    make: Make, kind: str, call: str
) -> None:
    async def use_asyncio(layer: Any) -> None:
        if call == "send":
            await layer.send("a", MESSAGE)
        else:
            await layer.receive_async(["nothing"], timeout=SOON)

    def use(layer: Any) -> None:
        if kind == "asyncio":
            asyncio.run(use_asyncio(layer))
        elif call == "send":
            layer.send("a", MESSAGE)
        else:
            layer.receive(["nothing"], block=True, timeout=SOON)

    def live() -> list[tuple[type[Exception], str]]:
        layer = make() if kind == "blocking" else make.asyncio()
        made = layer.send("b", MESSAGE)
        if made is not None:
            asyncio.run(made)
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        said: list[tuple[type[Exception], str]] = []
        deadline = time.monotonic() + 2 * SOON
        while len(said) < 3 and time.monotonic() < deadline:
            try:
                use(layer)
                time.sleep(0.05)
            except OSError as error:
                said.append((type(error), str(error)))
        return said

    said = in_child(live)
    assert [error for error, _ in said] == [ForeignSegment] * 3, said
    assert all(str(NOBODY) in text for _, text in said), said
    assert "setuid" in said[0][1]


@pytest.mark.parametrize("offset", [-100, 100_000])
@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
def test_a_process_that_changed_its_clock_is_told_that_it_may_not_go_on(
    make: Make, kind: str, offset: int
) -> None:
    """It moved to another time namespace, where messages would expire at once or last too long."""

    def live() -> str:
        layer = make() if kind == "blocking" else make.asyncio()
        made = layer.send("b", MESSAGE)
        if made is not None:
            asyncio.run(made)
        with another_clock(offset):
            try:
                if kind == "blocking":
                    layer.receive(["nothing"], block=True, timeout=2 * SOON)
                else:
                    asyncio.run(layer.receive_async(["nothing"], timeout=2 * SOON))
            except IncompatibleSegment as error:
                return str(error)
        return "it goes on"

    assert "another time namespace" in or_skip(live)


def test_a_doorbell_that_may_not_be_rung_is_one_warning(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    layer = make()
    layer.send("a", MESSAGE)
    ringer = layer._core.session.attachment._ringer

    def refuse(waiter_id: int, generation: int) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(ringer, "_connect", refuse)
    assert ringer.ring(1, 1, 0) and ringer.ring(2, 1, 0)
    assert "Permission denied" not in caplog.text  # it may have been rung under a lock
    layer.close()
    assert len([r for r in caplog.records if "Permission denied" in r.getMessage()]) == 1
