"""What the unit tests share: a store on a bytearray, its contents as plain values, a check of what
must always be true of it, and a store that dies at the n-th write. Time is always an argument.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

from hypothesis import HealthCheck, settings

import asgi_ipc.store.layout
import asgi_ipc.store.memory
from asgi_ipc.store import recovery
from asgi_ipc.store.groups import Groups
from asgi_ipc.store.layout import (
    CLEAN,
    COUNT,
    G_COUNT,
    G_FIRST,
    L_NEXT,
    L_PREV,
    L_QUEUE,
    L_SEQ,
    L_SIZE,
    L_STATE,
    LIVE,
    M_EXPIRES,
    M_GROUP,
    M_NEXT,
    M_PREV,
    M_QUEUE,
    M_QUEUE_GENERATION,
    M_QUEUE_NEXT,
    M_QUEUE_PREV,
    MAX_PROCESSES,
    P_GENERATION,
    P_OWNED,
    P_PID,
    Q_FIRST,
    Q_FIRST_MEMBER,
    Q_LAST,
    Q_MEMBERS,
    Q_NEXT_OWNED,
    Q_OWNER,
    Q_PENDING,
    R_CHAIN,
    R_GENERATION,
    S_DIRTY,
    S_LIVE,
    T_FREE,
    WORD,
    Layout,
)
from asgi_ipc.store.plans import Plan, Planner
from asgi_ipc.store.queues import Target
from asgi_ipc.store.store import Store

KIB = 1024
FOREVER = 1e9  # a time that no test comes to
NOW = 1000.0
LATER = NOW + 100

FULL_LENGTH = os.environ.get("ASGI_IPC_TEST_LENGTH") == "full"


def examples(number: int, **options: Any) -> settings:
    """Run `number` examples, always the same ones; ten times as many in a run at full length."""
    return settings(
        max_examples=number * 10 if FULL_LENGTH else number,
        derandomize=True,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        **options,
    )


# -- making a store -------------------------------------------------------------------------------


def small_layout(
    message_memory: int = 64 * KIB,
    group_memory: int = 16_000,
    max_message_size: int = KIB,
    max_locals: int = 256,
    queues: int | None = None,
) -> Layout:
    """The map of a segment that a test can fill; `queues` is the most queues that it can have."""
    with mock.patch.object(asgi_ipc.store.layout, "MAX_LOCALS", max_locals):
        layout = Layout(message_memory, group_memory, max_message_size)
    if queues is not None:
        layout.queues = layout.queues._replace(rows=queues)
    return layout


class Reserve:
    """What a store asks for memory. Grants `limit` bytes in all, and lists what it has granted."""

    def __init__(self, limit: int = 1 << 60) -> None:
        self.limit = limit
        self.granted: list[tuple[int, int]] = []

    def __call__(self, offset: int, length: int) -> bool:
        assert length > 0
        if length > self.limit:
            return False
        self.limit -= length
        self.granted.append((offset, length))
        return True


def make_store(
    *, reserve: Callable[[int, int], bool] | None = None, first_mark: int = 4 * KIB, **sizes: Any
) -> Store:
    """An empty store, with `first_mark` bytes of log reserved; `sizes` as for `small_layout`."""
    layout = small_layout(**sizes)
    buffer = bytearray(layout.size)
    store = Store(buffer, layout, reserve) if reserve else Store(buffer, layout)
    store.format(layout.log + first_mark // WORD, NOW)
    return store


def copy_of(store: Store) -> Store:
    """Another store with the same bytes, as another process would open it."""
    return Store(bytearray(store.buffer), store.layout)


# -- using it -------------------------------------------------------------------------------------


def target(name: str, capacity: int = 1000, expiry: float = float("inf")) -> Target:
    queue, mark, local = name.encode().partition(b"!")
    return Target(queue + mark, local, capacity, expiry)


def put(
    store: Store,
    name: str,
    body: bytes = b"body",
    now: float = NOW,
    *,
    expires: float = FOREVER,
    capacity: int = 1000,
) -> int:
    return store.put(target(name, capacity, expires - now), body, now)


def take(store: Store, name: str, now: float = NOW) -> bytes | None:
    return store.take(target(name), now)


def drain(store: Store, name: str, now: float = NOW) -> list[bytes]:
    """Take all messages of a channel, in order."""
    return list(iter(lambda: take(store, name, now), None))


def row_of(store: Store, name: str) -> int:
    """The row of the queue of `name`, made if there is none."""
    return store.bind(target(name), NOW)


def process(store: Store, index: int, now: float = NOW) -> int:
    """Attach a process. Its pid is its index plus 100."""
    return store.attach(index, 100 + index, 0, now)


def owned(store: Store, name: str, owner: int) -> int:
    """The row of a process-specific queue; `owner` becomes its owner."""
    row = row_of(store, name)
    assert store.own(row, owner) == 0
    return row


def planned(groups: Groups, group: str, now: float = NOW) -> set[str]:
    """The channels that a broadcast reaches, by a new plan."""
    return reached(groups, Planner(groups, lambda channel: 100).plan(group.encode(), now))


def reached(groups: Groups, plan: Plan | None) -> set[str]:
    """The channels that a broadcast by `plan` reaches."""
    words = groups.store.words
    return {
        (queue + local).decode()
        for queue, (row, generation, parts) in (plan.channels if plan else {}).items()
        for local in parts
        if words[row + R_GENERATION] == generation
    }


def sweep_all(store: Store, now: float) -> None:
    """Do upkeep until it has looked at every row of every table."""
    groups = Groups(store)
    for _ in range(max(store.queues.high, store.members.high) + 1):
        store.sweep(now)
        groups.sweep(now, 16)


def busy_store() -> Store:
    """Queues with and without messages, groups, owners, waiters, and things that expire soon."""
    store = make_store(first_mark=8192)
    first, second = process(store, 0), process(store, 1)
    groups = Groups(store)
    for i in range(4):
        put(store, "work", b"work %d" % i)
        put(store, "brief", b"brief %d" % i, expires=LATER)
    owned(store, "specific.a!", first)
    owned(store, "specific.b!", second)
    row_of(store, "empty")
    for i in range(3):
        put(store, f"specific.a!socket{i}", b"to a %d" % i)
        groups.add(b"chat", b"specific.a!socket%d" % i, NOW, FOREVER)
        groups.add(b"chat", b"specific.b!socket%d" % i, NOW, LATER if i else FOREVER)
    groups.add(b"alone", b"work", NOW, FOREVER)
    store.park(row_of(store, "empty"), 5)
    take(store, "work")
    return store


# -- what it holds --------------------------------------------------------------------------------


class Message(NamedTuple):
    body: bytes
    local_parts: bytes
    expires: float


class Contents(NamedTuple):
    """What a store holds, as plain values. If it is the same, two stores are the same to users."""

    messages: dict[bytes, list[Message]]
    groups: dict[bytes, dict[bytes, float]]  # group → channel → when the membership ends
    owners: dict[bytes, int]  # queue → pid

    def living(self, now: float) -> Contents:
        """The contents without what has expired, which may or may not have been dropped."""
        messages = {
            queue: [message for message in waiting if message.expires > now]
            for queue, waiting in self.messages.items()
        }
        groups = {
            group: {channel: expires for channel, expires in members.items() if expires > now}
            for group, members in self.groups.items()
        }
        return Contents(_filled(messages), _filled(groups), self.owners)


def contents(store: Store) -> Contents:
    words = store.words
    messages = {}
    owners = {}
    for row in store.queues.rows():
        name = store.queues.name(row)
        taken = [store._read(row, at) for at in records_of(store, row)]
        messages[name] = [Message(bytes(t.body), t.local_parts, t.expires) for t in taken]
        if words[row + Q_OWNER]:
            owners[name] = words[words[row + Q_OWNER] + P_PID]
    groups: dict[bytes, dict[bytes, float]] = {}
    for member in store.members.rows():
        queue = words[member + M_QUEUE]
        if words[queue + R_GENERATION] == words[member + M_QUEUE_GENERATION]:
            group = store.groups.name(words[member + M_GROUP])
            name = store.members.name(member)
            groups.setdefault(group, {})[name] = store.doubles[member + M_EXPIRES]
    return Contents(_filled(messages), _filled(groups), owners)


def _filled(things: dict[bytes, Any]) -> dict[bytes, Any]:
    return {name: thing for name, thing in things.items() if thing}


def bodies(store: Store, name: str) -> list[bytes]:
    """The bodies that are pending in a channel, without taking them."""
    return [message.body for message in contents(store).messages.get(name.encode(), [])]


def records_of(store: Store, row: int) -> list[int]:
    """Where the records of the queue at `row` are. Checks its links both ways."""
    words = store.words
    found = chain(words, words[row + Q_FIRST], L_NEXT, L_PREV)
    assert words[row + Q_LAST] == (found[-1] if found else 0)
    assert words[row + Q_PENDING] & COUNT == len(found)
    return found


def chain(words: Any, at: int, following: int, before: int | None = None) -> list[int]:
    """The references of a linked list."""
    found: list[int] = []
    while at:
        assert at not in found[-1:] and len(found) < 100_000, "a list forms a loop"
        if before is not None:
            assert words[at + before] == (found[-1] if found else 0)
        found.append(at)
        at = words[at + following]
    return found


def assert_whole(store: Store) -> None:
    """Check that all derived words agree with the primary ones."""
    words = store.words
    assert words[S_DIRTY] == CLEAN
    _assert_messages_whole(store)
    for table in (store.queues, store.groups, store.members):
        _assert_table_whole(store, table)
    _assert_groups_whole(store)
    _assert_owners_whole(store)


def _assert_messages_whole(store: Store) -> None:
    words, halves = store.words, store.halves
    linked = []
    for row in store.queues.rows():
        records = records_of(store, row)
        sequence = [words[at + L_SEQ] for at in records]
        assert sequence == sorted(set(sequence))
        assert all(halves[2 * at + L_STATE] == LIVE for at in records)
        assert all(halves[2 * at + L_QUEUE] == row for at in records)
        linked += records
    assert sorted(linked) == sorted(store.log.live_records())
    assert words[S_LIVE] & COUNT == sum(halves[2 * at + L_SIZE] for at in linked)


def _assert_table_whole(store: Store, table: Any) -> None:
    words = store.words
    rows = list(table.rows())
    assert table.used == len(rows)
    for row in rows:
        salt = words[row + M_GROUP] if table is store.members else 0
        assert table.find(table.name(row), salt) == row
    free = chain(words, words[table.state + T_FREE], R_CHAIN)
    assert sorted(rows + free) == [table.base + i * table.row_words for i in range(table.high)]


def _assert_groups_whole(store: Store) -> None:
    words = store.words
    members = set(store.members.rows())
    by_group, by_queue = set(), set()
    for row in store.groups.rows():
        found = chain(words, words[row + G_FIRST], M_NEXT, M_PREV)
        assert found and len(found) == words[row + G_COUNT]
        assert all(words[member + M_GROUP] == row for member in found)
        by_group.update(found)
    for row in store.queues.rows():
        found = chain(words, words[row + Q_FIRST_MEMBER], M_QUEUE_NEXT, M_QUEUE_PREV)
        assert len(found) == words[row + Q_MEMBERS]
        assert all(words[member + M_QUEUE] == row for member in found)
        by_queue.update(found)
    assert members == by_group == by_queue


def _assert_owners_whole(store: Store) -> None:
    words = store.words
    listed = set()
    for index in range(MAX_PROCESSES):
        row = store.process_row(index)
        if words[row + P_GENERATION]:
            owned_here = chain(words, words[row + P_OWNED], Q_NEXT_OWNED)
            assert all(words[queue + Q_OWNER] == row for queue in owned_here)
            listed.update(owned_here)
    assert listed == {row for row in store.queues.rows() if words[row + Q_OWNER]}


# -- dying in the middle --------------------------------------------------------------------------


class Killed(BaseException):
    """The process was killed: nothing that it still had to do happens."""


class Endless(BaseException):
    """An operation has accessed the memory so often that it will never end."""


class Watch:
    """Counts the accesses to a store's memory, and kills at write number `fatal` (from 0)."""

    limit = 1_000_000

    def __init__(self, fatal: int | None = None) -> None:
        self.fatal = fatal
        self.writes = 0
        self.touches = 0

    def touch(self) -> None:
        self.touches += 1
        if self.touches > self.limit:
            raise Endless

    def kills(self) -> bool:
        """Count a write; whether it, and each one after it, must not happen."""
        self.touch()
        self.writes += 1
        return self.fatal is not None and self.writes > self.fatal


