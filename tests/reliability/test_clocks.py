"""Test tools that replace clocks: freezegun, time-machine and libfaketime. A layer goes on, in
the process whose clock stands still or was set back, and in those that exchange messages with it.
"""

from __future__ import annotations

import asyncio
import glob
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

import asgi_ipc
import asgi_ipc.aio
import asgi_ipc.testing.aio
import asgi_ipc.testing.sync
from asgi_ipc import clock
from asgi_ipc.conformance.base import MESSAGE
from asgi_ipc.errors import SegmentVanished
from asgi_ipc.segment import destroy

from ..environments import child_environment
from ..forks import bounded
from ..waiting import LIVENESS

Frozen = Callable[[str], AbstractContextManager[Any]]
TOOLS = ["freezegun", "time_machine"]
DATES = ["2012-01-01", "2112-01-01"]
BLOCKING = [asgi_ipc.IPCChannelLayer, asgi_ipc.testing.sync.InProcessChannelLayer]
ASYNCIO = [asgi_ipc.aio.IPCChannelLayer, asgi_ipc.testing.aio.InProcessChannelLayer]
NOTHING = (None, None)


@pytest.fixture(params=TOOLS)
def frozen(request: pytest.FixtureRequest) -> Frozen:
    """Begins to give this process another time, which stands still."""
    tool = pytest.importorskip(request.param, reason=f"lacking: {request.param}")
    if request.param == "freezegun":
        return lambda date: tool.freeze_time(date)
    return lambda date: tool.travel(date, tick=False)


@pytest.fixture(params=BLOCKING)
def blocking(request: pytest.FixtureRequest, prefix: str) -> Iterator[Any]:
    layer = request.param(prefix, expiry=5)
    yield layer
    layer.close()


@pytest.fixture(params=ASYNCIO)
def make_asyncio(request: pytest.FixtureRequest, prefix: str) -> Callable[[], Any]:
    return lambda: request.param(prefix)


def real() -> float:
    return time.clock_gettime(time.CLOCK_MONOTONIC)


@pytest.mark.parametrize("date", DATES)
def test_the_clock_of_the_package_goes_on(frozen: Frozen, date: str) -> None:
    of_files = clock.of_files()
    for _ in range(2):  # a tool remembers what it found in modules
        with frozen(date):
            assert time.time() < 1.4e9 or time.time() > 4e9
            assert abs(clock.monotonic() - real()) < LIVENESS
            assert abs(clock.of_files() - of_files) < LIVENESS
        assert abs(clock.monotonic() - real()) < LIVENESS


def test_it_is_that_of_the_kernel_when_first_imported_by_a_test_with_another_time() -> None:
    pytest.importorskip("freezegun", reason="lacking: freezegun")
    script = """
    import time, freezegun
    with freezegun.freeze_time("2012-01-01"):
        from asgi_ipc import clock
        assert abs(clock.monotonic() - time.clock_gettime(time.CLOCK_MONOTONIC)) < 60
        assert clock.of_files() > 1.5e9
    assert abs(clock.monotonic() - time.monotonic()) < 60
    """
    subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], check=True, env=child_environment()
    )


@pytest.mark.parametrize("date", DATES)
def test_messages_neither_expire_nor_last_longer(blocking: Any, frozen: Frozen, date: str) -> None:
    blocking.send("before", MESSAGE)
    with frozen(date):
        assert blocking.receive(["before"]) == ("before", MESSAGE)
        blocking.send("inside", MESSAGE)
        blocking.send("after", MESSAGE)
        blocking.group_add("g", "member")
        blocking.send_group("g", MESSAGE)
        assert blocking.receive(["inside"]) == ("inside", MESSAGE)
    assert blocking.receive(["after"]) == ("after", MESSAGE)
    assert blocking.receive(["member"]) == ("member", MESSAGE)
    assert blocking.group_channels("g") == ["member"]
    assert blocking.global_statistics()["messages_max_age"] < LIVENESS


