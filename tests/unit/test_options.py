"""The constructor options: their defaults, what is allowed, and the errors for everything else."""

from __future__ import annotations

import dataclasses
import decimal
import inspect
import pkgutil
import re
import types
import warnings
from typing import Any

import pytest

from asgi_ipc import options
from asgi_ipc.errors import InvalidOption
from asgi_ipc.options import LONGEST_WAIT, MAX_MEMORY, MIN_MEMORY, Options, waiting_time
from asgi_ipc.segment.wanted import Wanted


def read(**given: Any) -> Options:
    return Options.read("prefix", given)


def test_defaults() -> None:
    options = read()
    assert options == Options(
        prefix="prefix",
        message_memory=100 * 2**20,
        group_memory=20 * 2**20,
        expiry=60,
        group_expiry=86400,
        capacity=100,
        channel_capacity=None,
        symmetric_encryption_keys=None,
        mode=0o600,
        max_message_size=4 * 2**20,
        receive_timeout=5,
        lock_timeout=10,
        spin=0.0001,
        lock="mutex",
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("message_memory", MIN_MEMORY),
        ("group_memory", MIN_MEMORY),
        ("max_message_size", 1024),
        ("expiry", 0.001),
        ("expiry", 10**9),
        ("group_expiry", 1.5),
        ("capacity", 1),
        ("mode", 0o660),
        ("receive_timeout", 0.1),
        ("lock_timeout", 0.1),
        ("spin", 0),
        ("spin", 0.01),
        ("lock", "file"),
        ("channel_capacity", {}),
        ("channel_capacity", types.MappingProxyType({"a*": 1})),
        ("symmetric_encryption_keys", ["key"]),
    ],
)
def test_allowed(name: str, value: Any) -> None:
    assert getattr(read(**{name: value}), name) == value


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("message_memory", MIN_MEMORY - 1),
        ("message_memory", MAX_MEMORY + 1),
        ("message_memory", 1e8),
        ("message_memory", "100"),
        ("message_memory", True),
        ("message_memory", None),
        ("group_memory", 0),
        ("group_memory", -1),
        ("max_message_size", 0),
        ("max_message_size", MAX_MEMORY),
        ("capacity", 0),
        ("capacity", -1),
        ("capacity", 1.5),
        ("capacity", None),
        ("expiry", 0),
        ("expiry", -1),
        ("expiry", None),
        ("expiry", "60"),
        ("expiry", True),
        ("expiry", float("inf")),
        ("expiry", float("nan")),
        ("expiry", 10**400),
        ("group_expiry", 10**400),
        ("receive_timeout", 10**400),
        ("lock_timeout", 10**400),
        ("symmetric_encryption_keys", 5),
        ("symmetric_encryption_keys", True),
        ("symmetric_encryption_keys", object()),
        ("symmetric_encryption_keys", (key for key in ["only", "once"])),
        ("group_expiry", 0),
        ("receive_timeout", 0),
        ("lock_timeout", 0),
        ("mode", 0o606),
        ("mode", 0o666),
        ("mode", 0o400),
        ("mode", 0o700),
        ("mode", "0600"),
        ("spin", -0.0001),
        ("spin", 0.011),
        ("spin", float("nan")),
        ("spin", True),
        ("spin", None),
        ("spin", "0"),
        ("lock", "semaphore"),
        ("lock", None),
        ("channel_capacity", [("a", 1)]),
        ("channel_capacity", 5),
        ("channel_capacity", {"a": 0}),
        ("channel_capacity", {"a": True}),
        ("channel_capacity", {"a": "5"}),
        ("channel_capacity", {5: 5}),
        ("channel_capacity", {b"a": 5}),
    ],
)
def test_refused_by_its_name(name: str, value: Any) -> None:
    with pytest.raises(InvalidOption, match=name) as caught:
        read(**{name: value})
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, TypeError)


