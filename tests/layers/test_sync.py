"""What ``asgi_ipc.IPCChannelLayer`` promises beyond the contract of Channels 1, a test a sentence.

Also what both layers share: the constructor, and what a message may hold. The contract itself is
``conformance/test_channels1.py``; what only the asyncio layer promises is ``test_aio.py``.
"""

from __future__ import annotations

import asyncio
import collections
import datetime
import enum
import fcntl
import inspect
import logging
import re
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import asgi_ipc
import asgi_ipc.aio
from asgi_ipc import segment
from asgi_ipc.aio.fanout import Fanout
from asgi_ipc.conformance.base import MESSAGE
from asgi_ipc.conformance.blocking import (
    NOTHING,
    STATISTICS,
    drain,
    in_reactor,
    is_accepted,
    numbers,
    receivable,
    round_trip,
    running_reactor,
    send_numbers,
)
from asgi_ipc.conformance.cases import each
from asgi_ipc.errors import InvalidName, SegmentVanished
from asgi_ipc.segment.paths import Paths

from ..environments import run_python
from ..waiting import LIVENESS, in_threads, until

MEBIBYTE = 2**20
CLASSES = each({"blocking": asgi_ipc.IPCChannelLayer, "asyncio": asgi_ipc.aio.IPCChannelLayer})


@pytest.fixture
def make(prefix: str) -> Iterator[Callable[..., Any]]:
    """Makes a layer, by default a blocking one that does not block for long."""
    made = []

    def make(cls: Any = asgi_ipc.IPCChannelLayer, **options: Any) -> Any:
        made.append(cls(prefix, **{"receive_timeout": 0.2, **options}))
        return made[-1]

    yield make
    for layer in made:
        closing = layer.close()
        if inspect.isawaitable(closing):
            asyncio.run(closing)


@pytest.fixture
def layer(make: Callable[..., Any]) -> Any:
    return make()


# -- the constructor ------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", CLASSES)
def test_prefix_is_asgi_by_default(cls: Any) -> None:
    assert inspect.signature(cls).parameters["prefix"].default == "asgi"


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(
    ("name", "value"), [("expiry", 60), ("group_expiry", 86400), ("capacity", 100)]
)
def test_default(make: Callable[..., Any], cls: Any, name: str, value: Any) -> None:
    assert getattr(make(cls), name) == value


def test_message_limit_is_4_mib_by_default(layer: Any) -> None:
    layer.send("c", {"body": bytes(4 * MEBIBYTE - 100)})
    with pytest.raises(layer.MessageTooLarge):
        layer.send("c", {"body": bytes(4 * MEBIBYTE)})


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(
    ("name", "value"),
    {
        "message_memory": 32 * MEBIBYTE,
        "group_memory": 2 * MEBIBYTE,
        "expiry": 0.5,
        "group_expiry": 0.5,
        "capacity": 1,
        "channel_capacity": {"http.*": 7, re.compile("x"): 8},
        "symmetric_encryption_keys": None,
        "mode": 0o660,
        "max_message_size": MEBIBYTE,
        "receive_timeout": 0.5,
        "lock_timeout": 0.5,
        "lock": "file",
    }.items(),
)
def test_option(make: Callable[..., Any], cls: Any, name: str, value: Any) -> None:
    make(cls, **{name: value})


def test_options_of_the_layers_that_wrap_this_one(prefix: str) -> None:
    """asgi_redis passes exactly these by name, and whatever they default to there."""
    options = {"expiry": 60, "group_expiry": 86400, "capacity": 100, "channel_capacity": None}
    layer = asgi_ipc.IPCChannelLayer(prefix=prefix, **options)
    assert round_trip(layer, MESSAGE) == MESSAGE
    layer.close()


@pytest.mark.parametrize("cls", CLASSES)
def test_options_after_prefix_are_keyword_only(cls: Any, prefix: str) -> None:
    with pytest.raises(TypeError, match="positional argument"):
        cls(prefix, 60)


