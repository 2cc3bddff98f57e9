"""The ways of waiting, each driven by itself: a doorbell, and a fake of what stands around it. No
segment, no lock and no layer."""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Generator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from asgi_ipc.aio import waiter as waiter_module
from asgi_ipc.aio.hub import Hub
from asgi_ipc.aio.loop import AsyncioHub
from asgi_ipc.aio.source import Source
from asgi_ipc.aio.thread import ThreadWaiter, finished
from asgi_ipc.attachment.inbox import Inbox
from asgi_ipc.errors import LockTimeout, SegmentVanished
from asgi_ipc.segment.doorbell import ALL, Doorbell
from asgi_ipc.store.layout import Q_PENDING, QUEUE_WORDS, R_GENERATION, WORD
from asgi_ipc.store.queues import Taken

from ...waiting import LIVENESS
from ..support import make_store

ROW, OTHER_ROW = 1000, 2000


class Around:
    """A session, and the core that waits, as far as a waiter asks them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bells = 0
        self.left: list[int] = []  # waiter ids that were given back
        self.passed_on: list[int] = []  # rows
        self.looks = 0
        self.epoch = 1
        self.valid = True  # whether the segment still knows the waiter
        self.broken: Exception | None = None
        self.drained: list[str] = []
        self.waiting: dict[int, int] = {}  # by row, messages
        self.attachment = SimpleNamespace(
            new_bell=self.new_bell,
            give_back=self.give_back,
            pass_on=self.passed_on.append,
            broken=None,
            unchanged=SimpleNamespace(holds=lambda *_: 0.0, held=lambda *_: None, can_doze=False),
            explain=lambda error: error,
        )
        self.store = SimpleNamespace(
            is_waiter=lambda *_: self.valid,
            park_if_empty=lambda row, _: self.pending(row) > 0,
            unpark=lambda *_: True,
            waiter_row=lambda _: 0,
        )

    def section(self, operation: Callable[..., Any], *args: Any) -> Any:
        return operation(*args)

    def new_bell(self, section: Any) -> tuple[int, int, Doorbell]:
        self.bells += 1
        self.valid = True
        return self.bells, 7, Doorbell(str(self.folder / f"bell{self.bells}"), 0o600)

    def give_back(self, bell: Doorbell, waiter_id: int, generation: int) -> None:
        bell.close()
        self.left.append(waiter_id)

    def pending(self, row: int) -> int:
        return self.waiting.get(row, 0)

    def upkeep(self, session: Any, now: float) -> None:
        self.looks += 1
        if self.broken is not None:
            raise self.broken

    def drain(self, session: Any, source: Source, waiter: Any) -> Any:
        self.drained.append(source.queue)
        assert source.inbox is not None
        return source.inbox.fed()

    def message(self, source: Source) -> None:
        """One comes, and nobody rings."""
        self.waiting[source.target.row] = 1
        source.target.words[Q_PENDING] = 1


@pytest.fixture
def around(tmp_path: Path) -> Any:
    return Around(tmp_path)


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks come at once, and not after a second."""
    monkeypatch.setattr(waiter_module, "CHECK_EVERY", 0.002)


def source(name: str = "c", row: int = ROW, inbox: Inbox | None = None) -> Source:
    """A channel whose queue is known to be at `row`."""
    found = Source(name, inbox)
    words = memoryview(bytearray((row + QUEUE_WORDS) * WORD)).cast("Q")
    words[row + R_GENERATION] = 1
    found.target.point_to(row, words)
    return found


def inbox_of(queue: str) -> Inbox:
    return Inbox(queue, make_store())


def feed(inbox: Inbox, local: str) -> None:
    inbox.feed(Taken(1, float("inf"), local.encode(), b"body"), lambda _: 100)


# -- a thread -------------------------------------------------------------------------------------


@pytest.fixture
def thread(around: Any) -> Iterator[ThreadWaiter]:
    yield ThreadWaiter(around)


def wait(thread: ThreadWaiter, around: Any, *sources: Source, seconds: float = LIVENESS) -> bool:
    deadline = time.monotonic() + seconds
    return finished(thread.wait(around, around, list(sources), deadline))


def test_a_thread_sleeps_until_it_is_rung(thread: ThreadWaiter, around: Any) -> None:
    one = source()

    def ring() -> None:
        around.message(one)
        assert thread.bell is not None
        thread.bell.ring(ROW)

    timer = threading.Timer(0.01, ring)
    timer.start()
    assert wait(thread, around, one)
    timer.join()
    assert around.looks == 0


