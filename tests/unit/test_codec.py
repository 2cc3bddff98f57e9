"""What may be sent, what is refused and how the error says where it is, and encryption."""

from __future__ import annotations

import collections
import datetime
import decimal
import enum
import json
import math
import sys
import uuid
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgpack.fallback import Packer

from asgi_ipc import codec
from asgi_ipc.codec import INT_MAX, INT_MIN, MAX_DEPTH, Codec, DecodeError
from asgi_ipc.conformance.cases import MEGABYTE_OF_JSON, VALUES, each
from asgi_ipc.errors import InvalidMessage, InvalidOption

from . import encoding
from .support import examples


def round_trip(message: Any, codec: Codec | None = None) -> Any:
    codec = codec or Codec()
    return codec.decode(codec.encode(message))


def refusal(message: Any) -> str:
    """Return the text of the error with which a message is refused."""
    codec = Codec()
    with pytest.raises(InvalidMessage) as caught:
        codec.encode(message)
    assert isinstance(caught.value, TypeError) and isinstance(caught.value, ValueError)
    assert round_trip({"after": "it"}, codec) == {"after": "it"}
    return str(caught.value)


# -- what may be sent -----------------------------------------------------------------------------


@pytest.mark.parametrize("value", VALUES)
def test_a_value_arrives_as_it_was(value: Any) -> None:
    for message in ({"v": value}, {"in": {"a": [value]}}, {"v": value, "w": [value, value]}):
        found = round_trip(message)
        assert found == message
        assert type(found.popitem()[1]) is type(message.popitem()[1])


def values() -> st.SearchStrategy[Any]:
    text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    leaves = (
        st.none()
        | st.booleans()
        | st.integers(INT_MIN, INT_MAX)
        | st.floats(allow_nan=False)
        | text
        | st.binary(max_size=20)
    )
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=5) | st.dictionaries(text, inner, max_size=5),
        max_leaves=20,
    )


@examples(100)
@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), values(), max_size=5))
def test_every_message_arrives_as_it_was(message: dict[str, Any]) -> None:
    assert round_trip(message) == message


def test_what_is_no_number_arrives_as_such() -> None:
    assert math.isnan(round_trip({"v": float("nan")})["v"])


def test_a_bool_stays_a_bool() -> None:
    assert round_trip({"v": [True, 1, False, 0]})["v"] == [True, 1, False, 0]
    assert [type(value) for value in round_trip({"v": [True, 1]})["v"]] == [bool, int]


def test_tuples_arrive_as_lists() -> None:
    assert round_trip({"v": (1, (2, [3]))}) == {"v": [1, [2, [3]]]}


def test_the_empty_message() -> None:
    assert round_trip({}) == {}


@pytest.mark.parametrize("message", each(MEGABYTE_OF_JSON))
def test_a_megabyte_of_json_fits(message: dict[str, Any]) -> None:
    codec = Codec()
    body = codec.encode(message)
    assert len(body) < 4 * 2**20
    assert codec.decode(body) == message


def test_what_arrives_is_a_copy() -> None:
    codec = Codec()
    message = {"list": [1], "dict": {"a": 1}}
    body = codec.encode(message)
    message["list"].append(2)  # type: ignore[attr-defined]
    first, second = codec.decode(body), codec.decode(body)
    assert first == second == {"list": [1], "dict": {"a": 1}}
    assert first["list"] is not second["list"]


# -- subclasses -----------------------------------------------------------------------------------


class Text(str):
    def __str__(self) -> str:
        return "not what it holds"


class Number(int):
    pass


class Real(float):
    pass


class Blob(bytes):
    pass


class Items(list):  # type: ignore[type-arg]
    pass


class Lazy:
    """What Django calls a SimpleLazyObject: it says that it is what it will become."""

    def __init__(self, value: object) -> None:
        self.value = value

    @property
    def __class__(self) -> Any:
        return type(self.value)

    @__class__.setter
    def __class__(self, kind: Any) -> None:
        raise AssertionError

    def __str__(self) -> str:
        return str(self.value)


def broken(base: type) -> Any:
    """A subclass none of whose methods works."""

    def fails(*arguments: Any, **named: Any) -> Any:
        raise TypeError("a method of the subclass was called")

    names = {name for name, value in vars(base).items() if callable(value)}
    names |= {"__bytes__", "__str__", "__repr__", "__format__", "__bool__"}
    names -= {"__new__", "__init__", "__getattribute__", "__init_subclass__", "__class_getitem__"}
    names -= {"__subclasshook__", "__setitem__", "__hash__", "__eq__"}
    return type(f"Broken{base.__name__}", (base,), dict.fromkeys(names, fails))