@pytest.mark.parametrize("cls", CLASSES)
def test_unknown_option_is_an_error(cls: Any, prefix: str) -> None:
    with pytest.raises(TypeError, match="expires"):
        cls(prefix, expires=60)


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("message_memory", -1),
        ("message_memory", "100MB"),
        ("group_memory", -1),
        ("expiry", -1),
        ("expiry", "60"),
        ("expiry", float("nan")),
        ("group_expiry", -1),
        ("capacity", -1),
        ("capacity", "many"),
        ("channel_capacity", {"c": -1}),
        ("channel_capacity", [5]),
        ("mode", -1),
        ("mode", 0o606),
        ("max_message_size", -1),
        ("receive_timeout", -1),
        ("lock_timeout", -1),
        ("lock", "semaphore"),
        ("symmetric_encryption_keys", "one bare string"),
        ("symmetric_encryption_keys", [5]),
    ],
)
def test_option_out_of_range_is_an_error_at_once(
    cls: Any, prefix: str, name: str, value: Any
) -> None:
    if name == "symmetric_encryption_keys":
        pytest.importorskip("cryptography", reason="lacking: cryptography")
    with pytest.raises((TypeError, ValueError), match=name):
        cls(prefix, **{name: value})


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("bad", ["", "a/b", "a b", "n" * 300, 5, None])
def test_bad_prefix_is_an_error_at_once(cls: Any, bad: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="prefix"):
        cls(bad)


@pytest.mark.parametrize("cls", CLASSES)
def test_channel_memory_is_the_old_name_of_message_memory(cls: Any, prefix: str) -> None:
    with pytest.warns(DeprecationWarning, match="message_memory"):
        cls(prefix, channel_memory=32 * MEBIBYTE)


def test_fresh_layer_occupies_next_to_nothing(layer: Any, prefix: str) -> None:
    layer.send("c", MESSAGE)
    layer.group_add("g", "c")
    occupied = sum(path.stat().st_blocks * 512 for path in in_shared_memory(prefix))
    assert 0 < occupied < 2 * MEBIBYTE


def test_mode_is_0600_by_default(layer: Any, prefix: str) -> None:
    layer.send("c", MESSAGE)
    layer.receive(["c"], block=True)
    layer.receive(["c"], block=True)  # which waits, and so has something to be rung by
    for path in in_shared_memory(prefix):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path


@pytest.mark.parametrize("lock", ["mutex", "file"])
def test_lock(make: Callable[..., Any], lock: str) -> None:
    layer = make(lock=lock, capacity=400)
    in_threads(lambda: send_numbers(layer, "c", range(100)) for _ in range(4))
    assert len(drain(layer, ["c"])) == 400


@pytest.mark.parametrize(
    ("patterns", "channel", "capacity"),
    {
        "glob": ({"http.*": 2}, "http.request", 2),
        "compiled": ({re.compile(r"http\.re"): 2}, "http.request", 2),
        "the first in order": ({"http.request": 2, "http.*": 5}, "http.request", 2),
        "the first, though wider": ({"http.*": 3, "http.request": 2}, "http.request", 3),
        "none": ({"http.*": 2}, "websocket.receive", 4),
        "of the full name": ({re.compile(r"^websocket.send\!.+"): 2}, "websocket.send!a", 2),
        "glob of the full name": ({"http.response!*": 2}, "http.response!a", 2),
    }.values(),
)
def test_channel_capacity(
    make: Callable[..., Any], patterns: Any, channel: str, capacity: int
) -> None:
    layer = make(capacity=4, channel_capacity=patterns)
    assert [is_accepted(layer, channel, MESSAGE) for _ in range(6)].count(True) == capacity


def test_what_is_counted_is_the_shared_queue(make: Callable[..., Any]) -> None:
    layer = make(capacity=4, channel_capacity={"p!small": 2})
    send_numbers(layer, "p!big", range(3))
    assert not is_accepted(layer, "p!small", MESSAGE)
    assert is_accepted(layer, "p!big", MESSAGE)


def test_broadcast_goes_by_the_smallest_capacity_of_its_members(make: Callable[..., Any]) -> None:
    layer = make(capacity=4, channel_capacity={"p!small": 2})
    for channel in ("p!small", "p!big"):
        layer.group_add("g", channel)
    for number in range(3):
        layer.send_group("g", {"number": number})
    assert sorted(numbers(drain(layer, ["p!"]))) == [0, 0, 1, 1]


@pytest.mark.parametrize("name", ["ChannelFull", "MessageTooLarge"])
def test_errors_are_one_class_each(make: Callable[..., Any], name: str) -> None:
    one, two = getattr(make(), name), getattr(make(asgi_ipc.aio.IPCChannelLayer), name)
    assert one is two
    assert isinstance(one("raised by others too"), Exception)


