"""What .github/workflows says to those who fork the project: it fits the published schema, runs
targets that exist, and covers the systems and Pythons that the package claims."""

from __future__ import annotations

import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.environments import REPOSITORY

pytest.importorskip("check_jsonschema", reason="lacking: check-jsonschema")

FOLDER = REPOSITORY / ".github" / "workflows"
WORKFLOWS = sorted(FOLDER.glob("*.yml"))
if not WORKFLOWS:
    pytest.skip("lacking: a git checkout, which has .github", allow_module_level=True)


def checked(path: Path) -> subprocess.CompletedProcess[str]:
    """What the linter says, by the schema that it brings along."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "check_jsonschema", "--color=never"),
            *("--builtin-schema", "vendor.github-workflows", path),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def jobs(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))["jobs"]
    return found


def commands(job: dict[str, Any]) -> list[str]:
    return [step["run"] for step in job["steps"] if "run" in step]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_it_fits_the_schema(path: Path) -> None:
    result = checked(path)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("right", "wrong"), [("runs-on:", "run-on:"), ("timeout-minutes: 60", "timeout-minutes: long")]
)
def test_the_linter_finds_a_mistake(right: str, wrong: str, tmp_path: Path) -> None:
    text = (FOLDER / "tests.yml").read_text(encoding="utf-8")
    assert right in text
    broken = tmp_path / "tests.yml"
    broken.write_text(text.replace(right, wrong), encoding="utf-8")
    assert checked(broken).returncode == 1


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_every_target_exists(path: Path) -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    for job in jobs(path.name).values():
        last = commands(job)[-1]
        named = re.fullmatch(r"make ([a-z-]+)( [A-Z]+=\S+)*", last)
        assert last == ".ci/run" or (named and named.group(1) in targets), last


def test_all_systems_and_pythons_are_covered() -> None:
    found = jobs("tests.yml")
    processors = [one["runner"] for one in found["debian"]["strategy"]["matrix"]["include"]]
    assert processors == ["ubuntu-24.04", "ubuntu-24.04-arm"]
    assert found["debian"]["container"]["image"].startswith("debian:")
    assert found["alpine"]["container"]["image"].startswith("alpine:")
    assert found["macos"]["runs-on"].startswith("macos-")
    pythons = found["pythons"]
    assert pythons["strategy"]["matrix"]["runner"] == [*processors, found["macos"]["runs-on"]]
    [versions] = [
        step["with"]["python-version"].split() for step in pythons["steps"] if "with" in step
    ]
    nox = runpy.run_path(str(REPOSITORY / "noxfile.py"))
    wanted = nox["PYTHONS"]
    assert sorted(versions) == sorted([*wanted, *nox["FREE_THREADED"]])
    claimed = re.findall(
        r"Python :: (3\.\d+)", (REPOSITORY / "setup.py").read_text(encoding="utf-8")
    )
    assert sorted(wanted) == sorted(claimed)


def test_the_full_run_has_what_the_short_one_installs() -> None:
    script = (REPOSITORY / ".ci" / "run").read_text(encoding="utf-8")
    needed = {
        package
        for line in re.findall(r"^need \S+ ([^#\n]+)", script, re.MULTILINE)
        for package in line.split()
    }
    assert len(needed) > 5
    installed = set(commands(jobs("full.yml")["test-all"])[0].split())
    assert needed | {"python3-dev", "python3-venv", "qemu-system-arm"} <= installed


def test_the_command_that_tests_a_wheel_runs() -> None:
    """It asserts that the compiled path is loaded, as it is where the tests run."""
    settings = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'^test-command = "python (-c .*)"$', settings, re.M)
    assert found is not None
    subprocess.run([sys.executable, *shlex.split(found[1])], check=True)
