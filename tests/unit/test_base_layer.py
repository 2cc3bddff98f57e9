"""The base classes for layer authors: what they provide, what they leave open, who uses them."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections import deque
from typing import Any

import pytest

import asgi_ipc
import asgi_ipc.aio
from asgi_ipc import base_layer, errors
from asgi_ipc.base_layer import AsyncBaseChannelLayer, BaseChannelLayer

BASES = [BaseChannelLayer, AsyncBaseChannelLayer]
OURS = {
    BaseChannelLayer: asgi_ipc.IPCChannelLayer,
    AsyncBaseChannelLayer: asgi_ipc.aio.IPCChannelLayer,
}

# What a layer author calls and does not have to write,
GIVEN = {
    *("get_capacity", "non_local_name", "valid_channel_name", "valid_group_name"),
    *("require_valid_channel_name", "require_valid_group_name", "messages"),
}
# and the aliases of what there is to write.
ALIASES = {
    BaseChannelLayer: {"receive_many", "group_send"},
    AsyncBaseChannelLayer: {"send_group"},
}

CAPACITIES = {"http.response!*": 20, re.compile(r"^websocket.send\!.+"): 5, "*": 7}


class Smallest(BaseChannelLayer):
    """A layer as an author would write it: deques in a dict."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.queues: dict[str, deque[Any]] = {}

    def send(self, channel: str, message: dict[str, Any]) -> None:
        self.valid_channel_name(channel)
        queue = self.queues.setdefault(self.non_local_name(channel), deque())
        if len(queue) >= self.get_capacity(channel):
            raise self.ChannelFull(channel)
        queue.append((channel, message))

    def receive(self, channels: Any, block: bool = False) -> Any:
        for channel in channels:
            self.valid_channel_name(channel, receive=True)
            if self.queues.get(channel):
                return self.queues[channel].popleft()
        return None, None


def methods(base: type[Any]) -> dict[str, Any]:
    """Return the public methods of a base class by name."""
    return {
        name: function
        for name, function in inspect.getmembers(base, inspect.isfunction)
        if not name.startswith("_")
    }


def test_a_layer_is_written_with_what_it_gives() -> None:
    layer = Smallest(channel_capacity={"a!*": 2})
    for number in range(2):
        layer.send("a!b", {"number": number})
    with pytest.raises(layer.ChannelFull):
        layer.send("a!c", {})
    assert layer.receive(["a!"]) == ("a!b", {"number": 0})
    assert layer.receive_many(["a!"]) == ("a!b", {"number": 1})
    assert layer.receive(["a!"]) == (None, None)


@pytest.mark.parametrize("base", BASES)
def test_the_first_pattern_that_matches_the_full_name_gives_the_capacity(base: type[Any]) -> None:
    layer = base(capacity=100, channel_capacity=CAPACITIES)
    assert layer.get_capacity("http.response!abc") == 20
    assert layer.get_capacity("websocket.send!abc") == 5
    assert layer.get_capacity("websocket.send") == 7
    assert base(capacity=3).get_capacity("anything") == 3


@pytest.mark.parametrize("base", BASES)
def test_names_are_checked_by_the_rules_of_the_contracts(base: type[Any]) -> None:
    layer = base()
    for check in (layer.valid_channel_name, layer.require_valid_channel_name):
        assert check("a!b") and check("a!", receive=True)
        for bad, receive in (("a b", False), ("a" * 100, False), ("a!b", True)):
            with pytest.raises(errors.InvalidName):
                check(bad, receive=receive)
    for check in (layer.valid_group_name, layer.require_valid_group_name):
        assert check("group")
        with pytest.raises(errors.InvalidName):
            check("a!b")
    assert [layer.non_local_name(name) for name in ("a!b", "a?b", "a")] == ["a!", "a?b", "a"]