class Colour(str, enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


Point = collections.namedtuple("Point", "x y")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Text("text"), "text"),
        (Number(5), 5),
        (Real(0.5), 0.5),
        (Blob(b"blob"), b"blob"),
        (Items([1, 2]), [1, 2]),
        (Colour.RED, "red"),
        (Level.HIGH, 3),
        (Point(1, 2), [1, 2]),
        (collections.OrderedDict(a=1), {"a": 1}),
        (collections.defaultdict(int, a=1), {"a": 1}),
        (collections.Counter("a"), {"a": 1}),
    ],
)
def test_subclasses_travel_as_their_base(value: Any, expected: Any) -> None:
    flat = round_trip({"v": value})["v"]
    deep = round_trip({"v": {"w": [value]}})["v"]["w"][0]
    for found in (flat, deep):
        assert found == expected and type(found) is type(expected)


def test_a_message_may_be_a_subclass_of_dict() -> None:
    assert type(round_trip(collections.OrderedDict(a=1))) is dict


def test_keys_may_be_subclasses_of_str() -> None:
    found = round_trip({Text("key"): 1, "in": {Colour.RED: 2}})
    assert found == {"key": 1, "in": {"red": 2}}
    assert {type(key) for key in found} == {str}


@pytest.mark.parametrize(
    "value", ["text", 5, -(2**63), 0.5, b"bytes", [1, "a"], (1, 2), {"a": 1}], ids=repr
)
def test_what_a_subclass_holds_is_sent_and_none_of_its_methods_called(value: Any) -> None:
    held = broken(type(value))(value)
    expected = [1, 2] if value == (1, 2) else value
    for message in ({"v": held}, {"in": [{"a": held}]}):
        found = round_trip(message)
        assert found in ({"v": expected}, {"in": [{"a": expected}]})


def test_keys_and_messages_of_a_broken_subclass() -> None:
    assert round_trip({broken(str)("key"): 1}) == {"key": 1}
    assert round_trip(broken(dict)({"key": 1})) == {"key": 1}


@pytest.mark.parametrize("value", ["text", 5, 0.5, b"bytes", [1], (1,), {"a": 1}, True], ids=repr)
def test_a_lazy_value_is_refused_with_the_remedy(value: Any) -> None:
    assert isinstance(Lazy(value), type(value))
    for message in ({"v": Lazy(value)}, {"v": [Lazy(value)]}):
        said = refusal(message)
        assert said.startswith("message['v']") and "is a Lazy;" in said and "str(...)" in said
    assert "must be a dict, not a Lazy" in refusal(Lazy({"a": 1}))


def test_a_key_that_cannot_even_be_shown() -> None:
    class Unspeakable:
        def __repr__(self) -> str:
            raise RuntimeError

    assert refusal({Unspeakable(): 1}) == "message has the key of an Unspeakable; keys must be str"
    assert refusal({Lazy("a"): 1}).endswith("keys must be str")


def test_an_int_of_more_digits_than_python_shows() -> None:
    assert "an int of 20001 bits" in refusal({"v": 1 << 20000})


def test_lazy_strings_of_django() -> None:
    functional = pytest.importorskip("django.utils.functional", reason="lacking: Django")
    for lazy in (functional.lazystr("text"), functional.SimpleLazyObject(lambda: "text")):
        assert "str(...) makes text" in refusal({"v": lazy})
        assert round_trip({"v": str(lazy)}) == {"v": "text"}


# -- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("message", [None, [], "text", b"bytes", 5, [("a", 1)]])
def test_a_message_is_a_dict(message: Any) -> None:
    assert "must be a dict" in refusal(message)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (datetime.datetime(2020, 1, 1), "a datetime"),
        ({1, 2}, "a set"),
        (frozenset(), "a frozenset"),
        (decimal.Decimal(1), "a Decimal"),
        (bytearray(b"b"), "a bytearray"),
        (memoryview(b"b"), "a memoryview"),
        (1j, "a complex"),
        (object(), "an object"),
        (range(3), "a range"),
        (iter([]), "a list_iterator"),
        (len, "a builtin_function_or_method"),
    ],
)
def test_anything_else_is_refused(value: Any, named: str) -> None:
    assert f"message['v'] is {named}" in refusal({"v": value})
    assert f"message['v']['w'][1] is {named}" in refusal({"v": {"w": [0, value]}})


