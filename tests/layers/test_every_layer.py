"""What all layers of the package offer to programs beyond the contracts: those over shared memory,
those over several machines and those for tests, blocking and for asyncio."""

from __future__ import annotations

import asyncio
import datetime
import decimal
import re
import uuid
from collections.abc import Callable
from typing import Any

import pytest

import asgi_ipc
import asgi_ipc.aio
import asgi_ipc.testing.aio
import asgi_ipc.testing.sync
from asgi_ipc.conformance.base import MESSAGE
from asgi_ipc.errors import InvalidMessage, InvalidName, InvalidOption, NotAChannel, NotOwner

from ..forks import in_child
from ..waiting import LIVENESS, in_threads
from .conftest import Make

VALUES = {
    "price": decimal.Decimal("1.50"),
    "at": datetime.date(2026, 2, 1),
    "rows": [{"id": uuid.UUID(int=1)}],
}
SENT = {
    "price": "1.50",
    "at": "2026-02-01",
    "rows": [{"id": "00000000-0000-0000-0000-000000000001"}],
}


# -- one language ---------------------------------------------------------------------------------


async def test_asyncio_layers_send_to_groups_by_both_names(make_asyncio: Make) -> None:
    layer = make_asyncio()
    channel = await layer.new_channel()
    await layer.group_add("room", channel)
    await layer.group_send("room", {"n": 1})
    await layer.send_group("room", {"n": 2})
    assert [await layer.receive(channel) for _ in range(2)] == [{"n": 1}, {"n": 2}]
    await layer.close()


def test_blocking_layers_send_to_groups_by_both_names(make_blocking: Make) -> None:
    layer = make_blocking()
    layer.group_add("room", "jobs")
    layer.send_group("room", {"n": 1})
    layer.group_send("room", {"n": 2})
    assert [layer.receive(["jobs"]) for _ in range(2)] == [("jobs", {"n": 1}), ("jobs", {"n": 2})]
    layer.close()


async def test_errors_of_asyncio_layers_name_methods_that_they_have(make_asyncio: Make) -> None:
    layer, other = make_asyncio(), make_asyncio()
    with pytest.raises(NotOwner, match=r"await new_channel\(\) makes one"):
        await layer.receive(await other.new_channel())
    with pytest.raises(InvalidName, match="receive_async takes several"):
        await layer.receive(["jobs"])
    with pytest.raises(InvalidName, match="token_hex"):
        await layer.new_channel("reply?")
    await layer.group_add("room", await layer.new_channel())
    with pytest.raises(NotAChannel, match="use group_send. "):
        await layer.send("room", {})
    await layer.close()
    await other.close()


def test_errors_of_blocking_layers_name_methods_that_they_have(make_blocking: Make) -> None:
    layer, other = make_blocking(), make_blocking()
    with pytest.raises(InvalidName, match=r"only up to the '!' \(.*new_channel\(\) of the same"):
        layer.receive([other.new_channel()])
    with pytest.raises(InvalidName, match="blocking layer's new_channel"):
        layer.send("reply?", {})
    with pytest.raises(InvalidName, match="a list of channel names"):
        layer.receive("jobs")
    layer.group_add("room", "jobs")
    with pytest.raises(NotAChannel, match="use group_send. "):
        layer.send("room", {})
    layer.close()
    other.close()


def test_a_full_channel_says_which_option_limits_it(make_blocking: Make) -> None:
    layer = make_blocking(capacity=2, channel_capacity={"jobs*": 1, re.compile(r"^mail\."): 1})
    for channel, count, said in (
        ("jobs", 1, "1 message (set by channel_capacity['jobs*']):"),
        ("mail.out", 1, r"1 message (set by channel_capacity['^mail\\.']):"),
        ("other", 2, "2 messages (set by the option capacity):"),
    ):
        for _ in range(count):
            layer.send(channel, {})
        with pytest.raises(layer.ChannelFull, match=re.escape(said)):
            layer.send(channel, {})
    layer.close()


# -- default --------------------------------------------------------------------------------------


async def test_default_converts_what_asyncio_layers_send(make_asyncio: Make) -> None:
    layer = make_asyncio(default=str)
    channel = await layer.new_channel()
    await layer.group_add("room", channel)
    await layer.send(channel, VALUES)
    await layer.group_send("room", VALUES)
    assert [await layer.receive(channel) for _ in range(2)] == [SENT, SENT]
    await layer.close()


def test_default_converts_what_blocking_layers_send(make_blocking: Make) -> None:
    layer = make_blocking(default="builtins.str")
    layer.group_add("room", "jobs")
    layer.send("jobs", VALUES)
    layer.send_group("room", VALUES)
    assert [layer.receive(["jobs"]) for _ in range(2)] == [("jobs", SENT)] * 2
    layer.close()


