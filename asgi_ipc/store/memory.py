"""The memory of a segment as the store sees it: one buffer, as words, halves and doubles.

It must not know what the words are for, except the one counter.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from .layout import S_COUNTER, Layout

# Makes bytes usable (offset, length), and returns whether that was possible.
Reserve = Callable[[int, int], bool]
# Why that was not possible the last time, and the remedy.
Shortage = Callable[[], str]


class Buffer(Protocol):
    """Bytes that can be read, written and viewed: a `mmap`, or a bytearray in tests."""

    def __len__(self) -> int: ...
    def __getitem__(self, place: slice, /) -> bytes: ...
    def __setitem__(self, place: slice, value: bytes, /) -> None: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...


class Memory:
    """`buffer`, laid out by `layout`."""

    def __init__(self, buffer: Buffer, layout: Layout) -> None:
        self.buffer = buffer
        self.layout = layout
        view = memoryview(buffer)
        self.words: memoryview[int] = view.cast("B").cast("Q")
        self.halves: memoryview[int] = view.cast("B").cast("I")
        self.doubles: memoryview[float] = view.cast("B").cast("d")

    def advance_counter(self) -> int:
        """Advance the one counter behind generations, versions and epochs; return its new value."""
        words = self.words
        value = words[S_COUNTER] + 1
        words[S_COUNTER] = value
        return value

    def close(self) -> None:
        """Release the memory, which cannot be used after that."""
        self.words.release()
        self.halves.release()
        self.doubles.release()