@pytest.mark.parametrize("name", ["ChannelFull", "MessageTooLarge"])
def test_errors_derive_from_the_peers(layer: Any, name: str) -> None:
    exceptions = pytest.importorskip("channels.exceptions", reason="lacking: Channels 4")
    if not hasattr(exceptions, name):
        pytest.skip("Channels 1 is installed, which has its errors from asgiref")
    assert issubclass(getattr(layer, name), getattr(exceptions, name))


# -- the layer of Channels 1 ----------------------------------------------------------------------


def test_full_memory_is_channel_full(make: Callable[..., Any]) -> None:
    layer = make(message_memory=4 * MEBIBYTE, max_message_size=MEBIBYTE, capacity=1000)
    large = {"body": bytes(MEBIBYTE // 2)}
    accepted = [is_accepted(layer, "c", large) for _ in range(40)].count(True)
    assert 4 <= accepted < 40
    layer.group_add("g", "c")
    layer.send_group("g", large)  # never ChannelFull
    assert len(drain(layer, ["c"])) == accepted
    assert round_trip(layer, {"body": bytes(MEBIBYTE - 100)})


@pytest.mark.parametrize("kind", [list, tuple, set, frozenset, iter, dict.fromkeys])
@pytest.mark.parametrize("block", [False, True])
def test_receive_takes_any_iterable_of_names(layer: Any, kind: Any, block: bool) -> None:
    layer.send("c", MESSAGE)
    assert layer.receive(kind(["other", "c"]), block=block) == ("c", MESSAGE)


@pytest.mark.parametrize("block", [False, True])
def test_receive_of_no_names_gives_nothing(layer: Any, block: bool) -> None:
    assert layer.receive([], block=block) == NOTHING


def test_receive_takes_names_of_every_kind_at_once(layer: Any) -> None:
    for name in ("c", "c?reader", "p!local"):
        layer.send(name, {"to": name})
    received = drain(layer, ["c", "c?reader", "p!"])
    assert sorted(received) == [(name, {"to": name}) for name in ("c", "c?reader", "p!local")]


def test_a_receive_may_have_a_timeout_of_its_own(make: Callable[..., Any]) -> None:
    layer = make(receive_timeout=10 * LIVENESS)
    began = time.monotonic()
    assert layer.receive(["c"], block=True, timeout=0.05) == (None, None)
    assert 0.05 <= time.monotonic() - began < LIVENESS
    layer.send("c", MESSAGE)
    assert layer.receive(["c"], block=True, timeout=0) == ("c", MESSAGE)


def test_broadcast_that_is_interrupted_while_it_is_planned_reaches_everybody_next_time(
    layer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer.group_add("g", "a")

    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    for joins in ("b", "c"):
        with monkeypatch.context() as patch:
            patch.setattr(Fanout, "update", interrupted)
            with pytest.raises(KeyboardInterrupt):
                layer.send_group("g", MESSAGE)
        layer.send_group("g", MESSAGE)
        assert layer.receive(["a"]) == ("a", MESSAGE)
        layer.group_add("g", joins)
    layer.send_group("g", MESSAGE)
    assert layer.receive(["c"]) == ("c", MESSAGE)


def test_what_a_signal_handler_raises_while_a_message_is_unpacked_gets_out(
    layer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no message that cannot be read."""

    class Interrupted(Exception):
        pass

    def unpack(body: bytes) -> None:
        raise Interrupted

    layer.send("c", MESSAGE)
    with monkeypatch.context() as patch:
        patch.setattr(layer._core, "unpack", unpack)
        with pytest.raises(Interrupted):
            layer.receive(["c"])
    assert layer.stats().dropped["undecodable"] == 0


def test_signal_handler_that_raises_gets_out_of_receive(make: Callable[..., Any]) -> None:
    class Interrupted(Exception):
        pass

    def interrupt(_number: int, _frame: Any) -> None:
        raise Interrupted

    layer = make(receive_timeout=LIVENESS)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for _ in range(5):
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            with pytest.raises(Interrupted):
                layer.receive(["c"], block=True)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert round_trip(layer, MESSAGE) == MESSAGE


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_receive_many_is_an_alias(layer: Any) -> None:
    layer.send("c", MESSAGE)
    assert layer.receive_many(["c"], block=True) == ("c", MESSAGE)
    assert layer.receive_many(["c"]) == NOTHING


def test_messages_sent_before_the_first_receive_wait(make: Callable[..., Any]) -> None:
    make().send("readers.own!name", MESSAGE)
    assert make().receive(["readers.own!"], block=True) == ("readers.own!name", MESSAGE)


@pytest.mark.parametrize("name", ["?", "c?", "a?b?"])
def test_single_reader_name_must_not_end_with_its_mark(layer: Any, name: str) -> None:
    for call in (lambda: layer.send(name, MESSAGE), lambda: layer.receive([name])):
        with pytest.raises(InvalidName):
            call()


@pytest.mark.parametrize("name", ["", "n" * 100, "a b", "a!b!c", b"c", None])
def test_bad_channel_name_is_refused(layer: Any, name: Any) -> None:
    for call in (
        lambda: layer.send(name, MESSAGE),
        lambda: layer.receive([name]),
        lambda: layer.group_add("g", name),
        lambda: layer.group_discard("g", name),
    ):
        with pytest.raises(InvalidName):
            call()


@pytest.mark.parametrize("name", ["", "n" * 100, "a b", "a!b", "a?b", b"g", None])
def test_bad_group_name_is_refused(layer: Any, name: Any) -> None:
    for call in (
        lambda: layer.group_add(name, "c"),
        lambda: layer.group_discard(name, "c"),
        lambda: layer.group_channels(name),
        lambda: layer.send_group(name, MESSAGE),
    ):
        with pytest.raises(InvalidName):
            call()


def test_receive_of_a_full_process_specific_name_is_refused(layer: Any) -> None:
    with pytest.raises(InvalidName):
        layer.receive(["p!local"])


def test_statistics_have_six_names(layer: Any) -> None:
    assert set(layer.global_statistics()) == STATISTICS
    assert set(layer.channel_statistics("c")) == STATISTICS


def test_messages_count_counts_accepted_sends(make: Callable[..., Any]) -> None:
    layer = make(capacity=2)
    for _ in range(3):
        is_accepted(layer, "c", MESSAGE)
    drain(layer, ["c"])
    assert layer.channel_statistics("c")["messages_count"] == 2
    assert layer.global_statistics()["messages_count"] == 2


def test_messages_count_counts_one_for_each_record(layer: Any) -> None:
    for member in ("p!one", "p!two", "q!three"):
        layer.group_add("g", member)
    layer.send_group("g", MESSAGE)
    assert layer.channel_statistics("p!")["messages_count"] == 1
    assert layer.global_statistics()["messages_count"] == 2


def test_messages_count_begins_anew_with_a_flush(layer: Any) -> None:
    layer.send("c", MESSAGE)
    layer.flush()
    assert layer.global_statistics()["messages_count"] == 0
    assert layer.channel_statistics("c")["messages_count"] == 0


def test_messages_max_age_is_that_of_the_oldest(layer: Any) -> None:
    layer.send("c", MESSAGE)
    until(lambda: layer.channel_statistics("c")["messages_max_age"] > 0.01)
    layer.send("d", MESSAGE)
    ages = [layer.channel_statistics(channel)["messages_max_age"] for channel in "dc"]
    assert ages[0] < ages[1] <= layer.global_statistics()["messages_max_age"]


def test_extensions(layer: Any) -> None:
    pytest.importorskip("twisted", reason="lacking: Twisted")
    assert layer.extensions == ["groups", "flush", "statistics", "twisted", "async", "asyncio"]


def test_extensions_have_twisted_only_where_it_can_be_imported(prefix: str) -> None:
    run_python(
        "import sys; sys.modules['twisted'] = None\n"
        "import asgi_ipc\n"
        f"layer = asgi_ipc.IPCChannelLayer({prefix!r})\n"
        "expected = ['groups', 'flush', 'statistics', 'async', 'asyncio']\n"
        "assert layer.extensions == expected, layer.extensions\n"
    )


def test_receive_twisted_has_not_fired_while_there_is_nothing(make: Callable[..., Any]) -> None:
    """Or the loop of daphne spins."""
    pytest.importorskip("twisted", reason="lacking: Twisted")
    layer = make(receive_timeout=LIVENESS)
    fired: list[Any] = []

    def begin() -> None:
        layer.receive_twisted(["c", "p!"]).addBoth(fired.append)

    in_threads([lambda: call_in_reactor(begin)])
    in_threads([lambda: call_in_reactor(lambda: None)])
    assert fired == []
    layer.send("p!local", MESSAGE)
    assert until(lambda: fired) == [("p!local", MESSAGE)]


def test_cancelled_receive_twisted_loses_nothing(layer: Any) -> None:
    pytest.importorskip("twisted", reason="lacking: Twisted")
    begun: list[Any] = []
    call_in_reactor(lambda: begun.append(layer.receive_twisted(["c"])))
    begun[0].addErrback(lambda _cancelled: None)
    call_in_reactor(begun[0].cancel)
    layer.send("c", MESSAGE)
    assert in_reactor(layer, ["c"]) == ("c", MESSAGE)


@pytest.mark.parametrize("module", ["asyncio", "uvloop"])
def test_receive_async_runs_on_any_event_loop(layer: Any, module: str) -> None:
    new_event_loop = pytest.importorskip(module, reason=f"lacking: {module}").new_event_loop

    async def receive_what_comes_later() -> Any:
        waiting = asyncio.ensure_future(layer.receive_async(["c", "p!"]))
        await asyncio.sleep(0)
        layer.send("p!local", MESSAGE)
        return await asyncio.wait_for(waiting, LIVENESS)

    for _ in range(2):
        loop = new_event_loop()
        try:
            assert loop.run_until_complete(receive_what_comes_later()) == ("p!local", MESSAGE)
        finally:
            loop.close()


def test_version_is_one_that_channels_1_can_parse() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", asgi_ipc.__version__)


def test_module_name_does_not_say_inmemory() -> None:
    """Channels 1 takes such a layer for one that needs no workers."""
    assert "inmemory" not in asgi_ipc.IPCChannelLayer.__module__


def test_vanished_segment_raises_in_a_waiting_receive(make: Callable[..., Any]) -> None:
    layer = make(receive_timeout=4 * LIVENESS)
    layer.receive(["c"])

    def receive() -> None:
        with pytest.raises(SegmentVanished):
            layer.receive(["c"], block=True)

    def vanish() -> None:
        until(lambda: any(path.is_fifo() for path in in_shared_memory(layer.prefix)))
        segment.destroy(layer.prefix)

    in_threads([receive, vanish])


def test_waiting_receive_rides_out_a_lock_timeout(
    make: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    layer = make(lock="file", lock_timeout=0.05, receive_timeout=4 * LIVENESS)
    layer.receive(["c"])

    def hold_the_lock_then_send() -> None:
        until(lambda: any(path.is_fifo() for path in in_shared_memory(layer.prefix)))
        with open(Paths(layer.prefix).section_lock) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            with pytest.raises(TimeoutError):
                layer.send("c", {"number": 1})
            until(lambda: [record for record in caplog.records if record.name == "asgi_ipc"])
        layer.send("c", {"number": 2})

    with caplog.at_level(logging.DEBUG):
        got, _none = in_threads([lambda: layer.receive(["c"], block=True), hold_the_lock_then_send])
    assert got == ("c", {"number": 2})


def test_close_leaves_the_messages_and_the_next_call_attaches_again(layer: Any) -> None:
    layer.send("c", MESSAGE)
    layer.close()
    assert layer.receive(["c"]) == ("c", MESSAGE)


# -- messages -------------------------------------------------------------------------------------


class Text(str):
    pass


class Colour(str, enum.Enum):
    RED = "red"


class Number(enum.IntEnum):
    ONE = 1


@pytest.mark.parametrize(
    ("sent", "arrives"),
    {
        "tuple": ((1, (2,)), [1, [2]]),
        "str": (Text("text"), "text"),
        "enum of str": (Colour.RED, "red"),
        "enum of int": (Number.ONE, 1),
        "dict": (collections.OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        "key": ({Text("key"): {Colour.RED: 1}}, {"key": {"red": 1}}),
        "list": (type("List", (list,), {})([1]), [1]),
        "bytes": (type("Bytes", (bytes,), {})(b"x"), b"x"),
        "float": (type("Float", (float,), {})(0.5), 0.5),
        "bool is not an int": (True, True),
    }.values(),
)
def test_subclass_travels_as_its_base(layer: Any, sent: Any, arrives: Any) -> None:
    arrived = round_trip(layer, {"value": sent})["value"]
    assert (arrived, types_in(arrived)) == (arrives, types_in(arrives))


def nested(depth: int) -> Any:
    value: Any = "bottom"
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "path"),
    {
        "datetime": ({"joined": datetime.datetime(2020, 1, 1)}, "message['value']['joined']"),
        "in a list": ([1, [2, {3}]], "message['value'][1][1]"),
        "set": ({1}, "message['value']"),
        "bytearray": (bytearray(b"x"), "message['value']"),
        "complex": (1j, "message['value']"),
        "object": (object(), "message['value']"),
        "too large": (2**63, "message['value']"),
        "too small": (-(2**63) - 1, "message['value']"),
        "much too large": ([2**64], "message['value'][0]"),
        "lone surrogate": ("\ud800", "message['value']"),
        "int key": ({1: "x"}, "message['value']"),
        "bytes key": ([{b"k": "x"}], "message['value'][0]"),
        "surrogate in a key": ({"\udfff": 1}, "message['value']"),
        "excess depth": (nested(5000), "message['value'][0]"),
    }.values(),
)
def test_anything_else_is_refused_with_the_path_to_it(layer: Any, value: Any, path: str) -> None:
    layer.group_add("g", "c")
    for refused in (
        lambda: layer.send("c", {"fine": 1, "value": value}),
        lambda: layer.send_group("g", {"fine": 1, "value": value}),
    ):
        with pytest.raises((TypeError, ValueError), match=re.escape(path)):
            refused()
    assert layer.receive(["c"]) == NOTHING


def test_lazy_string_is_refused(layer: Any) -> None:
    functional = pytest.importorskip("django.utils.functional", reason="lacking: Django")
    with pytest.raises((TypeError, ValueError), match=re.escape("message['lazy']")):
        layer.send("c", {"lazy": functional.lazystr("text")})


def test_safe_string_travels_as_str(layer: Any) -> None:
    safestring = pytest.importorskip("django.utils.safestring", reason="lacking: Django")
    arrived = round_trip(layer, {"html": safestring.mark_safe("<b>")})
    assert type(arrived["html"]) is str


def test_what_arrives_is_a_copy(layer: Any) -> None:
    message = {"list": [1]}
    arrived = round_trip(layer, message)
    assert arrived is not message and arrived["list"] is not message["list"]


@pytest.mark.parametrize("members", [["c", "d"], ["p!one", "p!two"]])
def test_each_recipient_of_a_broadcast_gets_a_dict_of_its_own(
    layer: Any, members: list[str]
) -> None:
    for member in members:
        layer.group_add("g", member)
    layer.send_group("g", {"list": []})
    received = drain(layer, sorted({*map(receivable, members)}))
    for channel, message in received:
        assert message == {"list": []}
        message["list"].append(channel)
    assert sorted(message["list"] for _channel, message in received) == [[m] for m in members]


def test_message_over_max_message_size_is_too_large(make: Callable[..., Any]) -> None:
    layer = make(max_message_size=10_000)
    layer.send("c", {"body": bytes(9_900)})
    with pytest.raises(layer.MessageTooLarge, match="10000|10,000|10_000"):
        layer.send("c", {"body": bytes(10_000)})


# -- used above -----------------------------------------------------------------------------------


def in_shared_memory(prefix: str) -> list[Path]:
    """All that stands there under `prefix`."""
    found = [path for path in Path("/dev/shm").glob("asgi_ipc*") if prefix in path.name]
    if not found and sys.platform != "linux":
        pytest.skip("lacking: files of shared memory")
    return [inside for path in found for inside in (path, *path.rglob("*"))]


def types_in(value: Any) -> Any:
    if type(value) is dict:
        return {key: (type(key), types_in(item)) for key, item in value.items()}
    return [types_in(item) for item in value] if type(value) is list else type(value)


def call_in_reactor(function: Callable[[], Any]) -> None:
    """Calls `function` in the reactor's thread, and waits until it has returned."""
    returned = threading.Event()

    def call() -> None:
        try:
            function()
        finally:
            returned.set()

    running_reactor().callFromThread(call)
    assert returned.wait(LIVENESS)


def test_threads_do_not_mix_their_messages_with_the_packer_in_python() -> None:
    """msgpack's fallback runs Python code, so threads take turns in the middle of a message."""
    source = """
import os, sys, threading
os.environ["MSGPACK_PUREPYTHON"] = "1"
import msgpack
from asgi_ipc.codec import Codec
assert msgpack.Packer.__module__ == "msgpack.fallback"
sys.setswitchinterval(1e-6)
codec, wrong = Codec(), []

def encode(number):
    for message in ({"n": number, "text": "x" * 50}, {"n": {"nested": [number] * 20}}):
        for _ in range(500):
            if codec.decode(codec.encode(message)) != message:
                wrong.append(message)

threads = [threading.Thread(target=encode, args=(number,)) for number in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len(wrong))
"""
    assert run_python(source) == "0"
