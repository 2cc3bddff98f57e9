"""The errors: one tree, with two classes that are also those of the peers."""

from __future__ import annotations

import inspect
import pickle
import re
from typing import Any

import pytest

from asgi_ipc import errors

from ..waiting import in_threads

BUILT_IN = {
    "InvalidName": [TypeError],
    "InvalidMessage": [TypeError, ValueError],
    "InvalidOption": [ValueError, TypeError],
    "NotAChannel": [ValueError],
    "NotOwner": [AssertionError],
    "LimitReached": [],
    "LockTimeout": [TimeoutError],
    "ReplyLost": [],
    "RemoteUnavailable": [ConnectionError],
    "Reentered": [RuntimeError],
    "SegmentError": [OSError],
    "IncompatibleSegment": [errors.SegmentError],
    "ForeignSegment": [errors.SegmentError, PermissionError],
    "SegmentVanished": [errors.SegmentError],
    "CorruptStore": [errors.SegmentError],
    "ChannelFull": [],
    "MessageTooLarge": [],
}


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_error_is_ours_and_what_python_calls_it(name: str) -> None:
    error = getattr(errors, name)
    for base in [errors.IPCError, *BUILT_IN[name]]:
        assert issubclass(error, base)
    assert error.__doc__


def classes() -> set[str]:
    return {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, BaseException)
    } | {"ChannelFull", "MessageTooLarge"}


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = set(re.findall(r"^[ │├└─]*([A-Z]\w+)(?: {2,}|$)", errors.__doc__ or "", re.MULTILINE))
    assert drawn == classes()


def test_the_message_of_an_error_is_what_it_was_given() -> None:
    for name in BUILT_IN:
        assert str(getattr(errors, name)("what happened")).startswith("what happened")


def test_an_error_of_a_damaged_segment_says_what_to_do() -> None:
    assert "flush()" in str(errors.CorruptStore("what happened"))
    for beyond_flush in (errors.CorruptHeader, errors.LockLost):
        text = str(beyond_flush("what happened"))
        assert "flush()" not in text and "segment.destroy()" in text


@pytest.mark.parametrize("name", ["ChannelFull", "MessageTooLarge"])
def test_a_class_is_made_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = getattr(errors, name)
    monkeypatch.delattr(errors, name)
    made = in_threads([lambda: getattr(errors, name)] * 8)
    assert len(set(made)) == 1
    assert getattr(errors, name) is made[0] is not before


@pytest.mark.parametrize("name", ["ChannelFull", "MessageTooLarge"])
def test_they_can_be_raised_without_argument_with_one_and_pickled(name: str) -> None:
    error: Any = getattr(errors, name)
    for arguments in ((), ("full",)):
        with pytest.raises(error) as caught:
            raise error(*arguments)
        again = pickle.loads(pickle.dumps(caught.value))
        assert type(again) is error and again.args == arguments


def test_there_is_no_other_name() -> None:
    with pytest.raises(AttributeError, match="ChannelEmpty"):
        errors.ChannelEmpty  # noqa: B018


# -- peers ----------------------------------------------------------------------------------------


def test_they_are_those_of_channels() -> None:
    exceptions = pytest.importorskip("channels.exceptions", reason="lacking: Channels 4")
    assert issubclass(errors.ChannelFull, exceptions.ChannelFull)
    assert issubclass(errors.MessageTooLarge, exceptions.MessageTooLarge)
