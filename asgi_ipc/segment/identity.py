"""Words that read 0 in the child of every fork, so that a process notices that it is a new one.

Python's fork handlers do not run where a program forks in C, as uWSGI does. The kernel wipes the
page of such a word in the child (MADV_WIPEONFORK, since Linux 4.14), so a look costs next to
nothing. Where it does not (macOS, some emulators), each look compares the process id, which costs a
system call. This module must not know what a new process has to do.
"""

from __future__ import annotations

import mmap
import os
import sys
from typing import Protocol

from ..store.layout import WORD

_WIPE_ON_FORK = 18  # of Linux; `mmap` names it since Python 3.13
_NO_ADVICE = -1


class Word(Protocol):
    """A number at the index (): a view without dimensions is read faster than a view with one."""

    def __getitem__(self, index: tuple[()], /) -> float: ...

    def __setitem__(self, index: tuple[()], value: float, /) -> None: ...


class CheckedWord:
    """The same for kernels that do not wipe: it compares the process id."""

    def __init__(self) -> None:
        self._value, self._pid = 0.0, os.getpid()

    def __getitem__(self, index: tuple[()], /) -> float:
        return self._value if self._pid == os.getpid() else 0.0

    def __setitem__(self, index: tuple[()], value: float, /) -> None:
        self._value, self._pid = value, os.getpid()


def wiped_word() -> Word:
    """A new word of this process. It is 0.0 at first, and in every child."""
    if sys.platform == "linux":
        page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        # An emulator may accept any advice and ignore it.
        if _follows(page, _WIPE_ON_FORK) and not _follows(page, _NO_ADVICE):
            return memoryview(page)[:WORD].cast("d", ())
    return CheckedWord()


def _follows(page: mmap.mmap, advice: int) -> bool:
    try:
        page.madvise(advice)
    except OSError:
        return False
    return True
