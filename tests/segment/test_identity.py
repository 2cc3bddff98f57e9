"""The words that read 0 in every child, however that was forked."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable

import pytest

from asgi_ipc.segment import identity
from asgi_ipc.segment.identity import CheckedWord, Word, wiped_word

from ..forks import fork_in_c, on_linux


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # 3.12 warns of pytest's watchdog
@pytest.mark.parametrize("make", [wiped_word, CheckedWord])
@pytest.mark.parametrize("fork", [os.fork, fork_in_c], ids=["python", "c"])
def test_a_word_is_0_in_a_child_until_it_is_set_there(
    make: Callable[[], Word], fork: Callable[[], int]
) -> None:
    word = make()
    assert word[()] == 0.0
    word[()] = 3.5
    child = fork()
    if not child:
        before = word[()]
        word[()] = 4.5
        os._exit(0 if (before, word[()]) == (0.0, 4.5) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert word[()] == 3.5


@on_linux
def test_linux_wipes_the_word() -> None:
    assert not isinstance(wiped_word(), CheckedWord)


def refuses(page: mmap.mmap, advice: int) -> bool:
    return False


def accepts_anything(page: mmap.mmap, advice: int) -> bool:
    return True


@pytest.mark.parametrize("kernel", [refuses, accepts_anything])
def test_a_kernel_that_does_not_wipe_is_found_out(
    monkeypatch: pytest.MonkeyPatch, kernel: Callable[[mmap.mmap, int], bool]
) -> None:
    """An old one says so; some emulators accept every advice and follow none."""
    monkeypatch.setattr(identity, "_follows", kernel)
    assert isinstance(wiped_word(), CheckedWord)
