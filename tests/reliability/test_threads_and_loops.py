"""One layer, many threads, many loops, signal handlers and finalizers: nothing wedges, nothing
leaks, nothing is lost or doubled."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import gc
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

import asgi_ipc
import asgi_ipc.aio
from asgi_ipc.aio import operations as core
from asgi_ipc.aio import session as base
from asgi_ipc.aio import waiter as waiter_module
from asgi_ipc.attachment import attachment, resources, upkeep
from asgi_ipc.conformance.base import MESSAGE
from asgi_ipc.errors import Reentered
from asgi_ipc.segment.paths import Paths
from asgi_ipc.store.layout import CLEAN, Q_PENDING, Q_WAITING, S_DIRTY, S_RECOVERIES
from asgi_ipc.store.queues import Taken

from ..environments import child_environment
from ..processes import running
from ..waiting import LIVENESS, in_threads, until

FULL = os.environ.get("ASGI_IPC_TEST_LENGTH") == "full"
LOCKS = ("mutex", "file")
FOREVER = 1e9  # a time that no test comes to


@pytest.fixture
def layer(prefix: str) -> Iterator[Any]:
    made = asgi_ipc.IPCChannelLayer(prefix, capacity=100_000, receive_timeout=0.2)
    yield made
    made.close()


@pytest.fixture
def aio(prefix: str) -> Iterator[Any]:
    made = asgi_ipc.aio.IPCChannelLayer(prefix, capacity=100_000)
    yield made
    asyncio.run(made.close())


def descriptors() -> list[str]:
    """What each open descriptor of this process stands for."""
    gc.collect()
    found = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/self/fd/{number}"))
    return sorted(found)


def resident() -> int:
    """Bytes of memory that are this process's own: the shared pages do not count."""
    gc.collect()
    fields = Path("/proc/self/statm").read_text(encoding="ascii").split()
    return (int(fields[1]) - int(fields[2])) * os.sysconf("SC_PAGE_SIZE")


# -- threads --------------------------------------------------------------------------------------


def test_sixteen_threads_share_a_blocking_layer(layer: Any) -> None:
    numbers, senders, readers = range(400), range(8), range(8)

    def send(sender: int) -> list[Any]:
        for number in numbers:
            layer.send("c", {"sender": sender, "number": number})
        return []

    left = threading.Semaphore(len(senders) * len(numbers))

    def read() -> list[tuple[int, int]]:
        got = []
        while left.acquire(blocking=False):
            # Each permit stands for one message that comes for certain.
            while (message := layer.receive(["c"], block=True)[1]) is None:
                pass
            got.append((message["sender"], message["number"]))
        return got

    results = in_threads([lambda s=s: send(s) for s in senders] + [read for _ in readers])
    counted = Counter(message for got in results for message in got)
    assert counted == Counter((s, n) for s in senders for n in numbers)
    for got in results:
        for sender in senders:
            of_one = [number for s, number in got if s == sender]
            assert of_one == sorted(of_one)


def test_sixteen_threads_share_an_asyncio_layer(aio: Any) -> None:
    """Each with a loop of its own; every one waits, and answers the one before it."""
    rounds, threads = 100, 16

    async def pass_round(number: int) -> int:
        mine, following = f"c{number}", f"c{(number + 1) % threads}"
        got = 0
        for _ in range(rounds):
            await aio.send(following, {"from": number})
            message = await aio.receive(mine)
            got += message["from"] == (number - 1) % threads
        return got

    results = in_threads([lambda n=n: asyncio.run(pass_round(n)) for n in range(threads)])
    assert results == [rounds] * threads


# -- loops ----------------------------------------------------------------------------------------


def test_two_loops_at_once_share_channels(aio: Any) -> None:
    """A normal channel that both loops read, and local parts of one process-specific queue."""
    count = 500
    names = [asyncio.run(aio.new_channel()) for _ in range(2)]
    assert names[0].partition("!")[0] == names[1].partition("!")[0]
    ready = threading.Barrier(3)

    async def read(mine: str) -> tuple[list[int], list[int]]:
        got: list[int] = []

        async def share() -> None:
            while (message := await aio.receive("shared"))["number"] >= 0:
                got.append(message["number"])

        sharing = asyncio.ensure_future(share())
        await asyncio.sleep(0)
        await asyncio.to_thread(ready.wait)
        own = [(await aio.receive(mine))["number"] for _ in range(count)]
        await sharing
        return got, own

    async def send() -> tuple[list[int], list[int]]:
        await asyncio.to_thread(ready.wait)
        for number in range(count):
            await aio.send("shared", {"number": number})
            for name in names:
                await aio.send(name, {"number": number})
            if number % 16 == 0:
                await asyncio.sleep(0)
        for _ in names:
            await aio.send("shared", {"number": -1})
        return [], []

    results = in_threads([lambda n=n: asyncio.run(read(n)) for n in names]
                         + [lambda: asyncio.run(send())])  # fmt: skip
    assert sorted(results[0][0] + results[1][0]) == list(range(count))
    for got, own in results[:2]:
        assert got == sorted(got)
        assert own == list(range(count))


