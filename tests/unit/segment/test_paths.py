"""Which prefixes can be, and the names that follow from one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from asgi_ipc.errors import InvalidOption
from asgi_ipc.segment import paths
from asgi_ipc.segment.paths import MAX_PREFIX, SUFFIX, Paths, full_prefix, prefixes


@pytest.mark.parametrize(
    "prefix",
    ["", "a/b", "/", "a b", "caf\xe9", "a\n", "a\0", "a!", "a.d", "n" * 101, None, 5, b"bytes"],
)
def test_a_prefix_that_cannot_be_a_name_is_refused(prefix: Any) -> None:
    with pytest.raises(InvalidOption, match="prefix"):
        Paths(prefix)


def test_all_files_lie_in_one_directory_beside_the_segment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paths, "SHM", str(tmp_path))
    found = Paths("mysite")
    assert found.shows and found.segment == "/asgi_ipc.mysite"
    assert found.file == str(tmp_path / "asgi_ipc.mysite")
    assert found.directory == str(tmp_path / "asgi_ipc.mysite.d")
    beside = (found.attach_lock, found.section_lock, found.members)
    assert {os.path.dirname(path) for path in beside} == {found.directory}
    assert len(set(beside)) == 3


def test_the_environment_adds_to_a_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SUFFIX, raising=False)
    assert full_prefix("mysite") == "mysite"
    monkeypatch.setenv(SUFFIX, ".test-1")
    assert full_prefix("mysite") == "mysite.test-1"


def test_segments_are_listed_by_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the directories beside them, nor what another program has there."""
    for name in ("b", "a", "c.test-1", "n" * (MAX_PREFIX + 1)):
        (tmp_path / f"asgi_ipc.{name}").touch()
    (tmp_path / "asgi_ipc.a.d").mkdir()
    (tmp_path / "asgi_ipc.link").symlink_to("asgi_ipc.a")
    (tmp_path / "another").touch()
    monkeypatch.setattr(paths, "SHM", str(tmp_path))
    monkeypatch.delenv(SUFFIX, raising=False)
    assert prefixes() == ["a", "b", "c.test-1"]
    monkeypatch.setenv(SUFFIX, ".test-1")
    assert prefixes() == ["c"]
    monkeypatch.setattr(paths, "SHM", "/nonexistent")
    assert prefixes() == []
