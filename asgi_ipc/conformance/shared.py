"""The cases that both contracts have, written once, and how a case calls a layer of either kind.

The cases are coroutines. For a blocking layer they run without an event loop, because its calls
never suspend (`blocking.without_event_loop`). A case stays with its own contract if the call is
itself what is tested, or if threads and tasks need different proofs. Must not import anything of
the package around `conformance`.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any

import pytest

from .base import LIVENESS, MESSAGE, REFUSED, SHORT, Contract, Layer, Message, T, patience
from .cases import BAD_GROUP_NAMES, MEGABYTE_OF_JSON, PLAIN_NAMES, VALUES, each


class Client(ABC):
    """A layer as the shared cases call it."""

    @property
    @abstractmethod
    def ChannelFull(self) -> type[Exception]:
        """What `send` raises for a full channel."""

    @property
    @abstractmethod
    def MessageTooLarge(self) -> type[Exception]:
        """What `send` raises for a message over the limit."""

    @abstractmethod
    async def send(self, channel: str, message: Message) -> None: ...

    @abstractmethod
    async def receive(self, channel: str) -> Message:
        """Return the next message; fail if none comes."""

    @abstractmethod
    async def drain(self, channel: str) -> list[Message]:
        """Return all messages that are pending, on a channel that has room for one more."""

    @abstractmethod
    async def is_accepted(self, channel: str, message: Message) -> bool:
        """Send, and return whether there was room."""

    @abstractmethod
    async def group_add(self, group: str, channel: str) -> None: ...

    @abstractmethod
    async def group_discard(self, group: str, channel: str) -> None: ...

    @abstractmethod
    async def group_send(self, group: str, message: Message) -> None: ...

    @abstractmethod
    async def members_of(self, group: str, candidates: list[str]) -> set[str]:
        """Return those of `candidates` that are in `group`; no message may be pending there."""

    @abstractmethod
    async def sleep(self, seconds: float) -> None: ...

    @abstractmethod
    async def together(self, calls: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
        """Make all `calls` at once, and return their results."""

    # -- made of these ----------------------------------------------------------------------------

    async def send_numbers(self, channel: str, numbers: Iterable[int]) -> None:
        for number in numbers:
            await self.send(channel, {"number": number})

    async def round_trip(self, message: Message) -> Message:
        await self.send("c", message)
        return await self.receive("c")

    async def until(self, condition: Callable[[], Awaitable[T | None]]) -> T:
        """Poll `condition` until it is true, and return its value."""
        bound = max(patience(), LIVENESS)
        deadline = time.monotonic() + bound
        while not (value := await condition()):
            assert time.monotonic() < deadline, f"still waiting after {bound} seconds"
            await self.sleep(0.005)
        return value


MakeClient = Callable[..., Client]


def numbers(received: Iterable[Message]) -> list[int]:
    return [message["number"] for message in received]


class SharedCases(Contract):
    """The sentences M, about messages and channels, and what A5 and B2 both say about groups."""

    def client_of(self, layer: Any) -> Client:
        """Return `layer` as the shared cases call it."""
        raise NotImplementedError

    @pytest.fixture
    def make_client(self, make: Callable[..., Layer]) -> MakeClient:
        return lambda *extensions, **options: self.client_of(make(*extensions, **options))

    @pytest.fixture
    def client(self, layer: Layer) -> Client:
        return self.client_of(layer)

    @pytest.fixture
    def group_client(self, groups: Layer) -> Client:
        """A client of a layer that has groups."""
        return self.client_of(groups)

    # -- M: messages and channels -----------------------------------------------------------------

    @pytest.mark.parametrize("message", [None, "text", 5, [("text", "hello")]], ids=repr)
    async def test_message_is_a_dict(self, client: Client, message: Any) -> None:
        """M1: a message is a dict."""
        with pytest.raises(REFUSED):
            await client.send("c", message)
        assert await client.drain("c") == []

    @pytest.mark.parametrize("value", VALUES)
    async def test_value_arrives_as_what_it_was(self, client: Client, value: object) -> None:
        """M1: values are bytes, str, int (signed 64), float (double), list, dict, bool, None."""
        arrived = (await client.round_trip({"value": value}))["value"]
        assert arrived == value
        assert type(arrived) is type(value)

    async def test_tuple_counts_as_list(self, client: Client) -> None:
        """M1: tuples count as lists."""
        assert list((await client.round_trip({"pair": ("a", 1)}))["pair"]) == ["a", 1]

    @pytest.mark.parametrize("message", [{1: "one"}, {"deep": {b"key": 1}}], ids=repr)
    async def test_keys_are_str(self, client: Client, message: Any) -> None:
        """M1: dicts have str keys."""
        with pytest.raises(REFUSED):
            await client.send("c", message)

    @pytest.mark.parametrize("message", each(MEGABYTE_OF_JSON))
    async def test_message_of_one_megabyte_is_accepted(
        self, client: Client, message: Message
    ) -> None:
        """M2: a message of up to 1 MB as JSON must be accepted."""
        assert await client.round_trip(message) == message

    async def test_message_over_the_limit_is_too_large(self, client: Client) -> None:
        """M2: a message over the layer's limit raises MessageTooLarge."""
        with pytest.raises(client.MessageTooLarge):
            await client.send("c", {"bytes": bytes(64 * 2**20)})
        assert await client.drain("c") == []

    async def test_first_in_first_out(self, make_client: MakeClient) -> None:
        """M3: a channel is first in, first out."""
        client = make_client(capacity=51)
        await client.send_numbers("c", range(50))
        assert numbers(await client.drain("c")) == list(range(50))

    async def test_at_most_once(self, client: Client) -> None:
        """M3: a message is delivered at most once."""
        await client.send("c", MESSAGE)
        assert await client.drain("c") == [MESSAGE]

    async def test_many_writers(self, make: Callable[..., Layer]) -> None:
        """M3: a channel may have many writers."""
        layer = make(capacity=401)
        writers = [self.client_of(self.make_peer(layer)) for _ in range(4)]
        client = self.client_of(layer)
        await client.together(
            writer.send_numbers("c", range(first, 400, 4)) for first, writer in enumerate(writers)
        )
        assert sorted(numbers(await client.drain("c"))) == list(range(400))

    @pytest.mark.parametrize("name", PLAIN_NAMES)
    async def test_group_name(self, group_client: Client, name: str) -> None:
        """M5: group names are ASCII letters, digits, . - _."""
        await group_client.group_add(name, "c")
        await group_client.group_send(name, MESSAGE)
        assert await group_client.drain("c") == [MESSAGE]

    @pytest.mark.parametrize("name", each(BAD_GROUP_NAMES))
    async def test_other_group_name_is_refused(self, group_client: Client, name: Any) -> None:
        """M5: any other group name is refused."""
        calls: tuple[Callable[[], Awaitable[None]], ...] = (
            lambda: group_client.group_add(name, "c"),
            lambda: group_client.group_discard(name, "c"),
            lambda: group_client.group_send(name, MESSAGE),
        )
        for call in calls:
            with pytest.raises(REFUSED):
                await call()

    async def test_expiry_is_a_minute_by_default(self, layer: Layer) -> None:
        """M6: expiry is 60 seconds by default."""
        assert layer.expiry == 60

    async def test_capacity_is_counted_for_the_channel(self, make_client: MakeClient) -> None:
        """M7: capacity is counted for each channel, and a receive makes room."""
        client = make_client(capacity=3)
        await client.send_numbers("c", range(3))
        await client.send("another", MESSAGE)
        assert await client.receive("c") == {"number": 0}
        await client.send("c", {"number": 3})
        assert await client.is_accepted("c", {"number": 4}) is False
        assert numbers([await client.receive("c") for _ in range(3)]) == [1, 2, 3]

    async def test_send_to_a_full_channel_raises(self, make_client: MakeClient) -> None:
        """M7: send to a full channel raises ChannelFull."""
        client = make_client(capacity=3)
        await client.send_numbers("c", range(3))
        with pytest.raises(client.ChannelFull):
            await client.send("c", {"number": 3})
        assert numbers([await client.receive("c") for _ in range(3)]) == [0, 1, 2]
        assert await client.drain("c") == []

    async def test_group_send_drops_what_does_not_fit(self, make_client: MakeClient) -> None:
        """M7: a group send to a full channel drops the message there and raises nothing."""
        client = make_client("groups", capacity=2)
        await client.send_numbers("full", range(2))
        for channel in ("full", "free"):
            await client.group_add("g", channel)
        await client.group_send("g", {"number": 2})
        assert numbers([await client.receive("full") for _ in range(2)]) == [0, 1]
        assert await client.drain("full") == []
        assert numbers(await client.drain("free")) == [2]

    async def test_altering_a_message_after_send_changes_nothing(self, client: Client) -> None:
        """M10: a change to the dict after send changes nothing that was sent."""
        message: Message = {"list": [1, {"deep": "before"}]}
        await client.send("c", message)
        message["list"][1]["deep"] = "after"
        message["new"] = True
        assert await client.receive("c") == {"list": [1, {"deep": "before"}]}

    async def test_altering_a_message_after_a_group_send_changes_nothing(
        self, group_client: Client
    ) -> None:
        """M10: the same holds for a group send, also between the members that it reaches."""
        for channel in ("c", "d"):
            await group_client.group_add("g", channel)
        message = {"list": [1]}
        await group_client.group_send("g", message)
        message["list"].append(2)
        first = await group_client.receive("c")
        assert first == {"list": [1]}
        first["list"].append(3)
        assert await group_client.receive("d") == {"list": [1]}

    async def test_bytes_and_str_arrive_as_what_they_were(self, client: Client) -> None:
        """M10: bytes and str arrive as bytes and str, at any depth."""
        message = {
            "headers": [["name", b"value"], [b"name", "value"]],
            "same": {"b": b"x", "s": "x"},
        }
        arrived = await client.round_trip(message)
        assert arrived == message
        assert type(arrived["same"]["b"]) is bytes

    # -- A5 and B2: groups ------------------------------------------------------------------------

    async def test_group_add_again_is_fine(self, group_client: Client) -> None:
        """A5, B2: group_add may be called again, and one message is still one message."""
        await group_client.group_add("g", "c")
        await group_client.group_add("g", "c")
        await group_client.group_send("g", MESSAGE)
        assert await group_client.drain("c") == [MESSAGE]

    async def test_group_discard(self, group_client: Client) -> None:
        """A5, B2: group_discard ends a membership."""
        for channel in ("stays", "goes"):
            await group_client.group_add("g", channel)
        await group_client.group_discard("g", "goes")
        await group_client.group_send("g", MESSAGE)
        assert await group_client.drain("stays") == [MESSAGE]
        assert await group_client.drain("goes") == []

    async def test_group_discard_of_who_is_absent_is_fine(self, group_client: Client) -> None:
        """A5, B2: group_discard of a channel that is no member is no error."""
        await group_client.group_discard("g", "c")
        await group_client.group_add("g", "d")
        await group_client.group_discard("g", "c")
        assert await group_client.members_of("g", ["c", "d"]) == {"d"}

    async def test_group_expiry_is_a_day_by_default(self, groups: Layer) -> None:
        """A5, B2: group_expiry is an attribute, in seconds, by default 86,400."""
        assert groups.group_expiry == 86400

    async def test_membership_is_gone_after_group_expiry(self, make: Callable[..., Layer]) -> None:
        """A5, B2: a membership ends group_expiry seconds after its last group_add."""
        layer = make("groups", group_expiry=SHORT)
        assert layer.group_expiry >= SHORT  # or as coarse as the layer's clock
        client = self.client_of(layer)
        await client.group_add("g", "c")

        async def is_gone() -> bool:
            return not await client.members_of("g", ["c"])

        await client.until(is_gone)
        await client.group_send("g", MESSAGE)
        assert await client.drain("c") == []

    async def test_group_add_again_renews_the_expiry(self, make_client: MakeClient) -> None:
        """A5, B2: group_add renews the membership of a member."""
        client = make_client("groups", group_expiry=2 * (SHORT + self.granularity))

        async def those_left() -> set[str] | None:
            members = await client.members_of("g", ["renewed", "other"])
            return None if "other" in members else members or {"nobody"}

        async def renewed_outlives_the_other() -> bool:
            for channel in ("renewed", "other"):
                await client.group_add("g", channel)
            await client.sleep(SHORT + self.granularity)
            await client.group_add("g", "renewed")
            return await client.until(those_left) == {"renewed"}

        await client.until(renewed_outlives_the_other)  # again if this process overslept
