"""What is logged is logged with no lock held: a handler may send by the same layer, and one that
blocks holds up nobody else. `locks` watches that in all tests; here each line of an attachment is
caused once.
"""

from __future__ import annotations

import ast
import asyncio
import errno
import gc
import logging
import os
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import asgi_ipc
from asgi_ipc import clock
from asgi_ipc.attachment.suspects import PATIENCE
from asgi_ipc.errors import Reentered
from asgi_ipc.options import Capacities
from asgi_ipc.segment import doorbell
from asgi_ipc.store.layout import DIRTY, S_DIRTY

from ..forks import Line, bounded, child, in_child, on_linux, rests
from ..locks import HOLDERS, held
from ..unit.support import KIB, contents
from ..waiting import LIVENESS, until
from .layers import NOTHING, Make

pytestmark = on_linux

logger = logging.getLogger("asgi_ipc")


class Case:
    """A way to make the package log something: `act` does it, after `prepare`."""

    def __init__(self, make: Make, monkeypatch: pytest.MonkeyPatch, stack: ExitStack) -> None:
        self.make, self.monkeypatch, self.stack = make, monkeypatch, stack
        self.layer: Any = None  # by which a handler sends

    def prepare(self) -> None:
        raise NotImplementedError

    def act(self) -> None:
        self.layer.send("acted", {})

    def living(self, **options: Any) -> None:
        """Another process that is attached, until the test ends."""

        def live(line: Line) -> None:
            layer = self.make(**options)
            layer.send("other", {})
            rests(line)

        assert self.stack.enter_context(child(live)).hear() == "there"

    def later(self, seconds: float) -> None:
        """Let time pass, so that upkeep is due."""
        real = clock.monotonic
        self.monkeypatch.setattr(clock, "monotonic", lambda: real() + seconds)


class Replaced(Case):
    line = "replacing a stale segment"

    def prepare(self) -> None:
        in_child(lambda: self.make(message_memory=512 * KIB).send("c", {}))
        self.layer = self.make()


class OtherSizes(Case):
    line = "the live segment has other sizes"

    def prepare(self) -> None:
        self.living(message_memory=512 * KIB)
        self.layer = self.make()


class OtherMode(Case):
    line = "the segment was made with mode 0o600"

    def prepare(self) -> None:
        self.living()
        self.layer = self.make(mode=0o660)


class OtherSizesHere(Case):
    line = "this process already uses it"

    def prepare(self) -> None:
        self.make().send("c", {})
        self.layer = self.make(message_memory=512 * KIB)


class OtherModeHere(Case):
    line = "the segment was made with mode 0o600"

    def prepare(self) -> None:
        self.make().send("c", {})
        self.layer = self.make(mode=0o660)


class ExpiredInTheQueue(Case):
    line = "(expired: nobody read it in time)"

    def prepare(self) -> None:
        self.layer = self.make()
        self.layer.send("unread", {})
        self.later(61)


class ExpiredInTheInbox(Case):
    line = "(expired: nobody read it in time)"

    def prepare(self) -> None:
        self.layer = self.make()
        for channel in ("x!1", "x!2"):
            self.layer.send(channel, {})
        self.layer.receive(["x!"])
        self.later(61)


class Abandoned(Case):
    line = "abandoned. Nothing was received on it"

    def prepare(self) -> None:
        self.layer = self.make()
        for channel in ("x!1", "x!2"):
            self.layer.group_add("g", channel)
        self.layer.send_group("g", {})
        self.layer.receive(["x!"])
        for _ in range(PATIENCE):
            self.later(60.5)
            self.layer.group_channels("g")
        self.later(60.5)


