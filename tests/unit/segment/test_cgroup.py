"""What a memory cgroup leaves: growth stops before the kernel has to kill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from asgi_ipc.segment import cgroup

MEBIBYTE = 2**20


class Folders:
    """Cgroups in the order in which they are asked, as files of numbers."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.made: list[tuple[str, str]] = []

    def add(self, limit: object, used: int, **stat: int) -> None:
        folder = self.root / str(len(self.made))
        folder.mkdir()
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        if stat:
            lines = (f"{name} {value}\n" for name, value in stat.items())
            (folder / "memory.stat").write_text("anon 5\n" + "".join(lines) + "file 7\n")
        self.made.append((str(folder / "memory.max"), str(folder / "memory.current")))


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folders:
    made = Folders(tmp_path)
    monkeypatch.setattr(cgroup, "_cgroup_files", lambda: iter(made.made))
    return made


def test_without_a_cgroup_all_is_allowed(folders: Folders) -> None:
    assert cgroup.full_cgroup(1 << 50) is None


@pytest.mark.parametrize("limit", ["max", 1 << 62])
def test_without_a_limit_all_is_allowed(folders: Folders, limit: object) -> None:
    folders.add(limit, 1 << 40)
    assert cgroup.full_cgroup(1 << 50) is None


def test_a_margin_stays_free(folders: Folders) -> None:
    folders.add(1000 * MEBIBYTE, 900 * MEBIBYTE)
    assert cgroup.full_cgroup(84 * MEBIBYTE) is None
    assert cgroup.full_cgroup(84 * MEBIBYTE + 1)


def test_the_margin_of_a_small_cgroup_is_a_tenth(folders: Folders) -> None:
    folders.add(50 * MEBIBYTE, 40 * MEBIBYTE)
    assert cgroup.full_cgroup(5 * MEBIBYTE) is None
    assert cgroup.full_cgroup(5 * MEBIBYTE + 1)


def test_what_the_kernel_gives_up_before_it_kills_is_free(folders: Folders) -> None:
    folders.add(1000 * MEBIBYTE, 1000 * MEBIBYTE, inactive_file=100 * MEBIBYTE)
    assert cgroup.full_cgroup(84 * MEBIBYTE) is None
    assert cgroup.full_cgroup(85 * MEBIBYTE)


@pytest.mark.parametrize("name", ["active_file", "slab_reclaimable"])
def test_what_is_in_use_can_be_had_too_but_for_a_margin(folders: Folders, name: str) -> None:
    """A file that is read again and again, as far as programs do not run from it."""
    folders.add(1000 * MEBIBYTE, 1000 * MEBIBYTE, **{name: 100 * MEBIBYTE})
    assert cgroup.full_cgroup(68 * MEBIBYTE) is None
    assert cgroup.full_cgroup(68 * MEBIBYTE + 1)


def test_of_little_that_is_in_use_half_can_be_had(folders: Folders) -> None:
    folders.add(1000 * MEBIBYTE, 984 * MEBIBYTE, active_file=10 * MEBIBYTE)
    assert cgroup.full_cgroup(5 * MEBIBYTE) is None
    assert cgroup.full_cgroup(5 * MEBIBYTE + 1)


def test_version_1_counts_the_cgroups_inside(folders: Folders) -> None:
    figures = {"inactive_file": MEBIBYTE, "total_inactive_file": 100 * MEBIBYTE}
    folders.add(1000 * MEBIBYTE, 1000 * MEBIBYTE, **figures)
    assert cgroup.full_cgroup(84 * MEBIBYTE) is None
    assert cgroup.full_cgroup(84 * MEBIBYTE + 1)


def test_what_is_shared_memory_or_a_program_s_cannot_be_had(folders: Folders) -> None:
    figures = dict.fromkeys(("shmem", "file", "inactive_anon", "active_anon"), 900 * MEBIBYTE)
    folders.add(1000 * MEBIBYTE, 990 * MEBIBYTE, **figures)
    assert cgroup.full_cgroup(1)


def test_the_tightest_of_nested_cgroups_decides(folders: Folders) -> None:
    folders.add("max", 0)
    folders.add(1000 * MEBIBYTE, 990 * MEBIBYTE)
    folders.add(4000 * MEBIBYTE, 0)
    assert cgroup.full_cgroup(MEBIBYTE) == (str(folders.root / "1"), 1000 * MEBIBYTE)


def test_a_cgroup_that_cannot_be_read_is_passed_over(folders: Folders) -> None:
    folders.made.append(("/nonexistent/memory.max", "/nonexistent/memory.current"))
    folders.add("no number", 0)
    assert cgroup.full_cgroup(1 << 40) is None


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "0::/a/b",
            [
                "/sys/fs/cgroup/a/b/memory.max",
                "/sys/fs/cgroup/a/memory.max",
                "/sys/fs/cgroup/memory.max",
            ],
        ),
        ("0::/", ["/sys/fs/cgroup/memory.max"]),
        (
            "7:cpu,memory:/a",
            [
                "/sys/fs/cgroup/memory/a/memory.limit_in_bytes",
                "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            ],
        ),
        ("3:cpu:/a", []),
        ("nonsense", []),
    ],
)
def test_where_the_limits_of_both_versions_stand(
    line: str, expected: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cgroup").write_text(line + "\n")

    def open_ours(path: str, *arguments: Any) -> Any:
        assert path == "/proc/self/cgroup"
        return (tmp_path / "cgroup").open(*arguments)

    monkeypatch.setattr(cgroup, "open", open_ours, raising=False)
    found = [limit for limit, _ in cgroup._cgroup_files()]
    assert found == expected