def test_a_thread_gives_up_at_its_deadline(thread: ThreadWaiter, around: Any) -> None:
    assert not wait(thread, around, source(), seconds=0.001)


def test_a_thread_looks_where_nobody_rang(thread: ThreadWaiter, around: Any, often: None) -> None:
    one = source()
    around.upkeep = lambda *_: around.message(one)
    assert wait(thread, around, one)


def test_a_thread_that_finds_nothing_passes_on_the_rings_for_others(
    thread: ThreadWaiter, around: Any
) -> None:
    assert thread.bell is not None
    thread.bell.ring(OTHER_ROW)
    assert wait(thread, around, source())
    assert around.passed_on == [OTHER_ROW]


def test_rings_that_a_thread_has_not_read_are_read_before_it_parks_again(
    thread: ThreadWaiter, around: Any
) -> None:
    one, two = source(), source("d", OTHER_ROW)
    around.message(one)
    assert thread.bell is not None
    thread.bell.ring(ROW)
    assert wait(thread, around, one)  # woken, it takes first and reads later
    assert thread.rung == [one]
    around.waiting[ROW] = 1  # one more than it took
    thread.begin(around, [two], 0.0)
    assert around.passed_on == [ROW] and thread.rung is None


def test_a_thread_is_woken_by_another_that_drained(thread: ThreadWaiter, around: Any) -> None:
    inbox = inbox_of("x!")
    one = source("x!", inbox=inbox)

    def drain() -> None:
        feed(inbox, "local")
        for waiting in inbox.to_wake(inbox.fed()):
            waiting.wake()

    timer = threading.Timer(0.01, drain)
    timer.start()
    assert wait(thread, around, one)
    timer.join()
    assert not inbox.waiting  # it has left
    assert one.buffered()


def test_a_thread_does_not_sleep_beside_a_message_that_was_drained(
    thread: ThreadWaiter, around: Any
) -> None:
    inbox = inbox_of("x!")
    feed(inbox, "local")
    assert wait(thread, around, source("x!", inbox=inbox), seconds=0.0)


def test_a_thread_renews_a_doorbell_that_nobody_can_ring(
    thread: ThreadWaiter, around: Any, often: None
) -> None:
    around.valid = False
    assert wait(thread, around, source())
    assert (around.left, thread.waiter_id) == ([1], 2)


def test_a_busy_lock_ends_the_sleep_of_a_thread_and_damage_is_raised(
    thread: ThreadWaiter, around: Any, often: None
) -> None:
    around.broken = LockTimeout("busy")
    assert wait(thread, around, source())  # the receive rides it out
    around.broken = SegmentVanished("gone")
    with pytest.raises(SegmentVanished):
        wait(thread, around, source())


def test_a_thread_without_a_doorbell_looks_by_itself(
    around: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiter_module, "LOOK_EVERY", 0.001)
    around.attachment.new_bell = lambda section: None
    thread = ThreadWaiter(around)
    assert thread.waiter_id == 0
    assert wait(thread, around, source())


def test_a_waiter_gives_its_id_back_at_its_end(around: Any) -> None:
    waiter: Any = ThreadWaiter(around)
    del waiter
    assert around.left == [1]


def test_a_coroutine_that_suspends_is_none_of_a_thread() -> None:
    coroutine = asyncio.sleep(0)
    with pytest.raises(AssertionError, match="suspended"):
        finished(coroutine)
    coroutine.close()


# -- an event loop of asyncio ---------------------------------------------------------------------


def asyncio_hub(around: Any) -> AsyncioHub:
    return AsyncioHub(around, weakref.ref(asyncio.get_running_loop()))


def start(hub: Any, around: Any, *sources: Source, deadline: float | None = None) -> Any:
    return asyncio.ensure_future(hub.wait(around, around, list(sources), deadline))


async def test_a_ring_wakes_the_first_that_waits_for_the_queue(around: Any) -> None:
    hub = asyncio_hub(around)
    first, second = start(hub, around, source()), start(hub, around, source())
    other = start(hub, around, source("d", OTHER_ROW))
    await asyncio.sleep(0)
    assert hub.sleepers == 3
    hub.bell.ring(ROW)
    assert await asyncio.wait_for(first, LIVENESS)
    assert not second.done() and not other.done()
    for task in (second, other):
        task.cancel()
    await asyncio.wait([second, other])
    assert hub.sleepers == 0 and not hub._sleeping
    hub.release()
    assert around.looks == 0