class DroppedBeforeLeaving(Case):
    """What is noted when a process leaves is logged when it has left."""

    line = "(expired: nobody read it in time)"

    def prepare(self) -> None:
        self.layer = self.make()
        self.layer.send("unread", {})
        session = self.layer._core.attach()
        session.attachment.due = float("inf")
        self.later(61)
        session.section(session.store.sweep, clock.monotonic())

    def act(self) -> None:
        self.layer.close()
        gc.collect()
        self.layer.close()  # which tells what has been noted meanwhile


class DroppedByAGroupSend(Case):
    line = "(capacity)"

    def prepare(self) -> None:
        self.layer = self.make(capacity=1)
        self.layer.group_add("g", "full")
        self.layer.send("full", {})

    def act(self) -> None:
        self.layer.send_group("g", {})


class NoDoorbell(Case):
    line = "looks for messages every 50 ms"

    def prepare(self) -> None:
        def mkfifo(path: str, mode: int) -> None:
            raise OSError(errno.EMFILE, "Too many open files")

        self.monkeypatch.setattr(os, "mkfifo", mkfifo)
        self.layer = self.make(receive_timeout=0.01)

    def act(self) -> None:
        self.layer.receive(["c"], block=True)


class CannotRing(Case):
    """A sender that recovers the store rings everyone in the section that found it dirty."""

    line = "cannot ring a doorbell"

    def prepare(self) -> None:
        def wait(line: Line) -> None:
            layer = self.make(receive_timeout=LIVENESS)
            line.say("there")
            layer.receive(["never"], block=True)

        assert self.stack.enter_context(child(wait)).hear() == "there"
        until(self.make.bells)
        self.layer = self.make()
        session = self.layer._core.attach()
        store = session.store
        until(lambda: any(map(store.waiter_generation, range(1, 8))))

        def connect(ringer: Any, waiter_id: int, generation: int) -> None:
            raise OSError(errno.EMFILE, "Too many open files")

        self.monkeypatch.setattr(doorbell.Ringer, "_connect", connect)
        session.attachment.due = float("inf")
        self.words = store.words

    def act(self) -> None:
        self.words[S_DIRTY] = DIRTY  # only now: the receiver looks once a second, and recovers too
        self.layer.send("acted", {})
        self.layer._core.session.attachment.due = 0.0
        self.layer.send("acted", {})


class CannotRingAfterAFlush(CannotRing):
    """An attachment that is made to flush a damaged store does so under the guard."""

    def act(self) -> None:
        self.words[S_DIRTY] = DIRTY
        self.layer._core.session.attachment.flush(self.layer._core._waits)
        self.layer._core.session.attachment.due = 0.0
        self.layer.send("acted", {})


CASES = [
    *(Replaced, OtherSizes, OtherMode, OtherSizesHere, OtherModeHere),
    *(ExpiredInTheQueue, ExpiredInTheInbox, Abandoned, DroppedBeforeLeaving, DroppedByAGroupSend),
    *(NoDoorbell, CannotRing, CannotRingAfterAFlush),
]


@pytest.fixture(params=CASES, ids=lambda kind: kind.__name__)
def case(
    request: pytest.FixtureRequest, make: Make, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Any]:
    with ExitStack() as stack, monkeypatch.context() as patch:
        made = request.param(make, patch, stack)
        made.prepare()
        yield made


class Handler(logging.Handler):
    """Calls `does` once, at the first line that has `text` in it."""

    def __init__(self, text: str, does: Callable[[], Any]) -> None:
        super().__init__()
        self.text, self.does = text, does
        self.outcome: Any = "nothing was logged"

    def emit(self, record: logging.LogRecord) -> None:
        if self.text in record.getMessage() and self.outcome == "nothing was logged":
            self.outcome = None
            try:
                self.outcome = self.does()
            except BaseException as error:
                self.outcome = error


@pytest.fixture
def handle() -> Iterator[Callable[[str, Callable[[], Any]], Handler]]:
    made: list[Handler] = []

    def handle(text: str, does: Callable[[], Any]) -> Handler:
        made.append(Handler(text, does))
        logger.addHandler(made[-1])
        return made[-1]

    yield handle
    for handler in made:
        logger.removeHandler(handler)


