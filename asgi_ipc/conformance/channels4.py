"""The contract of Channels 4: asynchronous layers, as consumers and asyncio programs use them. The
cases that it shares with Channels 1 are in `shared`. Must not import anything of the package around
`conformance`."""

from __future__ import annotations

import asyncio
import functools
import importlib
import inspect
import itertools
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from .asynchronous import (
    AsyncioClient,
    AsyncioLayer,
    cancel,
    drain,
    eventually,
    in_loop,
    members_of,
    numbers,
    receive,
    running_loop,
    send_numbers,
    together,
    turns,
)
from .base import MESSAGE, REFUSED, SHORT, Message, in_threads, patience
from .cases import BAD_CHANNEL_NAMES, MARKED_NAMES, PLAIN_NAMES, each
from .shared import SharedCases

Make = Callable[..., AsyncioLayer]


class Channels4Contract(SharedCases):
    """The Channel Layer Specification of Channels, as tests."""

    @property
    def ChannelFull(self) -> type[Exception]:
        """What send raises when a channel is full."""
        return _error("ChannelFull")

    @property
    def MessageTooLarge(self) -> type[Exception]:
        """What send raises for a message that is too large."""
        return _error("MessageTooLarge")

    def client_of(self, layer: AsyncioLayer) -> AsyncioClient:
        return AsyncioClient(layer, self)

    # -- M: messages and channels -----------------------------------------------------------------

    async def test_many_readers(self, make: Make) -> None:
        """M3: a channel may have many readers, which wait before and while messages come."""
        layer = make(capacity=400)
        receives = [receive(self.make_peer(layer), "c") for _ in range(20)]
        reading = asyncio.ensure_future(together(receives))
        for number in range(20):
            await turns(3)
            await layer.send("c", {"number": number})
        assert sorted(numbers(await reading)) == list(range(20))

    async def test_no_message_to_two_readers(self, make: Make) -> None:
        """M3: no message reaches two readers."""
        layer = make(capacity=400)
        await send_numbers(layer, "c", range(400))
        readers = itertools.cycle([self.make_peer(layer) for _ in range(4)])
        got = await together(receive(next(readers), "c") for _ in range(400))
        assert Counter(numbers(got)) == Counter(range(400))

    async def test_dropped_rather_than_delivered_twice(self, make: Make) -> None:
        """M3: a message is dropped, not delivered twice, also while readers race and leave."""
        layer = make(capacity=10_000, expiry=0.002)
        readers = [self.make_peer(layer) for _ in range(4)]
        got: list[Message] = []
        for number in range(500):
            tasks = [asyncio.ensure_future(reader.receive("c")) for reader in readers]
            await layer.send("c", {"number": number})
            await turns(number % 4)
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            got += [result for result in results if isinstance(result, dict)]
        assert set(Counter(numbers(got)).values()) <= {1}

    @pytest.mark.parametrize("kind", ["single-reader", "process-specific"])
    async def test_order_of_one_writer_and_one_reader_is_exact(self, make: Make, kind: str) -> None:
        """M4: one reader gets the messages of one writer in exact order, while both are at work."""
        layer = make(capacity=1000)
        channel = await layer.new_channel() if kind == "process-specific" else "single?reader"
        writer = self.make_peer(layer)
        got: list[Message] = []

        async def read() -> None:
            while len(got) < 1000:
                got.append(await receive(layer, channel))

        async def write() -> None:
            for start in range(0, 1000, 10):
                await send_numbers(writer, channel, range(start, start + 10))
                await turns(1)

        await together([read(), write()])
        assert numbers(got) == list(range(1000))

    @pytest.mark.parametrize("name", PLAIN_NAMES + MARKED_NAMES)
    async def test_channel_name(self, groups: AsyncioLayer, name: str) -> None:
        """M5: a channel name is ASCII letters, digits, . - _, then perhaps one ? or ! and more."""
        await groups.send(name, MESSAGE)
        await groups.group_add("g", name)
        await groups.group_discard("g", name)
        if "!" not in name:
            assert await drain(groups, name) == [MESSAGE]

    @pytest.mark.parametrize("name", each(BAD_CHANNEL_NAMES))
    async def test_other_channel_name_is_refused(self, layer: AsyncioLayer, name: Any) -> None:
        """M5: any other channel name is refused; asgiref allows fewer than 100 characters."""
        calls: tuple[Callable[[], Awaitable[object]], ...] = (
            lambda: layer.send(name, MESSAGE),
            lambda: receive(layer, name),
        )
        for call in calls:
            with pytest.raises(REFUSED):
                await call()

    async def test_unread_message_expires(self, make: Make) -> None:
        """M6: an unread message expires after expiry seconds."""
        layer = make(expiry=SHORT, capacity=1)
        client = self.client_of(layer)

        async def next_message() -> Message | None:
            await client.is_accepted("c", {"number": 2})  # again if that expired as well
            try:
                return await asyncio.wait_for(layer.receive("c"), SHORT)
            except asyncio.TimeoutError:
                return None

        await layer.send("c", {"number": 1})
        await eventually(lambda: client.is_accepted("c", {"number": 2}))
        assert await eventually(next_message) == {"number": 2}

    async def test_capacity_holds_for_sends_at_once(self, make: Make) -> None:
        """M7: capacity also holds while several send."""
        client = self.client_of(make(capacity=5))
        sent = await together(client.is_accepted("c", MESSAGE) for _ in range(10))
        assert sorted(sent) == [False] * 5 + [True] * 5

    async def test_process_specific_channels_share_a_capacity(self, make: Make) -> None:
        """M7: process-specific channels are counted together, up to and including the !."""
        layer = make(capacity=3)
        shared, mark, _local = (await layer.new_channel()).partition("!")
        for local in "abc":
            await layer.send(shared + mark + local, MESSAGE)
        with pytest.raises(self.ChannelFull):
            await layer.send(shared + mark + "d", MESSAGE)
        await layer.send("another" + mark + "a", MESSAGE)

    async def test_send_never_blocks(self, make: Make) -> None:
        """M8: send never blocks, with or without room, with or without a reader."""
        client = self.client_of(make(capacity=5))
        sent = await together(client.is_accepted("c", MESSAGE) for _ in range(10))
        assert len(sent) == 10 and sum(sent) >= 5

    async def test_quiet_channel_is_not_starved(self, layer: AsyncioLayer) -> None:
        """M9: a busy channel must not starve a quiet one that the same reader reads."""
        quiet = asyncio.ensure_future(layer.receive("quiet"))
        await send_numbers(layer, "busy", range(5))
        await turns(3)
        await layer.send("quiet", MESSAGE)
        for _ in range(1000):
            if quiet.done():
                break
            await receive(layer, "busy")
            await layer.send("busy", MESSAGE)
            await turns(1)
        assert quiet.done()
        assert await quiet == MESSAGE

    # -- B: the layer of Channels 4 ---------------------------------------------------------------

    @pytest.mark.parametrize("name", ["send", "receive", "new_channel"])
    async def test_calls_are_coroutines(self, layer: AsyncioLayer, name: str) -> None:
        """B1: send, receive and new_channel are coroutines."""
        assert inspect.iscoroutinefunction(getattr(layer, name))

    async def test_send_and_receive(self, layer: AsyncioLayer) -> None:
        """B1: send(channel, message); receive(channel) returns the message."""
        assert await layer.send(channel="c", message=MESSAGE) is None
        assert await layer.receive(channel="c") == MESSAGE

    async def test_receive_waits(self, layer: AsyncioLayer) -> None:
        """B1: receive waits for a message."""
        waiting = asyncio.ensure_future(layer.receive("c"))
        await turns(20)
        assert not waiting.done()
        await self.make_peer(layer).send("c", MESSAGE)
        assert await asyncio.wait_for(waiting, patience()) == MESSAGE

    async def test_new_channel_is_process_specific(self, layer: AsyncioLayer) -> None:
        """B1: new_channel(prefix="specific") returns a process-specific name."""
        name = await layer.new_channel()
        shared, local = name.split("!")
        assert shared.startswith("specific.") and local

    async def test_new_channel_with_a_prefix(self, layer: AsyncioLayer) -> None:
        """B1: the name from new_channel begins with the prefix that is given."""
        assert (await layer.new_channel(prefix="other")).startswith("other.")

    async def test_new_channel_is_nobody_elses(self, layer: AsyncioLayer) -> None:
        """B1: the name from new_channel is new."""
        clients = [layer, self.make_peer(layer)] * 10
        names = [await client.new_channel() for client in clients]
        assert len(set(names)) == len(names)

    async def test_new_channel_is_received_by_its_full_name(self, layer: AsyncioLayer) -> None:
        """B1: receive takes the full name from new_channel, and any client may send to it."""
        one, two = await layer.new_channel(), await layer.new_channel()
        peer = self.make_peer(layer)
        for name in (one, two):
            await peer.send(name, {"to": name})
        assert await receive(layer, two) == {"to": two}
        assert await receive(layer, one) == {"to": one}

    @pytest.mark.parametrize("name", ["group_add", "group_discard", "group_send", "flush"])
    async def test_more_calls_are_coroutines(self, make: Make, name: str) -> None:
        """B2: group_add, group_discard, group_send and flush are coroutines."""
        layer = make("groups", "flush")
        assert inspect.iscoroutinefunction(getattr(layer, name))

    async def test_group_send_reaches_each_member(self, groups: AsyncioLayer) -> None:
        """B2: group_send(group, message) reaches each channel of group_add(group, channel)."""
        members = ["c", await groups.new_channel(), await groups.new_channel()]
        for member in members:
            await groups.group_add(group="g", channel=member)
        await self.make_peer(groups).group_send(group="g", message=MESSAGE)
        for member in members:
            assert await drain(groups, member) == [MESSAGE]

    async def test_group_send_reaches_nobody_else(self, groups: AsyncioLayer) -> None:
        """B2: group_send reaches no other channel, and a group without members is no error."""
        member, stranger = await groups.new_channel(), await groups.new_channel()
        await groups.group_add("g", member)
        await groups.group_add("h", stranger)
        await groups.group_send("g", MESSAGE)
        await groups.group_send("nobody", MESSAGE)
        assert await drain(groups, stranger) == []

    async def test_flush_leaves_no_messages(self, make: Make) -> None:
        """B2: flush leaves no messages, for any client."""
        layer = make("flush")
        channels = ["c", await layer.new_channel(), await layer.new_channel()]
        for channel in channels:
            await layer.send(channel, MESSAGE)
            await layer.send(channel, MESSAGE)
        assert await receive(layer, channels[1]) == MESSAGE
        await self.make_peer(layer).flush()
        for channel in channels:
            assert await drain(layer, channel) == []

    async def test_flush_leaves_no_groups(self, make: Make) -> None:
        """B2: flush leaves no groups, for any client."""
        layer = make("flush", "groups")
        await layer.group_add("g", "c")
        await self.make_peer(layer).flush()
        assert await members_of(layer, "g", ["c"]) == set()

    async def test_extensions(self, layer: AsyncioLayer) -> None:
        """B2: extensions has "groups" and "flush"."""
        assert {"groups", "flush"} <= set(layer.extensions)

    def test_works_through_async_to_sync(self, layer: AsyncioLayer) -> None:
        """B3: a layer works through asgiref.sync.async_to_sync."""
        async_to_sync = pytest.importorskip(
            "asgiref.sync", reason="lacking: asgiref 3"
        ).async_to_sync
        for number in range(3):
            async_to_sync(layer.send)("c", {"number": number})
            assert async_to_sync(layer.receive)("c") == {"number": number}

    def test_works_from_any_thread(self, make: Make) -> None:
        """B3: a layer works from any thread."""
        layer = make(capacity=101)

        def send_every_fourth(first: int) -> None:
            asyncio.run(send_numbers(layer, "c", range(first, 100, 4)))

        in_threads(functools.partial(send_every_fourth, first) for first in range(4))
        (got,) = in_threads([lambda: asyncio.run(drain(layer, "c"))])
        assert sorted(numbers(got)) == list(range(100))

    def test_works_in_one_loop_after_another(self, layer: AsyncioLayer) -> None:
        """B3: a layer works in one loop after another, also after a loop that left a receive."""

        async def receive_what_comes_later() -> Message:
            waiting = asyncio.ensure_future(layer.receive("c"))
            asyncio.ensure_future(layer.receive("nothing"))
            await turns(3)
            await layer.send("c", MESSAGE)
            return await asyncio.wait_for(waiting, patience())

        for _ in range(3):
            assert asyncio.run(receive_what_comes_later()) == MESSAGE

    def test_works_in_several_loops_at_once(self, layer: AsyncioLayer) -> None:
        """B3: a layer works in several loops at once: another thread wakes a receive in a loop."""
        with running_loop() as one, running_loop() as two:
            waiting = {
                channel: in_loop(loop, layer.receive(channel))
                for channel, loop in (("c", one), ("d", two))
            }
            for loop in (one, two):
                in_loop(loop, turns(3)).result(patience())
            for channel in waiting:
                asyncio.run(layer.send(channel, {"to": channel}))
            for channel, received in waiting.items():
                assert received.result(patience()) == {"to": channel}

    async def test_one_message_for_one_waiter(self, layer: AsyncioLayer) -> None:
        """B4: one message ends one receive."""
        waiting = {asyncio.ensure_future(layer.receive("c")) for _ in range(3)}
        await turns(3)
        for left in (2, 1, 0):
            await layer.send("c", {"left": left})
            done, waiting = await asyncio.wait(
                waiting, timeout=patience(), return_when=asyncio.FIRST_COMPLETED
            )
            assert [task.result() for task in done] == [{"left": left}]
            await turns(20)
            assert not any(task.done() for task in waiting)

    async def test_cancelled_receive_loses_nothing(self, layer: AsyncioLayer) -> None:
        """B4: cancelling a receive loses no message that comes later."""
        await cancel(asyncio.ensure_future(layer.receive("c")), after=3)
        await layer.send("c", MESSAGE)
        assert await receive(layer, "c") == MESSAGE

    async def test_cancelled_receive_leaves_the_message_to_the_next(
        self, layer: AsyncioLayer
    ) -> None:
        """B4: cancelling a receive loses no message for another receive that waits."""
        cancelled = asyncio.ensure_future(layer.receive("c"))
        await turns(3)
        waiting = asyncio.ensure_future(layer.receive("c"))
        await cancel(cancelled, after=3)
        await layer.send("c", MESSAGE)
        assert await asyncio.wait_for(waiting, patience()) == MESSAGE

    @pytest.mark.parametrize("channel", ["c", "process-specific"])
    @pytest.mark.parametrize("after", range(6))
    async def test_receive_cancelled_while_a_message_comes_loses_nothing(
        self, layer: AsyncioLayer, channel: str, after: int
    ) -> None:
        """B4: a message that comes during a cancellation was received or is still pending."""
        channel = channel if channel == "c" else await layer.new_channel()
        got = []
        for number in range(20):
            task = asyncio.ensure_future(layer.receive(channel))
            await turns(number % 3)
            await layer.send(channel, {"number": number})
            got += await cancel(task, after)
        assert numbers(got + await drain(layer, channel)) == list(range(20))


def _error(name: str) -> type[Exception]:
    error: type[Exception] = getattr(importlib.import_module("channels.exceptions"), name)
    return error
