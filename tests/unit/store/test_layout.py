"""The memory map: no two words share a place, the promised numbers fit, and any change of the map
is a new version."""

from __future__ import annotations

import hashlib
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_ipc.names import MAX_NAME
from asgi_ipc.options import MAX_MEMORY, MIN_MEMORY
from asgi_ipc.store import layout
from asgi_ipc.store.layout import (
    H_MAGIC,
    H_VERSION,
    L_CHECK,
    L_EXPIRES,
    L_LENGTH,
    L_LOCALS,
    L_NEXT,
    L_PREV,
    L_QUEUE,
    L_SENT,
    L_SEQ,
    L_SIZE,
    L_STATE,
    LOCK_BYTES,
    MAGIC,
    MAX_LOCALS,
    MAX_PROCESSES,
    MAX_WAITERS,
    NAME_WORDS,
    PAGE,
    PROCESS_WORDS,
    RECORD,
    RECORD_WORDS,
    TABLE_WORDS,
    VERSION,
    WAITER_SET_WORDS,
    WAITER_WORDS,
    WORD,
    Layout,
    record_words,
)

from ..support import examples

MEBIBYTE = 2**20

# The map of each version. After a change of the map, increment VERSION and add a line.
DIGESTS = {
    1: "afa769751829e3dd7d5a81386f0c43d7489cc4dd21ca90943b90fc7149be2175",
    2: "ba5d305f497f1a415586490c93f65e9e6c20b33b21f635ce930453be962476a6",
}


def everything() -> str:
    """All numbers of the module, and where the regions of some segments are."""
    parts = [
        f"{name} = {value!r}"
        for name, value in sorted(vars(layout).items())
        if name.isupper() and name != "VERSION" and isinstance(value, (int, bytes, tuple))
    ]
    parts.append(RECORD.format)
    for sizes in ((100 * MEBIBYTE, 20 * MEBIBYTE, 4 * MEBIBYTE), (MIN_MEMORY, MIN_MEMORY, 1024)):
        made = vars(Layout(*sizes))
        parts += [f"{name} = {tuple_or_number(made[name])!r}" for name in sorted(made)]
    return "\n".join(parts)


def tuple_or_number(value: Any) -> Any:
    return tuple(value) if isinstance(value, tuple) else value


def test_the_map_does_not_change_without_another_version() -> None:
    digest = hashlib.sha256(everything().encode()).hexdigest()
    assert VERSION in DIGESTS, f"a new version: add {VERSION}: {digest!r} to DIGESTS"
    assert digest == DIGESTS[VERSION], (
        f"layout.py has changed: give it another VERSION, and add that with {digest!r} to DIGESTS"
    )
    assert len(set(DIGESTS.values())) == len(DIGESTS)


def test_magic_and_version_are_where_every_version_looks_for_them() -> None:
    assert (H_MAGIC, H_VERSION) == (0, 1)
    assert struct.pack("=Q", MAGIC) == b"asgi_ipc"


# -- words ----------------------------------------------------------------------------------------

WIDE = {
    "H_LOCK": LOCK_BYTES // WORD,
    "S_DROPS": 8,
    "S_TABLES": 3 * TABLE_WORDS,
    "Q_WAITERS": WAITER_SET_WORDS,
    "Q_NAME": NAME_WORDS,
    "G_NAME": NAME_WORDS,
    "M_NAME": NAME_WORDS,
}


def words_of(prefixes: str) -> dict[str, range]:
    """The words that the constants with these prefixes stand for."""
    return {
        name: range(value, value + WIDE.get(name, 1))
        for name, value in vars(layout).items()
        if name[1:2] == "_" and name[0] in prefixes and isinstance(value, int)
    }


