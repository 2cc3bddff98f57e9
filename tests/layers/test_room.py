"""``send(channel, message, timeout=...)``: a send that waits for room; and sends of a process to
itself, which drain its own queue. Both layers, threads, tasks and processes.

Where a wake is tested, the look that waiters take once a second is put off: rings alone must do.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

import asgi_ipc
import asgi_ipc.aio
import asgi_ipc.testing.aio
import asgi_ipc.testing.sync
from asgi_ipc import clock, segment
from asgi_ipc.aio import waiter as waiter_module
from asgi_ipc.aio.thread import ThreadWaiter
from asgi_ipc.attachment.inbox import Inbox
from asgi_ipc.attachment.unchanged import Unchanged
from asgi_ipc.conformance.asynchronous import turns
from asgi_ipc.errors import InvalidMessage, InvalidName, SegmentVanished
from asgi_ipc.store import room
from asgi_ipc.store.layout import (
    CROWDED,
    Q_OFFERED,
    Q_PENDING,
    Q_SENDERS,
    Q_SENDING,
    S_LIVE,
    WAITER_SET_WORDS,
)
from asgi_ipc.store.store import Store

from ..compiling import needs_compiled
from ..forks import Line, bounded, child, in_child
from ..waiting import LIVENESS, eventually, in_threads, until

CAPACITY = 2
# Seconds that a call waits: longer than its test. At its deadline it looks once more, which would
# hide that nobody rang it.
LATE = 10 * LIVENESS
MEBIBYTE = 2**20

BLOCKING = [
    pytest.param(asgi_ipc.IPCChannelLayer, id="shared"),
    pytest.param(asgi_ipc.testing.sync.InProcessChannelLayer, id="in process"),
]
ASYNCIO = [
    pytest.param(asgi_ipc.aio.IPCChannelLayer, id="shared"),
    pytest.param(asgi_ipc.testing.aio.InProcessChannelLayer, id="in process"),
]

both_blocking = pytest.mark.parametrize("cls", BLOCKING)
both_asyncio = pytest.mark.parametrize("cls", ASYNCIO)

Make = Callable[..., Any]


@pytest.fixture
def make(prefix: str) -> Iterator[Make]:
    made = []

    def make(cls: Any = asgi_ipc.IPCChannelLayer, **options: Any) -> Any:
        made.append(cls(prefix, **{"capacity": CAPACITY, **options}))
        return made[-1]

    yield make
    for layer in made:
        layer._core.detach()


@pytest.fixture
def by_rings_alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nobody looks by itself while the test lasts."""
    monkeypatch.setattr(waiter_module, "CHECK_EVERY", LATE)
    with bounded():
        yield


def numbered(*numbers: int) -> list[dict[str, int]]:
    return [{"number": number} for number in numbers]


def fill(layer: Any, channel: str = "c") -> None:
    """Fill a channel with messages 0, 1, ..."""
    for message in numbered(*range(layer.capacity)):
        layer.send(channel, message)


def crowded(layer: Any, channel: str = "c") -> bool:
    """Whether a sender waits for room in a channel."""
    store = layer._core.attach().store
    row = store.queues.find(channel.encode())
    return bool(row) and store.words[row + Q_PENDING] >= CROWDED


async def are_waiting(layer: Any) -> bool:
    """`crowded`, for `eventually`."""
    return crowded(layer)


def until_crowded(layer: Any, channel: str = "c") -> None:
    until(lambda: crowded(layer, channel), what="a sender that waits")


def drained(layer: Any, channel: str = "c") -> list[int]:
    messages = iter(lambda: layer.receive([channel])[1], None)
    return [message["number"] for message in messages]


def taken(layer: Any, channel: str = "c") -> int:
    """The number of the next message, which must come."""
    found: int = layer.receive([channel], block=True, timeout=LATE)[1]["number"]
    return found


def waiting(layer: Any, *numbers: int, channel: str = "c") -> list[threading.Thread]:
    """Threads that wait to send each of `numbers`, having begun one after the other."""
    threads = []
    for message in numbered(*numbers):
        thread = threading.Thread(target=layer.send, args=(channel, message, LATE), daemon=True)
        thread.start()
        threads.append(thread)
        until_crowded(layer, channel)
    return threads