def test_a_lazy_string_of_django_is_refused() -> None:
    lazy = pytest.importorskip("django.utils.functional", reason="lacking: Django").lazystr
    assert "message['v'] is a __proxy__" in refusal({"v": lazy("text")})


@pytest.mark.parametrize("key", [5, None, b"key", ("a",), 1.5, True])
def test_keys_are_str(key: Any) -> None:
    assert f"message has the key {key!r}" in refusal({key: 1})
    assert f"message['a'][0] has the key {key!r}" in refusal({"a": [{key: 1}]})


@pytest.mark.parametrize("value", [INT_MIN, INT_MAX, 2**32, -(2**31) - 1, 0xCF])
def test_ints_of_64_bits_travel(value: int) -> None:
    assert round_trip({"v": value, "w": [value]}) == {"v": value, "w": [value]}


@pytest.mark.parametrize("value", [INT_MAX + 1, INT_MIN - 1, 2**64 - 1, 2**64, -(2**64), 10**100])
def test_larger_ints_are_refused(value: int) -> None:
    assert f"message['v'] is {value}" in refusal({"v": value})
    assert f"message['a'][1]['b'] is {value}" in refusal({"a": [0, {"b": value}]})
    assert f"message['v'] is {value}" in refusal({"v": Number(value)})
    assert f"message['v'] is {value}" in refusal({"bytes": b"\xcf" * 9, "v": value})


def test_what_looks_like_a_large_int_and_is_none_travels() -> None:
    message = {"v": b"\xcf" * 20, "w": "\xcf", "x": 0xCFCFCFCF}
    assert round_trip(message) == message


@pytest.mark.parametrize("text", ["\ud800", "ok\udfff", "\ud83d alone"])
def test_lone_surrogates_are_refused(text: str) -> None:
    assert "message['v']" in refusal({"v": text}) and "surrogate" in refusal({"v": text})
    assert "message['a'][0]" in refusal({"a": [text]})
    assert "a key of message" in refusal({text: 1})
    assert "a key of message['a']" in refusal({"a": {text: 1}})
    assert "surrogate" in refusal({"v": Text(text)})


WRAPS: dict[str, Callable[[Any], Any]] = {
    "list": lambda value: [value],
    "tuple": lambda value: (value,),
    "dict": lambda value: {"k": value},
    "subclass of list": lambda value: Items([value]),
    "subclass of dict": lambda value: collections.OrderedDict(k=value),
}


def nested(depth: int, wrap: str = "list") -> dict[str, Any]:
    """Return a message with `depth` nested dicts and lists."""
    value: Any = 1
    for _ in range(depth - 1):
        value = WRAPS[wrap](value)
    return {"k": value}


@pytest.mark.parametrize("wrap", WRAPS)
def test_depth_is_limited_the_same_for_all(wrap: str) -> None:
    assert Codec().encode(nested(MAX_DEPTH, wrap))
    assert f"deeper than {MAX_DEPTH} levels" in refusal(nested(MAX_DEPTH + 1, wrap))


def test_the_deepest_message_arrives() -> None:
    assert round_trip(nested(MAX_DEPTH)) == nested(MAX_DEPTH)


def test_a_message_that_holds_itself_is_refused() -> None:
    for message in ({"a": 1}, {"a": [1, 2]}):
        message["self"] = message  # type: ignore[assignment]
        assert "nested deeper" in refusal(message)
    twice: list[Any] = []
    twice += [twice, twice]
    assert "nested deeper" in refusal({"v": twice})


def test_a_path_can_be_long() -> None:
    assert len(refusal(nested(MAX_DEPTH + 50))) < 300


def test_the_first_wrong_value_is_named() -> None:
    assert "message['b'][2]" in refusal({"a": 1, "b": [0, 1, {1}, {2}], "c": {3}})


# -- the same as a walk over all values -----------------------------------------------------------


class Answer(int):
    """Not the number that it holds."""

    def __int__(self) -> int:
        return 42