def test_default_that_cannot_be_called_fails_in_the_constructor(make_blocking: Make) -> None:
    with pytest.raises(InvalidOption, match="default"):
        make_blocking(default=5)


def test_what_default_refuses_is_not_sent(make_blocking: Make) -> None:
    def refuse(value: object) -> object:
        raise TypeError("no")

    layer = make_blocking(default=refuse)
    with pytest.raises(InvalidMessage, match="message"):
        layer.send("jobs", VALUES)
    assert layer.receive(["jobs"]) == (None, None)
    layer.close()


@pytest.mark.parametrize("make_asyncio", [asgi_ipc.aio.LocalAndRemoteChannelLayer], indirect=True)
async def test_default_converts_what_goes_to_other_machines(make_asyncio: Make) -> None:
    here, there = make_asyncio(1, default=str), make_asyncio(2)
    channel = await there.new_channel()
    await here.send(channel, VALUES)
    assert await there.receive(channel) == SENT
    await there.group_add("room", channel)
    await here.group_send("room", VALUES)
    assert await there.receive(channel) == SENT
    await here.close()
    await there.close()


# -- the end of a wait ----------------------------------------------------------------------------


async def test_a_receive_whose_time_runs_out_raises_the_builtin_error(make_asyncio: Make) -> None:
    async with make_asyncio() as layer:
        for channel in ("jobs", "reply?one", await layer.new_channel()):
            for seconds in (0, 0.01, -1):
                with pytest.raises(TimeoutError, match="no message came on channel") as caught:
                    await layer.receive(channel, timeout=seconds)
                assert type(caught.value) is TimeoutError
                assert repr(channel) in str(caught.value)
            await layer.send(channel, MESSAGE)
            assert await layer.receive(channel, timeout=0) == MESSAGE


async def test_a_receive_with_a_timeout_gets_what_comes_meanwhile(make_asyncio: Make) -> None:
    async with make_asyncio() as layer:
        waiting = asyncio.ensure_future(layer.receive("jobs", timeout=LIVENESS))
        await asyncio.sleep(0)
        await layer.send("jobs", MESSAGE)
        assert await waiting == MESSAGE


@pytest.mark.parametrize("timeout", ["1", True, [1]])
async def test_a_timeout_that_is_no_number_is_refused(make_asyncio: Make, timeout: Any) -> None:
    async with make_asyncio() as layer:
        await layer.send("jobs", MESSAGE)
        with pytest.raises(TypeError, match="timeout must be a number of seconds"):
            await layer.receive("jobs", timeout=timeout)
        assert await layer.receive("jobs", timeout=0) == MESSAGE


# -- blocks ---------------------------------------------------------------------------------------


def attached(layer: Any) -> bool:
    return getattr(layer, "_local", layer)._core.session is not None


async def test_a_block_closes_the_asyncio_layer(make_asyncio: Make) -> None:
    layer = make_asyncio()
    async with layer as entered:
        assert entered is layer
        await layer.send("jobs", MESSAGE)
        assert attached(layer)
    assert not attached(layer)
    async with layer:  # it attaches again
        assert await layer.receive("jobs", timeout=LIVENESS) == MESSAGE


def test_a_block_closes_the_blocking_layer(make_blocking: Make) -> None:
    layer = make_blocking()
    with layer as entered:
        assert entered is layer
        layer.send("jobs", MESSAGE)
        assert attached(layer)
    assert not attached(layer)
    with layer:
        assert layer.receive(["jobs"], block=True) == ("jobs", MESSAGE)


# -- messages -------------------------------------------------------------------------------------


async def test_messages_of_an_asyncio_layer(make_asyncio: Make) -> None:
    async with make_asyncio() as layer:
        for number in range(3):
            await layer.send("jobs", {"number": number})
        got = []
        async for message in layer.messages("jobs"):
            got.append(message["number"])
            if len(got) == 2:
                break
        # None was taken that was not handed out.
        assert (got, await layer.receive("jobs", timeout=0)) == ([0, 1], {"number": 2})


async def test_messages_go_on_after_a_cancellation(make_asyncio: Make) -> None:
    async with make_asyncio() as layer:
        messages = layer.messages("jobs")
        waiting = asyncio.ensure_future(messages.__anext__())
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await layer.send("jobs", MESSAGE)
        assert await messages.__anext__() == MESSAGE


async def test_messages_of_a_new_channel(make_asyncio: Make) -> None:
    async with make_asyncio() as layer:
        channel = await layer.new_channel()
        await layer.send(channel, MESSAGE)
        async for message in layer.messages(channel):
            assert message == MESSAGE
            break


