"""The names that the contracts allow, and how they are split."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_ipc.conformance.cases import (
    BAD_CHANNEL_NAMES,
    BAD_GROUP_NAMES,
    MARKED_NAMES,
    PLAIN_NAMES,
    each,
)
from asgi_ipc.errors import InvalidName
from asgi_ipc.names import MAX_NAME, check_channel, check_group, check_receive, split

from .support import examples

LETTERS = "abcxyzABCXYZ0129-_."


class Name(str):
    """A subclass, which a framework may pass."""


@pytest.mark.parametrize("name", PLAIN_NAMES + MARKED_NAMES)
def test_a_channel_may_have_this_name(name: str) -> None:
    assert check_channel(name) == name


@pytest.mark.parametrize("name", each(BAD_CHANNEL_NAMES))
def test_a_channel_may_not_have_this_name(name: Any) -> None:
    with pytest.raises(InvalidName) as caught:
        check_channel(name)
    assert isinstance(caught.value, TypeError)


@pytest.mark.parametrize("name", PLAIN_NAMES)
def test_a_group_may_have_this_name(name: str) -> None:
    assert check_group(name) == name


@pytest.mark.parametrize("name", each(BAD_GROUP_NAMES))
def test_a_group_may_not_have_this_name(name: Any) -> None:
    with pytest.raises(InvalidName):
        check_group(name)


def test_names_are_fewer_than_100_characters() -> None:
    assert MAX_NAME == 99
    for check in (check_channel, check_group):
        assert check("n" * 99)
        with pytest.raises(InvalidName, match="100 characters; at most 99"):
            check("n" * 100)


@pytest.mark.parametrize("check", [check_channel, check_receive])
def test_a_name_may_end_in_its_exclamation_mark(check: Callable[[Any], str]) -> None:
    assert check("prefix!") == "prefix!"


@pytest.mark.parametrize("name", ["prefix!local", "a.b!c"])
def test_a_receive_names_a_process_specific_channel_only_up_to_the_mark(name: str) -> None:
    with pytest.raises(InvalidName, match=f"only up to.*{name[: name.index('!') + 1]}"):
        check_receive(name)


@pytest.mark.parametrize("name", ["plain", "single?reader", "prefix!"])
def test_a_receive_takes_all_others(name: str) -> None:
    assert check_receive(name) == name


@pytest.mark.parametrize("name", each(BAD_CHANNEL_NAMES))
def test_a_receive_takes_no_bad_name(name: Any) -> None:
    with pytest.raises(InvalidName):
        check_receive(name)


@pytest.mark.parametrize(
    ("name", "queue", "local"),
    [
        ("plain", "plain", ""),
        ("single?reader", "single?reader", ""),
        ("prefix!", "prefix!", ""),
        ("prefix!local", "prefix!", "local"),
    ],
)
def test_the_queue_is_the_part_up_to_the_mark(name: str, queue: str, local: str) -> None:
    assert split(name) == (queue, local)


def test_a_subclass_of_str_is_a_name() -> None:
    assert check_channel(Name("name")) == "name"
    assert check_group(Name("name")) == "name"
    assert type(check_receive(Name("name!"))) is str


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "empty"),
        (b"bytes", "bytes"),
        (None, "NoneType"),
        ("pattern?", "new_channel"),
        ("a b", "ASCII letters"),
        ("a!b?c", "at most one"),
        ("n" * 300, "300 characters"),
    ],
)
def test_the_error_says_what_is_wrong(name: Any, says: str) -> None:
    with pytest.raises(InvalidName, match=says):
        check_channel(name)


def test_the_error_for_a_group_says_what_the_marks_are_for() -> None:
    with pytest.raises(InvalidName, match="only channel names contain '!' or"):
        check_group("a!b")


@examples(300)
@given(
    st.text(LETTERS, min_size=1, max_size=40),
    st.sampled_from(["", "!", "?"]),
    st.text(LETTERS, min_size=1, max_size=40),
)
def test_every_name_of_the_grammar_is_allowed_and_no_other(
    before: str, mark: str, after: str
) -> None:
    name = before + mark + (after if mark else "")
    assert check_channel(name) == name
    queue, local = split(name)
    assert queue + local == name
    for wrong in (f"{name}!{after}!", f"{name}\n", f" {name}", f"{name}\u00e9", f"{name}/{after}"):
        with pytest.raises(InvalidName):
            check_channel(wrong)


class Lazy:
    """It says that it is a str, and is none, as lazy strings of Django do."""

    @property
    def __class__(self) -> Any:
        return str

    @__class__.setter
    def __class__(self, kind: Any) -> None:
        raise AssertionError


class Unspeakable:
    def __repr__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize("check", [check_channel, check_group, check_receive])
@pytest.mark.parametrize("name", [Lazy(), Unspeakable()], ids=["lazy", "unspeakable"])
def test_what_only_says_that_it_is_a_name_is_refused(
    check: Callable[[Any], str], name: Any
) -> None:
    with pytest.raises(InvalidName, match=f"must be a str, not {type(name).__name__}"):
        check(name)
