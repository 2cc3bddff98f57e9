"""The compiled path by itself: the numbers that it is compiled with, and its messages. What it does
to the memory is compared with the Python code in tests/reliability/test_native.py."""

from __future__ import annotations

import random
import subprocess
import sys
import zlib
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

import asgi_ipc
from asgi_ipc import clock
from asgi_ipc.codec import Codec
from asgi_ipc.errors import InvalidMessage
from asgi_ipc.inspection import surroundings
from asgi_ipc.options import MIN_MEMORY
from asgi_ipc.store import native
from asgi_ipc.store.layout import (
    DIRTY,
    H_LOCK,
    LOCK_BYTES,
    Q_OWED,
    Q_QUICK,
    Q_WAITING,
    S_DIRTY,
    WORD,
)
from asgi_ipc.store.wakes import LEAVING, WOKEN
from asgi_ipc.testing.sync import InProcessChannelLayer
from tests import environments

from ..compiling import needs_compiled
from .encoding import encode
from .support import examples

LOCK_END = H_LOCK * WORD + LOCK_BYTES

if native.LOADED:
    compiled: Any = native._native


def test_the_header_is_up_to_date() -> None:
    environments.run_script(environments.REPOSITORY / "native" / "write_layout.py", "--check")


def implementation(**environment: str) -> str:
    """What another process says of the compiled path."""
    program = "from asgi_ipc.store import native; print(native.LOADED, native.why_not)"
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**environments.child_environment(), **environment},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout.strip()


def test_it_can_be_switched_off() -> None:
    assert implementation(ASGI_IPC_PURE="1") == "False ASGI_IPC_PURE is set"
    assert "ASGI_IPC_PURE" not in implementation(ASGI_IPC_PURE="0")


@needs_compiled
def test_what_was_built_for_another_layout_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native.layout, "Q_WAITING", native.layout.Q_WAITING + 1)
    found, why = native._load()
    assert found is None and "another version" in why


scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63) - 2, 2**64 + 1)
    | st.integers(-300, 300)
    | st.floats()
    | st.text(max_size=300)
    | st.text(st.characters(), max_size=40)
    | st.binary(max_size=300)
)
values: Any = st.deferred(
    lambda: (
        scalars
        | st.lists(values, max_size=5)
        | st.lists(scalars, max_size=20)
        | st.lists(values, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=40), values, max_size=4)
        | st.dictionaries(st.text(max_size=3), scalars, max_size=20)
    )
)
messages = st.dictionaries(st.text(max_size=40), values, max_size=8)


@needs_compiled
@examples(300)
@given(messages)
def test_messages_are_packed_and_unpacked_as_msgpack_does_it(message: dict[str, Any]) -> None:
    packed = compiled.pack(message)
    try:
        body = encode(message)
    except InvalidMessage:
        assert packed is None
        return
    assert packed == body
    assert repr(compiled.unpack(body)) == repr(msgpack.unpackb(body, raw=False))


class Text(str):
    pass


class Fields(dict):
    pass


@needs_compiled
@pytest.mark.parametrize(
    "message",
    [
        *([], None, "text", Fields(a=1), {1: 2}, {Text("key"): 1}, {b"key": 1}),
        *(
            {"a": value}
            for value in (Text("x"), Fields(), {1: 2}, {1, 2}, bytearray(b"x"), object())
        ),
        *(
            {"a": value}
            for value in ("\ud800", 2**63, -(2**63) - 1, [[Fields()]], ({"b": Text()},))
        ),
        {"a": "x" * 70_000},
    ],
)
def test_what_is_not_usual_is_left_to_python(message: Any) -> None:
    assert compiled.pack(message) is None


@needs_compiled
@pytest.mark.parametrize("depth", [1, 10, 62, 63, 64, 65, 199])
def test_nested_messages(depth: int) -> None:
    """As deep as the Python code allows, or else it is asked."""
    value: Any = 1
    for i in range(depth):
        value = [value] if i % 2 else {"a": value}
    message = {"deep": value}
    body = Codec().encode(message)
    assert compiled.pack(message) in ((body,) if depth < 63 else (body, None))
    assert compiled.unpack(body) in ((message,) if depth < 63 else (message, None))


@needs_compiled
def test_a_list_that_holds_itself_is_left_to_python() -> None:
    endless: list[Any] = []
    endless.append(endless)
    assert compiled.pack({"endless": endless}) is None
    wide: Any = []
    for _ in range(60):
        wide = [wide, wide]  # 2**60 lists
    assert compiled.pack({"wide": wide}) is None


