"""Two layers over two memories that do the same at the same time: one in Python alone, and one with
the compiled path. After each call they must agree: in what it returned or raised, in whom it rang,
and in every word of their memory.

In half of the histories words are damaged at random, the same ones in both memories. What the
compiled path then takes for usual, and the Python code does not, shows.

    python -m tests.reliability.twins 100     does the histories 0 to 99
"""

from __future__ import annotations

import contextlib
import logging
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any
from unittest import mock

from asgi_ipc import clock
from asgi_ipc.aio.session import NEVER, usual
from asgi_ipc.segment.lock import mutex_holder
from asgi_ipc.store import layout as at
from asgi_ipc.store import native
from asgi_ipc.store.wakes import LEAVING, WOKEN
from asgi_ipc.testing.sync import InProcessChannelLayer

STEPS = 150  # of a history
START = 1000.0  # of the clock
KIB = 1024
OPTIONS: dict[str, Any] = {
    "message_memory": 64 * KIB,
    "group_memory": 64 * KIB,
    "max_message_size": 20 * KIB,
    "capacity": 4,
    "channel_capacity": {"tiny": 1, "wide*": 1000},
    "expiry": 60,
    "lock": "mutex",
}
NORMAL = ["a", "b", "tiny", "wide1", "wide2", "r?eply"]
SPECIFIC = ["x!1", "x!2", "y!1"]
# Each pair has names of its own: earlier twins keep their memory until the collector runs.
_numbers = count()
# The words that no call of one process should change, and where a lock lies that is in use.
FIRST = at.S_DIRTY
VALUES = [0, 1, 2, 3, 8, 100, 2**31, 2**32 - 1, 2**32, 2**62, 2**63, 2**64 - 1]