def test_messages_of_a_blocking_layer(make_blocking: Make) -> None:
    with make_blocking() as layer:
        for number in range(3):
            layer.send("jobs", {"number": number})
        got = []
        for message in layer.messages("jobs"):
            got.append(message["number"])
            if len(got) == 2:
                break
        assert (got, layer.receive(["jobs"])) == ([0, 1], ("jobs", {"number": 2}))


def test_messages_outlast_the_receive_timeout(make_blocking: Make) -> None:
    with make_blocking(receive_timeout=0.01) as layer:
        messages = layer.messages("jobs")

        def send() -> None:
            assert layer.receive(["other"], block=True) == (None, None)
            layer.send("jobs", MESSAGE)

        assert in_threads([lambda: next(messages), send]) == [MESSAGE, None]


def test_threads_may_share_messages(make_blocking: Make) -> None:
    with make_blocking() as layer:
        messages = layer.messages("jobs")

        def send() -> dict[str, Any]:
            for number in range(3):
                layer.send("jobs", {"number": number})
            return {"number": 3}

        got = in_threads([lambda: next(messages)] * 3 + [send])
        assert sorted(message["number"] for message in got) == [0, 1, 2, 3]


async def test_messages_of_a_bad_name_are_refused_at_once(make_asyncio: Make) -> None:
    with pytest.raises(InvalidName):
        make_asyncio().messages("not a name")


# -- new channels of blocking layers --------------------------------------------------------------


def test_a_new_channel_is_process_specific(make_blocking: Make) -> None:
    with make_blocking() as layer:
        one, two = layer.new_channel(), layer.new_channel()
        assert one != two and one.startswith("specific.") and two.startswith("specific.")
        layer.send(one, {"to": 1})
        layer.send(two, {"to": 2})
        assert layer.receive([two]) == (two, {"to": 2})
        assert layer.receive([two]) == (None, None)
        assert layer.receive([one], block=True) == (one, {"to": 1})
        for channel in (one, two):
            layer.send(channel, MESSAGE)
        # All of them are received at once by the part up to the mark.
        queue = one.partition("!")[0] + "!"
        assert {layer.receive([queue])[0], layer.receive([queue])[0]} == {one, two}


def test_a_new_channel_gets_what_its_groups_get(make_blocking: Make) -> None:
    with make_blocking() as layer:
        channel = layer.new_channel()
        layer.group_add("room", channel)
        layer.send_group("room", MESSAGE)
        for message in layer.messages(channel):
            assert message == MESSAGE
            break


def test_threads_wait_for_new_channels_at_once(make_blocking: Make) -> None:
    with make_blocking(receive_timeout=LIVENESS) as layer:
        names = [layer.new_channel() for _ in range(5)]

        def waiting(name: str) -> Callable[[], Any]:
            return lambda: layer.receive([name, "other"], block=True)

        def send() -> None:
            for name in reversed(names):
                layer.send(name, {"to": name})

        got = in_threads([*map(waiting, names), send])
        assert got == [(name, {"to": name}) for name in names] + [None]


async def test_a_new_channel_is_received_on_in_loops_too(make_blocking: Make) -> None:
    with make_blocking() as layer:
        channel = layer.new_channel()
        layer.send(channel, MESSAGE)
        assert await layer.receive_async([channel]) == (channel, MESSAGE)


def test_another_layer_refuses_the_full_name(make_blocking: Make) -> None:
    with make_blocking() as layer, make_blocking() as other:
        with pytest.raises(InvalidName, match="same layer"):
            other.receive([layer.new_channel()])


def test_a_child_does_not_receive_on_a_channel_of_its_parent(make_blocking: Make) -> None:
    with make_blocking() as layer:
        channel = layer.new_channel()
        layer.send(channel, MESSAGE)
        assert layer.receive([channel]) == (channel, MESSAGE)

        def child() -> str:
            with pytest.raises(InvalidName, match="in this process"):
                layer.receive([channel])
            return str(layer.new_channel())

        theirs = in_child(child)
        assert theirs.partition("!")[0] != channel.partition("!")[0]


@pytest.mark.parametrize("make_blocking", [asgi_ipc.IPCChannelLayer], indirect=True)
def test_only_one_process_receives_on_a_new_channel(make_blocking: Make) -> None:
    with make_blocking() as layer:
        channel = layer.new_channel()
        assert layer.receive([channel]) == (None, None)

        def child() -> None:
            with pytest.raises(NotOwner):
                layer.receive([channel.partition("!")[0] + "!"])

        in_child(child)


@pytest.mark.parametrize("make_blocking", [asgi_ipc.LocalAndRemoteChannelLayer], indirect=True)
def test_a_new_channel_is_reached_from_another_machine(make_blocking: Make) -> None:
    with make_blocking(1) as here, make_blocking(2) as there:
        channel = there.new_channel()
        here.send(channel, MESSAGE)
        assert there.receive([channel], block=True) == (channel, MESSAGE)