def test_a_new_loop_for_every_call(aio: Any) -> None:
    """What `async_to_sync` does. More loops park than there are waiter ids: they come back."""
    async_to_sync = pytest.importorskip("asgiref.sync", reason="lacking: asgiref").async_to_sync
    send, receive, wait = map(async_to_sync, (aio.send, aio.receive, aio.receive_async))
    send("c", MESSAGE)
    receive("c")
    before = descriptors()
    directory = Paths(aio.prefix).directory
    for number in range(1200):
        assert wait(["c"], timeout=0.0005) == (None, None)
        send("c", {"number": number})
        assert receive("c") == {"number": number}
    assert len(descriptors()) <= len(before) + 3  # the doorbell of the last loop
    left = [name for name in os.listdir(directory) if not name.endswith((".lock", "members"))]
    assert len(left) <= 3
    # And the ids too: the next one to wait still gets a doorbell.
    attached = aio._core.session
    assert attached.attachment.new_bell(attached.section) is not None


@pytest.mark.parametrize("word", [0, 1])
def test_receives_without_waiter_ids_at_queues_that_are_not_there_yet(
    aio: Any, layer: Any, monkeypatch: pytest.MonkeyPatch, word: int
) -> None:
    """They look by themselves, whatever lies where the first row of all would have its count."""
    monkeypatch.setattr(attachment.Attachment, "new_bell", lambda self, section: None)

    async def run() -> None:
        await aio.send("warm", MESSAGE)
        aio._core.session.store.words[Q_PENDING] = word
        receiving = [asyncio.ensure_future(aio.receive(f"c{i}")) for i in range(20)]
        await asyncio.sleep(0.01)
        for number in range(20):
            layer.send(f"c{number}", MESSAGE)
        assert await asyncio.wait_for(asyncio.gather(*receiving), LIVENESS) == [MESSAGE] * 20

    asyncio.run(run())