@pytest.mark.parametrize("date", DATES)
def test_a_blocking_receive_with_a_timeout_returns(
    blocking: Any, frozen: Frozen, date: str
) -> None:
    with bounded(), frozen(date):
        began = real()
        assert blocking.receive(["quiet"], block=True, timeout=0.05) == NOTHING
        assert real() - began >= 0.05


@pytest.mark.parametrize("date", DATES)
def test_upkeep_goes_on_in_it_and_after_it(prefix: str, frozen: Frozen, date: str) -> None:
    layer = asgi_ipc.IPCChannelLayer(prefix)
    with frozen(date):
        layer.send("c", MESSAGE)
        attachment = layer._core.attach().attachment
        assert 0 <= attachment.due - real() <= 1
        attachment.upkeep.check_at = attachment.due = 0.0
        layer.send("c", MESSAGE)
        assert 0 < attachment.upkeep.check_at - real() <= 1
    destroy(prefix)
    with bounded(), pytest.raises(SegmentVanished):
        while True:
            layer.send("c", MESSAGE)
            layer.receive(["c"])


@pytest.mark.parametrize("date", DATES)
def test_asyncio_receives_in_it(make_asyncio: Callable[[], Any], frozen: Frozen, date: str) -> None:
    async def exchange() -> None:
        layer = make_asyncio()
        waiting = asyncio.ensure_future(layer.receive("c"))
        await asyncio.sleep(0)
        await layer.send("c", MESSAGE)
        assert await waiting == MESSAGE
        channel = await layer.new_channel()
        await layer.group_add("g", channel)
        await layer.group_send("g", MESSAGE)
        assert await layer.receive(channel) == MESSAGE
        await layer.close()

    with bounded(), frozen(date):
        asyncio.run(exchange())


def test_asyncio_has_its_timeouts_if_its_loops_have_their_clock(
    make_asyncio: Callable[[], Any],
) -> None:
    freezegun = pytest.importorskip("freezegun", reason="lacking: freezegun")

    async def wait() -> None:
        layer = make_asyncio()
        assert await layer.receive_async(["quiet"], timeout=0.05) == NOTHING
        await layer.close()

    with bounded(), freezegun.freeze_time("2012-01-01", real_asyncio=True):
        asyncio.run(wait())


def test_a_loop_looks_again_after_a_timer_that_was_set_in_it(
    make_asyncio: Callable[[], Any],
) -> None:
    """The clock of a loop of asyncio does stand still: by it, the timer would call in 40 years."""
    freezegun = pytest.importorskip("freezegun", reason="lacking: freezegun")

    async def wait() -> None:
        layer, loop = make_asyncio(), asyncio.get_running_loop()
        with freezegun.freeze_time("2112-01-01"):
            first = asyncio.ensure_future(layer.receive("a"))
            await asyncio.sleep(0)
        hub = layer._core.session.attachment.hubs.get(loop)
        assert hub._timer.when() - loop.time() > 1e6
        hub.late_at = clock.monotonic() - 10  # as after some seconds
        second = asyncio.ensure_future(layer.receive("b"))
        await asyncio.sleep(0)
        assert hub._timer.when() - loop.time() <= 1
        for channel, waiting in (("a", first), ("b", second)):
            await layer.send(channel, MESSAGE)
            assert await waiting == MESSAGE
        await layer.close()

    with bounded():
        asyncio.run(wait())


def test_a_subscription_is_renewed_after_a_timer_that_was_set_in_it(prefix: str) -> None:
    freezegun = pytest.importorskip("freezegun", reason="lacking: freezegun")

    async def subscribe() -> None:
        layer = asgi_ipc.aio.IPCChannelLayer(prefix, group_expiry=1.5)
        with freezegun.freeze_time("2112-01-01"):
            events = await layer.subscribe("g").__aenter__()
        waiting = asyncio.ensure_future(events.get())
        await asyncio.sleep(2.5)  # longer than a membership lasts that nobody renews
        await layer.group_send("g", MESSAGE)
        assert await waiting == MESSAGE and events.gaps == 0
        await events.__aexit__()
        await layer.close()

    with bounded():
        asyncio.run(subscribe())


# -- libfaketime ----------------------------------------------------------------------------------


