"""Values by objects that are not kept alive."""

from __future__ import annotations

import gc

from asgi_ipc.attachment.weak import WeakKeys

from ...waiting import in_threads


class Key:
    def __eq__(self, other: object) -> bool:
        raise AssertionError("keys are compared by identity")

    __hash__ = None  # type: ignore[assignment]


def test_a_value_goes_with_its_key() -> None:
    known: WeakKeys[Key, int] = WeakKeys()
    first, second = Key(), Key()
    known[first], known[second] = 1, 2
    assert [known.get(first), known.get(second), known.get(Key())] == [1, 2, None]
    assert known.values() == [1, 2]
    assert [id(key) for key in known.keys()] == [id(first), id(second)]
    del first
    gc.collect()
    assert known.values() == [2] and len(known) == 1


def test_an_entry_that_was_left_behind_is_no_other_keys() -> None:
    """What a signal handler raises while a key goes is lost, and with it the call that forgets."""
    known: WeakKeys[Key, int] = WeakKeys()
    gone = Key()
    known[gone] = 1
    [left] = known.entries.values()
    del gone
    gc.collect()
    other = Key()
    for look in (known.get, known.pop):
        known.entries[id(other)] = left  # as if it had been given the same place in memory
        assert look(other) is None and known.values() == []
    known[other] = 2
    assert known.get(other) == 2 and known.pop(other) == 2


def test_one_thread_gets_what_many_pop() -> None:
    known: WeakKeys[Key, int] = WeakKeys()
    keys = [Key() for _ in range(200)]
    for number, key in enumerate(keys):
        known[key] = number
    popped = in_threads([lambda: [known.pop(key) for key in keys] for _ in range(4)])
    found = [number for numbers in popped for number in numbers if number is not None]
    assert sorted(found) == list(range(200)) and not known


def test_keys_that_come_and_go_do_not_disturb_a_listing() -> None:
    known: WeakKeys[Key, int] = WeakKeys()
    stays = Key()
    known[stays] = -1

    def come_and_go() -> None:
        for number in range(2000):
            key = Key()
            known[key] = number

    def look() -> None:
        for _ in range(2000):
            assert known.items()[0][0] is stays

    in_threads([come_and_go, come_and_go, look, look])
    gc.collect()
    assert known.values() == [-1]
