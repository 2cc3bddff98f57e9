"""The asyncio layer on uvloop, whose fd readers and cancellation are not asyncio's own."""

from __future__ import annotations

import asyncio
import multiprocessing
import os

import pytest

from asgi_ipc.aio import IPCChannelLayer
from tests.waiting import LIVENESS

uvloop = pytest.importorskip("uvloop", reason="lacking: uvloop")

RUNNERS = {"asyncio": asyncio.run, "uvloop": uvloop.run}
FULL = os.environ.get("ASGI_IPC_TEST_LENGTH") == "full"
ROUND_TRIPS = 5_000 if FULL else 500
CANCELLATIONS = 5_000 if FULL else 500


def serve_echo(prefix: str, runner: str) -> None:
    """The other process: sends back what comes on "echo", until it is told to stop."""

    async def serve() -> None:
        layer = IPCChannelLayer(prefix)
        message = await layer.receive("echo")
        while "reply_to" in message:
            await layer.send(message["reply_to"], {"number": message["number"]})
            message = await layer.receive("echo")
        await layer.close()

    RUNNERS[runner](serve())


@pytest.mark.parametrize("runner", RUNNERS)
def test_echo_between_two_processes(prefix: str, runner: str) -> None:
    """Every answer comes, once, in order, whichever loop the other side runs on."""
    other = multiprocessing.get_context("spawn").Process(target=serve_echo, args=(prefix, runner))

    async def ask() -> None:
        layer = IPCChannelLayer(prefix)
        channel = await layer.new_channel()
        for number in range(ROUND_TRIPS):
            await layer.send("echo", {"reply_to": channel, "number": number})
            answer = await asyncio.wait_for(layer.receive(channel), LIVENESS)
            assert answer == {"number": number}
        await layer.send("echo", {})
        await layer.close()

    other.start()
    try:
        uvloop.run(ask())
        other.join(LIVENESS)
        assert other.exitcode == 0
    finally:
        other.kill()
        other.join()


def test_cancelling_loses_and_repeats_nothing(prefix: str) -> None:
    """B4: a receive that is cancelled while its message arrives either has it or leaves it."""

    async def cancel() -> None:
        layer = IPCChannelLayer(prefix)
        kept = 0
        for channel in ("normal", await layer.new_channel()):
            for number in range(CANCELLATIONS):
                receive = asyncio.ensure_future(layer.receive(channel))
                await asyncio.sleep(0)  # now it waits
                await layer.send(channel, {"number": number})
                for _ in range(number % 4):
                    await asyncio.sleep(0)  # the wakeup is on its way, or has come
                receive.cancel()
                try:
                    message = await receive
                except asyncio.CancelledError:
                    message = await asyncio.wait_for(layer.receive(channel), LIVENESS)
                    kept += 1
                assert message == {"number": number}
        assert 0 < kept < 2 * CANCELLATIONS  # both have happened
        assert await layer.receive_async(["normal"], timeout=0) == (None, None)
        await layer.close()

    uvloop.run(cancel())


def test_one_loop_after_another(prefix: str) -> None:
    """One layer serves loop after loop; what it leaves in one is gone with it."""
    layer = IPCChannelLayer(prefix)

    async def wait_and_talk(number: int) -> None:
        waiting = asyncio.ensure_future(layer.receive("never"))
        receive = asyncio.ensure_future(layer.receive("normal"))
        await asyncio.sleep(0)
        await layer.send("normal", {"number": number})
        assert await asyncio.wait_for(receive, LIVENESS) == {"number": number}
        assert not waiting.done()  # cancelled by the end of the loop

    for number in range(6):
        RUNNERS["uvloop" if number % 3 else "asyncio"](wait_and_talk(number))
    uvloop.run(layer.close())


def test_a_subscription_may_be_due_for_renewal_at_once(prefix: str) -> None:
    """uvloop makes no timer for what is due within half a millisecond."""

    async def subscribe() -> None:
        layer = IPCChannelLayer(prefix)
        async with layer.subscribe("news") as events:
            events._timer.cancel()
            events._renew_in(0.0001)
            await layer.group_send("news", {"number": 1})
            assert await events.get(timeout=LIVENESS) == {"number": 1}
        await layer.close()

    uvloop.run(subscribe())