@pytest.fixture
def faketime(tmp_path: Path) -> Iterator[Callable[..., str]]:
    found = glob.glob("/usr/lib/*/faketime/libfaketime.so.1") + glob.glob(
        "/usr/lib*/faketime/libfaketime.so.1"
    )
    if not found:
        pytest.skip("lacking: libfaketime")
    dates = tmp_path / "faketime"

    def run(script: str, *arguments: str, **variables: str) -> str:
        dates.write_text("+10d\n")
        environment = {
            **child_environment(),
            "LD_PRELOAD": found[0],
            "FAKETIME_TIMESTAMP_FILE": str(dates),
            "FAKETIME_NO_CACHE": "1",
            **variables,
        }
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script), *arguments, str(dates)],
            capture_output=True,
            text=True,
            timeout=LIVENESS,
            env=environment,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    yield run


@pytest.mark.parametrize("then", ["+0d", "2012-01-01 00:00:00", "+20d"])
def test_a_clock_that_was_set_back_or_stands_still_ends_nothing(
    prefix: str, faketime: Callable[..., str], then: str
) -> None:
    """By a clock that stands still nothing is due, but a receive returns."""
    script = """
    import sys, time
    import asgi_ipc
    from asgi_ipc import segment
    from asgi_ipc.errors import SegmentVanished
    prefix, then, dates = sys.argv[1:]
    layer = asgi_ipc.IPCChannelLayer(prefix)
    layer.send("c", {}); layer.receive(["c"])
    layer.receive(["c"], block=True, timeout=0.01)
    before = time.monotonic()
    open(dates, "w").write(then)
    assert abs(time.monotonic() - before) > 86400, "the clock was not set"
    layer.send("c", {})
    assert layer.receive(["c"])[0] == "c"
    assert layer.receive(["c"], block=True, timeout=0.05) == (None, None)
    segment.destroy(prefix)
    try:
        for _ in range(20):
            layer.send("c", {})
            layer.receive(["c"])
            layer.receive(["c"], block=True, timeout=0.1)
    except SegmentVanished:
        print("noticed")
    """
    assert faketime(script, prefix, then) == ("noticed\n" if then.startswith("+") else "")


def test_what_waits_returns_in_its_time_although_its_clock_is_set_back(
    prefix: str, faketime: Callable[..., str]
) -> None:
    script = """
    import os, select, sys, threading
    import asgi_ipc
    from asgi_ipc import clock
    prefix, then, dates = sys.argv[1:]
    layer = asgi_ipc.IPCChannelLayer(prefix, capacity=1)
    layer.send("full", {})
    layer.receive(["c"], block=True, timeout=0.01)

    def send():
        try:
            layer.send("full", {}, timeout=0.5)
        except layer.ChannelFull:
            return "full"

    def read():
        with layer.subscribe("g") as events:
            try:
                events.get(timeout=0.5)
            except TimeoutError:
                return "nothing"

    def receive():
        return layer.receive(["c"], block=True, timeout=0.5)

    def set_back():
        select.select([], [], [], 0.2)
        with open(dates, "w") as file:
            file.write(then)

    for call in (send, read, receive):
        with open(dates, "w") as file:
            file.write("+10d")
        before = clock.monotonic()
        setting = threading.Thread(target=set_back)
        setting.start()
        print(call())
        setting.join()
        assert before - clock.monotonic() > 86400, "the clock was not set"
    """
    assert faketime(script, prefix, "-10d") == "full\nnothing\n(None, None)\n"


def test_beside_other_processes_its_clock_can_be_left_alone(
    prefix: str, faketime: Callable[..., str]
) -> None:
    script = """
    import sys, time
    import asgi_ipc
    layer = asgi_ipc.IPCChannelLayer(sys.argv[1])
    assert layer.receive(["here"])[0] == "here"
    layer.send("there", {"type": "x"})
    print(time.time())
    """
    layer = asgi_ipc.IPCChannelLayer(prefix)
    layer.send("here", MESSAGE)
    theirs = float(faketime(script, prefix, FAKETIME_DONT_FAKE_MONOTONIC="1"))
    assert theirs - time.time() > 5 * 86400
    assert layer.receive(["there"])[0] == "there"