async def test_a_receive_that_ends_looks_after_the_next(around: Any) -> None:
    hub = asyncio_hub(around)
    one = source()
    next_one = start(hub, around, one)
    await asyncio.sleep(0)
    assert hub.stays(one)
    hub.end(around, one)  # nothing is pending: it is parked again
    await asyncio.sleep(0)
    assert not next_one.done()
    around.message(one)
    hub.end(around, one)
    assert await asyncio.wait_for(next_one, LIVENESS)
    assert not hub.stays(one)
    hub.release()


async def test_a_wait_on_a_loop_gives_up_at_its_deadline(around: Any) -> None:
    hub = asyncio_hub(around)
    assert not await start(hub, around, source(), deadline=time.monotonic() + 0.001)
    hub.release()


async def test_a_loop_looks_where_nobody_rang(around: Any, often: None) -> None:
    hub = asyncio_hub(around)
    one = source()
    task = start(hub, around, one)
    await asyncio.sleep(0)
    around.message(one)
    assert await asyncio.wait_for(task, LIVENESS)
    hub.release()


async def test_a_ring_for_a_process_specific_queue_drains_it(around: Any) -> None:
    hub = asyncio_hub(around)
    inbox = inbox_of("x!")
    socket, other = source("x!a", inbox=inbox), source("x!b", inbox=inbox)
    waiting, idle = start(hub, around, socket), start(hub, around, other)
    await asyncio.sleep(0)
    assert hub.is_parked(socket) and hub.stays(socket)
    feed(inbox, "a")
    hub.bell.ring(ROW)
    assert await asyncio.wait_for(waiting, LIVENESS)
    assert around.drained == ["x!"] and not idle.done()
    idle.cancel()
    await asyncio.wait([idle])
    hub.release()
    assert around.passed_on == [ROW]  # whoever is parked there gets a ring that came too late


async def test_a_ring_for_all_wakes_everybody(around: Any) -> None:
    hub = asyncio_hub(around)
    tasks = [start(hub, around, source()), start(hub, around, source("d", OTHER_ROW))]
    await asyncio.sleep(0)
    hub.bell.ring(ALL)
    assert await asyncio.wait_for(asyncio.gather(*tasks), LIVENESS) == [True, True]
    hub.release()


async def test_a_ring_that_nobody_waits_for_is_passed_on(around: Any) -> None:
    hub = asyncio_hub(around)
    task = start(hub, around, source())
    await asyncio.sleep(0)
    hub.bell.ring(OTHER_ROW)
    while not around.passed_on:
        await asyncio.sleep(0)
    assert around.passed_on == [OTHER_ROW] and not task.done()
    task.cancel()
    await asyncio.wait([task])
    hub.release()


async def test_damage_is_raised_in_every_receive_of_a_loop(around: Any, often: None) -> None:
    hub = asyncio_hub(around)
    tasks = [start(hub, around, source()), start(hub, around, source("d", OTHER_ROW))]
    around.broken = SegmentVanished("gone")
    found = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), LIVENESS)
    assert [type(error) for error in found] == [SegmentVanished, SegmentVanished]
    hub.release()


async def test_memory_that_a_thread_releases_during_a_look_is_explained(
    around: Any, often: None
) -> None:
    """At the end of an interpreter."""
    hub = asyncio_hub(around)
    first = start(hub, around, source())
    await asyncio.sleep(0)
    around.attachment.explain = lambda error: SegmentVanished(f"instead of {error}")
    around.broken = ValueError("operation forbidden on released memoryview object")
    with pytest.raises(SegmentVanished, match="released memoryview"):
        await asyncio.wait_for(first, LIVENESS)


async def test_a_busy_lock_wakes_every_receive_of_a_loop(around: Any, often: None) -> None:
    hub = asyncio_hub(around)
    task = start(hub, around, source())
    around.broken = LockTimeout("busy")
    assert await asyncio.wait_for(task, LIVENESS)  # it rides it out for itself
    hub.release()