@needs_compiled
@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"\x80\x80", b"\x81\xa1a", b"\x81\xa1a\xa5four", b"\x01", b"\x91\x01", b"\xc0"),
        *(b"\x81\x01\x01", b"\x81\xc4\x01a\x01", b"\x81\xa1\xff\x01", b"\x81\xa1a\xa1\xff"),
        *(
            b"\x81\xa1a\xc1",
            b"\x81\xa1a\xd4\x01\x00",
            b"\xdf\xff\xff\xff\xff",
            b"\x81\xa1a\xca\0\0",
        ),
        b"\x81\xa1a\xdd\xff\xff\xff\xff",
    ],
    ids=repr,
)
def test_bytes_that_are_no_message_are_left_to_python(body: bytes) -> None:
    assert compiled.unpack(body) is None


@needs_compiled
def test_a_key_is_made_once_and_never_mistaken_for_another() -> None:
    for length in (0, 1, 31, 32, 33, 40):
        for number in range(600):
            key = f"{number:x}".rjust(length, "k")
            assert compiled.unpack(compiled.pack({key: number})) == {key: number}
    first, second = (next(iter(compiled.unpack(b"\x81\xa3key\x01"))) for _ in range(2))
    assert first is second


@needs_compiled
def test_sums_are_those_of_adler32() -> None:
    rng = random.Random(1)
    for length in (*range(130), 5119, 5120, 5121, 5152, 20_000, 65_536):
        for body in (rng.randbytes(length), b"\xff" * length, bytes(length)):
            low, high = compiled.sums(body)
            assert high << 16 | low == zlib.adler32(body, 0)


@pytest.mark.parametrize("options", [{}, {"lock": "file"}, {"symmetric_encryption_keys": ["key"]}])
def test_stats_say_which_is_in_use(prefix: str, options: dict[str, Any]) -> None:
    if "symmetric_encryption_keys" in options:
        pytest.importorskip("cryptography", reason="lacking: cryptography")
    layer = asgi_ipc.IPCChannelLayer(prefix, **options)
    usual = native.LOADED and not options
    assert layer.stats().implementation == ("compiled" if usual else "pure")
    layer.send("c", {"a": 1})
    assert layer.receive(["c"]) == ("c", {"a": 1})
    layer.close()


def test_the_doctor_says_which_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    for loaded, why, remedy in ((True, "", False), (False, "it was not built", True)):
        monkeypatch.setattr(native, "LOADED", loaded)
        monkeypatch.setattr(native, "why_not", why)
        monkeypatch.setattr(native, "could_be_built", remedy)
        found = surroundings.implementation()
        assert found.level == "ok" and why in found.text
        assert bool(found.remedy) == remedy
        assert ("compiled" in found.text) == loaded


@needs_compiled
@pytest.mark.parametrize("what", ["left", "forked", "dirty", "held", "closed lock word"])
def test_what_makes_every_call_unusual(what: str, prefix: str) -> None:
    """The process has left the segment, or is a child that no handler noticed; the store is dirty;
    the lock is held, or looks as if it were."""
    # All of its memory is compared: the less, the better.
    layer = InProcessChannelLayer(prefix, message_memory=MIN_MEMORY, max_message_size=1024)
    session = layer._core.attach()
    for _ in range(2):
        layer.send("c", {"a": 1})
        layer.send("c", {"a": 2})
        assert layer.receive(["c"]) == ("c", {"a": 1})
        assert layer.receive(["c"]) == ("c", {"a": 2})
    layer.send("c", {"a": 3})
    usual, store, lock = session.usual, session.store, session.attachment.lock
    layer._core.exact_source(session, "c")

    def outcomes() -> list[Any]:
        return [usual.send("c", {"a": 4}), usual.receive(["c"]), usual.receive_exact("c")]

    assert usual.receive_exact("c") is None  # its row is not known yet
    session.section(store.find, session.exact_sources["c"][0].target)
    assert outcomes() == [True, ("c", {"a": 3}), {"a": 4}]
    layer.send("c", {"a": 5})
    before = bytes(store.buffer[LOCK_END:])
    if what == "left":
        session.attachment.compiled.close()
    elif what == "forked":
        session.due[()] = 0.0
    elif what == "dirty":
        store.words[S_DIRTY] = DIRTY
        before = bytes(store.buffer[LOCK_END:])
    elif what == "held":
        assert lock.trylock(lock.handle) == 0
    else:
        place = slice(H_LOCK * WORD, H_LOCK * WORD + LOCK_BYTES)
        saved = store.buffer[place]
        store.buffer[place] = b"\xff" * LOCK_BYTES
    assert outcomes() == [False, None, None]
    assert bytes(store.buffer[LOCK_END:]) == before
    if what == "held":
        lock.unlock(lock.handle)
    elif what == "closed lock word":
        store.buffer[place] = saved
    assert lock.holder() == 0


