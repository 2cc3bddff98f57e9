"""The contract of Channels 1: blocking layers, as daphne 1 and its workers use them. The cases that
it shares with Channels 4 are in `shared`. Must not import anything of the package around
`conformance`."""

from __future__ import annotations

import functools
import itertools
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from .base import MESSAGE, REFUSED, SHORT, in_threads, until
from .blocking import (
    NOTHING,
    STATISTICS,
    BlockingClient,
    BlockingLayer,
    check_statistics,
    drain,
    in_event_loop,
    in_reactor,
    is_accepted,
    members_of,
    numbers,
    receivable,
    received_while_sending,
    send_numbers,
    wait,
    without_event_loop,
)
from .cases import BAD_CHANNEL_NAMES, MARKED_NAMES, PLAIN_NAMES, each
from .shared import SharedCases

Make = Callable[..., BlockingLayer]


@without_event_loop
class Channels1Contract(SharedCases):
    """The channel layer specification of Channels 1, as tests."""

    def client_of(self, layer: BlockingLayer) -> BlockingClient:
        return BlockingClient(layer)

    # -- M: messages and channels -----------------------------------------------------------------

    def test_many_readers(self, make: Make) -> None:
        """M3: a channel may have many readers."""
        layer = make(capacity=400)
        got = self.read_in_threads(layer, lambda: send_numbers(layer, "c", range(400)))
        assert set(got) == set(range(400))

    def test_no_message_to_two_readers(self, make: Make) -> None:
        """M3: no message reaches two readers."""
        layer = make(capacity=400)
        send_numbers(layer, "c", range(400))
        got = self.read_in_threads(layer, lambda: None)
        assert got == Counter(range(400))

    def test_dropped_rather_than_delivered_twice(self, make: Make) -> None:
        """M3: a message is dropped, not delivered twice, also while readers race with expiry."""
        layer = make(capacity=100_000, expiry=0.002)
        got = self.read_in_threads(layer, lambda: send_numbers(layer, "c", range(1000)))
        assert set(got.values()) <= {1}

    @pytest.mark.parametrize("channel", ["single?reader", "process!specific"])
    def test_order_of_one_writer_and_one_reader_is_exact(self, make: Make, channel: str) -> None:
        """M4: one reader gets the messages of one writer in exact order, while both are at work."""
        layer = make(capacity=1000)
        writer = self.make_peer(layer)
        received: list[int] = []

        def read() -> None:
            while len(received) < 1000:
                received.extend(numbers([wait(layer, [receivable(channel)])]))

        in_threads([read, lambda: send_numbers(writer, channel, range(1000))])
        assert received == list(range(1000))

    @pytest.mark.parametrize("name", PLAIN_NAMES + MARKED_NAMES)
    def test_channel_name(self, layer: BlockingLayer, name: str) -> None:
        """M5: a channel name is ASCII letters, digits, . - _, then perhaps one ? or ! and more."""
        layer.send(name, MESSAGE)
        assert layer.receive([receivable(name)]) == (name, MESSAGE)

    @pytest.mark.parametrize("name", each(BAD_CHANNEL_NAMES))
    def test_other_channel_name_is_refused(self, layer: BlockingLayer, name: Any) -> None:
        """M5: any other channel name is refused; asgiref allows fewer than 100 characters."""
        calls: tuple[Callable[[], object], ...] = (
            lambda: layer.send(name, MESSAGE),
            lambda: layer.receive([name]),
        )
        for call in calls:
            with pytest.raises(REFUSED):
                call()

    def test_unread_message_expires(self, make: Make) -> None:
        """M6: an unread message expires after expiry seconds."""
        layer = make(expiry=SHORT, capacity=1)
        layer.send("c", {"number": 1})
        until(lambda: is_accepted(layer, "c", {"number": 2}))
        assert layer.receive(["c"]) in [("c", {"number": 2}), NOTHING]
        assert layer.receive(["c"]) == NOTHING

    def test_process_specific_channels_share_a_capacity(self, make: Make) -> None:
        """M7: process-specific channels are counted together, up to and including the !."""
        layer = make(capacity=3)
        for local in "abc":
            layer.send(f"p!{local}", MESSAGE)
        with pytest.raises(layer.ChannelFull):
            layer.send("p!d", MESSAGE)
        layer.send("q!a", MESSAGE)

    def test_send_never_blocks(self, make: Make) -> None:
        """M8: send never blocks, with or without room, with or without a reader."""
        layer = make(capacity=5)
        (sent,) = in_threads([lambda: [is_accepted(layer, "c", MESSAGE) for _ in range(10)]])
        assert sent == [True] * 5 + [False] * 5

    @pytest.mark.parametrize("channels", [["busy", "quiet"], ["quiet", "busy"]])
    def test_quiet_channel_is_not_starved(self, layer: BlockingLayer, channels: list[str]) -> None:
        """M9: a busy channel must not starve a quiet one that the same reader reads."""
        send_numbers(layer, "busy", range(5))
        layer.send("quiet", MESSAGE)
        for _ in range(1000):
            channel, _message = layer.receive(channels)
            if channel == "quiet":
                return
            layer.send("busy", MESSAGE)
        pytest.fail("1000 messages of the busy channel came before the one of the quiet channel")

    # -- A: the layer of Channels 1 ---------------------------------------------------------------

    def test_send_and_receive(self, layer: BlockingLayer) -> None:
        """A1: send(channel, message); receive(channels, block=False) returns (channel, message)."""
        assert layer.send(channel="c", message=MESSAGE) is None
        assert layer.receive(channels=["other", "c"], block=False) == ("c", MESSAGE)

    def test_receive_of_nothing(self, layer: BlockingLayer) -> None:
        """A1: receive returns (None, None) if there is no message."""
        assert layer.receive(["c"]) == NOTHING

    def test_process_specific_channel_is_received_by_its_part_up_to_the_mark(
        self, layer: BlockingLayer
    ) -> None:
        """A1: receive takes process-specific names up to the !, and returns them in full."""
        layer.send("p!one", {"number": 1})
        layer.send("p!two", {"number": 2})
        assert layer.receive(["p!"]) == ("p!one", {"number": 1})
        assert layer.receive(["p!"]) == ("p!two", {"number": 2})

    def test_receive_with_text_after_the_mark_is_an_error(self, layer: BlockingLayer) -> None:
        """A1: a name with text after the ! is an error in receive."""
        layer.send("p!local", MESSAGE)
        with pytest.raises(REFUSED):
            layer.receive(["p!local"])
        assert layer.receive(["p!"]) == ("p!local", MESSAGE)

    def test_receive_that_does_not_block_returns_at_once(self, layer: BlockingLayer) -> None:
        """A2: receive with block=False returns at once."""
        # If each of these waited, the test would exceed every bound.
        (got,) = in_threads([lambda: {layer.receive(["c"], block=False) for _ in range(1000)}])
        assert got == {NOTHING}

    def test_blocking_receive_may_return_without_a_message(self, layer: BlockingLayer) -> None:
        """A2: receive with block=True may return (None, None) after a built-in time."""
        assert in_threads([lambda: layer.receive(["c"], block=True)]) == [NOTHING]

    def test_blocking_receive_gets_what_is_sent_meanwhile(self, layer: BlockingLayer) -> None:
        """A2: receive with block=True waits for a message until then."""
        peer = self.make_peer(layer)
        got, _none = in_threads([lambda: wait(layer, ["c"]), lambda: peer.send("c", MESSAGE)])
        assert got == ("c", MESSAGE)

    def test_new_channel(self, layer: BlockingLayer) -> None:
        """A3: new_channel("name?") returns an unused name."""
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
    def test_new_channel_of_any_other_pattern_is_an_error(
        self, layer: BlockingLayer, pattern: Any
    ) -> None:
        """A3: any other pattern is an error in new_channel."""
        with pytest.raises(REFUSED):
            layer.new_channel(pattern)

    @pytest.mark.parametrize("name", ["ChannelFull", "MessageTooLarge"])
    def test_errors_are_attributes(self, layer: BlockingLayer, name: str) -> None:
        """A4: ChannelFull and MessageTooLarge are attributes of the layer."""
        assert issubclass(getattr(layer, name), Exception)

    def test_extensions_are_a_list_of_str(self, layer: BlockingLayer) -> None:
        """A4: extensions is a list of str."""
        assert isinstance(layer.extensions, list)
        assert all(isinstance(extension, str) for extension in layer.extensions)

    @pytest.mark.parametrize("member", ["c", "c?reader", "p!local"])
    def test_group_send_reaches_each_member(self, groups: BlockingLayer, member: str) -> None:
        """A5: send_group(group, message) reaches each channel of group_add(group, channel)."""
        groups.group_add("g", member)
        groups.group_add("g", "another")
        groups.send_group("g", MESSAGE)
        assert drain(groups, [receivable(member)]) == [(member, MESSAGE)]
        assert drain(groups, ["another"]) == [("another", MESSAGE)]

    def test_group_send_reaches_nobody_else(self, groups: BlockingLayer) -> None:
        """A5: send_group reaches no other channel, and a group without members is no error."""
        groups.group_add("g", "p!member")
        groups.group_add("h", "p!stranger")
        groups.send_group("g", MESSAGE)
        groups.send_group("nobody", MESSAGE)
        assert drain(groups, ["p!"]) == [("p!member", MESSAGE)]

    def test_group_channels(self, groups: BlockingLayer) -> None:
        """A5: group_channels(group) is iterable and has each member once, by its full name."""
        members = ["c", "p!local", "p!other", "c?reader"]
        for channel in members:
            groups.group_add("g", channel)
        assert sorted(groups.group_channels("g")) == sorted(members)
        assert list(groups.group_channels("nobody")) == []

    def test_membership_outlasts_messages(self, groups: BlockingLayer) -> None:
        """A6: a membership lasts while messages to that channel are pending or are read."""
        groups.group_add("g", "c")
        for _ in range(2):
            groups.send_group("g", MESSAGE)
            groups.send_group("g", MESSAGE)
            assert members_of(groups, "g") == {"c"}
            assert drain(groups, ["c"]) == [("c", MESSAGE)] * 2

    def test_membership_outlasts_messages_of_others(self, make: Make) -> None:
        """A6: a membership must last at least until a message to *that* channel expires unread."""
        layer = make("groups", expiry=SHORT, capacity=1)
        layer.group_add("g", "c")
        layer.send("other", MESSAGE)
        until(lambda: is_accepted(layer, "other", MESSAGE))
        assert members_of(layer, "g") == {"c"}

    def test_membership_may_go_when_a_message_expired(self, make: Make) -> None:
        """A6: a membership may end when such a message expires, and may be renewed."""
        layer = make("groups", expiry=SHORT, capacity=1)
        layer.group_add("g", "c")
        layer.send("c", {"number": 1})
        until(lambda: is_accepted(layer, "c", {"number": 2}))
        assert members_of(layer, "g") <= {"c"}
        layer.group_add("g", "c")
        assert members_of(layer, "g") == {"c"}

    def test_flush_leaves_no_messages(self, make: Make) -> None:
        """A7: flush leaves no messages."""
        layer = make("flush")
        for channel in ("c", "c?reader", "p!local"):
            layer.send(channel, MESSAGE)
        layer.flush()
        assert layer.receive(["c", "c?reader", "p!"]) == NOTHING

    def test_flush_leaves_no_groups(self, make: Make) -> None:
        """A7: flush leaves no groups."""
        layer = make("flush", "groups")
        layer.group_add("g", "c")
        layer.flush()
        assert members_of(layer, "g") == set()
        layer.send_group("g", MESSAGE)
        assert layer.receive(["c"]) == NOTHING

    def test_flush_is_for_every_client(self, make: Make) -> None:
        """A7: flush holds for every client when it returns."""
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
    def test_global_statistics(self, make: Make, name: str) -> None:
        """A8: global_statistics() is a dict with any of the six names."""
        layer = make("statistics", capacity=3)
        check_statistics(layer, name, layer.global_statistics)

    @pytest.mark.parametrize("name", sorted(STATISTICS))
    def test_channel_statistics(self, make: Make, name: str) -> None:
        """A8: channel_statistics(channel) is a dict with any of the six names."""
        layer = make("statistics", capacity=3)
        check_statistics(layer, name, functools.partial(layer.channel_statistics, "c"))

    def test_channel_statistics_are_of_one_channel(self, make: Make) -> None:
        """A8: channel_statistics(channel) counts that channel alone."""
        layer = make("statistics")
        layer.send("other", MESSAGE)
        assert not any(layer.channel_statistics("c").values())

    def test_receive_twisted(self, make: Make) -> None:
        """A9: receive_twisted(channels) returns a Deferred of (channel, message)."""
        layer = make("twisted")
        layer.send("c", MESSAGE)
        assert in_reactor(layer, ["c"]) == ("c", MESSAGE)

    def test_receive_twisted_of_what_comes_later(self, make: Make) -> None:
        """A9: that Deferred may fire with (None, None); the next call gets what comes later."""
        layer = make("twisted")
        assert received_while_sending(layer, in_reactor) == ("c", MESSAGE)

    def test_receive_async(self, make: Make) -> None:
        """A9: the coroutine receive_async(channels) returns (channel, message)."""
        layer = make("async|asyncio")
        layer.send("c", MESSAGE)
        assert in_event_loop(layer, ["c"]) == ("c", MESSAGE)

    def test_receive_async_of_what_comes_later(self, make: Make) -> None:
        """A9: that coroutine may return (None, None); the next call gets what comes later."""
        layer = make("async|asyncio")
        assert received_while_sending(layer, in_event_loop) == ("c", MESSAGE)

    # -- used above -------------------------------------------------------------------------------

    def read_in_threads(self, layer: BlockingLayer, write: Callable[[], object]) -> Counter[int]:
        """Count how often each number arrives at four readers, which run until `write` is done."""
        written = threading.Event()

        def write_all() -> list[int]:
            try:
                write()
            finally:
                written.set()
            return []

        def read_all(reader: BlockingLayer) -> list[int]:
            received = []
            while True:
                was_written = written.is_set()
                _channel, message = reader.receive(["c"])
                if message is not None:
                    received.append(message["number"])
                elif was_written:
                    return received

        peers = [self.make_peer(layer) for _ in range(4)]
        calls: list[Callable[[], list[int]]] = [functools.partial(read_all, p) for p in peers]
        return Counter(itertools.chain(*in_threads([*calls, write_all])))