async def test_a_loop_renews_a_doorbell_that_nobody_can_ring(around: Any, often: None) -> None:
    hub = asyncio_hub(around)
    around.valid = False
    assert await asyncio.wait_for(start(hub, around, source()), LIVENESS)
    assert (around.left, hub.waiter_id) == ([1], 2)
    task = start(hub, around, source())
    await asyncio.sleep(0)
    hub.bell.ring(ROW)  # the new one is watched
    assert await asyncio.wait_for(task, LIVENESS)
    hub.release()


async def test_a_thread_may_wake_a_receive_of_a_loop(around: Any) -> None:
    hub = asyncio_hub(around)
    inbox = inbox_of("x!")
    task = start(hub, around, source("x!a", inbox=inbox))
    await asyncio.sleep(0)
    feed(inbox, "a")
    threading.Thread(
        target=lambda: [waiting.wake() for waiting in inbox.to_wake(inbox.fed())]
    ).start()
    assert await asyncio.wait_for(task, LIVENESS)
    hub.release()


def test_a_loop_that_another_thread_runs_next_is_woken_by_the_first(around: Any) -> None:
    loop = asyncio.new_event_loop()
    inbox = inbox_of("x!")
    woken: list[bool] = []
    runs = threading.Event()

    async def begin() -> tuple[AsyncioHub, Any]:
        hub = asyncio_hub(around)
        task = start(hub, around, source("x!a", inbox=inbox))
        await asyncio.sleep(0)
        return hub, task

    async def go_on() -> None:
        asyncio.get_running_loop().set_debug(True)  # so that a call of another thread is refused
        runs.set()
        hub._timer.cancel()  # nor does it look by itself
        woken.append(await asyncio.wait_for(task, LIVENESS))
        hub.release()

    hub, task = loop.run_until_complete(begin())
    other = threading.Thread(target=loop.run_until_complete, args=(go_on(),))
    other.start()
    assert runs.wait(LIVENESS)
    feed(inbox, "a")
    for waiting in inbox.to_wake(inbox.fed()):
        waiting.wake()
    other.join()
    loop.close()
    assert woken == [True]


async def test_a_hub_without_receives_lets_go_of_its_loop(around: Any, often: None) -> None:
    hub = asyncio_hub(around)
    await start(hub, around, source(), deadline=time.monotonic() + 0.001)
    while hub._timer is not None:
        await asyncio.sleep(0.001)
    assert hub._session is None


def test_a_closed_loop_is_told_apart(around: Any) -> None:
    async def main() -> AsyncioHub:
        return asyncio_hub(around)

    hub = asyncio.run(main())
    assert hub.closed()
    hub.retire()
    assert (around.left, hub.waiter_id, hub.bell) == ([1], 0, None)


# -- a loop whose receives run in the very call that wakes them, as those of Twisted do ------------


class Now:
    """A future, and the coroutine that waits for it."""

    def __init__(self) -> None:
        self.done = False
        self.resume: Callable[[], None] | None = None

    def __await__(self) -> Generator[Any, Any, None]:
        yield self


class HubOfNow(Hub):
    def future(self) -> Now:
        return Now()

    def closed(self) -> bool:
        return False

    def resolve(self, future: Now, error: BaseException | None) -> None:
        assert error is None
        if not future.done:
            future.done = True
            assert future.resume is not None
            future.resume()

    async def sleep(self, future: Now, seconds: float) -> bool:
        raise NotImplementedError

    async def pause(self, seconds: float) -> None:
        raise NotImplementedError

    def watch(self) -> None:
        pass

    def unwatch(self) -> None:
        pass

    def later(self, seconds: float) -> Any:
        return SimpleNamespace(cancel=lambda: None)


def run(coroutine: Coroutine[Any, Any, Any], done: list[Any]) -> None:
    try:
        future = coroutine.send(None)
    except StopIteration as end:
        done.append(end.value)
    else:
        future.resume = lambda: run(coroutine, done)


def test_a_look_goes_on_where_a_receive_that_it_woke_has_left_the_next_queue(around: Any) -> None:
    hub = HubOfNow(around)
    one, two, three = source(), source("d", OTHER_ROW), source("e", 3000)
    both: list[bool] = []
    third: list[bool] = []
    run(hub.wait(around, around, [one, two], None), both)
    run(hub.wait(around, around, [three], None), third)
    for channel in (one, two, three):
        around.message(channel)
    hub.look()
    assert (both, third) == ([True], [True])
    assert not hub._sleeping