def refused() -> st.SearchStrategy[Any]:
    """Values that nobody may send, most of which the packer takes."""
    return st.sampled_from(
        [
            *(bytearray(b""), bytearray(b"b"), memoryview(b""), memoryview(b"m")),
            *(msgpack.ExtType(5, b""), msgpack.ExtType(5, b"data"), msgpack.Timestamp(1, 5)),
            *(datetime.datetime(2020, 1, 1), {1}, 1j, len),
            *(INT_MAX + 1, 2**64 - 1, 2**64, INT_MIN - 1, "\ud800", Text("\udfff"), Number(2**63)),
        ]
    )


def allowed() -> st.SearchStrategy[Any]:
    """Values that travel, among them those that could be taken for others by their bytes."""
    return st.sampled_from(
        [
            *(b"", b"bytes", b"\xc4\x00", b"\xcf" * 9, "\u0107", "\u0107\x00", "\xcf\x80"),
            *(0xC4, 0xC400, 0xCFFF, 0x9F, INT_MAX, INT_MIN, 10240.0, math.inf, True, None),
            *((), (1, b"two"), Text("text"), Number(5), Answer(5), Real(0.5), Blob(b"blob")),
            *(Items([1]), Colour.RED, Level.HIGH, Point(1, (2,)), collections.OrderedDict(a=[1])),
        ]
    )


def keys() -> st.SearchStrategy[Any]:
    wrong = [5, None, b"", b"key", ("a",), 1.5, True, memoryview(b""), "\ud800", frozenset()]
    return st.sampled_from(["a", "b", "", "\u0107", Text("key"), Colour.RED]) | st.sampled_from(
        wrong
    )


def wrapped(value: Any, wraps: list[str], depth: int) -> Any:
    for level in range(depth):
        value = WRAPS[wraps[level % len(wraps)]](value)
    return value


def anything() -> st.SearchStrategy[Any]:
    plain_keys = st.sampled_from(["a", "b", "c", "\u0107"])
    leaves = values() | values() | allowed() | refused()
    depths = st.sampled_from([1, 2, 150, MAX_DEPTH - 2, MAX_DEPTH - 1, MAX_DEPTH, 400, 512, 600])
    wraps = st.lists(st.sampled_from(list(WRAPS)), min_size=1, max_size=3)
    return st.recursive(
        leaves,
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.lists(inner, max_size=4).map(tuple)
            | st.dictionaries(plain_keys, inner, max_size=4)
            | st.dictionaries(keys(), inner, max_size=3)
            | st.builds(wrapped, inner, wraps, depths)
        ),
        max_leaves=12,
    )


def outcome(encode: Callable[[Any], bytes], message: Any) -> bytes | str:
    """Return the bytes, or the text of the refusal."""
    try:
        return encode(message)
    except InvalidMessage as error:
        return str(error)


@pytest.fixture(params=["C", "C, for long messages", "C, without the GIL", "Python"])
def packer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """msgpack as most install it, and as it is where there is no wheel and no compiler."""
    if request.param == "C, for long messages":
        monkeypatch.setattr(codec, "_SHORT", 0)
    elif request.param == "C, without the GIL":
        monkeypatch.setattr(codec, "_LISTED", False)
        monkeypatch.setattr(codec, "_held", codec._held_by)
        monkeypatch.setattr(codec, "_SHORT", 0)
    elif request.param == "Python":
        monkeypatch.setattr(codec, "_IN_C", False)
        monkeypatch.setattr(
            msgpack, "packb", lambda message, **options: Packer(**options).pack(message)
        )


@pytest.mark.usefixtures("packer")
def test_a_message_too_deep_to_be_shown_is_refused() -> None:
    """msgpack in Python shows what it refuses, here the tuple."""
    assert "nested deeper" in refusal({"v": (wrapped(1, ["list"], 10_000),)})


@pytest.mark.usefixtures("packer")
@examples(200)
@given(st.dictionaries(keys(), anything(), max_size=3))
def test_a_message_is_encoded_or_refused_as_by_a_walk_over_all_values(message: Any) -> None:
    assert outcome(Codec().encode, message) == outcome(encoding.encode, message)


