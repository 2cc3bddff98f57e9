"""The tests on every Python that is installed here: ``make test-all`` runs this.

Interpreters are looked for on PATH, among those of pyenv, and among those that `tests/pythons.py`
unpacks. One that is not there is left out, and nox says so at its end.
"""

import os
import runpy
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import nox

PYTHONS = ["3.9", "3.10", "3.11", "3.12", "3.13", "3.14", "3.15"]
# Without the GIL. Few of the packages that other tests use have wheels for these.
FREE_THREADED = ["3.13t", "3.14t"]
# For the newest, not all that the tests use has wheels yet. What has them:
NEWEST = {
    "3.15": [
        *("Twisted", "channels", "click", "cryptography", "daphne", "hypothesis", "packaging"),
        *("prometheus_client", "pytest", "pytest-asyncio", "pytest-xdist", "pyyaml", "rich"),
        *("textual", "uvicorn", "websockets"),
    ]
}
# Channels 4.3 supports Django 6, which needs this Python or a later one.
DJANGO6 = "3.12"
# All of the package's own tests. Left out are those that build environments of other times.
TESTS = [
    *("tests/unit", "tests/segment", "tests/attachment", "tests/layers", "tests/conformance"),
    *("tests/documentation/test_readme.py", "tests/clients/test_channels4_site.py"),
    *("tests/clients/test_plain_asyncio.py", "tests/clients/test_uvloop.py"),
]
# The proofs of reliability take long. `make test` runs them on one Python, and they run here on the
# newest, which have other bytecodes.
RELIABILITY = ["3.14", "3.15"]
# The last pytest-asyncio for 3.9 leaves the loops that asyncio makes by itself to the collector.
LOOPS = {"3.9": ["-W", "ignore:unclosed event loop:ResourceWarning"]}
FREE_THREADED_NEEDS = ["msgpack", "pytest", "pytest-asyncio", "hypothesis"]
THREADED = [
    *("tests/unit/attachment", "tests/unit/aio", "tests/attachment", "tests/segment"),
    "tests/reliability/test_free_threads.py",
]

nox.options.default_venv_backend = "venv"
nox.options.error_on_missing_interpreters = False
nox.options.reuse_existing_virtualenvs = True
nox.options.stop_on_first_error = False

# Before anything else on PATH: pyenv's shims stand there whether or not they lead anywhere.
_pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
_found = [str(path) for path in sorted(_pyenv.glob("versions/3.*/bin"))]
_unpacked = runpy.run_path(str(Path(__file__).with_name("tests") / "pythons.py"))["BIN"]
os.environ["PATH"] = os.pathsep.join([*_found, os.environ["PATH"], str(_unpacked)])


@nox.session(python=PYTHONS)
def tests(session: nox.Session) -> None:
    """Run the tests, or what is given after ``--``."""
    version = str(session.python)
    django = []
    if [*map(int, version.split("."))] >= [*map(int, DJANGO6.split("."))]:
        django = ["Django>=6", "channels>=4.3"]
    if version in NEWEST:
        wanted = ["--only-binary=:all:", *NEWEST[version], "--editable", "."]
    else:
        wanted = ["--editable", ".[test]"]
    install(session, *wanted, *django)
    named = session.posargs or [*TESTS, *(["tests/reliability"] if version in RELIABILITY else [])]
    session.run(*pytest_of(session), "-n", "auto", *LOOPS.get(version, []), *named)


@nox.session(python=FREE_THREADED)
def free_threads(session: nox.Session) -> None:
    """Run what threads of one process do to each other, with the GIL off whatever is imported."""
    # posix_ipc, which has no wheel for these, is not needed on Linux. Of hypothesis, the newest
    # release with a wheel will do: later ones need a compiler of Rust.
    install(session, "--only-binary=hypothesis", *FREE_THREADED_NEEDS)
    install(session, "--no-deps", "--editable", ".")
    environment = {"PYTHON_GIL": "0"}
    session.run(*pytest_of(session), *(session.posargs or THREADED), env=environment)


@nox.session(python=False)
def summary(session: nox.Session) -> None:
    """Print how many tests passed and failed on each Python, in the last run of each."""
    print(f"{'Python':8}{'passed':>8}{'failed':>8}{'skipped':>9}{'seconds':>9}")
    for version, name in [
        *((version, f"tests-{version}") for version in PYTHONS),
        *((version, f"free_threads-{version}") for version in FREE_THREADED),
    ]:
        report = report_of(name)
        if not report.exists():
            print(f"{version:8}{'did not run':>16}")
            continue
        [suite] = ElementTree.parse(report).getroot().iter("testsuite")
        of = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
        failed = of["failures"] + of["errors"]
        passed = of["tests"] - failed - of["skipped"]
        seconds = float(suite.get("time", 0))
        print(f"{version:8}{passed:8,}{failed:8,}{of['skipped']:9,}{seconds:9,.0f}")
        for case in suite.iter("testcase"):
            if case.find("failure") is not None or case.find("error") is not None:
                print(f"        failed: {case.get('classname')}::{case.get('name')}")


def install(session: nox.Session, *wanted: str) -> None:
    """Install by uv, which takes seconds where pip takes minutes, or else by pip: uv may not know
    of an index that only pip is told."""
    uv = Path(sys.executable).with_name("uv")
    python = Path(session.bin) / "python"
    command = [uv, "pip", "install", "--quiet", "--python", python, *wanted]
    if uv.exists() and subprocess.run(command).returncode == 0:
        return
    session.install("--quiet", *wanted)


def report_of(name: str) -> Path:
    return Path(__file__).parent / ".nox" / f"{name}.xml"


def pytest_of(session: nox.Session) -> list[str]:
    """How a session starts pytest. What it finds is counted in `summary`."""
    report = report_of(session.name)
    report.unlink(missing_ok=True)
    return ["python", "-m", "pytest", f"--junit-xml={report}"]
