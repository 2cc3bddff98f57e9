"""The hash table behind queues, groups and memberships, against a dict."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgi_ipc.errors import CorruptStore
from asgi_ipc.store.layout import (
    R_BUCKET,
    R_CHAIN,
    R_GENERATION,
    R_KEY,
    T_FREE,
    T_HIGH,
    T_RESERVED,
    T_USED,
    WORD,
    TableMap,
)
from asgi_ipc.store.table import Table

from ..support import KIB, Reserve, chain, examples

BASE = 512  # words; a table begins on a page
NAME = 6  # the word of the name, in rows of ROW_WORDS
SALT = 4
VALUE = 5
ROW_WORDS = 20
ROWS = 300


def make_table(rows: int = ROWS, reserve: Any = None, salted: bool = True) -> Table:
    buffer = bytearray((BASE + rows * ROW_WORDS) * WORD)
    words = memoryview(buffer).cast("Q")
    layout = TableMap(state=8, base=BASE, words=ROW_WORDS, rows=rows)
    reserve = reserve or Reserve()
    return Table("things", buffer, words, layout, NAME, reserve, SALT if salted else None)


def insert(table: Table, name: bytes, salt: int = 0, value: int = 0) -> int:
    assert table.ensure_room()
    return table.insert(name, generation=1, fields={SALT: salt, VALUE: value}, salt=salt)


def word(table: Table, at: int) -> int:
    return table._words[at]


def whole(table: Table) -> set[bytes]:
    """The names in the table. Checks all derived words."""
    rows = list(table.rows())
    free = chain(table._words, word(table, table.state + T_FREE), R_CHAIN)
    assert table.used == len(rows)
    assert sorted(rows + free) == [BASE + i * ROW_WORDS for i in range(table.high)]
    reached = []
    for row in range(BASE, BASE + table.high * ROW_WORDS, ROW_WORDS):
        reached += chain(table._words, word(table, row + R_BUCKET), R_CHAIN)
    assert sorted(reached) == rows
    return {table.name(row) for row in rows}


def filled(number: int, **options: Any) -> Table:
    table = make_table(**options)
    for i in range(number):
        insert(table, b"name %d" % i)
    return table


# -- against a dict -------------------------------------------------------------------------------

Key = tuple[bytes, int]


def keys() -> st.SearchStrategy[Key]:
    return st.tuples(st.sampled_from([b"%d" % i for i in range(40)]), st.integers(0, 2))


@examples(200)
@given(st.lists(st.tuples(st.sampled_from("iiirb"), keys()), max_size=300))
def test_it_is_a_dict(steps: list[tuple[str, Key]]) -> None:
    table = make_table()
    model: dict[Key, int] = {}
    for number, (step, (name, salt)) in enumerate(steps):
        row = table.find(name, salt)
        assert bool(row) == ((name, salt) in model)
        if step == "i" and not row:
            insert(table, name, salt, number)
            model[name, salt] = number
        elif step == "r" and row:
            table.remove(row)
            del model[name, salt]
        elif step == "b":
            table.rebuild()
    found = {
        (table.name(row), word(table, row + SALT)): word(table, row + VALUE) for row in table.rows()
    }
    assert found == model
    whole(table)


def test_rows_and_buckets_grow_one_at_a_time() -> None:
    table = make_table()
    for i in range(ROWS):
        insert(table, b"name %d" % i)
        assert table.high == i + 1
        assert all(table.find(b"name %d" % j) for j in range(i + 1))
    whole(table)


def test_a_removed_row_is_used_again() -> None:
    table = filled(10)
    row = table.find(b"name 3")
    table.remove(row)
    assert insert(table, b"another") == row
    assert table.high == 10
    assert whole(table) == {b"name %d" % i for i in range(10) if i != 3} | {b"another"}


def test_a_row_that_is_used_again_starts_with_zeros() -> None:
    table = make_table()
    table.remove(insert(table, b"n" * 99, salt=5, value=7))
    row = insert(table, b"m")
    assert word(table, row + VALUE) == 0
    assert table.name(row) == b"m"
    assert not any(word(table, at) for at in range(row + NAME + 1, row + ROW_WORDS))


def test_the_longest_name() -> None:
    table = make_table()
    row = insert(table, b"n" * 99)
    assert table.find(b"n" * 99) == row
    assert table.find(b"n" * 98) == 0
    assert table.name(row) == b"n" * 99


def test_equal_names_are_told_apart_by_their_salt() -> None:
    table = make_table()
    rows = {insert(table, b"same", salt) for salt in range(5)}
    assert len(rows) == 5
    assert {table.find(b"same", salt) for salt in range(5)} == rows
    assert table.find(b"same", 6) == 0


def test_names_of_one_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asgi_ipc.store.table.crc32", lambda name, salt=0: 7)
    table = make_table()
    for i in range(20):
        insert(table, b"%02d" % i)
    for i in range(0, 20, 3):
        table.remove(table.find(b"%02d" % i))
    assert whole(table) == {b"%02d" % i for i in range(20) if i % 3}
    assert all(bool(table.find(b"%02d" % i)) == bool(i % 3) for i in range(20))


def test_an_empty_table_finds_nothing() -> None:
    assert make_table().find(b"name") == 0
    assert list(make_table().rows()) == []


# -- memory ---------------------------------------------------------------------------------------


def test_memory_is_reserved_before_a_row_is_used() -> None:
    reserve = Reserve()
    table = make_table(rows=2000, reserve=reserve)
    for i in range(2000):
        row = insert(table, b"%d" % i)
        end = max(offset + length for offset, length in reserve.granted)
        assert (row + ROW_WORDS) * WORD <= end
    assert len(reserve.granted) <= 6


def test_what_is_reserved_is_contiguous_and_not_reserved_twice() -> None:
    reserve = Reserve()
    filled(2000, rows=2000, reserve=reserve)
    expected = BASE * WORD
    for offset, length in reserve.granted:
        assert offset == expected
        expected += length
    assert expected <= (BASE + 2000 * ROW_WORDS) * WORD + 4 * KIB


def test_without_memory_there_is_no_room_and_nothing_changes() -> None:
    reserve = Reserve(limit=64 * KIB)
    table = make_table(rows=2000, reserve=reserve)
    while table.ensure_room():
        insert(table, b"%d" % table.used)
    assert 0 < table.used < 2000
    before = whole(table)
    assert not table.ensure_room()
    assert whole(table) == before
    table.remove(table.find(b"1"))
    assert table.ensure_room()
    insert(table, b"in its place")


def test_all_rows_can_be_used_and_no_more() -> None:
    table = filled(ROWS)
    assert not table.ensure_room()
    assert len(whole(table)) == ROWS


# -- recovery -------------------------------------------------------------------------------------


def ruin(table: Table, value: int) -> None:
    table._words[table.state + T_FREE] = table._words[table.state + T_USED] = value
    for i in range(table.high):
        for field in (R_BUCKET, R_CHAIN):
            table._words[BASE + i * ROW_WORDS + field] = value


@pytest.mark.parametrize("value", [0, BASE, 2**64 - 1])
def test_rebuild_needs_only_generations_and_keys(value: int) -> None:
    table = filled(100)
    for i in range(0, 100, 7):
        table.remove(table.find(b"name %d" % i))
    before = whole(table)
    ruin(table, value)
    table.rebuild()
    assert whole(table) == before
    assert all(table.find(name) for name in before)


def test_clear_frees_every_row() -> None:
    table = filled(100)
    table.clear()
    assert table.used == table.high == 0
    assert not any(table.find(b"name %d" % i) for i in range(100))
    insert(table, b"name 5")
    assert whole(table) == {b"name 5"}


def test_clear_does_not_trust_what_is_reserved() -> None:
    """It also repairs a damaged table. Memory that is reserved is asked for again."""
    reserve = Reserve()
    table = filled(100, reserve=reserve)
    reserved = word(table, table.state + T_RESERVED)
    table._words[table.state + T_RESERVED] = 1 << 40
    table.clear()
    assert word(table, table.state + T_RESERVED) == 0
    for i in range(100):
        insert(table, b"%d" % i)
    assert reserve.granted[0] == reserve.granted[1]
    assert word(table, table.state + T_RESERVED) == reserved


def test_clear_ends_rows_that_the_count_of_rows_does_not_tell_of() -> None:
    """A process that has looked such a row up sees by its generation that it is gone."""
    table = filled(100)
    row = table.find(b"name 99")
    table._words[table.state + T_HIGH] = 3
    table.clear()
    assert table._words[row + R_GENERATION] == 0


def test_a_generation_left_beyond_the_rows_ever_used_is_no_row() -> None:
    """An insert that was killed may have left any bytes there."""
    table = filled(3)
    table._words[BASE + 3 * ROW_WORDS + R_GENERATION] = 9
    table._words[BASE + 3 * ROW_WORDS + R_BUCKET] = BASE
    insert(table, b"fourth")
    assert whole(table) == {b"name 0", b"name 1", b"name 2", b"fourth"}


# -- sweeps ---------------------------------------------------------------------------------------


def test_sweeps_visit_every_row_in_turn() -> None:
    table = filled(50)
    seen = []
    for _ in range(10):
        found = list(table.sweep(5))
        assert len(found) == 5
        seen += found
    assert sorted(seen) == list(table.rows())


def test_a_sweep_looks_at_no_row_twice() -> None:
    table = filled(3)
    assert sorted(table.sweep(100)) == list(table.rows())


def test_a_sweep_passes_over_free_rows() -> None:
    table = filled(10)
    table.remove(table.find(b"name 4"))
    assert len(list(table.sweep(10))) == 9


def test_a_sweep_of_nothing() -> None:
    assert list(make_table().sweep(5)) == []


# -- bounded work ---------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", ["find", "insert"])
def test_work_does_not_grow_with_the_number_of_rows(operation: str) -> None:
    """Chains stay short, because there are as many buckets as rows. The work is summed over many
    names, so that a single long chain does not matter."""

    def work(number: int) -> int:
        table = filled(number, rows=10_000)
        words = _Counting(table._words)
        table._words = words  # type: ignore[assignment]
        for i in range(200):
            if operation == "find":
                assert table.find(b"name %d" % (i * number // 200))
            else:
                insert(table, b"new %d" % i)
        return words.touches

    assert work(8000) < 2 * work(250)


class _Counting:
    def __init__(self, words: Any) -> None:
        self._words = words
        self.touches = 0

    def __getitem__(self, at: int) -> int:
        self.touches += 1
        return int(self._words[at])

    def __setitem__(self, at: int, value: int) -> None:
        self.touches += 1
        self._words[at] = value


# -- what cannot be right -------------------------------------------------------------------------


def test_references_that_lead_to_no_row_are_corrupt() -> None:
    table = filled(10)
    for wrong in (0, 1, BASE - ROW_WORDS, BASE + 1, BASE + 10 * ROW_WORDS, 2**64 - 1):
        with pytest.raises(CorruptStore):
            table.checked(wrong)
    assert table.checked(BASE + 9 * ROW_WORDS) == BASE + 9 * ROW_WORDS


@pytest.mark.parametrize("wrong", [1, BASE + 3, 2**64 - 1])
def test_a_chain_that_leads_out_of_the_table_is_corrupt(wrong: int) -> None:
    table = filled(10)
    for i in range(10):
        table._words[BASE + i * ROW_WORDS + R_BUCKET] = wrong
    with pytest.raises(CorruptStore):
        table.find(b"name 1")
    with pytest.raises(CorruptStore):
        for i in range(16):
            insert(table, b"another %d" % i)


def test_a_chain_that_forms_a_loop_is_corrupt() -> None:
    table = filled(10)
    for i in range(10):
        row = BASE + i * ROW_WORDS
        table._words[row + R_BUCKET] = table._words[row + R_CHAIN] = row
        table._words[row + R_KEY] = 0
    with pytest.raises(CorruptStore):
        table.find(b"absent")


def test_more_rows_than_there_can_be_are_corrupt() -> None:
    table = filled(10)
    table._words[table.state + T_HIGH] = ROWS + 1
    for call in (lambda: table.find(b"name 1"), lambda: list(table.rows()), table.ensure_room):
        with pytest.raises(CorruptStore):
            call()


def test_a_length_that_no_name_has_reads_no_further_than_a_name() -> None:
    table = filled(1)
    table._words[BASE + R_KEY] |= 2**31
    assert len(table.name(BASE)) <= 104