@pytest.mark.usefixtures("packer")
@pytest.mark.parametrize("rows", [1, 300])
@pytest.mark.parametrize("name", ["plain", "\u0107"])  # the second looks like bytes
@pytest.mark.parametrize(
    ("last", "sent"),
    [
        *(({}, True), ({"v": b"bytes"}, True), ({"v": [(1, ())]}, True), ({"v": INT_MAX}, True)),
        *(({5: 1}, False), ({"w": {b"key": 1}}, False), ({"v": bytearray(b"b")}, False)),
        *(({"v": [memoryview(b"")]}, False), ({"v": msgpack.Timestamp(1)}, False)),
        *(({"v": {1}}, False), ({"v": [2**63]}, False)),
    ],
)
def test_many_rows_are_encoded_or_refused_as_by_a_walk_over_all_values(
    rows: int, name: str, last: dict[Any, Any], sent: bool
) -> None:
    message = {
        "rows": [{"id": row, "price": row / 2, "name": f"{name} {row}"} for row in range(rows)]
    }
    message["rows"].append(last)
    found = outcome(Codec().encode, message)
    assert found == outcome(encoding.encode, message)
    assert type(found) is (bytes if sent else str)


class Thing:
    """An object whose attributes may be kept where only `vars` finds them."""

    def __init__(self, value: object) -> None:
        self.value = value


@pytest.mark.usefixtures("packer")
@pytest.mark.parametrize("padding", [0, 10_000])
@pytest.mark.parametrize(
    ("value", "sent"),
    [
        *((5, True), (b"bytes", True), ([{"a": (1,)}], True), (Number(5), True)),
        *(({1: 2}, False), (bytearray(b"b"), False), ([2**63], False), (2**63, False)),
    ],
)
def test_the_attributes_of_an_object_are_encoded_or_refused(
    padding: int, value: object, sent: bool
) -> None:
    thing = Thing(value)
    for values in (vars(thing), [vars(thing)], [vars(thing), {"a": 1}], [vars(thing), (1,)]):
        message = {"v": values, "padding": "x" * padding}
        found = outcome(Codec().encode, message)
        assert found == outcome(encoding.encode, message)
        assert type(found) is (bytes if sent else str)


@pytest.mark.usefixtures("packer")
def test_a_dict_that_had_a_key_of_another_type_travels() -> None:
    message: dict[Any, Any] = {"v": [{"a": 1}, {5: 1, "b": 2}], "padding": "x" * 10_000}
    for _ in range(2):
        assert outcome(Codec().encode, message) == outcome(encoding.encode, message)
        message["v"][1].pop(5, None)
    assert round_trip(message) == message


def test_no_method_of_a_key_is_called() -> None:
    """A key of another type may have the hash of a str, and say that it is equal to it."""

    class Key:
        def __hash__(self) -> int:
            return hash("a")

        def __eq__(self, other: object) -> bool:
            raise AssertionError

    for wrong in (Key(), broken(str)("a")):
        for others in ([], [(1,)]):
            message = {"v": [{"a": 1}, {wrong: 1}, *others], "padding": "x" * 1000}
            if type(wrong) is Key:
                assert "message['v'][1] has the key" in refusal(message)
            else:
                assert round_trip(message)["v"][:2] == [{"a": 1}, {"a": 1}]


# -- the option default ---------------------------------------------------------------------------


class Price(decimal.Decimal):
    """A type that cannot be sent, by inheritance."""


class Whole(int):
    """A type that is sent as what it holds."""