@needs_compiled
def test_a_send_picks_whom_to_ring(prefix: str) -> None:
    """In turn, and the Python code and the compiled path share the turn."""
    layer = InProcessChannelLayer(prefix)
    session = layer._core.attach()
    layer.send("c", {"a": 1})
    layer.send("c", {"a": 1})
    usual, store, row = session.usual, session.store, session.targets["c"].row
    for waiter_id in (5, 64, 1087):
        session.section(store.park, row, waiter_id)
    assert usual.send("c", {"a": 2}) == (row, 5)
    assert session.section(store.pick, row) == 64
    session.section(store.park, row, 5)
    assert usual.send("c", {"a": 2}) == (row, 1087)
    assert usual.send("c", {"a": 2}) == (row, 5)
    assert usual.send("c", {"a": 2}) is True


@needs_compiled
def test_a_receive_parks_or_rings_for_what_is_owed(prefix: str) -> None:
    layer = InProcessChannelLayer(prefix)
    session = layer._core.attach()
    for _ in range(2):
        layer.send("c", {"a": 1})
        assert layer.receive(["c"]) == ("c", {"a": 1})
    usual, store, row = session.usual, session.store, session.targets["c"].row
    [source] = layer._core.exact_source(session, "c")
    session.section(store.find, source.target)
    assert usual.receive(["c"]) is None
    for wrong in (0, WOKEN, 1088, 2 * LEAVING + 1, -1, 1.0):
        assert usual.take(source, wrong) is None
    assert usual.take(source, 5) is False
    assert usual.send("c", {"a": 2}) == (row, 5)
    assert usual.take(source, 5 + WOKEN) == ("c", {"a": 2})
    for last in (5, 6):
        assert usual.take(source, 5) is False
        assert session.store.words[row + Q_WAITING]
        assert usual.take(source, last + WOKEN + LEAVING) is False
        assert bool(session.store.words[row + Q_WAITING]) == (last != 5)
    session.section(store.unpark, row, 5)
    for take in (
        lambda: usual.take(source, 7),
        lambda: usual.receive(["c"]),
        lambda: usual.receive_exact("c"),
    ):
        layer.send("c", {"a": 3})
        layer.send("c", {"a": 4})
        session.section(store.park, row, 9)
        store.forget_ring(row)
        store.words[row + Q_OWED], store.words[row + Q_QUICK] = 1, 0
        assert take() == [source, {"a": 3}, (row, 9)]
        assert usual.receive(["c"]) == ("c", {"a": 4})


@needs_compiled
def test_a_receive_notes_when_it_took(prefix: str) -> None:
    """By which a quick queue is known (`store.wakes`)."""
    layer = InProcessChannelLayer(prefix)
    session = layer._core.attach()
    layer.send("c", {"a": 1})
    assert layer.receive(["c"]) == ("c", {"a": 1})
    target = session.sources["c"][0].target
    target.taken = 0.0
    layer.send("c", {"a": 1})
    before = clock.monotonic()
    assert session.usual.receive(["c"]) == ("c", {"a": 1})
    assert before <= target.taken <= clock.monotonic()


@needs_compiled
def test_nothing_is_counted_too_little_or_too_much(prefix: str) -> None:
    """By extensions that were compiled with the headers of any Python."""
    layer = InProcessChannelLayer(prefix)
    session = layer._core.attach()
    layer.send("c", {"a": 1})
    assert layer.receive(["c"]) == ("c", {"a": 1})
    [source] = layer._core.sources(session, ["c"])
    target, channel, key = session.targets["c"], source.channel, "a key"
    values = [None, True, False, source, target, channel, key, session.targets, session.usual]

    def counts() -> list[int]:
        return [sys.getrefcount(value) for value in values]

    before = counts()
    for _ in range(1000):
        assert session.usual.send("c", {key: [None, True, False]}) is True
        assert session.usual.receive(["c"]) == ("c", {key: [None, True, False]})
        assert session.usual.receive(["c"]) is None
        assert session.usual.send("unknown", {}) is False
        assert session.usual.receive_exact("unknown") is None
        assert compiled.pack({1: 1}) is None and compiled.unpack(b"x") is None
    assert max(abs(now - then) for now, then in zip(counts(), before)) < 100