@pytest.mark.parametrize("base", BASES)
def test_errors_are_those_of_the_package(base: type[Any]) -> None:
    assert base().ChannelFull is errors.ChannelFull
    assert base().MessageTooLarge is errors.MessageTooLarge


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize(
    "options",
    [
        {"expiry": 0},
        {"group_expiry": "1"},
        {"capacity": True},
        {"capacity": 0},
        {"channel_capacity": ["a"]},
        {"channel_capacity": {"a": 0}},
        {"channel_capacity": {b"a": 1}},
    ],
    ids=str,
)
def test_an_option_that_cannot_work_is_refused(base: type[Any], options: dict[str, Any]) -> None:
    with pytest.raises(errors.InvalidOption, match=next(iter(options))):
        base(**options)


@pytest.mark.parametrize("base", BASES)
def test_every_stub_says_what_is_missing(base: type[Any]) -> None:
    stubs = methods(base).keys() - GIVEN - ALIASES[base]
    assert len(stubs) > 10
    for name in stubs:
        stub = getattr(base(), name)
        arguments = ["x"] * len(
            [p for p in inspect.signature(stub).parameters.values() if p.default is p.empty]
        )
        with pytest.raises(NotImplementedError, match=rf"{base.__name__} has no {name}\(\)"):
            called = stub(*arguments)
            if inspect.iscoroutine(called):
                asyncio.run(called)


@pytest.mark.parametrize("base", BASES)
def test_our_layers_write_every_stub_and_inherit_the_rest(base: type[Any]) -> None:
    ours = OURS[base]
    assert issubclass(ours, base)
    for name, method in methods(base).items():
        inherited = getattr(ours, name) is method
        assert inherited == (name in GIVEN | ALIASES[base]), name
        theirs = list(inspect.signature(method).parameters)
        assert list(inspect.signature(getattr(ours, name)).parameters)[: len(theirs)] == theirs
    assert {"expiry", "group_expiry", "capacity", "channel_capacity"} <= vars(ours("x")).keys()


async def test_an_alias_calls_what_the_author_wrote() -> None:
    sent = []

    class Blocking(BaseChannelLayer):
        def send_group(self, group: str, message: dict[str, Any]) -> None:
            sent.append((group, message))

    class Asyncio(AsyncBaseChannelLayer):
        async def group_send(self, group: str, message: dict[str, Any]) -> None:
            sent.append((group, message))

    Blocking().group_send("a", {"n": 1})
    await Asyncio().send_group("b", {"n": 2})
    assert sent == [("a", {"n": 1}), ("b", {"n": 2})]


def test_the_table_of_aliases_names_them() -> None:
    documented = str(inspect.getdoc(base_layer))
    for base, names in ALIASES.items():
        for name in names:
            assert f"``{name}``" in documented and "Do the same as" in str(
                getattr(base, name).__doc__
            )


def test_a_block_closes_the_layer_however_it_ends() -> None:
    closed = []

    class Closing(Smallest):
        def close(self) -> None:
            closed.append(self)

    layer = Closing()
    with layer as entered:
        assert entered is layer and not closed
    with pytest.raises(KeyError), layer:
        raise KeyError
    assert closed == [layer, layer]


async def test_a_block_closes_the_asyncio_layer_however_it_ends() -> None:
    closed = []

    class Closing(AsyncBaseChannelLayer):
        async def close(self) -> None:
            closed.append(self)

    layer = Closing()
    async with layer as entered:
        assert entered is layer and not closed
    with pytest.raises(KeyError):
        async with layer:
            raise KeyError
    assert closed == [layer, layer]


def test_messages_are_what_receive_returns_one_at_a_time() -> None:
    layer = Smallest()
    for number in range(3):
        layer.send("jobs", {"number": number})
    messages = layer.messages("jobs")
    assert [next(messages), next(messages)] == [{"number": 0}, {"number": 1}]
    assert layer.receive(["jobs"]) == ("jobs", {"number": 2})


def test_messages_of_a_channel_with_a_bad_name_are_refused_at_once() -> None:
    with pytest.raises(errors.InvalidName):
        Smallest().messages("not a name")
    with pytest.raises(errors.InvalidName):
        AsyncBaseChannelLayer().messages("not a name")