def test_loop_closed_with_receives_pending(aio: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits next is rung: what the closed loop left parked does not swallow it."""
    monkeypatch.setattr(waiter_module, "CHECK_EVERY", 1000.0)
    name = asyncio.run(aio.new_channel())
    kept = []  # the tasks of the closed loops are never collected
    for _ in range(5):
        loop = asyncio.new_event_loop()
        kept += [
            loop.create_task(aio.receive("c")),
            loop.create_task(aio.receive(name)),
            loop.create_task(aio.receive_async(["c", "d"], None)),
        ]
        for _ in range(3):
            loop.run_until_complete(asyncio.sleep(0))
        loop.close()

    async def wait(channel: str) -> dict[str, Any]:
        waiting = asyncio.ensure_future(aio.receive(channel))
        for _ in range(3):
            await asyncio.sleep(0)
        assert not waiting.done()
        await aio.send(channel, MESSAGE)
        got: dict[str, Any] = await asyncio.wait_for(waiting, LIVENESS)
        return got

    try:
        for channel in ("c", name, "d"):
            assert asyncio.run(wait(channel)) == MESSAGE
        assert all(not task.done() for task in kept)
    finally:
        for task in kept:
            task._log_destroy_pending = False  # or asyncio complains that it was
            with contextlib.suppress(RuntimeError):
                task.get_coro().close()


def test_thousand_layers_dropped_without_close(prefix: str) -> None:
    async def use(layer: Any) -> None:
        await layer.send("c", MESSAGE)
        assert await layer.receive("c") == MESSAGE
        assert await layer.receive_async(["c"], timeout=0.0001) == (None, None)

    def blocking() -> None:
        layer = asgi_ipc.IPCChannelLayer(prefix, receive_timeout=0.0001)
        layer.send("c", MESSAGE)
        assert layer.receive(["c"]) == ("c", MESSAGE)
        assert layer.receive(["c"], block=True) == (None, None)

    blocking()
    asyncio.run(use(asgi_ipc.aio.IPCChannelLayer(prefix)))
    before, threads = descriptors(), threading.active_count()
    for _ in range(500):
        blocking()
        asyncio.run(use(asgi_ipc.aio.IPCChannelLayer(prefix)))
    assert descriptors() == before
    assert threading.active_count() == threads
    assert prefix not in Path("/proc/self/maps").read_text(encoding="utf-8")
    left = os.listdir(Paths(prefix).directory)
    assert sorted(left) == ["attach.lock", "members"]


@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
def test_receive_that_nobody_wakes_looks_by_itself(prefix: str, aio: Any, kind: str) -> None:
    """Another thread drained the queue, and was interrupted before it could wake anybody."""
    layer = asgi_ipc.IPCChannelLayer(prefix, receive_timeout=2 * LIVENESS)
    core = (layer if kind == "blocking" else aio)._core
    inbox = core.attach().attachment.inbox("own!")

    def wait() -> Any:
        if kind == "asyncio":
            return asyncio.run(aio.receive_async(["own!"], 2 * LIVENESS))
        return layer.receive(["own!"], block=True)

    def feed() -> None:
        until(lambda: inbox.waiting)
        inbox.feed(Taken(1, FOREVER, b"a", core.codec.encode(MESSAGE)), lambda local: 1)

    assert in_threads([wait, feed])[0] == ("own!a", MESSAGE)


@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
def test_receive_looks_by_itself_after_a_flush_that_rang_nobody(
    prefix: str, layer: Any, aio: Any, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever flushed was killed before it could ring, and the queue has another row since."""
    waiting = asgi_ipc.IPCChannelLayer(prefix, receive_timeout=2 * LIVENESS)
    layer.send("c", MESSAGE)
    layer.receive(["c"])
    session = layer._core.session
    row = session.targets["c"].row

    def wait() -> Any:
        if kind == "asyncio":
            return asyncio.run(aio.receive_async(["c"], 2 * LIVENESS))
        return waiting.receive(["c"], block=True)

    def flush_and_send() -> None:
        until(lambda: session.store.words[row + Q_WAITING])
        monkeypatch.setattr(resources.Resources, "ring_everyone", lambda self: None)
        layer.flush()
        layer.send("other", MESSAGE)  # which gets the row
        assert layer.receive(["other"]) == ("other", MESSAGE)
        layer.send("c", MESSAGE)
        assert session.targets["c"].row != row

    assert in_threads([wait, flush_and_send])[0] == ("c", MESSAGE)


def test_ring_that_is_read_late_is_passed_on(
    prefix: str, layer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It came while the thread worked on what an earlier receive had got out of that queue."""
    monkeypatch.setattr(
        waiter_module, "CHECK_EVERY", 4 * LIVENESS
    )  # so that nobody finds it by looking
    other = asgi_ipc.IPCChannelLayer(prefix, receive_timeout=2 * LIVENESS)
    layer.send("x", MESSAGE)
    layer.receive(["x"])
    session = layer._core.session
    store, row = session.store, session.targets["x"].row

    def send_when_one_waits() -> None:
        until(lambda: session.store.words[row + Q_WAITING])
        layer.send("x", MESSAGE)

    def read_late() -> None:
        assert layer.receive(["x"], block=True, timeout=LIVENESS) == ("x", MESSAGE)
        worked.set()
        waiter = session.attachment.local.waiter
        assert waiter.rung
        until(lambda: session.store.words[row + Q_WAITING])  # the other one waits now
        session.section(store.park, row, waiter.waiter_id)  # a bit that was left there
        store.turn[0] = waiter.waiter_id
        layer.send("x", MESSAGE)
        assert layer.receive(["z"], block=True, timeout=0.01) == (None, None)

    def wait() -> Any:
        worked.wait(LIVENESS)
        return other.receive(["x"], block=True)

    worked = threading.Event()
    assert in_threads([wait, read_late, send_when_one_waits])[0] == ("x", MESSAGE)


def test_rings_that_a_signal_handler_has_read_are_none(layer: Any) -> None:
    layer.receive(["c"], block=True, timeout=0.01)
    session = layer._core.session
    waiter = session.attachment.local.waiter
    waiter.bell.ring(0)
    assert waiter.rung is None and not waiter.answer(session, [])


async def test_receive_without_a_waiter_id_follows_its_queue_to_another_row(
    layer: Any, aio: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attachment.Attachment, "new_bell", lambda self, section: None)
    layer.send("c", MESSAGE)
    assert await aio.receive("c") == MESSAGE
    session = layer._core.session
    row = session.targets["c"].row
    waiting = asyncio.ensure_future(aio.receive("c"))
    while not (aio._core.session.loop_waiter and aio._core.session.loop_waiter.sleepers):
        await asyncio.sleep(0)
    session.section(session.store.reclaim, time.monotonic(), 0.0, 1000)  # as after a minute
    layer.send("other", MESSAGE)  # which gets the row
    assert layer.receive(["other"]) == ("other", MESSAGE)
    layer.send("c", MESSAGE)
    assert session.targets["c"].row != row
    assert await asyncio.wait_for(waiting, LIVENESS) == MESSAGE


# -- calls from inside calls ----------------------------------------------------------------------


@contextlib.contextmanager
def handling(number: int, handler: Callable[[], None]) -> Iterator[None]:
    before = signal.signal(number, lambda signum, frame: handler())
    try:
        yield
    finally:
        signal.signal(number, before)


def sends(prefix: str, lock: str) -> Iterator[tuple[Any, Callable[[str, dict[str, Any]], None]]]:
    """A layer of each kind, and how to send with it from where there is no loop."""
    blocking = asgi_ipc.IPCChannelLayer(prefix, lock=lock, capacity=100_000)
    yield blocking, blocking.send
    aio = asgi_ipc.aio.IPCChannelLayer(prefix, lock=lock, capacity=100_000)

    def send(channel: str, message: dict[str, Any]) -> None:
        with contextlib.suppress(StopIteration):
            aio.send(channel, message).send(None)
            raise AssertionError("a send suspended")

    yield aio, send


@pytest.mark.parametrize("lock", LOCKS)
@pytest.mark.parametrize("how", ["signal handler", "__del__"])
def test_send_from_inside_a_section_is_refused(prefix: str, lock: str, how: str) -> None:
    reader = asgi_ipc.IPCChannelLayer(prefix, lock=lock)
    for layer, send in sends(prefix, lock):
        refused: list[BaseException] = []

        def inside(send: Any = send, refused: Any = refused) -> None:
            try:
                send("inner", MESSAGE)
            except Exception as why:
                refused.append(why)

        class Finalized:
            def __del__(self, inside: Any = inside) -> None:
                inside()

        send("warm", MESSAGE)
        session = layer._core.session
        dirty = []

        def operation(*args: Any, session: Any = session, dirty: Any = dirty) -> Any:
            session.store.words[S_DIRTY] = 1  # as in the middle of a change
            if how == "__del__":
                Finalized()
            else:
                os.kill(os.getpid(), signal.SIGUSR1)
            dirty.append(session.store.words[S_DIRTY])
            session.store.words[S_DIRTY] = CLEAN
            return session.store.put(*args)

        recoveries = reader._core.attach().store.words[S_RECOVERIES]
        target = session.targets["warm"]
        body = layer._core.codec.encode({"outer": True})
        now = time.monotonic()
        with handling(signal.SIGUSR1, inside):
            assert session.section(operation, target, body, now) == 0
        # The inner one was refused clearly, and touched nothing: the outer one went on as it was.
        assert [type(error) for error in refused] == [Reentered]
        assert "signal handler or __del__" in str(refused[0])
        assert dirty == [1]
        assert reader._core.attach().store.words[S_RECOVERIES] == recoveries
        # The lock is free, for this thread and for others.
        (drained,) = in_threads([lambda: [reader.receive(["warm"])[1] for _ in range(3)]])
        assert drained == [MESSAGE, {"outer": True}, None]
        send("warm", MESSAGE)
        assert reader.receive(["warm", "inner"]) == ("warm", MESSAGE)
        assert reader.receive(["warm", "inner"]) == (None, None)


@pytest.mark.usefixtures("pure")  # no signal handler runs inside a compiled call
@pytest.mark.parametrize("lock", LOCKS)
def test_signal_handler_that_sends_at_any_moment(prefix: str, lock: str) -> None:
    """Each send of the handler is refused or done; none of the main program's is harmed."""
    layer = asgi_ipc.IPCChannelLayer(
        prefix, lock=lock, capacity=1_000_000, receive_timeout=LIVENESS
    )
    outcomes: Counter[str] = Counter()

    busy = False

    def handler() -> None:
        nonlocal busy
        if busy:  # a signal that came while the last one was handled
            return
        busy = True
        try:
            layer.send("inner", {"number": outcomes["sent"]})
        except Reentered:
            outcomes["refused"] += 1
        else:
            outcomes["sent"] += 1
        busy = False

    layer.send("inner", {"number": -1})
    layer.receive(["inner"])
    outer = 0
    with handling(signal.SIGALRM, handler):
        signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
        try:
            deadline = time.monotonic() + LIVENESS
            while min(outcomes["sent"], outcomes["refused"]) < 100 or outer < 20_000:
                layer.send("outer", {"number": outer})
                outer += 1
                assert time.monotonic() < deadline, outcomes
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    (peer,) = in_threads([lambda: layer.receive(["outer"], block=True)])
    assert peer == ("outer", {"number": 0})
    assert [layer.receive(["outer"])[1] for _ in range(outer)] == [
        {"number": number} for number in range(1, outer)
    ] + [None]
    assert [layer.receive(["inner"])[1] for _ in range(outcomes["sent"] + 1)] == [
        {"number": number} for number in range(outcomes["sent"])
    ] + [None]


@pytest.mark.usefixtures("pure")
@pytest.mark.parametrize("lock", LOCKS)
def test_inner_call_that_fails_leaves_the_lock_free(prefix: str, lock: str) -> None:
    """A handler that runs at every instruction of a send, with a call that is refused inside its
    own section. Whatever the moment, another thread then gets the lock at once."""
    options: dict[str, Any] = {"lock": lock, "capacity": 100_000}
    layer = asgi_ipc.IPCChannelLayer(prefix, lock_timeout=0.3, **options)
    layer.group_add("group", "member")
    layer.send("c", MESSAGE)
    outcomes: Counter[str] = Counter()

    def handler() -> None:
        try:
            layer._core._target(layer._core.session, "group")  # not a channel, found out inside
        except Exception as error:
            outcomes[type(error).__name__] += 1

    at, stuck = 0, []
    while at < 10_000:
        at += 1
        if not at_instruction(at, handler, lambda: layer.send("c", MESSAGE)):
            break
        try:
            in_threads([lambda: layer.send("other", MESSAGE)])
        except TimeoutError as error:
            stuck.append((at, str(error)))
            layer.send("c", MESSAGE)  # takes it over
    assert not stuck
    assert at > 100
    assert outcomes["Reentered"] and outcomes["NotAChannel"], outcomes
    count = layer.channel_statistics("c")["messages_pending"]
    assert [layer.receive(["c"])[1] for _ in range(count + 1)] == [MESSAGE] * count + [None]


PACKAGE = str(Path(asgi_ipc.__file__).parent)


def at_instruction(number: int, handler: Callable[[], None], call: Callable[[], None]) -> bool:
    """Run `call`, and `handler` before its n-th bytecode inside the package. False if it has
    fewer."""
    left = number

    def trace(frame: Any, event: str, argument: Any) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            left -= 1
            if not left:
                sys.settrace(None)
                handler()
                return None
        return trace

    own = sys._getframe()
    own.f_trace_opcodes = True  # before settrace: or the first run may see no opcode (3.12, 3.13)
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(None)
    return left <= 0


# -- busy neighbours ------------------------------------------------------------------------------

BUSY = """
import sys, threading, asgi_ipc
layer = asgi_ipc.IPCChannelLayer(sys.argv[1])
def burn():
    while True:
        sum(range(1000))
for _ in range(4):
    threading.Thread(target=burn, daemon=True).start()
print("burning", flush=True)
while True:
    layer.send("busy", {})
    layer.receive(["busy"])
"""


def test_threads_that_burn_beside_the_layer(layer: Any, tmp_path: Path) -> None:
    """A process whose threads fight for its interpreter does not hold the lock while they do."""
    seconds = 10.0 if FULL else 3.0
    layer.send("c", MESSAGE)
    layer.receive(["c"])
    arguments = [sys.executable, "-c", BUSY, layer.prefix]
    with running(arguments, log=tmp_path / "log", environment=child_environment()) as busy:
        busy.wait_for_output("burning")
        until(lambda: layer.channel_statistics("busy")["messages_count"] > 10)
        calls, longest, stalled = 0, 0.0, 0.0
        begin = last = time.monotonic()
        while last < begin + seconds:
            layer.send("c", MESSAGE)
            assert layer.receive(["c"]) == ("c", MESSAGE)
            now = time.monotonic()
            longest = max(longest, now - last)
            if now - last > 0.001:
                stalled += now - last
            last, calls = now, calls + 1
        worked = layer.channel_statistics("busy")["messages_count"]
        assert busy.alive(), busy.describe()
    print(
        f"beside four busy threads: {calls} round trips in {seconds:g} s, the longest took "
        f"{longest * 1000:.1f} ms, those over a millisecond made {stalled / seconds:.0%} of the "
        f"time; the busy process made {worked}"
    )
    assert longest < LIVENESS
    assert calls > 100


# -- growth ---------------------------------------------------------------------------------------

CALLS = 100_000 if FULL else 40_000
GROWTH = 125 * CALLS  # bytes: a leak of one small object for each call would be more


def grows(calls: Callable[[int], None], warm: int = 45_000) -> tuple[int, list[str], list[str]]:
    """Bytes that `calls` of CALLS numbers took and kept; and the descriptors before and after.

    Before that the caches fill up: names are remembered up to a limit.
    """
    for number in range(warm):
        calls(number)
    before, memory = descriptors(), resident()
    for number in range(warm, warm + CALLS):
        calls(number)
    return resident() - memory, before, descriptors()


def test_blocking_calls_do_not_grow(layer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # So that the warm-up fills all of them: the plans of 20,000 groups would take most of GROWTH.
    monkeypatch.setattr(core, "CACHED", 2_000)
    monkeypatch.setattr(base, "CACHED", 2_000)

    def calls(number: int) -> None:
        channel = f"c?{number}"
        layer.send(channel, MESSAGE)
        assert layer.receive([channel, "other"])[1] == MESSAGE
        if number % 10 == 0:
            layer.group_add(f"g{number}", channel)
            layer.send_group(f"g{number}", MESSAGE)
            layer.group_discard(f"g{number}", channel)
            layer.receive([channel])
            layer.channel_statistics(channel)

    grown, before, after = grows(calls)
    print(f"{CALLS} blocking rounds: {grown / 1024:.0f} KiB")
    assert after == before
    assert grown < GROWTH


async def test_asyncio_calls_do_not_grow(aio: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "NAMES", 10_000)  # those of normal channels come again, as a rule
    queue = await aio.new_channel()

    async def call(number: int) -> None:
        channel = f"{queue}{number}" if number % 2 else f"c{number}"
        waiting = asyncio.ensure_future(aio.receive(channel))
        await asyncio.sleep(0)
        if number % 3:
            await aio.send(channel, MESSAGE)
            assert await waiting == MESSAGE
        else:
            waiting.cancel()
            await asyncio.wait([waiting])

    warm, measured = 25_000, CALLS // 2  # two calls each
    for number in range(warm):
        await call(number)
    before, memory = descriptors(), resident()
    for number in range(warm, warm + measured):
        await call(number)
    grown = resident() - memory
    print(f"{2 * measured} asyncio calls: {grown / 1024:.0f} KiB")
    assert descriptors() == before
    assert grown < GROWTH


def test_refused_calls_do_not_grow(layer: Any) -> None:
    def calls(number: int) -> None:
        with contextlib.suppress(TypeError):
            layer.send("not a name", MESSAGE)
        with contextlib.suppress(ValueError):
            layer.send("c", {"value": object()})
        assert layer.receive(["c"]) == (None, None)

    grown, before, after = grows(calls, warm=5_000)
    print(f"{CALLS} rounds of refused calls: {grown / 1024:.0f} KiB")
    assert after == before
    assert grown < GROWTH


# -- cancellation ---------------------------------------------------------------------------------


class Driver:
    """Awaits a coroutine, and cancels it at its n-th await, before that suspends."""

    def __init__(self, coroutine: Any, at: int) -> None:
        self.coroutine = coroutine
        self.at = at
        self.awaits = 0

    def __await__(self) -> Generator[Any, Any, Any]:
        step: Any = self.coroutine.__await__()
        value: Any = None
        error: BaseException | None = None
        while True:
            try:
                waited_for = step.send(value) if error is None else step.throw(error)
            except StopIteration as finished:
                return finished.value
            self.awaits += 1
            if self.awaits == self.at:
                error = asyncio.CancelledError()
                continue
            error = None
            try:
                value = yield waited_for
            except BaseException as raised:
                error = raised


def kinds_of_receive(aio: Any, own: str) -> dict[str, tuple[str, Callable[[], Awaitable[Any]]]]:
    """Where to send to, and a receive that gets it, of each kind."""
    queue = own.partition("!")[0] + "!"

    async def receive_any(channels: list[str], timeout: float | None) -> Any:
        return (await aio.receive_async(channels, timeout))[1]

    return {
        "normal": ("c", lambda: aio.receive("c")),
        "process-specific": (own, lambda: aio.receive(own)),
        "several": ("c", lambda: receive_any(["b", "c", queue], None)),
        "several, with a timeout": (own, lambda: receive_any([queue, "c"], 60)),
    }


@pytest.mark.parametrize("kind", range(4))
async def test_receive_cancelled_at_every_await(prefix: str, kind: int) -> None:
    """Thrown into the coroutine at its n-th await, for n = 1, 2, … until it has no more; with the
    lock busy at first, so that the awaits for the lock are among them."""
    aio = asgi_ipc.aio.IPCChannelLayer(prefix, lock="file")
    channel, receive = list(kinds_of_receive(aio, await aio.new_channel()).values())[kind]
    number, cancelled = 0, 0
    await aio.receive_async(["warm"], 0.0001)  # the doorbell of this loop
    await aio.send("warm", MESSAGE)
    with open(Paths(prefix).section_lock, "rb") as file:
        while True:
            number += 1
            fcntl.flock(file, fcntl.LOCK_EX)
            driver = Driver(receive(), number)

            async def drive(driver: Driver = driver) -> Any:
                return await driver

            task = asyncio.ensure_future(drive())
            while driver.awaits < min(number, 3) and not task.done():
                await asyncio.sleep(0)
            fcntl.flock(file, fcntl.LOCK_UN)
            message = {"number": number}
            if number % 2:
                await asyncio.sleep(0.005)  # it has parked by now, or was cancelled before
            await aio.send(channel, message)
            done, _ = await asyncio.wait([task], timeout=LIVENESS)
            assert done
            if not task.cancelled():
                assert task.result() == message
            else:
                cancelled += 1
                assert await asyncio.wait_for(receive(), LIVENESS) == message
            assert await aio.receive_async(["b", "c", "warm"], 0) in (
                (None, None),
                ("warm", MESSAGE),
            )
            if not task.cancelled() and driver.awaits < number:
                break
    assert cancelled == number - 1 >= 2
    await aio.close()


@pytest.mark.parametrize("kind", range(4))
async def test_receive_cancelled_at_every_turn_of_the_loop(aio: Any, kind: int) -> None:
    """The message comes at one turn of the loop, the cancellation at another: every pair. One
    receive or another gets it, and nobody gets it twice."""
    channel, receive = list(kinds_of_receive(aio, await aio.new_channel()).values())[kind]
    outcomes: Counter[str] = Counter()
    number = 0
    for sent_at in range(8):
        for cancelled_at in range(10):
            for others in (0, 1):
                number += 1
                message = {"number": number}
                first = asyncio.ensure_future(receive())
                second = [asyncio.ensure_future(receive()) for _ in range(others)]
                for turn in range(10):
                    if turn == sent_at:
                        await aio.send(channel, message)
                    if turn == cancelled_at:
                        first.cancel()
                    await asyncio.sleep(0)
                await asyncio.wait([first])
                if not first.cancelled():
                    assert first.result() == message
                    outcomes["kept"] += 1
                    for task in second:
                        task.cancel()
                    await asyncio.gather(*second, return_exceptions=True)
                    assert all(task.cancelled() for task in second)
                else:
                    outcomes["cancelled"] += 1
                    for task in second or [asyncio.ensure_future(receive())]:
                        assert await asyncio.wait_for(task, LIVENESS) == message
                queue = channel.partition("!")[0] + "!" * ("!" in channel)
                assert await aio.receive_async([queue], 0) == (None, None)
    assert outcomes["kept"] > 10 and outcomes["cancelled"] > 10, outcomes


def test_threads_are_told_within_the_safety_check() -> None:
    """The two shells look at the same interval, which the tests here rely on."""
    assert waiter_module.CHECK_EVERY == upkeep.CHECK_EVERY == 1.0