UNSENDABLE = [
    (decimal.Decimal("1.50"), "1.50"),
    (Price("2.5"), "2.5"),
    (datetime.datetime(2026, 2, 1, 12, 30), "2026-02-01 12:30:00"),
    (uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"),
    (2**64, "18446744073709551616"),
    (2**63, "9223372036854775808"),
    (-(2**63) - 1, "-9223372036854775809"),
    (bytearray(b"b"), "bytearray(b'b')"),
]


@pytest.mark.usefixtures("packer")
@pytest.mark.parametrize(("value", "sent"), UNSENDABLE, ids=repr)
@pytest.mark.parametrize(
    "around",
    [
        lambda value: {"v": value},
        lambda value: {"v": [value, 1]},
        lambda value: {"v": (b"bytes", value)},
        lambda value: {"v": {"w": {"x": value}}, "more": [b"b", 2**62]},
    ],
    ids=["flat", "list", "tuple", "dict"],
)
def test_default_converts_what_cannot_be_sent(
    value: object, sent: str, around: Callable[[object], dict[str, Any]]
) -> None:
    codec = Codec(default=str)
    assert codec.decode(codec.encode(around(value))) == Codec().decode(Codec().encode(around(sent)))


def test_default_is_asked_once_for_each_value_and_for_no_other() -> None:
    asked = []

    def default(value: Any) -> str:
        asked.append(value)
        return "converted"

    message = {"a": {1}, "b": [1, "text", b"b", None, 1.5, True, Whole(5), (2, {"c": 2**63})]}
    codec = Codec(default=default)
    assert codec.decode(codec.encode(message)) == {
        "a": "converted",
        "b": [1, "text", b"b", None, 1.5, True, 5, [2, {"c": "converted"}]],
    }
    assert asked == [{1}, 2**63]
    assert codec.encode({"v": [2**40, "text"]})
    assert len(asked) == 2


def test_what_default_returns_is_checked_in_turn() -> None:
    codec = Codec(default=lambda value: {"items": sorted(value)} if type(value) is set else 0)
    assert codec.decode(codec.encode({"v": {3, 1}})) == {"v": {"items": [1, 3]}}
    # It is called for what the list or dict holds that it returned,
    codec = Codec(default=lambda value: [*value] if type(value) is set else str(value))
    assert codec.decode(codec.encode({"v": {2**70}})) == {"v": [str(2**70)]}
    # and not for what it returned itself.
    codec = Codec(default=lambda value: value)
    with pytest.raises(InvalidMessage, match=r"default made of message\['v'\] is a set"):
        codec.encode({"v": {1}})
    with pytest.raises(InvalidMessage, match=r"default made of message\['v'\] is 1844"):
        Codec(default=lambda value: 2**64).encode({"v": {1}})
    with pytest.raises(InvalidMessage, match="nested deeper than 200"):
        Codec(default=lambda value: [value]).encode({"v": {1}})


def test_a_type_error_of_default_names_the_path_and_others_pass() -> None:
    with pytest.raises(InvalidMessage, match=r"message\['v'\]\[0\] is a set.*refused it: Object"):
        Codec(default=json.JSONEncoder().default).encode({"v": [{1}]})

    asked = []

    def fails(value: Any) -> Any:
        asked.append(value)
        raise KeyError("no such currency")

    with pytest.raises(KeyError, match="no such currency"):
        Codec(default=fails).encode({"v": {1}})
    assert asked == [{1}]


def test_default_is_for_values_and_neither_for_keys_nor_for_the_message() -> None:
    codec = Codec(default=lambda value: pytest.fail(f"called for {value!r}"))
    with pytest.raises(InvalidMessage, match="keys must be str"):
        codec.encode({"v": {5: 1}})
    with pytest.raises(InvalidMessage, match="a key of message"):
        codec.encode({"\ud800": 1})
    with pytest.raises(InvalidMessage, match="must be a dict"):
        codec.encode([1])  # type: ignore[arg-type]


def test_text_that_is_not_valid_is_converted() -> None:
    codec = Codec(default=lambda text: text.encode("utf-8", "surrogatepass"))
    assert codec.decode(codec.encode({"v": "\ud800"})) == {"v": b"\xed\xa0\x80"}


def test_lazy_strings_of_django_are_converted() -> None:
    functional = pytest.importorskip("django.utils.functional", reason="lacking: Django")
    codec = Codec(default=str)
    for lazy in (functional.lazystr("text"), functional.SimpleLazyObject(lambda: "text")):
        assert codec.decode(codec.encode({"v": lazy})) == {"v": "text"}


def test_without_default_the_error_names_it() -> None:
    for value in (decimal.Decimal(1), 2**64, "\ud800"):
        assert "the option default" in refusal({"v": value})


# -- bodies that are no message -------------------------------------------------------------------


@examples(500)
@given(st.binary(max_size=60))
def test_garbage_is_a_message_or_a_decode_error(body: bytes) -> None:
    try:
        assert type(Codec().decode(body)) is dict
    except DecodeError as error:
        assert str(error)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\x91" * 5000,
        b"\x81\xa1a" * 5000,
        b"\xdf\xff\xff\xff\xff",
        b"\xdd\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\x81\xa1\xff\x01",
        b"\x81\x91\x01\x01",
        b"\x80\x80",
        b"\x93\x01\x02\x03",
        b"\xa1a",
        b"\xc0",
        Codec().encode({"a": [1, 2, 3]})[:-1],
    ],
)
def test_what_is_no_message_is_a_decode_error(body: bytes) -> None:
    with pytest.raises(DecodeError):
        Codec().decode(body)