class _Words:
    """A cast view of watched memory."""

    def __init__(self, view: memoryview, watch: Watch) -> None:
        self._view = view
        self._watch = watch

    def __getitem__(self, at: Any) -> Any:
        self._watch.touch()
        found = self._view[at]
        return _Words(found, self._watch) if isinstance(at, slice) else found

    def __len__(self) -> int:
        return len(self._view)

    def __setitem__(self, at: int, value: Any) -> None:
        if self._watch.kills():
            raise Killed
        self._view[at] = value


class _View:
    """What `memoryview` returns to a store that is watched."""

    def __init__(self, buffer: Any, watch: Watch) -> None:
        self._view = memoryview(buffer)
        self._watch = watch

    def cast(self, kind: str) -> Any:
        return self if kind == "B" else _Words(self._view.cast(kind), self._watch)


class _Buffer(bytearray):
    """Watched memory as bytes. A copy that is interrupted is half done."""

    watch: Watch

    def __setitem__(self, place: Any, value: Any) -> None:
        if self.watch.kills():
            half = len(value) // 2
            super().__setitem__(slice(place.start, place.start + half), value[:half])
            raise Killed
        super().__setitem__(place, value)


def under_watch(
    store: Store, fatal: int | None = None, reserve: Callable[[int, int], bool] | None = None
) -> tuple[Store, Watch]:
    """A copy of `store` that counts every access, and dies at the write `fatal`."""
    watch = Watch(fatal)
    buffer = _Buffer(store.buffer)
    buffer.watch = watch
    with _memoryview_is(lambda buffer: _View(buffer, watch)):
        watched = Store(buffer, store.layout, reserve or Reserve())
    return watched, watch


@contextmanager
def _memoryview_is(replacement: Any) -> Iterator[None]:
    with mock.patch.object(asgi_ipc.store.memory, "memoryview", replacement, create=True):
        yield


def deaths(store: Store, operation: Callable[[Store], Any], every: int = 1) -> Iterator[Store]:
    """The memory that is left if `operation` is killed at its first write, its second, and so on
    (or only at every `every`-th), until it ends. It must make more than one write."""
    fatal = 0
    while True:
        watched, watch = under_watch(store, fatal)
        try:
            operation(watched)
        except Killed:
            yield copy_of(watched)
            fatal += every
            continue
        assert watch.writes > 1, "the operation writes too little to die in the middle of it"
        return


def touches(store: Store, operation: Callable[[Store], Any]) -> int:
    """How many loads and stores `operation` needs."""
    watched, watch = under_watch(store)
    operation(watched)
    assert watch.touches
    return watch.touches


def next_holder(store: Store, now: float = NOW) -> Store:
    """Do what the next holder of the lock does first: recover a dirty store."""
    if store.words[S_DIRTY] != CLEAN:
        recovery.recover(store, now)
    return store
