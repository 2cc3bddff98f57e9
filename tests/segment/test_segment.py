"""An open segment: how it grows, and how it notices that it was removed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from asgi_ipc.errors import CorruptHeader
from asgi_ipc.segment import segment
from asgi_ipc.segment.cgroup import FullCgroup
from asgi_ipc.segment.opening import attach, destroy
from asgi_ipc.store.layout import PAGE, WORD
from asgi_ipc.store.store import Store

from ..forks import mount_small_shared_memory, on_linux, or_skip
from ..unit.support import KIB, drain, put, row_of
from ..waiting import LIVENESS
from .segments import attached, file_of, wants

pytestmark = on_linux  # where segments can be looked at as files


# -- growing --------------------------------------------------------------------------------------


def test_shared_memory_that_runs_full_refuses_messages_and_loses_none() -> None:
    """To touch a page for which there is no memory would kill the process with SIGBUS."""

    def run() -> Any:
        mount_small_shared_memory(1024 * KIB)
        with attached(wants("small", message_memory=16 << 20)) as (found, _):
            store = Store(found.memory, found.layout, found.reserve)
            row_of(store, "c")
            sent = 0
            while put(store, "c", sent.to_bytes(4, "big") * 250, capacity=1 << 30) >= 0:
                sent += 1
            received = drain(store, "c")
            in_order = received == [number.to_bytes(4, "big") * 250 for number in range(sent)]
            again = put(store, "c", bytes(4 * KIB))
            store.close()
            return sent, in_order, again

    sent, in_order, again = or_skip(run)
    assert sent > 400 and in_order and again == 0


def test_memory_beyond_that_of_the_cgroup_is_not_reserved(
    prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with attached(wants(prefix)) as (found, _):
        full = FullCgroup("/sys/fs/cgroup/mine", 300 << 20)
        monkeypatch.setattr(segment, "full_cgroup", lambda length: full if length > KIB else None)
        blocks = os.fstat(found.fd).st_blocks
        assert not found.reserve(found.layout.size - PAGE, PAGE)
        assert os.fstat(found.fd).st_blocks == blocks
        assert "/sys/fs/cgroup/mine, 300.0 MiB" in found.shortage()
        assert "--memory" in found.shortage() and "/dev/shm" not in found.shortage()
        monkeypatch.undo()
        assert found.reserve(found.layout.size - PAGE, PAGE)
        assert os.fstat(found.fd).st_blocks > blocks


def test_a_segment_that_was_cut_short_does_not_grow(prefix: str) -> None:
    """To grow it would make it as long as it was, with zeros in the middle."""
    with attached(wants(prefix)) as (found, _):
        os.truncate(file_of(prefix), found.layout.size - PAGE)
        with pytest.raises(CorruptHeader, match=f"{prefix}.*cut short.*destroy"):
            found.reserve(found.layout.log * WORD, PAGE)
        assert file_of(prefix).stat().st_size == found.layout.size - PAGE


# -- the end --------------------------------------------------------------------------------------


def test_a_segment_has_vanished_when_its_name_is_gone(prefix: str) -> None:
    with attached(wants(prefix)) as (found, _):
        assert not found.vanished()
        file_of(prefix).unlink()
        assert found.vanished()


def test_a_segment_has_vanished_when_its_name_means_another(prefix: str) -> None:
    with attached(wants(prefix)) as (found, _):
        destroy(prefix)
        with attached(wants(prefix)) as (other, _):
            assert found.vanished()
            assert not other.vanished()


@pytest.mark.parametrize("reused", [False, True])
def test_a_segment_that_is_left_while_its_length_is_checked_was_not_cut_short(
    prefix: str, reused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread leaves it at exit, and its descriptor may be another file's at once."""
    fstat = os.fstat
    found, index = attach(wants(prefix), LIVENESS)
    number = found.fd

    def leave_and_look(fd: int) -> os.stat_result:
        monkeypatch.setattr(os, "fstat", fstat)
        found.leave(index)
        if reused:
            with open(tmp_path / "other", "wb") as other:
                os.dup2(other.fileno(), number)
        return fstat(fd)

    monkeypatch.setattr(os, "fstat", leave_and_look)
    try:
        with pytest.raises(ValueError, match="closed"):
            found.check_length()
    finally:
        if reused:
            os.close(number)