def test_a_decode_error_is_no_error_of_the_user() -> None:
    assert not issubclass(DecodeError, (InvalidMessage, ValueError, TypeError))


def test_bodies_may_be_views_of_the_memory() -> None:
    codec = Codec()
    body = codec.encode({"a": b"bytes"})
    for kind in (bytes, bytearray, memoryview):
        found = codec.decode(kind(body))  # type: ignore[arg-type]
        assert found == {"a": b"bytes"} and type(found["a"]) is bytes


# -- encryption -----------------------------------------------------------------------------------

MESSAGE = {"secret": "plain to read", "n": [1, 2.5, None]}


encrypting = pytest.mark.skipif(find_spec("cryptography") is None, reason="lacking: cryptography")


@encrypting
@pytest.mark.parametrize("key", ["key", b"key", "k", "\u20ac" * 100, b"\xff\x00", "*%#"])
def test_encrypted_messages_arrive_whatever_the_key_is(key: str | bytes) -> None:
    codec = Codec([key])
    assert round_trip(MESSAGE, codec) == MESSAGE
    assert codec.decode(memoryview(codec.encode(MESSAGE))) == MESSAGE  # type: ignore[arg-type]


@encrypting
@pytest.mark.parametrize("keys", [[""], [b""], ["key", ""]])
def test_an_empty_key_is_refused(keys: list[str | bytes]) -> None:
    with pytest.raises(InvalidOption, match="empty key"):
        Codec(keys)


@encrypting
def test_encrypted_messages_cannot_be_read() -> None:
    body = Codec(["key"]).encode(MESSAGE)
    assert b"plain to read" not in body
    with pytest.raises(DecodeError):
        Codec().decode(body)


@encrypting
def test_encrypted_messages_differ_each_time() -> None:
    codec = Codec(["key"])
    assert codec.encode(MESSAGE) != codec.encode(MESSAGE)


@encrypting
def test_encrypted_with_the_first_key_and_read_with_all() -> None:
    old, new, both = Codec(["old"]), Codec(["new"]), Codec(["new", "old"])
    assert both.decode(old.encode(MESSAGE)) == both.decode(new.encode(MESSAGE)) == MESSAGE
    assert new.decode(both.encode(MESSAGE)) == MESSAGE
    with pytest.raises(DecodeError):
        old.decode(both.encode(MESSAGE))


@encrypting
def test_encrypted_with_a_key_as_str_and_read_with_it_as_bytes() -> None:
    assert Codec([b"key"]).decode(Codec(["key"]).encode(MESSAGE)) == MESSAGE


@encrypting
def test_encrypted_and_altered_is_a_decode_error() -> None:
    codec = Codec(["key"])
    body = bytearray(codec.encode(MESSAGE))
    body[len(body) // 2] ^= 1
    with pytest.raises(DecodeError):
        codec.decode(bytes(body))


@encrypting
@pytest.mark.parametrize("body", [b"", b"garbage", Codec().encode(MESSAGE)])
def test_a_body_that_is_not_encrypted_is_a_decode_error_with_a_key(body: bytes) -> None:
    with pytest.raises(DecodeError):
        Codec(["key"]).decode(body)


@encrypting
def test_what_may_be_encrypted_is_checked_before() -> None:
    with pytest.raises(InvalidMessage, match=r"message\['v'\]"):
        Codec(["key"]).encode({"v": {1}})


@pytest.mark.parametrize("keys", ["one string", b"bytes"])
def test_encrypted_with_a_bare_string_is_an_error_that_says_what_to_write(keys: Any) -> None:
    with pytest.raises(InvalidOption, match=r"\[key\]"):
        Codec(keys)


@encrypting
def test_encrypted_with_what_is_no_key_is_an_error() -> None:
    with pytest.raises(InvalidOption, match="an int"):
        Codec([5])  # type: ignore[list-item]


@encrypting
def test_keys_may_come_from_any_iterable_and_none_is_none_encrypted() -> None:
    assert round_trip(MESSAGE, Codec(key for key in ("a", "b"))) == MESSAGE
    assert Codec([]).encode(MESSAGE) == Codec().encode(MESSAGE)


def test_without_cryptography_keys_are_an_error_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.fernet", None)
    with pytest.raises(InvalidOption, match=r"asgi_ipc\[cryptography\]"):
        Codec(["key"])