class Lazy:
    """Says of itself that it is a str, as Django's lazy strings do."""

    @property
    def __class__(self) -> Any:
        return str


def test_a_prefix_that_only_says_that_it_is_a_str_is_refused() -> None:
    with pytest.raises(InvalidOption, match="must be a str"):
        Wanted.of(Options.read(Lazy(), {}))  # type: ignore[arg-type]


@pytest.mark.parametrize("timeout", [float("nan"), True, "5", None, []])
def test_a_timeout_that_no_clock_reaches_is_refused(timeout: Any) -> None:
    with pytest.raises(TypeError, match="timeout must be a number"):
        waiting_time(timeout)


@pytest.mark.parametrize("timeout", [float("inf"), 10**400])
def test_a_timeout_beyond_all_clocks_is_a_century(timeout: Any) -> None:
    assert waiting_time(timeout) == LONGEST_WAIT
    assert waiting_time(0.5) == 0.5 and waiting_time(-1) == -1


@pytest.mark.parametrize("mode", [0o620, 0o640], ids=oct)
def test_a_mode_that_lets_a_group_in_by_half_is_refused(mode: int) -> None:
    with pytest.raises(InvalidOption, match="mode"):
        read(mode=mode)


def test_an_unknown_option_is_refused_and_the_known_ones_are_listed() -> None:
    with pytest.raises(InvalidOption, match=r"'capcity'.*capacity, channel_capacity"):
        read(capcity=5)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("hosts", "LocalAndRemoteChannelLayer"),
        ("serializer_format", "the option default"),
        ("random_prefix_length", "leave it out"),
        ("on_disconnect", "no connection is lost"),
        ("on_reconnect", "no connection is lost"),
        ("channel_layer", "leave it out"),
        ("connection_kwargs", "there is no server"),
        ("services", "there is no server"),
        ("sentinel_refresh_interval", "there is no server"),
        ("stats_prefix", "kept in the segment"),
    ],
)
def test_the_option_of_a_layer_over_redis_is_answered_with_what_to_do(
    name: str, remedy: str
) -> None:
    with pytest.raises(
        InvalidOption, match=f"(?i){name!r} is an option of .*redis.*{remedy}"
    ) as caught:
        read(**{name: None})
    assert "unknown" not in str(caught.value)


@pytest.mark.parametrize(
    "path",
    [
        "channels_redis.core.RedisChannelLayer",
        "channels_redis.pubsub.RedisPubSubChannelLayer",
        "channels_redis.pubsub.RedisPubSubLoopLayer",
    ],
)
def test_every_option_of_channels_redis_is_taken_or_answered(path: str) -> None:
    pytest.importorskip("channels_redis", reason="lacking: channels_redis")
    parameters = inspect.signature(pkgutil.resolve_name(path)).parameters.values()
    names = {each.name for each in parameters if each.kind is not each.VAR_POSITIONAL}
    ours = {field.name for field in dataclasses.fields(Options)}
    assert names - ours - {"kwargs"} <= options._OTHERS.keys()


# -- default --------------------------------------------------------------------------------------


class Encoders:
    @staticmethod
    def encode(value: Any) -> str:
        return str(value)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (None, None),
        (str, str),
        ("builtins.str", str),
        ("decimal.Decimal.__str__", decimal.Decimal.__str__),
        (f"{__name__}.Encoders.encode", Encoders.encode),
        (f"{__name__}:Encoders.encode", Encoders.encode),
    ],
)
def test_default_is_a_callable_or_its_name(given: Any, found: Any) -> None:
    assert read(default=given).converter() is found


@pytest.mark.parametrize("given", [5, {}, "math.pi", b"builtins.str"])
def test_default_that_is_not_callable_is_refused(given: Any) -> None:
    with pytest.raises(InvalidOption, match="default must be a callable"):
        read(default=given)


