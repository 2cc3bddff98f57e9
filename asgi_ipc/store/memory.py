"""The memory of a segment as the store sees it: one buffer, as words, halves and doubles."""

from __future__ import annotations

from typing import Any

from .layout import S_COUNTER, Layout


class Memory:
    """`buffer`, laid out by `layout`: shared memory, or in tests a bytearray."""

    def __init__(self, buffer: Any, layout: Layout) -> None:
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
        """Let go of the memory, which cannot be used after that."""
        self.words.release()
        self.halves.release()
        self.doubles.release()