def test_a_look_goes_on_where_a_receive_that_it_woke_let_go_of_the_loop(around: Any) -> None:
    hub = HubOfNow(around)
    inboxes = [inbox_of("x!"), inbox_of("y!")]
    woken: list[bool] = []

    async def receive(name: str, row: int, inbox: Inbox) -> None:
        woken.append(await hub.wait(around, around, [source(name, row, inbox)], None))
        hub.release()

    run(receive("x!a", ROW, inboxes[0]), [])
    run(receive("y!a", OTHER_ROW, inboxes[1]), [])
    for inbox in inboxes:
        feed(inbox, "a")
        inbox.to_wake(inbox.fed())  # the process that was to wake them was interrupted
    hub.look()
    assert woken == [True, True]


# -- Twisted's reactor ----------------------------------------------------------------------------


def in_reactor(call: Callable[[Any], Any]) -> Any:
    """What the coroutine function `call(reactor)` returns, run by the reactor."""
    pytest.importorskip("twisted", reason="lacking: Twisted")
    from twisted.internet import defer

    from asgi_ipc.conformance.blocking import running_reactor

    done: Any = threading.Event()
    found: list[Any] = []
    reactor = running_reactor()

    def finish(result: Any) -> None:
        found.append(result)
        done.set()

    def begin() -> None:
        defer.ensureDeferred(call(reactor)).addBoth(finish)

    reactor.callFromThread(begin)
    assert done.wait(LIVENESS)
    if hasattr(found[0], "raiseException"):
        found[0].raiseException()
    return found[0]


def reactor_hub(around: Any, reactor: Any) -> Any:
    from asgi_ipc.aio.reactor import ReactorHub

    return ReactorHub(around, weakref.ref(reactor))


def test_a_ring_wakes_a_receive_of_the_reactor(around: Any) -> None:
    async def call(reactor: Any) -> Any:
        hub = reactor_hub(around, reactor)
        reactor.callLater(0.01, hub.bell.ring, ROW)
        found = await hub.wait(around, around, [source()], None)
        hub.release()
        return found, around.looks

    assert in_reactor(call) == (True, 0)


def test_a_wait_on_the_reactor_gives_up_at_its_deadline(around: Any) -> None:
    async def call(reactor: Any) -> Any:
        hub = reactor_hub(around, reactor)
        found = await hub.wait(around, around, [source()], time.monotonic() + 0.001)
        hub.release()
        return found

    assert in_reactor(call) is False


def test_the_reactor_looks_where_nobody_rang(around: Any, often: None) -> None:
    async def call(reactor: Any) -> Any:
        hub = reactor_hub(around, reactor)
        one = source()
        reactor.callLater(0.001, around.message, one)
        found = await hub.wait(around, around, [one], None)
        hub.release()
        return found

    assert in_reactor(call) is True


def test_damage_is_raised_in_a_receive_of_the_reactor(around: Any, often: None) -> None:
    async def call(reactor: Any) -> Any:
        hub = reactor_hub(around, reactor)
        around.broken = SegmentVanished("gone")
        try:
            await hub.wait(around, around, [source()], None)
        finally:
            hub.release()

    with pytest.raises(SegmentVanished):
        in_reactor(call)


class NotBegun:
    """A reactor that does not run yet."""

    running = False

    def __init__(self) -> None:
        self.later: list[tuple[Any, ...]] = []

    def callFromThread(self, *call: Any) -> None:
        self.later.append(call)


def test_a_receive_of_a_reactor_that_has_not_begun_is_left_to_its_thread(around: Any) -> None:
    pytest.importorskip("twisted", reason="lacking: Twisted")
    reactor = NotBegun()
    hub = reactor_hub(around, reactor)
    first, second = hub.future(), hub.future()
    hub.resolve(first, None)
    assert first.called and not reactor.later
    other = threading.Thread(target=hub.resolve, args=(second, None))
    other.start()
    other.join()
    assert not second.called
    [(resolve, *args)] = reactor.later
    resolve(*args)
    assert second.called


def test_another_thread_may_wake_a_receive_of_the_reactor(around: Any) -> None:
    inbox = inbox_of("x!")

    def wake() -> None:
        feed(inbox, "a")
        for waiting in inbox.to_wake(inbox.fed()):
            waiting.wake()

    async def call(reactor: Any) -> Any:
        hub = reactor_hub(around, reactor)
        threading.Timer(0.01, wake).start()
        found = await hub.wait(around, around, [source("x!a", inbox=inbox)], None)
        hub.release()
        return found

    assert in_reactor(call) is True
