"""Objects that are known while they live, for several threads and for finalizers.

The sets and dicts of `weakref` are not safe for that: another thread can change one during an
iteration, which raises RuntimeError or leaves something out. Without the GIL, two threads can even
disturb what these note about iterations. Here every step is one call of a method of a dict, which
Python promises to be safe between threads. No lock is taken, because finalizers may run anywhere.
"""

from __future__ import annotations

import weakref
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class WeakKeys(Generic[K, V]):
    """Values by objects, which are compared by identity and not kept alive. A value goes with its
    key, and must not refer to it."""

    def __init__(self) -> None:
        self.entries: dict[int, tuple[weakref.ref[K], V]] = {}

    def __setitem__(self, key: K, value: V) -> None:
        number, myself = id(key), weakref.ref(self)

        def forget(_: object) -> None:  # called before another object can get this id
            known = myself()  # weak, or the entries would keep each other alive
            if known is not None:
                known.entries.pop(number, None)

        self.entries[number] = weakref.ref(key, forget), value

    def get(self, key: K) -> V | None:
        """The value of `key`; None if it has none."""
        return _value(self.entries.get(id(key)), key)

    def pop(self, key: K) -> V | None:
        """The same, and remove it. Of several threads, only one gets it."""
        return _value(self.entries.pop(id(key), None), key)

    def __len__(self) -> int:
        return len(self.entries)

    def items(self) -> list[tuple[K, V]]:
        """All keys that live, and their values."""
        entries = self.entries.copy().values()
        return [(key, value) for ref, value in entries if (key := ref()) is not None]

    def keys(self) -> list[K]:
        """All keys that live."""
        return [key for key, _ in self.items()]

    def values(self) -> list[V]:
        """The values of all keys that live."""
        return [value for _, value in self.items()]


def _value(entry: tuple[weakref.ref[K], V] | None, key: K) -> V | None:
    """The value of an entry. An entry whose `forget` was interrupted, by a signal handler that
    raised, has stayed behind; another object may have its id now."""
    return entry[1] if entry is not None and entry[0]() is key else None
