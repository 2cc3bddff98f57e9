"""What the lock relies on in a libc, asked of glibc and of musl: every answer, after every death.

Python here is that of one libc. So the questions are asked by a C program, which is compiled for
each of them, with the numbers that `lock` has for it.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from asgi_ipc.segment import lock
from asgi_ipc.store.layout import LOCK_BYTES

from ..waiting import LIVENESS

PROGRAM = Path(__file__).with_name("robust_mutex.c")
LIBCS = {"glibc": ("cc", lock.GLIBC), "musl": ("musl-gcc", lock.MUSL)}
if (lock._FUTEX, lock._STATE, lock._LOST) == lock.MUSL:  # Alpine: its compiler knows no other libc
    LIBCS = {"musl": ("cc", lock.MUSL)}


Facts = dict[str, dict[str, str]]


def facts_of(libc: str, folder: Path) -> Facts:
    """What the program prints, by heading."""
    compiler, (futex, state, lost) = LIBCS[libc]
    if not lock.robust_mutexes():
        pytest.skip("lacking: robust mutexes")
    if shutil.which(compiler) is None:
        pytest.skip(f"lacking: {compiler}")
    numbers = {
        "PROCESS_SHARED": lock._PTHREAD_PROCESS_SHARED,
        "ROBUST": lock._PTHREAD_MUTEX_ROBUST,
        "ERRORCHECK": lock._PTHREAD_MUTEX_ERRORCHECK,
        "FUTEX": futex,
        "STATE": state,
        "LOST": lost,
        "ROOM": LOCK_BYTES,
    }
    program = folder / libc
    defined = [f"-D{name}={value}" for name, value in numbers.items()]
    subprocess.run(
        [compiler, "-pthread", "-Wall", "-Werror", *defined, "-o", program, PROGRAM], check=True
    )
    done = subprocess.run([program], check=True, capture_output=True, text=True, timeout=LIVENESS)
    facts: Facts = {}
    for line in done.stdout.splitlines():
        if line.endswith(":"):
            about = facts[line[:-1]] = {}
        else:
            name, _, value = line.rpartition(" ")
            about[name] = value
    return facts


@pytest.fixture(scope="module", params=LIBCS)
def libc(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def facts(libc: str, tmp_path_factory: pytest.TempPathFactory) -> Facts:
    return facts_of(libc, tmp_path_factory.mktemp("libc"))


def test_the_numbers_are_those_of_its_headers(facts: Facts) -> None:
    assert len(facts["header"]) == 5
    assert set(facts["header"].values()) == {"1"}


def test_a_thread_that_does_not_hold_it_releases_nothing(facts: Facts) -> None:
    """An interrupted section calls both, whether it holds the lock or not."""
    assert facts["free"] == {"holder": "0", "unlock": "EPERM", "consistent": "EINVAL"}
    assert facts["held"]["unlock by another"] == "EPERM"


def test_one_holds_it_and_its_thread_id_can_be_read(facts: Facts) -> None:
    held = facts["held"]
    assert held["trylock"] == held["unlock"] == "0"
    assert held["ours"] == held["still ours"] == "1" and held["lost"] == "0"
    assert held["other thread"] == held["other process"] == "EBUSY"
    assert held["consistent"] == "EINVAL" and held["holder then"] == "0"


def test_what_its_own_holder_is_answered(libc: str, facts: Facts) -> None:
    """The only answer that differs. `Mutex.mine` hides the difference."""
    assert facts["held"]["own trylock"] == {"glibc": "EDEADLK", "musl": "EBUSY"}[libc]


@pytest.mark.parametrize("whose", ["a process that was killed", "a process that ended", "a thread"])
def test_it_is_released_by_the_death_of_its_holder(facts: Facts, whose: str) -> None:
    assert facts[f"after the death of {whose}"] == {
        "taken": "0",
        "holder": "0",
        "trylock": "EOWNERDEAD",
        "ours": "1",
        "other process": "EBUSY",
        "consistent": "0",
        "lost": "0",
        "unlock": "0",
        "holder then": "0",
        "trylock again": "0",
        "unlock again": "0",
    }


def test_one_that_cannot_be_recovered_is_known_for_it_and_can_be_made_anew(facts: Facts) -> None:
    left = facts["unlocked as it was left"]
    assert left["trylock"] == "EOWNERDEAD" and left["unlock"] == "0"
    assert left["lost"] == left["still lost"] == "1"
    assert left["trylock then"] == "ENOTRECOVERABLE"
    assert left["other process"] in ("ENOTRECOVERABLE", "EBUSY")  # glibc lets the first one in
    assert facts["made anew"] == {"lost": "0", "trylock": "0", "unlock": "0"}