def ended(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join(LIVENESS)
        assert not thread.is_alive()


# -- the timeout ----------------------------------------------------------------------------------


@both_blocking
@pytest.mark.parametrize("timeout", [None, 0, 0.0, -1, 0.05])
def test_a_full_channel_is_full_when_the_time_is_over(make: Make, cls: Any, timeout: Any) -> None:
    layer = make(cls)
    fill(layer)
    with pytest.raises(layer.ChannelFull, match="'c' is at its capacity of 2"):
        layer.send("c", {}, timeout=timeout)
    assert not crowded(layer)
    assert layer.channel_statistics("c")["channel_full_count"] == 1
    assert drained(layer) == [0, 1]


@both_asyncio
@pytest.mark.parametrize("timeout", [None, 0, 0.0, -1, 0.05])
async def test_a_full_channel_is_full_on_asyncio_too(make: Make, cls: Any, timeout: Any) -> None:
    layer = make(cls)
    for message in numbered(0, 1):
        await layer.send("c", message)
    with pytest.raises(layer.ChannelFull, match="'c' is at its capacity of 2"):
        await layer.send("c", {}, timeout=timeout)
    assert not crowded(layer)
    assert (await layer.channel_statistics("c"))["channel_full_count"] == 1
    await layer.close()


@pytest.mark.parametrize("timeout", ["1", True, float("nan"), [1]])
async def test_a_timeout_that_is_no_number_is_refused_at_once(make: Make, timeout: Any) -> None:
    layer = make()
    with pytest.raises(TypeError, match="timeout must be a number of seconds"):
        layer.send("c", {}, timeout=timeout)
    with pytest.raises(TypeError, match="timeout must be a number of seconds"):
        await make(asgi_ipc.aio.IPCChannelLayer).send("c", {}, timeout=timeout)
    assert layer.receive(["c"]) == (None, None)


@both_blocking
def test_where_there_is_room_a_timeout_changes_nothing(make: Make, cls: Any) -> None:
    layer = make(cls)
    for message in numbered(0, 1):
        layer.send("c", message, timeout=LATE)
    assert drained(layer) == [0, 1]
    with pytest.raises(layer.MessageTooLarge):
        layer.send("c", {"body": bytes(5 * MEBIBYTE)}, timeout=LATE)
    with pytest.raises(InvalidName):
        layer.send("a name", {}, timeout=LATE)
    with pytest.raises(InvalidMessage):
        layer.send("c", {"a": {1}}, timeout=LATE)


# -- wakes ----------------------------------------------------------------------------------------


@both_blocking
def test_a_receive_wakes_a_thread_that_waits_to_send(
    make: Make, cls: Any, by_rings_alone: None
) -> None:
    layer = make(cls)
    fill(layer)
    threads = waiting(layer, 2)
    assert taken(layer) == 0
    ended(threads)
    assert drained(layer) == [1, 2]
    assert not crowded(layer)
    assert layer.channel_statistics("c")["channel_full_count"] == 0


def test_a_sender_that_waits_is_no_pending_message(make: Make) -> None:
    layer = make()
    fill(layer)
    threads = waiting(layer, 2)
    assert layer.channel_statistics("c")["messages_pending"] == CAPACITY
    assert layer.global_statistics()["messages_pending"] == CAPACITY
    assert layer.stats().pending == CAPACITY
    assert drained(layer)[:CAPACITY] == [0, 1]
    ended(threads)


@both_blocking
def test_each_of_many_threads_has_its_turn(make: Make, cls: Any, by_rings_alone: None) -> None:
    layer = make(cls)
    fill(layer)
    threads = waiting(layer, *range(2, 12))
    numbers = [taken(layer) for _ in range(12)]
    ended(threads)
    assert numbers[:2] == [0, 1] and sorted(numbers) == list(range(12))
    assert not crowded(layer)


@both_asyncio
async def test_tasks_of_a_loop_send_in_the_order_in_which_they_came(
    make: Make, cls: Any, by_rings_alone: None
) -> None:
    layer = make(cls)
    tasks = [
        asyncio.create_task(layer.send("c", message, timeout=LATE))
        for message in numbered(*range(40))
    ]
    numbers = [(await layer.receive("c", timeout=LATE))["number"] for _ in range(40)]
    assert numbers == list(range(40))
    await asyncio.gather(*tasks)
    assert not crowded(layer)
    await layer.close()


async def test_a_thread_and_tasks_wait_at_one_channel(make: Make, by_rings_alone: None) -> None:
    blocking, layer = make(), make(asgi_ipc.aio.IPCChannelLayer)
    fill(blocking)
    threads = waiting(blocking, 2, 3)
    tasks = [
        asyncio.create_task(layer.send("c", message, timeout=LATE)) for message in numbered(4, 5, 6)
    ]
    await turns(5)
    numbers = [(await layer.receive("c", timeout=LATE))["number"] for _ in range(7)]
    assert sorted(numbers) == list(range(7))
    await asyncio.gather(*tasks)
    await asyncio.to_thread(ended, threads)
    assert not crowded(blocking)
    await layer.close()


async def test_several_loops_wait_at_one_channel(make: Make, by_rings_alone: None) -> None:
    layer = make(asgi_ipc.aio.IPCChannelLayer)
    blocking = make()
    fill(blocking)

    async def send(number: int) -> None:
        await layer.send("c", {"number": number}, timeout=LATE)

    loops = asyncio.gather(*[asyncio.to_thread(asyncio.run, send(n)) for n in range(2, 6)])
    numbers = [(await layer.receive("c", timeout=LATE))["number"] for _ in range(6)]
    assert sorted(numbers) == list(range(6))
    await loops
    await layer.close()


def test_a_message_that_expires_makes_room(make: Make, by_rings_alone: None) -> None:
    """By the clock, not by a look: nobody receives and nobody else calls."""
    fill(make(expiry=0.3))
    layer = make()
    layer.send("c", {"number": 2}, timeout=LATE)
    assert drained(layer)[-1] == 2  # the second one may still be there


async def test_a_message_that_expires_makes_room_on_asyncio(
    make: Make, by_rings_alone: None
) -> None:
    layer = make(asgi_ipc.aio.IPCChannelLayer, expiry=0.3)
    await asyncio.gather(
        *(layer.send("c", message, timeout=LATE) for message in numbered(*range(4)))
    )
    await layer.close()


def test_a_flush_makes_room(make: Make, by_rings_alone: None) -> None:
    layer = make()
    fill(layer)
    threads = waiting(layer, 2, 3)
    layer.flush()
    ended(threads)
    assert sorted(drained(layer)) == [2, 3]
    assert not crowded(layer)


async def test_a_flush_makes_room_for_tasks(make: Make, by_rings_alone: None) -> None:
    layer = make(asgi_ipc.aio.IPCChannelLayer)
    tasks = [
        asyncio.create_task(layer.send("c", message, timeout=LATE))
        for message in numbered(*range(4))
    ]
    await eventually(lambda: are_waiting(layer))
    await layer.flush()
    await asyncio.gather(*tasks)
    await layer.close()


def test_a_receive_elsewhere_gives_memory(make: Make, by_rings_alone: None) -> None:
    layer = make(capacity=10**6, message_memory=MEBIBYTE, max_message_size=MEBIBYTE // 8)
    big = {"body": bytes(MEBIBYTE // 10)}
    with pytest.raises(layer.ChannelFull):
        while True:
            layer.send("other", big)
    with pytest.raises(layer.ChannelFull, match="message_memory=1048576 is used up"):
        layer.send("c", big, timeout=0.05)
    thread = threading.Thread(target=layer.send, args=("c", big, LATE))
    thread.start()
    store = layer._core.attach().store
    until(lambda: store.words[S_LIVE] >= CROWDED)
    assert layer.receive(["other"])[1] == big
    ended([thread])
    assert layer.receive(["c"])[1] == big
    assert store.words[S_LIVE] < CROWDED


def test_another_process_makes_room(make: Make, prefix: str, by_rings_alone: None) -> None:
    layer = make()
    fill(layer)

    def receive(line: Line) -> list[int]:
        theirs = asgi_ipc.IPCChannelLayer(prefix, capacity=CAPACITY)
        line.hear()
        until_crowded(theirs)
        return [taken(theirs) for _ in range(20)]

    with child(receive) as reader:
        reader.say()
        for message in numbered(*range(2, 20)):
            layer.send("c", message, timeout=LATE)
        assert reader.hear() == list(range(20))


def test_a_send_that_is_refused_rings_for_the_room_that_it_made(
    make: Make, by_rings_alone: None
) -> None:
    """It drops what has expired; the room is for who waits."""
    hasty, layer = make(expiry=0.1), make()
    fill(hasty)
    layer.channel_statistics("c")
    session = layer._core.attach()
    row = session.store.queues.find(b"c")
    for waiter_id in (1000, 1001):
        session.section(session.store.park_sender, row + Q_SENDING, waiter_id)
    until(lambda: session.store.front(row, clock.monotonic()).pending == 0)
    with pytest.raises(layer.ChannelFull, match="at its capacity"):
        layer.send("c", {})
    assert not session.store.is_parked(row + Q_SENDING, 1000) and not session.rings


# -- first come, first served ---------------------------------------------------------------------


def test_a_send_that_does_not_wait_leaves_the_room_to_one_that_does(
    make: Make, by_rings_alone: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often it tries: each message that is taken lets the one in that waits."""
    monkeypatch.setattr(room, "GRACE", LATE)  # what is promised stays promised
    layer = make()
    fill(layer)
    stop = threading.Event()

    def hurry() -> None:
        while not stop.is_set():
            with contextlib.suppress(layer.ChannelFull):
                layer.send("c", {"number": -1})

    def take() -> None:
        try:
            for number in range(20):
                threads = waiting(layer, number)
                taken(layer)
                ended(threads)
        finally:
            stop.set()

    in_threads([hurry, take])


# -- leaving --------------------------------------------------------------------------------------


@both_asyncio
async def test_a_send_that_is_cancelled_leaves_no_trace(
    make: Make, cls: Any, by_rings_alone: None
) -> None:
    layer = make(cls)
    for message in numbered(0, 1):
        await layer.send("c", message)
    task = asyncio.create_task(layer.send("c", {"number": 2}, timeout=LATE))
    await eventually(lambda: are_waiting(layer))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not crowded(layer)
    numbers = [(await layer.receive("c"))["number"] for _ in range(2)]
    assert numbers == [0, 1]
    with pytest.raises(TimeoutError):
        await layer.receive("c", timeout=0)
    await layer.close()


@pytest.mark.parametrize("after", range(8))
async def test_a_wake_that_was_given_to_a_cancelled_send_goes_to_the_next(
    make: Make, by_rings_alone: None, after: int
) -> None:
    layer, other = make(asgi_ipc.aio.IPCChannelLayer), make()
    fill(other)
    first = asyncio.create_task(layer.send("c", {"number": 2}, timeout=LATE))
    await eventually(lambda: are_waiting(layer))
    second = asyncio.create_task(layer.send("c", {"number": 3}, timeout=LATE))
    await turns(3)
    threads = await asyncio.to_thread(waiting, other, 4)
    taken(other)
    await turns(after)
    sent = not first.cancel()
    numbers: list[int] = []
    while len(numbers) < 3 + sent:  # 1, those of the others, and perhaps that of the first
        numbers.append((await layer.receive("c", timeout=LATE))["number"])
    await second
    await asyncio.to_thread(ended, threads)
    assert sorted(numbers) == [1, *([2] if sent else []), 3, 4]
    assert not crowded(other)
    await layer.close()


def test_a_signal_handler_that_raises_gets_out_of_a_send(make: Make) -> None:
    class Interrupted(Exception):
        pass

    def interrupt(_number: int, _frame: Any) -> None:
        raise Interrupted

    layer = make()
    fill(layer)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for _ in range(5):
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(Interrupted):
                layer.send("c", {"number": 2}, timeout=LATE)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert drained(layer) == [0, 1]
    layer.send("c", {"number": 3})
    assert drained(layer) == [3]


async def test_a_segment_that_is_removed_raises_in_a_send_that_waits(
    make: Make, prefix: str
) -> None:
    blocking, layer = make(), make(asgi_ipc.aio.IPCChannelLayer)
    fill(blocking)
    task = asyncio.create_task(layer.send("c", {"number": 2}, timeout=LATE))
    thread = asyncio.create_task(asyncio.to_thread(blocking.send, "c", {"number": 3}, timeout=LATE))
    await eventually(lambda: are_waiting(layer))
    segment.destroy(prefix)
    for waits in (task, thread):
        with pytest.raises(SegmentVanished):
            await waits
    await layer.send("c", {"number": 4})
    assert await layer.receive("c") == {"number": 4}
    await layer.close()


async def test_a_layer_that_is_closed_while_it_waits_goes_on_waiting(make: Make) -> None:
    """As a receive does."""
    layer, other = make(asgi_ipc.aio.IPCChannelLayer), make()
    fill(other)
    task = asyncio.create_task(layer.send("c", {"number": 2}, timeout=LATE))
    await eventually(lambda: are_waiting(other))
    await layer.close()
    assert taken(other) == 0
    await task
    assert drained(other) == [1, 2]


# -- deaths ---------------------------------------------------------------------------------------


def sender(prefix: str, number: int) -> Callable[[Line], None]:
    def send(line: Line) -> None:
        layer = asgi_ipc.IPCChannelLayer(prefix, capacity=CAPACITY)
        layer.channel_statistics("c")
        line.say("there")
        layer.send("c", {"number": number}, timeout=LATE)

    return send


def test_each_process_has_its_turn(make: Make, prefix: str, by_rings_alone: None) -> None:
    """Also where each message is taken by a new process, and when one of them is killed."""
    layer = make()
    fill(layer)
    store = layer._core.attach().store

    def sends(number: int, line: Line) -> None:
        theirs = asgi_ipc.IPCChannelLayer(prefix, capacity=CAPACITY)
        line.say()
        while True:
            theirs.send("c", {"number": number}, timeout=LIVENESS)

    def parked() -> int:
        place = store.queues.find(b"c") + Q_SENDERS
        return sum(bin(word).count("1") for word in store.words[place : place + WAITER_SET_WORDS])

    def takes() -> int:
        return taken(asgi_ipc.IPCChannelLayer(prefix, capacity=CAPACITY))

    def take_with(waiting: int) -> int:
        until(lambda: parked() >= waiting)
        return int(in_child(takes))

    with contextlib.ExitStack() as stack:
        senders = {}
        for number in range(2, 6):
            senders[number] = stack.enter_context(child(partial(sends, number)))
            senders[number].hear()
            until(lambda: parked() == len(senders))
        assert [take_with(4) for _ in range(2 + 4 * 3)] == [0, 1, *[2, 3, 4, 5] * 3]
        senders[4].kill()
        left = [take_with(3) for _ in range(6 + 3 * 3)][6:]  # what it sent before, it did
        assert [set(left[at : at + 3]) for at in range(0, 9, 3)] == [{2, 3, 5}] * 3


def test_a_sender_that_is_killed_while_it_waits_keeps_nobody(make: Make, prefix: str) -> None:
    layer = make()
    fill(layer)
    with child(sender(prefix, 5)) as dead:
        dead.hear()
        until_crowded(layer)
        dead.kill()
    threads = waiting(layer, 6)
    numbers = [taken(layer) for _ in range(3)]
    ended(threads)
    assert numbers == [0, 1, 6]
    until(lambda: _accepted(layer))
    until(lambda: drained(layer) == [] and not crowded(layer))  # each call may do the upkeep


def test_a_sender_that_is_killed_when_it_was_rung_swallows_no_wake(make: Make, prefix: str) -> None:
    """It is stopped when it is rung, and then killed. The next look finds the room."""
    layer = make()
    fill(layer)
    with child(sender(prefix, 5)) as dead:
        dead.hear()
        until_crowded(layer)
        dead.kill(signal.SIGSTOP)
        threads = waiting(layer, 6)
        assert taken(layer) == 0  # rings one of the two
        dead.kill()
        ended(threads)
    assert drained(layer) == [1, 6]
    until(lambda: _accepted(layer))


def _accepted(layer: Any) -> bool:
    try:
        layer.send("c", {"number": 7})
    except layer.ChannelFull:
        return False
    return True


@needs_compiled
def test_a_thread_that_waits_for_room_does_not_stay_in_c(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There it would see messages, but no room that nobody rang for."""

    def fail(*_: Any) -> Any:
        raise AssertionError("it stays in C")

    monkeypatch.setattr(Unchanged, "dozing", fail)
    monkeypatch.setattr(ThreadWaiter, "look_every", 0.002)
    layer = make(capacity=1)
    layer.send("c", {})
    with pytest.raises(layer.ChannelFull):
        layer.send("c", {}, timeout=0.02)


def test_a_reader_that_is_killed_makes_room(make: Make, prefix: str) -> None:
    layer = make()

    def read(line: Line) -> None:
        theirs = asgi_ipc.IPCChannelLayer(prefix, capacity=CAPACITY)
        theirs.receive(["specific.X!"])
        line.say("there")
        line.hear()

    with child(read) as reader:
        reader.hear()
        for _ in range(CAPACITY):
            layer.send("specific.X!a", {})
        with pytest.raises(layer.ChannelFull):
            layer.send("specific.X!a", {})
        thread = threading.Thread(target=layer.send, args=("specific.X!a", {}, LATE))
        thread.start()
        until_crowded(layer, "specific.X!")
        reader.kill()
        ended([thread])


def test_a_forked_child_does_not_wait_with_its_parents_id(make: Make, prefix: str) -> None:
    layer = make()
    fill(layer)
    threads = waiting(layer, 2)

    def send() -> str:
        try:
            layer.send("c", {"number": 9}, timeout=0.2)
        except layer.ChannelFull:
            return "full"
        return "sent"

    assert in_child(send) == "full"
    assert taken(layer) == 0
    ended(threads)
    assert drained(layer) == [1, 2]
    assert os.path.exists(f"/dev/shm/asgi_ipc.{prefix}")


# -- a process that sends to itself ---------------------------------------------------------------


@both_asyncio
async def test_a_coroutine_sends_to_more_sockets_of_its_process_than_the_capacity(
    make: Make, cls: Any
) -> None:
    layer = make(cls, capacity=100)
    channels = [await layer.new_channel() for _ in range(150)]
    receives = [asyncio.create_task(layer.receive(channel)) for channel in channels]
    await turns(3)
    for number, channel in enumerate(channels):
        await layer.send(channel, {"number": number})
    found = await asyncio.wait_for(asyncio.gather(*receives), LIVENESS)
    assert [message["number"] for message in found] == list(range(150))
    assert (await layer.stats()).refused == 0
    await layer.close()


@both_blocking
def test_a_thread_sends_to_more_channels_of_its_process_than_the_capacity(
    make: Make, cls: Any
) -> None:
    layer = make(cls, capacity=100)
    layer.receive(["specific.X!"])
    for number in range(350):
        layer.send(f"specific.X!{number}", {"number": number})
    assert [layer.receive(["specific.X!"])[1]["number"] for _ in range(350)] == list(range(350))
    assert layer.stats().refused == 0


@both_asyncio
async def test_broadcasts_that_a_process_sends_to_itself(make: Make, cls: Any) -> None:
    """Each to another socket: none is dropped."""
    layer = make(cls, capacity=100)
    channels = [await layer.new_channel() for _ in range(300)]
    for number, channel in enumerate(channels):
        await layer.group_add(f"room.{number}", channel)
    receives = [asyncio.create_task(layer.receive(channel)) for channel in channels]
    await turns(3)
    for number in range(300):
        await layer.group_send(f"room.{number}", {"number": number})
    found = await asyncio.wait_for(asyncio.gather(*receives), LIVENESS)
    assert [message["number"] for message in found] == list(range(300))
    stats = await layer.stats()
    assert not any(stats.dropped.values()) and stats.refused == 0
    await layer.close()


@both_asyncio
async def test_each_of_many_broadcasts_reaches_the_sockets_of_the_own_loop(
    make: Make, cls: Any
) -> None:
    """More than the capacity of each, by a task that waits for nothing else."""
    layer = make(cls, capacity=100)
    channels = [await layer.new_channel() for _ in range(3)]
    for channel in channels:
        await layer.group_add("room", channel)

    async def consume(channel: str) -> list[int]:
        return [(await layer.receive(channel))["number"] for _ in range(1000)]

    async def read() -> list[int]:
        async with layer.subscribe("room") as events:
            return [(await events.get())["number"] for _ in range(1000)]

    tasks = [asyncio.create_task(consume(channel)) for channel in channels]
    tasks.append(asyncio.create_task(read()))
    await turns(3)
    for number in range(1000):
        await layer.group_send("room", {"number": number})
    found = await asyncio.wait_for(asyncio.gather(*tasks), LIVENESS)
    assert found == 4 * [list(range(1000))]
    assert not any((await layer.stats()).dropped.values())
    await layer.close()


async def test_broadcasts_with_a_capacity_that_is_not_known_yet(make: Make) -> None:
    layer = make(asgi_ipc.aio.IPCChannelLayer, channel_capacity={"*!b*": 3})
    channels = [await layer.new_channel() for _ in range(3)]
    for channel in channels:
        await layer.group_add("room", channel)
    receives = [asyncio.create_task(layer.receive(channel)) for channel in channels]
    await turns(3)
    for number in range(2 * CAPACITY):
        await layer.group_send("room", {"number": number})
    first = await asyncio.wait_for(asyncio.gather(*receives), LIVENESS)
    assert first == numbered(0, 0, 0)
    for channel in channels:
        assert await layer.receive(channel, timeout=LATE) == {"number": 1}
    await layer.close()


@both_asyncio
async def test_each_channel_of_the_process_has_its_own_capacity(make: Make, cls: Any) -> None:
    layer = make(cls, capacity=10)
    full, free = [await layer.new_channel() for _ in range(2)]
    with pytest.raises(TimeoutError):
        await layer.receive(full, timeout=0)  # the process receives here
    for message in numbered(*range(10)):
        await layer.send(full, message)
    for _ in range(3):
        with pytest.raises(layer.ChannelFull):
            await layer.send(full, {})
    for message in numbered(*range(10)):
        await layer.send(free, message)
    with pytest.raises(layer.ChannelFull):
        await layer.send(free, {})
    with pytest.raises(layer.ChannelFull):
        await layer.send(full, {})
    for channel in (full, free):
        assert [await layer.receive(channel) for _ in range(10)] == numbered(*range(10))
        await layer.send(channel, {"number": 10})
        assert await layer.receive(channel) == {"number": 10}
    stats = await layer.stats()
    assert not any(stats.dropped.values()) and stats.refused == 5
    await layer.close()


async def test_what_expired_in_the_inbox_makes_room(make: Make, prefix: str) -> None:
    layer, hasty = [make(asgi_ipc.aio.IPCChannelLayer, expiry=expiry) for expiry in (60, 0.1)]
    channel, other = [await layer.new_channel() for _ in range(2)]
    with pytest.raises(TimeoutError):
        await layer.receive(other, timeout=0)  # the process receives here
    for message in numbered(*range(CAPACITY)):
        await hasty.send(channel, message)
    await layer.send(other, {})
    assert await layer.receive(other) == {}  # drains what is there for both
    layer._core.attach().attachment.due = float("inf")  # no upkeep
    await asyncio.sleep(0.12)
    await layer.send(channel, {"number": CAPACITY})
    assert await layer.receive(channel) == {"number": CAPACITY}
    await layer.close()


async def test_a_capacity_of_more_than_one_drain(make: Make) -> None:
    layer = make(asgi_ipc.aio.IPCChannelLayer, capacity=1000)
    channel = await layer.new_channel()
    with pytest.raises(TimeoutError):
        await layer.receive(channel, timeout=0)
    for message in numbered(*range(1000)):
        await layer.send(channel, message)
    for _ in range(2):
        with pytest.raises(layer.ChannelFull):
            await layer.send(channel, {})
    numbers = [(await layer.receive(channel))["number"] for _ in range(1000)]
    assert numbers == list(range(1000))
    await layer.close()


@both_asyncio
async def test_a_send_to_the_own_process_waits_for_room_in_the_channel(
    make: Make, cls: Any, by_rings_alone: None
) -> None:
    layer = make(cls, capacity=10)
    channel, other = [await layer.new_channel() for _ in range(2)]
    with pytest.raises(TimeoutError):
        await layer.receive(channel, timeout=0)

    async def send() -> None:
        for message in numbered(*range(100)):
            await layer.send(channel, message, timeout=LATE)

    sending = asyncio.create_task(send())
    late = asyncio.create_task(layer.send(channel, {"number": -1}, timeout=0.05))
    with pytest.raises(layer.ChannelFull):
        await late
    await layer.send(other, {})  # which has room
    numbers = [(await layer.receive(channel, timeout=LATE))["number"] for _ in range(100)]
    assert numbers == list(range(100))
    await sending
    assert not any((await layer.stats()).dropped.values())
    await layer.close()


def test_a_send_that_began_before_the_first_receive_waits_for_its_channel(make: Make) -> None:
    """It finds the queue of this process full. Once that is drained, the channel is."""
    layer = make(capacity=1)
    full, other = layer.new_channel(), layer.new_channel()
    layer.send(full, {"number": 0})
    send = threading.Thread(target=layer.send, args=(full, {"number": 1}, LIVENESS))
    send.start()
    until_crowded(layer, full[: full.index("!") + 1])
    assert layer.receive([other]) == (None, None)  # which drains the queue
    until(lambda: not send.is_alive() or _sends_that_wait(layer), what="the send to look again")
    assert layer.receive([other]) == (None, None)
    assert [taken(layer, full), taken(layer, full)] == [0, 1]
    ended([send])


def _sends_that_wait(layer: Any) -> bool:
    [inbox] = layer._core.session.attachment.inboxes.values()
    return any(inbox.sending.values())


async def test_a_wake_in_the_own_process_that_was_given_to_a_cancelled_send_goes_to_the_next(
    make: Make, by_rings_alone: None
) -> None:
    layer = make(asgi_ipc.aio.IPCChannelLayer, capacity=1)
    channel = await layer.new_channel()
    with pytest.raises(TimeoutError):
        await layer.receive(channel, timeout=0)
    await layer.send(channel, {"number": 0})
    first, second = [
        asyncio.create_task(layer.send(channel, message, timeout=LATE))
        for message in numbered(1, 2)
    ]
    await turns(3)
    assert await layer.receive(channel) == {"number": 0}  # wakes the first
    first.cancel()
    await second
    assert await layer.receive(channel) == {"number": 2}
    assert first.cancelled()
    await layer.close()


def test_threads_of_one_process_send_to_each_other(make: Make, by_rings_alone: None) -> None:
    layer = make(capacity=10)
    layer.receive(["specific.X!"])

    def send(which: int) -> Any:
        for number in range(200):
            layer.send(f"specific.X!{which}", {"number": number}, timeout=LATE)

    def receive() -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for _ in range(600):
            channel, message = layer.receive(["specific.X!"], block=True, timeout=LATE)
            found.setdefault(channel, []).append(message["number"])
        return found

    calls: list[Callable[[], Any]] = [*(partial(send, which) for which in range(3)), receive]
    found = in_threads(calls)[-1]
    assert found == {f"specific.X!{which}": list(range(200)) for which in range(3)}
    assert not any(layer.stats().dropped.values())


def test_a_send_from_another_process_meets_the_capacity_of_the_queue(
    make: Make, prefix: str
) -> None:
    layer = make(capacity=100)
    layer.receive(["specific.X!"])

    def send() -> int:
        theirs = asgi_ipc.IPCChannelLayer(prefix, capacity=100)
        for number in range(150):
            try:
                theirs.send(f"specific.X!{number}", {"number": number})
            except theirs.ChannelFull:
                return number
        return 150

    assert in_child(send) == 100


async def test_receivers_that_sleep_are_woken_by_the_send_that_drains(
    make: Make, by_rings_alone: None
) -> None:
    """Threads and other loops of the process, once each and in order."""
    layer, blocking = make(asgi_ipc.aio.IPCChannelLayer), make()
    blocking._core.own = layer._core.own
    channel = await layer.new_channel()
    queue = channel[: channel.index("!") + 1]
    receiving = threading.Thread(target=lambda: numbers.extend(_received(blocking, queue, 20)))
    numbers: list[int] = []
    receiving.start()
    inbox: Inbox = layer._core.attach().attachment.inbox(queue)
    until(lambda: inbox.waiting)
    for number in range(20):
        await layer.send(f"{queue}{number}", {"number": number})
    await asyncio.to_thread(receiving.join, LIVENESS)
    assert numbers == list(range(20))
    await layer.close()


def _received(layer: Any, queue: str, count: int) -> list[int]:
    return [layer.receive([queue], block=True, timeout=LATE)[1]["number"] for _ in range(count)]


def test_a_send_that_waits_sleeps(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = make()
    fill(layer)
    tries = []
    put_or_park = Store.put_or_park

    def counted(*args: Any) -> Any:
        tries.append(args)
        return put_or_park(*args)

    monkeypatch.setattr(Store, "put_or_park", counted)
    with pytest.raises(layer.ChannelFull):
        layer.send("c", {}, timeout=0.2)
    assert len(tries) == 2  # when it begins, and when its time is over


def test_a_send_that_takes_what_a_dead_sender_was_promised_rings_the_next(make: Make) -> None:
    layer = make()
    for i in range(CAPACITY):
        layer.send("c", {"i": i})
    session = layer._core.attach()
    store, row, rings = session.store, session.targets["c"].row, []
    place = row + Q_SENDING
    for waiter_id in (5, 6):
        session.section(store.park_sender, place, waiter_id)
    session.attachment.ring = lambda *ring: rings.append(ring)
    assert layer.receive(["c"]) == ("c", {"i": 0})
    assert rings == [(place, 5)]
    with pytest.raises(layer.ChannelFull):
        layer.send("c", {})
    store.doubles[row + Q_OFFERED] -= room.GRACE
    layer.send("c", {})
    assert rings == [(place, 5), (place, 6)]