def test_a_handler_may_send_by_the_same_layer(case: Any, handle: Any, make: Make) -> None:
    handler = handle(case.line, lambda: case.layer.send("from.handler", {}))
    with bounded():
        case.act()
    assert handler.outcome is None
    assert len(contents(make.look()).messages[b"from.handler"]) == 1


class Sender(logging.Handler):
    """Sends each line by the same layer, and by another one that it makes."""

    def __init__(self, layer: Any, make: Callable[[], Any]) -> None:
        super().__init__()
        self.layer, self.make, self.lines = layer, make, 0

    def emit(self, record: logging.LogRecord) -> None:
        self.lines += 1
        self.layer.send("lines", {})
        self.make().send("lines", {})


def test_a_handler_whose_own_calls_warn_comes_to_an_end(make: Make) -> None:
    """The layers have other sizes than the segment, and each is warned of that when it attaches."""
    make().send("c", {})
    layer = make(message_memory=512 * KIB)
    handler = Sender(layer, lambda: make(message_memory=512 * KIB))
    logger.addHandler(handler)
    try:
        layer.send("c", {})
    finally:
        logger.removeHandler(handler)
    assert handler.lines == 1
    assert layer.channel_statistics("lines")["messages_pending"] == 2


def test_a_handler_that_blocks_holds_up_no_other_process(
    case: Any, handle: Any, make: Make
) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def block() -> bool:
        reached.set()
        return go_on.wait(LIVENESS)

    handler = handle(case.line, block)

    def attach_and_send() -> str:
        logger.removeHandler(handler)
        layer = asgi_ipc.IPCChannelLayer(make.prefix, **SMALL)
        layer.send("meanwhile", {})
        return str(layer.receive(["meanwhile"])[0])

    thread = threading.Thread(target=case.act)
    with bounded():
        thread.start()
        try:
            assert reached.wait(LIVENESS)
            assert in_child(attach_and_send) == "meanwhile"
        finally:
            go_on.set()
            thread.join(LIVENESS)
    assert handler.outcome is True


SMALL = {"message_memory": 256 * KIB, "group_memory": 64 * KIB, "max_message_size": 4 * KIB}


def test_a_layer_within_one_process_logs_without_the_guard(prefix: str, handle: Any) -> None:
    from asgi_ipc.testing.sync import InProcessChannelLayer

    InProcessChannelLayer(prefix, **SMALL).send("c", {})
    gc.collect()
    keep = InProcessChannelLayer(prefix, **SMALL)
    keep.send("c", {})
    keep.close()
    gc.collect()
    layer = InProcessChannelLayer(prefix, **{**SMALL, "message_memory": 512 * KIB})
    handler = handle("replacing a segment of this process", lambda: layer.send("c", {}))
    layer.send("c", {})
    assert handler.outcome is None
    assert [layer.receive(["c"])[0] for _ in range(3)] == ["c", "c", None]


# -- the parts of the package that hold locks -----------------------------------------------------

PACKAGE = Path(asgi_ipc.__file__).parent