class Clock:
    """Stands still, until a history lets time pass."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


class Twin:
    """A layer, its memory, and whom it rang."""

    def __init__(self, prefix: str, compiled: bool) -> None:
        self.layer = InProcessChannelLayer(prefix, **OPTIONS)
        self.core = self.layer._core
        self.session = self.core.attach()
        self.attachment = self.session.attachment
        self.store = self.session.store
        assert not self.store.words[at.S_SEQ], "this is the memory of an earlier twin"
        self.attachment.due = float("inf")
        self.core.own, self.core.client_prefix = ".own!", "own"
        self.rings: list[tuple[int, int]] = []
        self.session.ring = self.attachment.ring = self._ring  # type: ignore[method-assign]
        self.session.usual = usual(self.session, self.core.max_message_size)
        assert self.session.usual is not NEVER, "the compiled path is not in use"
        if compiled:
            self.session.usual = _Counting(self.session.usual)
        else:
            self.session.usual = NEVER

    def _ring(self, row: int, waiter_id: int) -> None:
        if waiter_id > 0:
            self.rings.append((row, waiter_id))

    def memory(self) -> bytes:
        return bytes(self.store.buffer[FIRST * at.WORD :])

    def lock_holder(self) -> int:
        lock = self.store.buffer[at.H_LOCK * at.WORD : at.H_LOCK * at.WORD + at.LOCK_BYTES]
        return mutex_holder(bytes(lock))

    def outcome(self, call: Callable[..., Any], *args: Any) -> str:
        """What a call returns or raises, as text: equal also where it is a NaN."""
        try:
            return repr(call(self, *args))
        except Exception as error:
            return f"{type(error).__name__}: {error}".replace(self.layer.prefix, "twin")

    # -- the calls --------------------------------------------------------------------------------

    def send(self, channel: str, message: dict[str, Any]) -> Any:
        return self.layer.send(channel, message)

    def receive(self, *channels: str) -> Any:
        return self.layer.receive(list(channels))

    def wait(self, channel: str, waiter_id: int) -> Any:
        """What a receive that parks does first, and a look of it later."""
        [source] = self.core.sources(self.session, [channel])
        return self.core.take_one(self.session, source, waiter_id)

    def exact(self, channel: str) -> Any:
        """A receive of an event loop: the message, or None."""
        known = self.session.exact_sources.get(channel)
        sources = known or self.core.exact_source(self.session, channel)
        done = self.session.usual.receive_exact(channel)
        if type(done) is dict:
            return done
        found = self.core.unpacked(self.session, done) if done else None
        found = found or self.core.glance(self.session, sources)
        return found and found[1]

    def leave(self, channel: str, waiter_id: int) -> Any:
        [source] = self.core.sources(self.session, [channel])
        row = self.session.section(self.store.find, source.target)
        return row and self.session.section(self.store.unpark, row, waiter_id)

    def group_add(self, channel: str) -> Any:
        return self.layer.group_add("room", channel)

    def group_send(self, message: dict[str, Any]) -> Any:
        return self.layer.send_group("room", message)

    def flush(self) -> Any:
        return self.layer.flush()

    def upkeep(self) -> Any:
        return self.session.section(self.store.sweep, clock.monotonic())

    def reclaim(self) -> Any:
        return self.session.section(self.store.reclaim, clock.monotonic(), 0.0, 64)

    def damage(self, word: int, value: int) -> Any:
        self.store.words[word] = value

    def hint(self, channel: str, quick: int, owed: int, rung: float, waiter_id: int) -> Any:
        """Hints may say anything, and somebody may be parked where messages are pending: one that
        was rung, found nothing and has not seen these yet."""
        row = self.core._target(self.session, channel).row
        if row:
            self.store.words[row + at.Q_QUICK], self.store.words[row + at.Q_OWED] = quick, owed
            self.store.doubles[row + at.Q_RUNG] = rung
            if waiter_id:
                self.store.park(row, waiter_id)

    def send_or_park(self, channel: str, waiter_id: int) -> Any:
        """What a send that may wait for room does first."""
        target = self.core._target(self.session, channel)
        body, now = self.core.encode({"waited": True}), clock.monotonic()
        return self.session.section(self.store.put_or_park, target, body, now, waiter_id)

    def put(self, channel: str, body: bytes) -> Any:
        """Bytes that are no message of this package, or a short one."""
        target = self.core._target(self.session, channel)
        return self.session.section(self.store.put, target, body, clock.monotonic())


class _Counting:
    """The compiled path, and how often it did the whole call."""

    def __init__(self, usual: Any) -> None:
        self.done: Counter[str] = Counter()
        for name in ("send", "receive", "receive_exact", "take"):
            setattr(self, name, self._counted(name, getattr(usual, name)))

    def _counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any) -> Any:
            done = call(*args)
            self.done[name] += done is not None and not (name == "send" and done is False)
            self.done["picked"] += type(done) is tuple and name == "send"
            self.done["parked"] += done is False and name == "take"
            self.done["owed"] += type(done) is list and done[2] is not None
            return done

        return counted


# -- histories ------------------------------------------------------------------------------------


def some_value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randrange(12 if depth < 4 else 9)
    if kind == 0:
        return rng.choice([None, True, False, 0.0, -0.0, float("inf"), 1.5, rng.random()])
    if kind < 3:
        bits = rng.choice([3, 5, 7, 8, 15, 16, 31, 32, 62, 63])
        return rng.choice([1, -1]) * rng.getrandbits(bits) + rng.choice([0, 0, 1, -1])
    if kind < 7:
        length = rng.choice([0, 1, 5, 31, 32, 40, 255, 256, 300])
        return rng.choice(["x", "é", "\u20ac", "\U0001f600", "\0"]) * length
    if kind < 9:
        return bytes(rng.choice([0, 1, 15, 16, 255, 256, 1000]))
    count = rng.choice([0, 1, 3, 15, 16, 17])
    if kind == 9:
        return {f"k{i}": some_value(rng, depth + 1) for i in range(count)}
    values = [some_value(rng, depth + 1) for _ in range(count)]
    return values if kind == 10 else tuple(values)


REFUSED = [{1, 2}, 2**64, -(2**63) - 1, "\ud800", object, bytearray(b"x"), {1: 2}]


def some_message(rng: random.Random) -> dict[str, Any]:
    kind = rng.randrange(20)
    if kind < 8:
        return {"type": "chat.message", "text": "hello", "id": rng.randrange(1000)}
    if kind == 8:
        return {}
    if kind == 9:
        return {"body": rng.randbytes(rng.choice([1000, 2040, 2060, 6000, 19_000, 70_000]))}
    if kind == 10:
        return {"bad": rng.choice(REFUSED)}
    return {f"key{i}" * rng.choice([1, 9]): some_value(rng) for i in range(rng.randrange(5))}


def some_word(rng: random.Random, store: Any) -> int:
    """A word that calls look at."""
    words, layout = store.words, store.layout
    kind = rng.randrange(3)
    if kind == 0:
        return rng.choice(
            [at.S_DIRTY, at.S_ENDS, at.S_SEQ, at.S_LIVE, at.S_MARK, at.S_BIGGEST, at.S_LIMIT]
        )
    if kind == 1 or not words[at.S_LIVE]:
        high = max(min(words[at.S_TABLES + at.T_HIGH], layout.queues.rows), 1)
        row = layout.queues.base + rng.randrange(high) * at.QUEUE_WORDS
        return row + rng.choice(
            [at.R_GENERATION, at.Q_FIRST, at.Q_LAST, at.Q_PENDING, at.Q_SENT, at.Q_WAITING]
            + [at.Q_WAITERS, at.Q_WAITERS + 16, at.Q_RUNG, at.Q_QUICK, at.Q_OWED]
        )
    return layout.log + rng.randrange(200)


def some_change(rng: random.Random, store: Any, word: int) -> int:
    """What a word is damaged to."""
    found = store.words[word]
    kind = rng.randrange(5)
    if kind == 0:
        return found ^ 1 << rng.randrange(64)
    if kind == 1:
        return (found + rng.choice([-8, -2, -1, 1, 2, 8])) % 2**64
    if kind == 2:
        return rng.getrandbits(64)
    if kind == 3:
        return store.layout.log + 2 * rng.randrange(100)
    return rng.choice(VALUES)


def some_call(
    rng: random.Random, store: Any, damaged: bool
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    kind = rng.randrange(100)
    channel = rng.choice(NORMAL)
    if damaged and kind < 6:
        word = some_word(rng, store)
        return Twin.damage, (word, some_change(rng, store, word))
    if kind < 9:
        rung = rng.choice([0.0, START, clock.monotonic()])
        hints = rng.randrange(2), rng.randrange(3) > 0, rung
        return Twin.hint, (channel, *hints, rng.choice([0, 5, 200]))
    if kind < 45:
        to = rng.choice(NORMAL + SPECIFIC) if rng.randrange(4) else "a"
        return Twin.send, (to, some_message(rng))
    if kind < 60:
        return Twin.receive, (channel,)
    if kind < 70:
        return Twin.exact, (channel,)
    if kind < 82:
        waiter_id = rng.choice([1, 5, 63, 64, 200, 1087])
        waiter_id += rng.choice([0, WOKEN, WOKEN + LEAVING])
        return Twin.wait, (channel, rng.choice([0, waiter_id, waiter_id]))
    if kind < 84:
        return Twin.receive, (*rng.sample(NORMAL, 2), "x!")
    if kind < 86:
        return Twin.receive, (rng.choice(["x!", "y!"]),)
    if kind < 88:
        return Twin.leave, (channel, rng.choice([1, 5, 63, 64, 200, 1087]))
    if kind < 90:
        return Twin.put, (
            channel,
            rng.choice([b"", b"\x80", b"\xc1\xc1", b"\x81\xa1", b"\xcc\x01"]),
        )
    if kind < 91:
        return Twin.send_or_park, (rng.choice(["tiny", "a", "b"]), rng.choice([1, 5, 64, 1087]))
    if kind < 92:
        return Twin.group_add, (rng.choice(NORMAL + SPECIFIC),)
    if kind < 94:
        return Twin.group_send, (some_message(rng),)
    if kind < 97:
        return Twin.upkeep, ()
    return (Twin.reclaim, ()) if kind < 99 else (Twin.flush, ())


@contextlib.contextmanager
def steered() -> Iterator[Clock]:
    """A clock for both twins."""
    steady = Clock()
    with mock.patch.object(clock, "monotonic", steady):
        yield steady


def history(number: int, damaged: bool, steps: int = STEPS) -> Counter[str]:
    """Let twins do the same, and raise AssertionError where they differ. Returns what the compiled
    path did, by call; under "damage" the damaged words, and under "error" the exceptions."""
    original, pair = clock.monotonic, next(_numbers)
    # Made with the real clock in its place: that is how the compiled path knows it.
    with mock.patch.object(clock, "monotonic", original):
        python = Twin(f"python{pair}", compiled=False)
        compiled = Twin(f"compiled{pair}", compiled=True)
    try:
        return _compared(python, compiled, number, damaged, steps)
    finally:
        for twin in (python, compiled):
            twin.layer.close()


def _compared(python: Twin, compiled: Twin, number: int, damaged: bool, steps: int) -> Counter[str]:
    rng = random.Random(f"{number} {damaged}")
    told: list[str] = []
    counts: Counter[str] = Counter()
    with steered() as steady:
        for twin in (python, compiled):
            twin.flush()  # with the same time in both
            twin.store.words[at.S_COUNTER] = int(START * 1e9)
            for word in (at.S_LOCK_WAITS, at.S_LOCK_WAITED, at.S_LOCK_LONGEST):
                twin.store.words[word] = 0
            twin.store.doubles[twin.attachment.process + at.P_ATTACHED] = START
            twin.store.words[twin.attachment.process + at.P_GENERATION] = 7
        assert python.memory() == compiled.memory()
        for step in range(steps):
            if not rng.randrange(12):
                steady.now += rng.choice([0.00002, 0.00002, 0.0001, 0.001, 0.003, 1.0, 30.0, 61.0])
            call, args = some_call(rng, python.store, damaged)
            told.append(f"{step}: {call.__name__}{args!r:.200} at {steady.now}")
            answers = [twin.outcome(call, *args) for twin in (python, compiled)]
            story = "\n".join([f"history {number}, damaged: {damaged}", *told[-12:]])
            assert answers[0] == answers[1], f"{answers[0]:.300} != {answers[1]:.300}\n{story}"
            rings = python.rings[-3:], compiled.rings[-3:]
            assert python.rings == compiled.rings, f"rang {rings[0]} and {rings[1]}\n{story}"
            assert compiled.lock_holder() == 0, f"the lock is held\n{story}"
            left, right = python.memory(), compiled.memory()
            if left != right:
                pairs = zip(memoryview(left).cast("Q"), memoryview(right).cast("Q"))
                words = [FIRST + i for i, (one, other) in enumerate(pairs) if one != other]
                raise AssertionError(f"words {words[:20]} differ\n{story}")
            counts["damage"] += call is Twin.damage
            counts["error"] += ": " in answers[0] and answers[0][:1].isupper()
    counts.update(compiled.session.usual.done)
    return counts


def histories(numbers: range) -> Counter[str]:
    """Histories, every second one with damage; what the compiled path did in all of them."""
    counts: Counter[str] = Counter()
    for number in numbers:
        counts += history(number, damaged=number % 2 == 1)
    return counts


if __name__ == "__main__":
    assert native.LOADED, native.why_not
    logging.disable()
    print(dict(histories(range(int(sys.argv[1])))))