@pytest.mark.parametrize(
    ("prefixes", "limit"),
    [
        ("HS", PAGE // WORD),
        ("T", TABLE_WORDS),
        ("P", PROCESS_WORDS),
        ("W", WAITER_WORDS),
        ("RQ", layout.QUEUE_WORDS),
        ("RG", layout.GROUP_WORDS),
        ("RM", layout.MEMBER_WORDS),
    ],
)
def test_no_two_words_lie_in_one_place(prefixes: str, limit: int) -> None:
    found = words_of(prefixes)
    assert len(found) >= 3
    taken = [word for words in found.values() for word in words]
    assert len(taken) == len(set(taken))
    assert 0 <= min(taken) and max(taken) < limit


def test_the_record_is_what_its_offsets_say() -> None:
    record = bytearray(RECORD_WORDS * WORD)
    RECORD.pack_into(record, 0, 11, 12, 13, 14, 15, 16, 17, 18.5, 19.5, 20, 21)
    words, halves = memoryview(record).cast("Q"), memoryview(record).cast("I")
    doubles = memoryview(record).cast("d")
    assert (halves[L_SIZE], halves[L_STATE]) == (11, 12)
    assert (words[L_SEQ], words[L_NEXT], words[L_PREV]) == (13, 14, 15)
    assert (halves[L_QUEUE], halves[L_LENGTH]) == (16, 17)
    assert (doubles[L_EXPIRES], doubles[L_SENT]) == (18.5, 19.5)
    assert (halves[L_LOCALS], halves[L_CHECK]) == (20, 21)
    assert RECORD.size == RECORD_WORDS * WORD


def test_every_name_fits() -> None:
    assert NAME_WORDS * WORD >= MAX_NAME


@pytest.mark.parametrize("body", range(0, 40))
def test_a_record_has_room_for_its_body(body: int) -> None:
    for local_parts in (0, 1, 15, 16, 100):
        words = record_words(body, local_parts)
        assert words % 2 == 0
        assert 0 <= words * WORD - RECORD.size - body - local_parts < 2 * WORD


# -- regions --------------------------------------------------------------------------------------


def sizes() -> st.SearchStrategy[int]:
    return st.integers(MIN_MEMORY, 256 * MEBIBYTE)


@examples(200)
@given(sizes(), sizes(), st.integers(1024, 8 * MEBIBYTE))
def test_regions_do_not_overlap(message_memory: int, group_memory: int, largest: int) -> None:
    made = Layout(message_memory, group_memory, largest)
    regions = [
        (0, PAGE // WORD),
        (made.processes, made.processes + MAX_PROCESSES * PROCESS_WORDS),
        (made.waiters, made.waiters + MAX_WAITERS * WAITER_WORDS),
        (made.queues.base, made.queues.base + made.queues.rows * made.queues.words),
        (made.groups.base, made.groups.base + made.groups.rows * made.groups.words),
        (made.members.base, made.members.base + made.members.rows * made.members.words),
        (made.log, made.log_end),
    ]
    for (start, end), (following, _) in zip(regions, regions[1:]):
        assert start < end <= following
    assert made.size == made.log_end * WORD
    assert made.waiters * WORD < made.fixed_bytes <= made.queues.base * WORD


@examples(200)
@given(sizes(), sizes(), st.integers(1024, 8 * MEBIBYTE))
def test_what_is_reserved_in_pages_begins_at_one(
    message_memory: int, group_memory: int, largest: int
) -> None:
    made = Layout(message_memory, group_memory, largest)
    places = [made.queues.base, made.groups.base, made.members.base, made.log, made.log_end]
    assert all(place * WORD % PAGE == 0 for place in places)


@examples(200)
@given(sizes(), sizes(), st.integers(1024, 8 * MEBIBYTE))
def test_the_log_is_larger_than_what_may_live_in_it(
    message_memory: int, group_memory: int, largest: int
) -> None:
    """Live records take up to three quarters, and room for two of the largest is left."""
    made = Layout(message_memory, group_memory, largest)
    room = made.log_end - made.log
    assert made.max_live == message_memory // WORD
    assert made.max_record == record_words(largest, made.max_locals)
    assert made.max_live + 2 * made.max_record <= room
    assert made.max_live * 4 <= room * 3


@examples(200)
@given(st.integers(MIN_MEMORY, 16 * MEBIBYTE), st.integers(1024, 8 * MEBIBYTE))
def test_the_largest_message_fits_with_its_local_parts_or_not_at_all(
    message_memory: int, largest: int
) -> None:
    made = Layout(message_memory, MIN_MEMORY, largest)
    assert layout.LEAST_LOCALS <= made.max_locals <= MAX_LOCALS
    assert made.largest_fits == (largest + layout.OVERHEAD <= message_memory)
    assert not made.largest_fits or made.max_record <= made.max_live


def test_the_tables_have_words_of_their_own() -> None:
    made = Layout(MIN_MEMORY, MIN_MEMORY, 1024)
    states = {table.state for table in (made.queues, made.groups, made.members)}
    assert len(states) == 3


# -- numbers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [10**6, MEBIBYTE, 20 * MEBIBYTE])
def test_at_least_4000_memberships_for_each_megabyte(memory: int) -> None:
    made = Layout(100 * MEBIBYTE, memory, 4 * MEBIBYTE)
    assert made.members.rows >= 4000 * memory // 10**6
    assert made.groups.rows >= made.members.rows
    assert made.queues.rows >= made.members.rows


def test_at_least_1024_waiters() -> None:
    assert WAITER_SET_WORDS * 64 == MAX_WAITERS
    assert len(range(1, MAX_WAITERS)) >= 1024  # 0 stands for nobody


def test_references_in_a_record_have_32_bits() -> None:
    made = Layout(MAX_MEMORY // 2, MIN_MEMORY, 4 * MEBIBYTE)
    assert made.log_end < 2**32