def test_all_functions_that_hold_attach_lock_are_watched() -> None:
    """`locks.HOLDERS` knows them by name."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
                for block in ast.walk(function):
                    held = isinstance(block, ast.With) and any(
                        "attach_lock(" in ast.unparse(item) or ".exclusively(" in ast.unparse(item)
                        for item in block.items
                    )
                    if held:
                        found.add((path.relative_to(PACKAGE).as_posix(), function.name))
    assert found == {holder for holder, lock in HOLDERS.items() if lock == "attach.lock"}


# -- what else may run under the lock -------------------------------------------------------------


def test_a_finalizer_that_runs_in_a_section_is_refused_and_changes_nothing(make: Make) -> None:
    """The garbage collector runs finalizers where objects are made, also in a section."""
    layer = make()
    session = layer._core.attach()
    outcomes: list[Any] = []

    class Finalized:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            try:
                layer.send("c", {})
            except Exception as error:
                outcomes.append(error)

    def collect() -> None:
        Finalized()
        gc.collect()

    session.section(collect)
    assert [type(error) for error in outcomes] == [Reentered]
    layer.send("c", {})
    assert layer.receive(["c"]) == ("c", {})


class Str(str):
    """A str that notices when it is used."""

    used: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        Str.used.append(name)
        return super().__getattribute__(name)

    def __len__(self) -> int:
        Str.used.append("__len__")
        return 1

    def __repr__(self) -> str:
        Str.used.append("__repr__")
        return super().__repr__()

    def __str__(self) -> str:
        Str.used.append("__str__")
        return "another"


def test_a_subclass_of_str_does_not_get_under_the_lock(make: Make) -> None:
    layer, theirs = make(), make.asyncio()
    for call in (
        lambda: layer.send(Str("x!1"), {}),
        lambda: layer.group_add(Str("g"), Str("x!1")),
        lambda: layer.send_group(Str("g"), {}),
        lambda: layer.group_discard(Str("g"), Str("x!1")),
        lambda: layer.receive([Str("x!")]),
        lambda: layer.channel_statistics(Str("x!1")),
        lambda: asyncio.run(theirs.send(Str("x!2"), {})),
    ):
        Str.used.clear()
        call()
        assert Str.used == []
    with pytest.raises(asgi_ipc.errors.InvalidName):
        layer.send(Str("x" * 1000), {})


def test_no_pattern_is_matched_under_the_lock(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A regular expression of a user can take any time."""
    matched: list[str] = []
    real = Capacities.of

    def of(capacities: Capacities, channel: str) -> int:
        assert not held(sys._getframe())
        matched.append(channel)
        return real(capacities, channel)

    monkeypatch.setattr(Capacities, "of", of)
    patterns = {re.compile(r"x!.*[02468]"): 1, "y!*": 2}
    layer, other = make(channel_capacity=patterns), make(channel_capacity=patterns)
    core = layer._core
    members = [f"x!{number}" for number in range(9)]
    for channel in members:
        other.group_add("g", channel)
    for _ in range(2):
        other.send_group("g", {})
        session = core.attach()
        assert core.take(session, core.exact_source(session, "x!another")) is None  # drains
    assert set(matched) == set(members)
    # Of the second message, five found the buffer full.
    received = Counter(layer.receive(["x!"])[0] for _ in range(14))
    assert received == {None: 1, **{f"x!{number}": 1 + number % 2 for number in range(9)}}
    assert layer.stats().dropped["buffer"] == 5


def test_a_receive_that_got_something_before_a_pattern_had_to_be_matched_is_woken(
    make: Make,
) -> None:
    layer = make(channel_capacity={re.compile("x!"): 5})
    assert layer.receive(["x!"]) == NOTHING
    inbox, socket = layer._core.session.attachment.inbox("x!"), Socket()
    inbox.join("b", socket)
    for channel in ("x!a", "x!b", "x!b"):  # the capacity of the last one is asked for
        layer.send(channel, {})
    assert layer.receive(["x!"]) == ("x!a", {})
    assert socket.woken >= 1
    inbox.part("b", socket)


class Socket:
    """A receive that sleeps."""

    woken = 0

    def wake(self) -> None:
        self.woken += 1

    def gone(self) -> bool:
        return False


def test_a_subclass_of_float_does_not_get_under_the_lock(make: Make) -> None:
    class Seconds(float):
        def __radd__(self, other: float) -> float:
            raise AssertionError

        __add__ = __radd__

    layer = make(expiry=Seconds(60.0), group_expiry=Seconds(60.0))
    layer.group_add("g", "c")
    layer.send("c", {})
    assert layer.receive(["c"]) == ("c", {})
