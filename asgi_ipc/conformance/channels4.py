"""The contract of Channels 4: asynchronous layers, as consumers and asyncio programs use them."""

from __future__ import annotations

import asyncio
import functools
import importlib
import inspect
import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from .asynchronous import (
    cancel,
    drain,
    eventually,
    in_loop,
    members_of,
    numbers,
    receive,
    remind_of_the_time,
    round_trip,
    running_loop,
    send_numbers,
    together,
    turns,
)
from .base import MESSAGE, REFUSED, SHORT, Contract, in_threads, patience
from .cases import (
    BAD_CHANNEL_NAMES,
    BAD_GROUP_NAMES,
    MARKED_NAMES,
    MEGABYTE_OF_JSON,
    PLAIN_NAMES,
    VALUES,
    each,
)


class Channels4Contract(Contract):
    """The Channel Layer Specification of Channels, as tests."""

    # Seconds to which the layer rounds times.
    granularity: ClassVar[float] = 0.0

    @property
    def ChannelFull(self) -> Any:
        """What send raises when a channel is full."""
        return importlib.import_module("channels.exceptions").ChannelFull

    @property
    def MessageTooLarge(self) -> Any:
        """What send raises for a message that is too large."""
        return importlib.import_module("channels.exceptions").MessageTooLarge

    # -- M: messages and channels -----------------------------------------------------------------

    @pytest.mark.parametrize("message", [None, "text", 5, [("text", "hello")]], ids=repr)
    async def test_message_is_a_dict(self, layer: Any, message: Any) -> None:
        """M1: a message is a dict."""
        with pytest.raises(REFUSED):
            await layer.send("c", message)
        assert await drain(layer, "c") == []

    @pytest.mark.parametrize("value", VALUES)
    async def test_value_arrives_as_what_it_was(self, layer: Any, value: Any) -> None:
        """M1: values are bytes, str, int (signed 64), float (double), list, dict, bool, None."""
        arrived = (await round_trip(layer, {"value": value}))["value"]
        assert arrived == value
        assert type(arrived) is type(value)

    async def test_tuple_counts_as_list(self, layer: Any) -> None:
        """M1: tuples count as lists."""
        assert list((await round_trip(layer, {"pair": ("a", 1)}))["pair"]) == ["a", 1]

    @pytest.mark.parametrize("message", [{1: "one"}, {"deep": {b"key": 1}}], ids=repr)
    async def test_keys_are_str(self, layer: Any, message: Any) -> None:
        """M1: dicts have str keys."""
        with pytest.raises(REFUSED):
            await layer.send("c", message)

    @pytest.mark.parametrize("message", each(MEGABYTE_OF_JSON))
    async def test_message_of_one_megabyte_is_accepted(self, layer: Any, message: Any) -> None:
        """M2: a message of up to 1 MB as JSON must be accepted."""
        assert await round_trip(layer, message) == message

    async def test_message_over_the_limit_is_too_large(self, layer: Any) -> None:
        """M2: larger than the layer's limit raises MessageTooLarge."""
        with pytest.raises(self.MessageTooLarge):
            await layer.send("c", {"bytes": bytes(64 * 2**20)})
        assert await drain(layer, "c") == []

    async def test_first_in_first_out(self, make: Callable[..., Any]) -> None:
        """M3: a channel is FIFO."""
        layer = make(capacity=51)
        await send_numbers(layer, "c", range(50))
        assert numbers(await drain(layer, "c")) == list(range(50))

    async def test_at_most_once(self, layer: Any) -> None:
        """M3: a message is delivered at most once."""
        await layer.send("c", MESSAGE)
        assert await drain(layer, "c") == [MESSAGE]

    async def test_many_writers(self, make: Callable[..., Any]) -> None:
        """M3: many writers."""
        layer = make(capacity=401)
        writers = [self.make_peer(layer) for _ in range(4)]
        await together(
            send_numbers(writer, "c", range(first, 400, 4)) for first, writer in enumerate(writers)
        )
        assert sorted(numbers(await drain(layer, "c"))) == list(range(400))

    async def test_many_readers(self, make: Callable[..., Any]) -> None:
        """M3: many readers, who wait before and while messages come."""
        layer = make(capacity=400)
        receives = [receive(self.make_peer(layer), "c") for _ in range(20)]
        reading = asyncio.ensure_future(together(receives))
        for number in range(20):
            await turns(3)
            await layer.send("c", {"number": number})
        assert sorted(numbers(await reading)) == list(range(20))

    async def test_no_message_to_two_readers(self, make: Callable[..., Any]) -> None:
        """M3: no message to two readers."""
        layer = make(capacity=400)
        await send_numbers(layer, "c", range(400))
        readers = itertools.cycle([self.make_peer(layer) for _ in range(4)])
        got = await together(receive(next(readers), "c") for _ in range(400))
        assert Counter(numbers(got)) == Counter(range(400))

    async def test_dropped_rather_than_delivered_twice(self, make: Callable[..., Any]) -> None:
        """M3: drop rather than deliver twice, here where readers race with expiry and leave."""
        layer = make(capacity=10_000, expiry=0.002)
        readers = [self.make_peer(layer) for _ in range(4)]
        got: list[Any] = []
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
    async def test_order_of_one_writer_and_one_reader_is_exact(
        self, make: Callable[..., Any], kind: str
    ) -> None:
        """M4: order is exact for one writer and one reader, while both are at it."""
        layer = make(capacity=1000)
        channel = await layer.new_channel() if kind == "process-specific" else "single?reader"

        writer = self.make_peer(layer)

        async def read() -> list[Any]:
            return [await receive(layer, channel) for _ in range(1000)]

        async def write() -> None:
            for start in range(0, 1000, 10):
                await send_numbers(writer, channel, range(start, start + 10))
                await turns(1)

        got, _none = await together([read(), write()])
        assert numbers(got) == list(range(1000))

    @pytest.mark.parametrize("name", PLAIN_NAMES + MARKED_NAMES)
    async def test_channel_name(self, groups: Any, name: str) -> None:
        """M5: ASCII letters, digits, . - _, then optionally one ? or ! and more of the same."""
        await groups.send(name, MESSAGE)
        await groups.group_add("g", name)
        await groups.group_discard("g", name)
        if "!" not in name:
            assert await drain(groups, name) == [MESSAGE]

    @pytest.mark.parametrize("name", PLAIN_NAMES)
    async def test_group_name(self, groups: Any, name: str) -> None:
        """M5: groups the same, without ? and !."""
        await groups.group_add(name, "c")
        await groups.group_send(name, MESSAGE)
        assert await drain(groups, "c") == [MESSAGE]

    @pytest.mark.parametrize("name", each(BAD_CHANNEL_NAMES))
    async def test_other_channel_name_is_refused(self, layer: Any, name: Any) -> None:
        """M5: nothing else is a name, and asgiref has fewer than 100 characters."""
        for call in (lambda: layer.send(name, MESSAGE), lambda: receive(layer, name)):
            with pytest.raises(REFUSED):
                await call()

    @pytest.mark.parametrize("name", each(BAD_GROUP_NAMES))
    async def test_other_group_name_is_refused(self, groups: Any, name: Any) -> None:
        """M5: nothing else is the name of a group."""
        calls: tuple[Callable[[], Any], ...] = (
            lambda: groups.group_add(name, "c"),
            lambda: groups.group_discard(name, "c"),
            lambda: groups.group_send(name, MESSAGE),
        )
        for call in calls:
            with pytest.raises(REFUSED):
                await call()

    async def test_unread_message_expires(self, make: Callable[..., Any]) -> None:
        """M6: an unread message expires after expiry seconds."""
        layer = make(expiry=SHORT, capacity=1)

        async def next_message() -> Any:
            await self.is_accepted(layer, "c", {"number": 2})  # anew, where that expired as well
            try:
                return await asyncio.wait_for(layer.receive("c"), SHORT)
            except asyncio.TimeoutError:
                return None

        await layer.send("c", {"number": 1})
        await eventually(lambda: self.is_accepted(layer, "c", {"number": 2}))
        assert await eventually(next_message) == {"number": 2}

    async def test_expiry_is_a_minute_by_default(self, layer: Any) -> None:
        """M6: expiry is 60 seconds by default."""
        assert layer.expiry == 60

    async def test_capacity_is_counted_for_the_channel(self, make: Callable[..., Any]) -> None:
        """M7: capacity is counted for the channel, and what is read makes room."""
        layer = make(capacity=3)
        await send_numbers(layer, "c", range(3))
        await layer.send("another", MESSAGE)
        assert await receive(layer, "c") == {"number": 0}
        await layer.send("c", {"number": 3})
        assert await self.is_accepted(layer, "c", {"number": 4}) is False
        assert numbers([await receive(layer, "c") for _ in range(3)]) == [1, 2, 3]

    async def test_capacity_holds_for_sends_at_once(self, make: Callable[..., Any]) -> None:
        """M7: also while several send."""
        layer = make(capacity=5)
        sent = await together(self.is_accepted(layer, "c", MESSAGE) for _ in range(10))
        assert sorted(sent) == [False] * 5 + [True] * 5

    async def test_process_specific_channels_share_a_capacity(
        self, make: Callable[..., Any]
    ) -> None:
        """M7: for process-specific channels it is counted for the part up to and including !."""
        layer = make(capacity=3)
        shared, mark, _local = (await layer.new_channel()).partition("!")
        for local in "abc":
            await layer.send(shared + mark + local, MESSAGE)
        with pytest.raises(self.ChannelFull):
            await layer.send(shared + mark + "d", MESSAGE)
        await layer.send("another" + mark + "a", MESSAGE)

    async def test_send_to_a_full_channel_raises(self, make: Callable[..., Any]) -> None:
        """M7: full is ChannelFull from send."""
        layer = make(capacity=3)
        await send_numbers(layer, "c", range(3))
        with pytest.raises(self.ChannelFull):
            await layer.send("c", {"number": 3})
        assert numbers([await receive(layer, "c") for _ in range(3)]) == [0, 1, 2]
        assert await drain(layer, "c") == []

    async def test_group_send_drops_what_does_not_fit(self, make: Callable[..., Any]) -> None:
        """M7: never from a group send, which drops."""
        layer = make("groups", capacity=2)
        await send_numbers(layer, "full", range(2))
        for channel in ("full", "free"):
            await layer.group_add("g", channel)
        await layer.group_send("g", {"number": 2})
        assert numbers([await receive(layer, "full") for _ in range(2)]) == [0, 1]
        assert await drain(layer, "full") == []
        assert numbers(await drain(layer, "free")) == [2]

    async def test_send_never_blocks(self, make: Callable[..., Any]) -> None:
        """M8: send never blocks, whether or not there is room, or anyone to read."""
        layer = make(capacity=5)
        sent = await together(self.is_accepted(layer, "c", MESSAGE) for _ in range(10))
        assert len(sent) == 10 and sum(sent) >= 5

    async def test_quiet_channel_is_not_starved(self, layer: Any) -> None:
        """M9: readers of several channels must not starve a quiet one behind a busy one."""
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

    async def test_altering_a_message_after_send_changes_nothing(self, layer: Any) -> None:
        """M10: altering the dict after send changes nothing that was sent."""
        message: dict[str, Any] = {"list": [1, {"deep": "before"}]}
        await layer.send("c", message)
        message["list"][1]["deep"] = "after"
        message["new"] = True
        assert await receive(layer, "c") == {"list": [1, {"deep": "before"}]}

    async def test_altering_a_message_after_a_group_send_changes_nothing(self, groups: Any) -> None:
        """M10: the same for a group's message, also between those that it reaches."""
        for channel in ("c", "d"):
            await groups.group_add("g", channel)
        message = {"list": [1]}
        await groups.group_send("g", message)
        message["list"].append(2)
        first = await receive(groups, "c")
        assert first == {"list": [1]}
        first["list"].append(3)
        assert await receive(groups, "d") == {"list": [1]}

    async def test_bytes_and_str_arrive_as_what_they_were(self, layer: Any) -> None:
        """M10: bytes and str arrive as what they were, however deep."""
        message = {
            "headers": [["name", b"value"], [b"name", "value"]],
            "same": {"b": b"x", "s": "x"},
        }
        arrived = await round_trip(layer, message)
        assert arrived == message
        assert type(arrived["same"]["b"]) is bytes

    # -- B: the layer of Channels 4 ---------------------------------------------------------------

    @pytest.mark.parametrize("name", ["send", "receive", "new_channel"])
    async def test_calls_are_coroutines(self, layer: Any, name: str) -> None:
        """B1: send, receive and new_channel are coroutines."""
        assert inspect.iscoroutinefunction(getattr(layer, name))

    async def test_send_and_receive(self, layer: Any) -> None:
        """B1: send(channel, message), receive(channel) gives the message."""
        assert await layer.send(channel="c", message=MESSAGE) is None
        assert await layer.receive(channel="c") == MESSAGE

    async def test_receive_waits(self, layer: Any) -> None:
        """B1: receive waits."""
        waiting = asyncio.ensure_future(layer.receive("c"))
        await turns(20)
        assert not waiting.done()
        await self.make_peer(layer).send("c", MESSAGE)
        assert await asyncio.wait_for(waiting, patience()) == MESSAGE

    async def test_new_channel_is_process_specific(self, layer: Any) -> None:
        """B1: new_channel(prefix="specific") gives a process-specific name."""
        name = await layer.new_channel()
        shared, local = name.split("!")
        assert shared.startswith("specific.") and local

    async def test_new_channel_with_a_prefix(self, layer: Any) -> None:
        """B1: which begins with another prefix on demand."""
        assert (await layer.new_channel(prefix="other")).startswith("other.")

    async def test_new_channel_is_nobody_elses(self, layer: Any) -> None:
        """B1: and which is new."""
        clients = [layer, self.make_peer(layer)] * 10
        names = [await client.new_channel() for client in clients]
        assert len(set(names)) == len(names)

    async def test_new_channel_is_received_by_its_full_name(self, layer: Any) -> None:
        """B1: receive takes its full name, and any client may send to it."""
        one, two = await layer.new_channel(), await layer.new_channel()
        peer = self.make_peer(layer)
        for name in (one, two):
            await peer.send(name, {"to": name})
        assert await receive(layer, two) == {"to": two}
        assert await receive(layer, one) == {"to": one}

    @pytest.mark.parametrize("name", ["group_add", "group_discard", "group_send", "flush"])
    async def test_more_calls_are_coroutines(self, make: Callable[..., Any], name: str) -> None:
        """B2: group_add, group_discard, group_send and flush are coroutines."""
        layer = make("groups", "flush")
        assert inspect.iscoroutinefunction(getattr(layer, name))

    async def test_group_send_reaches_each_member(self, groups: Any) -> None:
        """B2: group_add(group, channel) and group_send(group, message)."""
        members = ["c", await groups.new_channel(), await groups.new_channel()]
        for member in members:
            await groups.group_add(group="g", channel=member)
        await self.make_peer(groups).group_send(group="g", message=MESSAGE)
        for member in members:
            assert await drain(groups, member) == [MESSAGE]

    async def test_group_send_reaches_nobody_else(self, groups: Any) -> None:
        """B2: nobody else gets it, and a group that nobody joined is no error."""
        member, stranger = await groups.new_channel(), await groups.new_channel()
        await groups.group_add("g", member)
        await groups.group_add("h", stranger)
        await groups.group_send("g", MESSAGE)
        await groups.group_send("nobody", MESSAGE)
        assert await drain(groups, stranger) == []

    async def test_group_add_again_is_fine(self, groups: Any) -> None:
        """B2: group_add again is fine, and one message is still one message."""
        await groups.group_add("g", "c")
        await groups.group_add("g", "c")
        await groups.group_send("g", MESSAGE)
        assert await drain(groups, "c") == [MESSAGE]

    async def test_group_discard(self, groups: Any) -> None:
        """B2: group_discard."""
        for channel in ("stays", "goes"):
            await groups.group_add("g", channel)
        await groups.group_discard("g", "goes")
        await groups.group_send("g", MESSAGE)
        assert await drain(groups, "stays") == [MESSAGE]
        assert await drain(groups, "goes") == []

    async def test_group_discard_of_who_is_absent_is_fine(self, groups: Any) -> None:
        """B2: group_discard of an absent channel is fine."""
        await groups.group_discard("g", "c")
        await groups.group_add("g", "d")
        await groups.group_discard("g", "c")
        assert await members_of(groups, "g", ["c", "d"]) == {"d"}

    async def test_flush_leaves_no_messages(self, make: Callable[..., Any]) -> None:
        """B2: after flush there are no messages, for any client."""
        layer = make("flush")
        channels = ["c", await layer.new_channel(), await layer.new_channel()]
        for channel in channels:
            await layer.send(channel, MESSAGE)
            await layer.send(channel, MESSAGE)
        assert await receive(layer, channels[1]) == MESSAGE
        await self.make_peer(layer).flush()
        for channel in channels:
            assert await drain(layer, channel) == []

    async def test_flush_leaves_no_groups(self, make: Callable[..., Any]) -> None:
        """B2: nor groups."""
        layer = make("flush", "groups")
        await layer.group_add("g", "c")
        await self.make_peer(layer).flush()
        assert await members_of(layer, "g", ["c"]) == set()

    async def test_extensions(self, layer: Any) -> None:
        """B2: extensions with "groups" and "flush"."""
        assert {"groups", "flush"} <= set(layer.extensions)

    async def test_group_expiry_is_a_day_by_default(self, groups: Any) -> None:
        """B2: group_expiry, in seconds, by default 86,400."""
        assert groups.group_expiry == 86400

    async def test_membership_is_gone_after_group_expiry(self, make: Callable[..., Any]) -> None:
        """B2: after which a membership is gone."""
        layer = make("groups", group_expiry=SHORT)
        await layer.group_add("g", "c")

        async def gone() -> bool:
            return not await members_of(layer, "g", ["c"])

        await eventually(gone)

    async def test_group_add_again_renews_the_expiry(self, make: Callable[..., Any]) -> None:
        """B2: seconds since the last add."""
        layer = make("groups", group_expiry=2 * (SHORT + self.granularity))

        async def left() -> Any:
            members = await members_of(layer, "g", ["renewed", "other"])
            return "other" not in members and (members or {"nobody"})

        async def renewed_outlives_the_other() -> Any:
            for channel in ("renewed", "other"):
                await layer.group_add("g", channel)
            await asyncio.sleep(SHORT + self.granularity)
            await layer.group_add("g", "renewed")
            return await eventually(left) == {"renewed"}

        await eventually(renewed_outlives_the_other)  # again where this process slept through it

    def test_works_through_async_to_sync(self, layer: Any) -> None:
        """B3: works through asgiref.sync.async_to_sync."""
        async_to_sync = pytest.importorskip(
            "asgiref.sync", reason="lacking: asgiref 3"
        ).async_to_sync
        for number in range(3):
            async_to_sync(layer.send)("c", {"number": number})
            assert async_to_sync(layer.receive)("c") == {"number": number}

    def test_works_from_any_thread(self, make: Callable[..., Any]) -> None:
        """B3: from any thread."""
        layer = make(capacity=101)

        def send_every_fourth(first: int) -> None:
            asyncio.run(send_numbers(layer, "c", range(first, 100, 4)))

        in_threads(functools.partial(send_every_fourth, first) for first in range(4))
        (got,) = in_threads([lambda: asyncio.run(drain(layer, "c"))])
        assert sorted(numbers(got)) == list(range(100))

    def test_works_in_one_loop_after_another(self, layer: Any) -> None:
        """B3: from any loop, one after another, and one that left in the middle of a receive."""

        async def receive_what_comes_later() -> Any:
            waiting = asyncio.ensure_future(layer.receive("c"))
            asyncio.ensure_future(layer.receive("nothing"))
            await turns(3)
            await layer.send("c", MESSAGE)
            return await asyncio.wait_for(waiting, patience())

        for _ in range(3):
            assert asyncio.run(receive_what_comes_later()) == MESSAGE

    def test_works_in_several_loops_at_once(self, layer: Any) -> None:
        """B3: and at once: who waits in a loop is woken from another thread."""
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

    async def test_one_message_for_one_waiter(self, layer: Any) -> None:
        """B4: receive gets one message for one waiter."""
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

    async def test_cancelled_receive_loses_nothing(self, layer: Any) -> None:
        """B4: cancelling it loses nothing that comes later."""
        await cancel(asyncio.ensure_future(layer.receive("c")), after=3)
        await layer.send("c", MESSAGE)
        assert await receive(layer, "c") == MESSAGE

    async def test_cancelled_receive_leaves_the_message_to_the_next(self, layer: Any) -> None:
        """B4: nor for another who waits."""
        cancelled = asyncio.ensure_future(layer.receive("c"))
        await turns(3)
        waiting = asyncio.ensure_future(layer.receive("c"))
        await cancel(cancelled, after=3)
        await layer.send("c", MESSAGE)
        assert await asyncio.wait_for(waiting, patience()) == MESSAGE

    @pytest.mark.parametrize("channel", ["c", "process-specific"])
    @pytest.mark.parametrize("after", range(6))
    async def test_receive_cancelled_while_a_message_comes_loses_nothing(
        self, layer: Any, channel: str, after: int
    ) -> None:
        """B4: nor what is on its way: either it was received, or it is still there."""
        channel = channel if channel == "c" else await layer.new_channel()
        got = []
        for number in range(20):
            task = asyncio.ensure_future(layer.receive(channel))
            await turns(number % 3)
            await layer.send(channel, {"number": number})
            got += await cancel(task, after)
        assert numbers(got + await drain(layer, channel)) == list(range(20))

    # -- used above -------------------------------------------------------------------------------

    async def is_accepted(self, layer: Any, channel: str, message: Any) -> bool:
        """Whether a send finds room."""
        await remind_of_the_time(layer)
        try:
            await layer.send(channel, message)
        except self.ChannelFull:
            return False
        return True