@pytest.mark.parametrize("given", ["", "no_such_module.f", "math.no_such_function", "not a name"])
def test_default_that_cannot_be_imported_is_refused(given: str) -> None:
    with pytest.raises(InvalidOption, match="default=.* cannot be imported"):
        read(default=given)


def test_prefix_is_no_option() -> None:
    with pytest.raises(InvalidOption, match="prefix"):
        read(prefix="again")


def test_the_old_name_of_message_memory_works_with_a_warning() -> None:
    with pytest.warns(DeprecationWarning, match="message_memory"):
        assert read(channel_memory=2**20).message_memory == 2**20


def test_the_old_name_and_the_new_one_together_are_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(InvalidOption, match="not both"):
            read(channel_memory=2**20, message_memory=2**20)


def test_the_new_name_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(message_memory=2**20)


# -- capacities -----------------------------------------------------------------------------------


def capacity_of(channel: str, patterns: Any) -> int:
    return read(channel_capacity=patterns).capacities().of(channel)


def test_a_glob_matches_the_whole_name() -> None:
    patterns = {"http.*": 5}
    assert capacity_of("http.request", patterns) == 5
    assert capacity_of("an.http.request", patterns) == 100
    assert capacity_of("http.re!quest", patterns) == 5


def test_a_compiled_pattern_matches_from_the_start() -> None:
    """The first example in the documentation of this option."""
    patterns = {re.compile(r"^websocket.send\!.+"): 20}
    assert capacity_of("websocket.send!abc", patterns) == 20
    assert capacity_of("websocket.send", patterns) == 100


def test_capacities_are_known_once_they_were_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "_REMEMBERED", 2)
    assert read().capacities().known("a") == 100
    capacities = read(channel_capacity={"a*": 5}).capacities()
    assert capacities.known("a1") is None
    for names in (["a1", "b1", "a2"], ["a3"]):
        capacities.look_up(names)
    assert [capacities.known(name) for name in ("a1", "b1", "a2", "a3")] == [5, 100, 5, 5]
    for number in range(3, 9):
        capacities.look_up([f"a{number}"])
    assert capacities.known("a1") is None  # forgotten: there were many since
    assert capacities.known("a8") == 5


def test_the_first_match_in_the_order_of_the_dict_wins() -> None:
    patterns = {"a*": 1, re.compile("ab"): 2, "*": 3}
    assert [capacity_of(name, patterns) for name in ("ab", "b")] == [1, 3]
    assert capacity_of("ab", dict(reversed(list(patterns.items())))) == 3


def test_without_patterns_there_is_one_capacity() -> None:
    capacities = read(capacity=7).capacities()
    assert not capacities
    assert capacities.of("http.request") == 7


# -- the group ------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", [None, "staff", 0, 1000])
def test_a_group_is_a_name_or_a_gid(group: Any) -> None:
    assert read(mode=0o660, group=group).group == group


@pytest.mark.parametrize("group", [True, 1.0, b"staff", ["staff"]])
def test_nothing_else_is_a_group(group: Any) -> None:
    with pytest.raises(InvalidOption, match="group must be the name of a group, or its gid"):
        read(mode=0o660, group=group)


def test_a_group_without_its_mode_lets_nobody_in() -> None:
    with pytest.raises(InvalidOption, match="also give mode=0o660"):
        read(group="staff")


# -- what is shown --------------------------------------------------------------------------------


def test_the_mode_is_shown_in_octal_and_keys_not_at_all() -> None:
    shown = repr(read(mode=0o660, symmetric_encryption_keys=["secret"]))
    assert shown.startswith("Options(prefix=") and "mode=0o660" in shown
    assert "secret" not in shown and "symmetric_encryption_keys=<hidden>" in shown
    for mode, said in ((0o777, "0o777"), (0o644, "0o644"), (-1, "-0o1"), ("0600", "'0600'")):
        with pytest.raises(InvalidOption, match=f"mode must be .*not {said}"):
            read(mode=mode)
