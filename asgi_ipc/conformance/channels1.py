"""The contract of Channels 1: blocking layers, as daphne 1 and its workers use them."""

from __future__ import annotations

import functools
import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from .base import MESSAGE, REFUSED, SHORT, Contract, in_threads, until
from .blocking import (
    NOTHING,
    STATISTICS,
    check_statistics,
    drain,
    in_event_loop,
    in_reactor,
    is_accepted,
    members_of,
    numbers,
    receivable,
    received_while_sending,
    round_trip,
    send_numbers,
    wait,
)
from .cases import (
    BAD_CHANNEL_NAMES,
    BAD_GROUP_NAMES,
    MARKED_NAMES,
    MEGABYTE_OF_JSON,
    PLAIN_NAMES,
    VALUES,
    each,
)


class Channels1Contract(Contract):
    """The channel layer specification of Channels 1, as tests."""

    # -- M: messages and channels -----------------------------------------------------------------

    @pytest.mark.parametrize("message", [None, "text", 5, [("text", "hello")]], ids=repr)
    def test_message_is_a_dict(self, layer: Any, message: Any) -> None:
        """M1: a message is a dict."""
        with pytest.raises(REFUSED):
            layer.send("c", message)
        assert layer.receive(["c"]) == NOTHING

    @pytest.mark.parametrize("value", VALUES)
    def test_value_arrives_as_what_it_was(self, layer: Any, value: Any) -> None:
        """M1: values are bytes, str, int (signed 64), float (double), list, dict, bool, None."""
        arrived = round_trip(layer, {"value": value})["value"]
        assert arrived == value
        assert type(arrived) is type(value)

    def test_tuple_counts_as_list(self, layer: Any) -> None:
        """M1: tuples count as lists."""
        assert list(round_trip(layer, {"pair": ("a", 1)})["pair"]) == ["a", 1]

    @pytest.mark.parametrize("message", [{1: "one"}, {"deep": {b"key": 1}}], ids=repr)
    def test_keys_are_str(self, layer: Any, message: Any) -> None:
        """M1: dicts have str keys."""
        with pytest.raises(REFUSED):
            layer.send("c", message)

    @pytest.mark.parametrize("message", each(MEGABYTE_OF_JSON))
    def test_message_of_one_megabyte_is_accepted(self, layer: Any, message: Any) -> None:
        """M2: a message of up to 1 MB as JSON must be accepted."""
        assert round_trip(layer, message) == message

    def test_message_over_the_limit_is_too_large(self, layer: Any) -> None:
        """M2: larger than the layer's limit raises MessageTooLarge."""
        with pytest.raises(layer.MessageTooLarge):
            layer.send("c", {"bytes": bytes(64 * 2**20)})
        assert layer.receive(["c"]) == NOTHING

    def test_first_in_first_out(self, make: Callable[..., Any]) -> None:
        """M3: a channel is FIFO."""
        layer = make(capacity=50)
        send_numbers(layer, "c", range(50))
        assert numbers(drain(layer, ["c"])) == list(range(50))

    def test_at_most_once(self, layer: Any) -> None:
        """M3: a message is delivered at most once."""
        layer.send("c", MESSAGE)
        assert layer.receive(["c"]) == ("c", MESSAGE)
        assert layer.receive(["c"]) == NOTHING

    def test_many_writers(self, make: Callable[..., Any]) -> None:
        """M3: many writers."""
        layer = make(capacity=400)
        writers = [self.make_peer(layer) for _ in range(4)]
        in_threads(
            functools.partial(send_numbers, writer, "c", range(first, 400, 4))
            for first, writer in enumerate(writers)
        )
        assert sorted(numbers(drain(layer, ["c"]))) == list(range(400))

    def test_many_readers(self, make: Callable[..., Any]) -> None:
        """M3: many readers."""
        layer = make(capacity=400)
        got = self.read_in_threads(layer, lambda: send_numbers(layer, "c", range(400)))
        assert set(got) == set(range(400))

    def test_no_message_to_two_readers(self, make: Callable[..., Any]) -> None:
        """M3: no message to two readers."""
        layer = make(capacity=400)
        send_numbers(layer, "c", range(400))
        got = self.read_in_threads(layer, lambda: None)
        assert got == Counter(range(400))

    def test_dropped_rather_than_delivered_twice(self, make: Callable[..., Any]) -> None:
        """M3: drop rather than deliver twice, here where readers race with the expiry."""
        layer = make(capacity=100_000, expiry=0.002)
        got = self.read_in_threads(layer, lambda: send_numbers(layer, "c", range(1000)))
        assert set(got.values()) <= {1}

    @pytest.mark.parametrize("channel", ["single?reader", "process!specific"])
    def test_order_of_one_writer_and_one_reader_is_exact(
        self, make: Callable[..., Any], channel: str
    ) -> None:
        """M4: order is exact for one writer and one reader, while both are at it."""
        layer = make(capacity=1000)
        writer = self.make_peer(layer)
        received: list[int] = []

        def read() -> None:
            while len(received) < 1000:
                received.extend(numbers([wait(layer, [receivable(channel)])]))

        in_threads([read, lambda: send_numbers(writer, channel, range(1000))])
        assert received == list(range(1000))

    @pytest.mark.parametrize("name", PLAIN_NAMES + MARKED_NAMES)
    def test_channel_name(self, layer: Any, name: str) -> None:
        """M5: ASCII letters, digits, . - _, then optionally one ? or ! and more of the same."""
        layer.send(name, MESSAGE)
        assert layer.receive([receivable(name)]) == (name, MESSAGE)

    @pytest.mark.parametrize("name", PLAIN_NAMES)
    def test_group_name(self, groups: Any, name: str) -> None:
        """M5: groups the same, without ? and !."""
        groups.group_add(name, "c")
        groups.send_group(name, MESSAGE)
        assert groups.receive(["c"]) == ("c", MESSAGE)

    @pytest.mark.parametrize("name", each(BAD_CHANNEL_NAMES))
    def test_other_channel_name_is_refused(self, layer: Any, name: Any) -> None:
        """M5: nothing else is a name, and asgiref has fewer than 100 characters."""
        calls: tuple[Callable[[], Any], ...] = (
            lambda: layer.send(name, MESSAGE),
            lambda: layer.receive([name]),
        )
        for call in calls:
            with pytest.raises(REFUSED):
                call()

    @pytest.mark.parametrize("name", each(BAD_GROUP_NAMES))
    def test_other_group_name_is_refused(self, groups: Any, name: Any) -> None:
        """M5: nothing else is the name of a group."""
        calls: tuple[Callable[[], Any], ...] = (
            lambda: groups.group_add(name, "c"),
            lambda: groups.group_discard(name, "c"),
            lambda: groups.send_group(name, MESSAGE),
        )
        for call in calls:
            with pytest.raises(REFUSED):
                call()

    def test_unread_message_expires(self, make: Callable[..., Any]) -> None:
        """M6: an unread message expires after expiry seconds."""
        layer = make(expiry=SHORT, capacity=1)
        layer.send("c", {"number": 1})
        until(lambda: is_accepted(layer, "c", {"number": 2}))
        assert layer.receive(["c"]) in [("c", {"number": 2}), NOTHING]
        assert layer.receive(["c"]) == NOTHING

    def test_expiry_is_a_minute_by_default(self, layer: Any) -> None:
        """M6: expiry is 60 seconds by default."""
        assert layer.expiry == 60

    def test_capacity_is_counted_for_the_channel(self, make: Callable[..., Any]) -> None:
        """M7: capacity is counted for the channel, and what is read makes room."""
        layer = make(capacity=3)
        send_numbers(layer, "c", range(3))
        layer.send("another", MESSAGE)
        layer.receive(["c"])
        layer.send("c", {"number": 3})
        assert numbers(drain(layer, ["c"])) == [1, 2, 3]

    def test_process_specific_channels_share_a_capacity(self, make: Callable[..., Any]) -> None:
        """M7: for process-specific channels it is counted for the part up to and including !."""
        layer = make(capacity=3)
        for local in "abc":
            layer.send(f"p!{local}", MESSAGE)
        with pytest.raises(layer.ChannelFull):
            layer.send("p!d", MESSAGE)
        layer.send("q!a", MESSAGE)

    def test_send_to_a_full_channel_raises(self, make: Callable[..., Any]) -> None:
        """M7: full is ChannelFull from send."""
        layer = make(capacity=3)
        send_numbers(layer, "c", range(3))
        with pytest.raises(layer.ChannelFull):
            layer.send("c", {"number": 3})
        assert numbers(drain(layer, ["c"])) == [0, 1, 2]

    def test_group_send_drops_what_does_not_fit(self, make: Callable[..., Any]) -> None:
        """M7: never from a group send, which drops."""
        layer = make("groups", capacity=1)
        layer.send("full", {"number": 1})
        for channel in ("full", "free"):
            layer.group_add("g", channel)
        layer.send_group("g", {"number": 2})
        assert numbers(drain(layer, ["full"])) == [1]
        assert numbers(drain(layer, ["free"])) == [2]

    def test_send_never_blocks(self, make: Callable[..., Any]) -> None:
        """M8: send never blocks, whether or not there is room, or anyone to read."""
        layer = make(capacity=5)
        (sent,) = in_threads([lambda: [is_accepted(layer, "c", MESSAGE) for _ in range(10)]])
        assert sent == [True] * 5 + [False] * 5

    @pytest.mark.parametrize("channels", [["busy", "quiet"], ["quiet", "busy"]])
    def test_quiet_channel_is_not_starved(self, layer: Any, channels: list[str]) -> None:
        """M9: readers of several channels must not starve a quiet one behind a busy one."""
        send_numbers(layer, "busy", range(5))
        layer.send("quiet", MESSAGE)
        for _ in range(1000):
            channel, _message = layer.receive(channels)
            if channel == "quiet":
                return
            layer.send("busy", MESSAGE)
        pytest.fail("1000 messages of the busy channel came before the one of the quiet channel")

    def test_altering_a_message_after_send_changes_nothing(self, layer: Any) -> None:
        """M10: altering the dict after send changes nothing that was sent."""
        message: dict[str, Any] = {"list": [1, {"deep": "before"}]}
        layer.send("c", message)
        message["list"][1]["deep"] = "after"
        message["new"] = True
        assert layer.receive(["c"]) == ("c", {"list": [1, {"deep": "before"}]})

    def test_altering_a_message_after_a_group_send_changes_nothing(self, groups: Any) -> None:
        """M10: the same for a group's message, also between those that it reaches."""
        for channel in ("c", "d"):
            groups.group_add("g", channel)
        message = {"list": [1]}
        groups.send_group("g", message)
        message["list"].append(2)
        first = groups.receive(["c"])[1]
        assert first == {"list": [1]}
        first["list"].append(3)
        assert groups.receive(["d"]) == ("d", {"list": [1]})

    def test_bytes_and_str_arrive_as_what_they_were(self, layer: Any) -> None:
        """M10: bytes and str arrive as what they were, however deep."""
        message = {
            "headers": [["name", b"value"], [b"name", "value"]],
            "same": {"b": b"x", "s": "x"},
        }
        arrived = round_trip(layer, message)
        assert arrived == message
        assert type(arrived["same"]["b"]) is bytes

    # -- A: the layer of Channels 1 ---------------------------------------------------------------

    def test_send_and_receive(self, layer: Any) -> None:
        """A1: send(channel, message), receive(channels, block=False) gives (channel, message)."""
        assert layer.send(channel="c", message=MESSAGE) is None
        assert layer.receive(channels=["other", "c"], block=False) == ("c", MESSAGE)

    def test_receive_of_nothing(self, layer: Any) -> None:
        """A1: or (None, None)."""
        assert layer.receive(["c"]) == NOTHING

    def test_process_specific_channel_is_received_by_its_part_up_to_the_mark(
        self, layer: Any
    ) -> None:
        """A1: process-specific names are received by the part up to !, and come back in full."""
        layer.send("p!one", {"number": 1})
        layer.send("p!two", {"number": 2})
        assert layer.receive(["p!"]) == ("p!one", {"number": 1})
        assert layer.receive(["p!"]) == ("p!two", {"number": 2})

    def test_receive_with_text_after_the_mark_is_an_error(self, layer: Any) -> None:
        """A1: a name with text after ! in receive is an error."""
        layer.send("p!local", MESSAGE)
        with pytest.raises(REFUSED):
            layer.receive(["p!local"])
        assert layer.receive(["p!"]) == ("p!local", MESSAGE)

    def test_receive_that_does_not_block_returns_at_once(self, layer: Any) -> None:
        """A2: block=False returns at once; a wait in each of these would go over every bound."""
        (got,) = in_threads([lambda: {layer.receive(["c"], block=False) for _ in range(1000)}])
        assert got == {NOTHING}

    def test_blocking_receive_may_return_without_a_message(self, layer: Any) -> None:
        """A2: block=True may return (None, None) after a built-in time."""
        assert in_threads([lambda: layer.receive(["c"], block=True)]) == [NOTHING]

    def test_blocking_receive_gets_what_is_sent_meanwhile(self, layer: Any) -> None:
        """A2: until then it waits for a message."""
        peer = self.make_peer(layer)
        got, _none = in_threads([lambda: wait(layer, ["c"]), lambda: peer.send("c", MESSAGE)])
        assert got == ("c", MESSAGE)

    def test_new_channel(self, layer: Any) -> None:
        """A3: new_channel("name?") gives an unused name."""
        names = []
        for _ in range(20):
            names.append(layer.new_channel("reply.to?"))
            layer.send(names[-1], MESSAGE)
        assert len(set(names)) == 20
        for name in names:
            head, local = name.split("?")
            assert head == "reply.to" and local
            assert layer.receive([name]) == (name, MESSAGE)

    @pytest.mark.parametrize("pattern", ["reply", "reply!", "reply?more", "", None])
    def test_new_channel_of_any_other_pattern_is_an_error(self, layer: Any, pattern: Any) -> None:
        """A3: any other pattern is an error."""
        with pytest.raises(REFUSED):
            layer.new_channel(pattern)

    @pytest.mark.parametrize("name", ["ChannelFull", "MessageTooLarge"])
    def test_errors_are_attributes(self, layer: Any, name: str) -> None:
        """A4: ChannelFull and MessageTooLarge are attributes."""
        assert issubclass(getattr(layer, name), Exception)

    def test_extensions_are_a_list_of_str(self, layer: Any) -> None:
        """A4: extensions is a list of str."""
        assert isinstance(layer.extensions, list)
        assert all(isinstance(extension, str) for extension in layer.extensions)

    @pytest.mark.parametrize("member", ["c", "c?reader", "p!local"])
    def test_group_send_reaches_each_member(self, groups: Any, member: str) -> None:
        """A5: group_add(group, channel) and send_group(group, message)."""
        groups.group_add("g", member)
        groups.group_add("g", "another")
        groups.send_group("g", MESSAGE)
        assert drain(groups, [receivable(member)]) == [(member, MESSAGE)]
        assert drain(groups, ["another"]) == [("another", MESSAGE)]

    def test_group_send_reaches_nobody_else(self, groups: Any) -> None:
        """A5: nobody else gets it, and a group that nobody joined is no error."""
        groups.group_add("g", "p!member")
        groups.group_add("h", "p!stranger")
        groups.send_group("g", MESSAGE)
        groups.send_group("nobody", MESSAGE)
        assert drain(groups, ["p!"]) == [("p!member", MESSAGE)]

    def test_group_add_again_is_fine(self, groups: Any) -> None:
        """A5: group_add again: fine, and one message is still one message."""
        groups.group_add("g", "c")
        groups.group_add("g", "c")
        groups.send_group("g", MESSAGE)
        assert drain(groups, ["c"]) == [("c", MESSAGE)]

    def test_group_add_again_renews_the_expiry(self, make: Callable[..., Any]) -> None:
        """A5: group_add again renews the expiry."""
        layer = make("groups", group_expiry=2 * SHORT)

        def renewed_outlives_the_other() -> bool:
            for channel in ("renewed", "other"):
                layer.group_add("g", channel)
            time.sleep(SHORT)
            layer.group_add("g", "renewed")
            until(lambda: "other" not in members_of(layer, "g"))
            return members_of(layer, "g") == {"renewed"}

        until(renewed_outlives_the_other)  # again where this process slept through all of it

    def test_group_discard(self, groups: Any) -> None:
        """A5: group_discard."""
        for channel in ("stays", "goes"):
            groups.group_add("g", channel)
        groups.group_discard("g", "goes")
        groups.send_group("g", MESSAGE)
        assert drain(groups, ["stays", "goes"]) == [("stays", MESSAGE)]

    def test_group_discard_of_who_is_absent_is_fine(self, groups: Any) -> None:
        """A5: group_discard of an absent channel is fine."""
        groups.group_discard("g", "c")
        groups.group_add("g", "d")
        groups.group_discard("g", "c")
        assert members_of(groups, "g") == {"d"}

    def test_group_channels(self, groups: Any) -> None:
        """A5: group_channels(group) is iterable, and gives each member once, by its full name."""
        members = ["c", "p!local", "p!other", "c?reader"]
        for channel in members:
            groups.group_add("g", channel)
        assert sorted(groups.group_channels("g")) == sorted(members)
        assert list(groups.group_channels("nobody")) == []

    def test_group_expiry_is_a_day_by_default(self, groups: Any) -> None:
        """A5: group_expiry is an attribute, in seconds, by default 86,400."""
        assert groups.group_expiry == 86400

    def test_membership_is_gone_after_group_expiry(self, make: Callable[..., Any]) -> None:
        """A5: group_expiry seconds after the last add the membership is gone."""
        layer = make("groups", group_expiry=SHORT)
        assert layer.group_expiry >= SHORT  # or as coarse as the layer's clock
        layer.group_add("g", "c")
        until(lambda: not members_of(layer, "g"))
        layer.send_group("g", MESSAGE)
        assert layer.receive(["c"]) == NOTHING

    def test_membership_outlasts_messages(self, groups: Any) -> None:
        """A6: a membership lasts while messages to that channel wait or are read."""
        groups.group_add("g", "c")
        for _ in range(2):
            groups.send_group("g", MESSAGE)
            groups.send_group("g", MESSAGE)
            assert members_of(groups, "g") == {"c"}
            assert drain(groups, ["c"]) == [("c", MESSAGE)] * 2

    def test_membership_outlasts_messages_of_others(self, make: Callable[..., Any]) -> None:
        """A6: it must last at least until a message to *that* channel expires unread."""
        layer = make("groups", expiry=SHORT, capacity=1)
        layer.group_add("g", "c")
        layer.send("other", MESSAGE)
        until(lambda: is_accepted(layer, "other", MESSAGE))
        assert members_of(layer, "g") == {"c"}

    def test_membership_may_go_when_a_message_expired(self, make: Callable[..., Any]) -> None:
        """A6: then it may go, and may be renewed."""
        layer = make("groups", expiry=SHORT, capacity=1)
        layer.group_add("g", "c")
        layer.send("c", {"number": 1})
        until(lambda: is_accepted(layer, "c", {"number": 2}))
        assert members_of(layer, "g") <= {"c"}
        layer.group_add("g", "c")
        assert members_of(layer, "g") == {"c"}

    def test_flush_leaves_no_messages(self, make: Callable[..., Any]) -> None:
        """A7: after flush there are no messages."""
        layer = make("flush")
        for channel in ("c", "c?reader", "p!local"):
            layer.send(channel, MESSAGE)
        layer.flush()
        assert layer.receive(["c", "c?reader", "p!"]) == NOTHING

    def test_flush_leaves_no_groups(self, make: Callable[..., Any]) -> None:
        """A7: nor groups."""
        layer = make("flush", "groups")
        layer.group_add("g", "c")
        layer.flush()
        assert members_of(layer, "g") == set()
        layer.send_group("g", MESSAGE)
        assert layer.receive(["c"]) == NOTHING

    def test_flush_is_for_every_client(self, make: Callable[..., Any]) -> None:
        """A7: for every client, when it returns."""
        layer = make("flush", "groups")
        peer = self.make_peer(layer)
        for client in (layer, peer):
            client.send("p!local", MESSAGE)
            client.group_add("g", "c")
        assert layer.receive(["p!"]) == ("p!local", MESSAGE)
        peer.flush()
        for client in (layer, peer):
            client.send_group("g", MESSAGE)
            assert client.receive(["p!", "c"]) == NOTHING

    @pytest.mark.parametrize("name", sorted(STATISTICS))
    def test_global_statistics(self, make: Callable[..., Any], name: str) -> None:
        """A8: global_statistics() is a dict with any of the six names."""
        layer = make("statistics", capacity=3)
        check_statistics(layer, name, layer.global_statistics)

    @pytest.mark.parametrize("name", sorted(STATISTICS))
    def test_channel_statistics(self, make: Callable[..., Any], name: str) -> None:
        """A8: channel_statistics(channel) is a dict with any of the six names."""
        layer = make("statistics", capacity=3)
        check_statistics(layer, name, functools.partial(layer.channel_statistics, "c"))

    def test_channel_statistics_are_of_one_channel(self, make: Callable[..., Any]) -> None:
        """A8: channel_statistics(channel) is about that channel alone."""
        layer = make("statistics")
        layer.send("other", MESSAGE)
        assert not any(layer.channel_statistics("c").values())

    def test_receive_twisted(self, make: Callable[..., Any]) -> None:
        """A9: receive_twisted(channels) gives a Deferred of (channel, message)."""
        layer = make("twisted")
        layer.send("c", MESSAGE)
        assert in_reactor(layer, ["c"]) == ("c", MESSAGE)

    def test_receive_twisted_of_what_comes_later(self, make: Callable[..., Any]) -> None:
        """A9: or of (None, None), and then daphne asks again."""
        layer = make("twisted")
        assert received_while_sending(layer, in_reactor) == ("c", MESSAGE)

    def test_receive_async(self, make: Callable[..., Any]) -> None:
        """A9: the coroutine receive_async(channels) gives the same."""
        layer = make("async|asyncio")
        layer.send("c", MESSAGE)
        assert in_event_loop(layer, ["c"]) == ("c", MESSAGE)

    def test_receive_async_of_what_comes_later(self, make: Callable[..., Any]) -> None:
        """A9: or (None, None)."""
        layer = make("async|asyncio")
        assert received_while_sending(layer, in_event_loop) == ("c", MESSAGE)

    # -- used above -------------------------------------------------------------------------------

    def read_in_threads(self, layer: Any, write: Callable[[], Any]) -> Counter[int]:
        """How often each number arrived at four readers, who read until after `write` returned."""
        written = threading.Event()

        def write_all() -> list[int]:
            try:
                write()
            finally:
                written.set()
            return []

        def read_all(reader: Any) -> list[int]:
            received = []
            while True:
                was_written = written.is_set()
                channel, message = reader.receive(["c"])
                if channel is not None:
                    received.append(message["number"])
                elif was_written:
                    return received

        readers = [functools.partial(read_all, self.make_peer(layer)) for _ in range(4)]
        return Counter(itertools.chain(*in_threads([*readers, write_all])))
