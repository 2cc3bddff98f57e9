"""The errors: one tree, with two classes that are also those of the peers."""

from __future__ import annotations

import inspect
import pickle
import re
from typing import Any

import pytest

from asgi_ipc import errors

from ..environments import run_python
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

# Installs modules under the names of peers, with what the peers have in them.
PEERS = """
import sys, types
class TheirFull(Exception): pass
class TheirTooLarge(Exception): pass
def install(name, **contents):
    module = types.ModuleType(name)
    vars(module).update(contents, __path__=[], __spec__=types.SimpleNamespace(name=name))
    sys.modules[name] = module
    return module
def install_asgiref_1():
    base = type("BaseChannelLayer", (), {
        "ChannelFull": TheirFull, "MessageTooLarge": TheirTooLarge})
    install("asgiref")
    install("asgiref.base_layer", BaseChannelLayer=base)
class Missing:
    "Hides what is installed."
    def __init__(self, *names): self.names = names
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(name, name=name)
"""


def test_they_are_those_of_channels() -> None:
    exceptions = pytest.importorskip("channels.exceptions")
    assert issubclass(errors.ChannelFull, exceptions.ChannelFull)
    assert issubclass(errors.MessageTooLarge, exceptions.MessageTooLarge)


def test_they_are_those_of_asgiref_1() -> None:
    source = f"""{PEERS}
install_asgiref_1()
sys.meta_path.insert(0, Missing("channels"))
from asgi_ipc import errors
print([base.__name__ for base in errors.ChannelFull.__mro__[1:]])
print(issubclass(errors.MessageTooLarge, TheirTooLarge))
"""
    first, second = run_python(source).splitlines()
    assert first == "['IPCError', 'TheirFull', 'Exception', 'BaseException', 'object']"
    assert second == "True"


def test_they_are_those_of_both() -> None:
    source = f"""{PEERS}
install_asgiref_1()
class Full(Exception): pass
install("channels")
install("channels.exceptions", ChannelFull=Full, MessageTooLarge=Full)
from asgi_ipc import errors
print(issubclass(errors.ChannelFull, Full) and issubclass(errors.ChannelFull, TheirFull))
"""
    assert run_python(source) == "True"


def test_without_any_peer_they_are_ours() -> None:
    source = f"""{PEERS}
sys.meta_path.insert(0, Missing("channels", "asgiref"))
from asgi_ipc import errors
print([base.__name__ for base in errors.ChannelFull.__mro__[1:3]])
"""
    assert run_python(source) == "['IPCError', 'Exception']"


def test_a_peer_that_cannot_be_imported_is_none() -> None:
    """Django, for one, refuses before it is configured."""
    source = f"""{PEERS}
sys.meta_path.insert(0, Missing("asgiref"))
install("channels")
class Refuses:
    def find_spec(self, name, path=None, target=None):
        if name == "channels.exceptions":
            raise RuntimeError("not configured")
sys.meta_path.insert(0, Refuses())
from asgi_ipc import errors
print([base.__name__ for base in errors.ChannelFull.__mro__[1:3]])
"""
    assert run_python(source) == "['IPCError', 'Exception']"


def test_a_peer_whose_class_is_none_is_passed_over() -> None:
    source = f"""{PEERS}
sys.meta_path.insert(0, Missing("asgiref"))
install("channels")
install("channels.exceptions", ChannelFull="not a class", MessageTooLarge=int)
from asgi_ipc import errors
print(errors.ChannelFull.__bases__ == errors.MessageTooLarge.__bases__ == (errors.IPCError,))
"""
    assert run_python(source) == "True"


def test_a_bare_import_imports_no_peer() -> None:
    source = """
import sys
import asgi_ipc, asgi_ipc.errors
peers = {"channels", "asgiref", "django", "twisted", "redis", "cryptography"}
print(sorted(peers & set(sys.modules)))
asgi_ipc.ChannelFull
print("channels.exceptions" in sys.modules)
"""
    pytest.importorskip("channels")
    assert run_python(source).splitlines() == ["[]", "True"]
