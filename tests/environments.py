"""Virtual environments for tests and benchmarks that need another Python, or packages of another
time.

Each is built once, by uv or pip, in ``.environments`` beside the tests, and kept. Its folder is
named after its pins and its interpreter, so that a change of either builds another one. The package
under test is never installed there: whoever starts a program in it puts the repository on
PYTHONPATH.

This module must not import the package under test; the benchmarks use it where there is no pytest.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parent.parent
ENVIRONMENTS = REPOSITORY / ".environments"

# What the package under test needs, so that it can be imported in every environment.
OWN_DEPENDENCIES = ("posix_ipc", "msgpack", "async-timeout")

# asgiref 1.1.2 was tried on each of these; six 1.17.0 is the first that all of them can import.
ASGIREF1_PYTHONS = ("3.9", "3.10", "3.11", "3.12", "3.13")
ASGIREF1 = ("asgiref==1.1.2", "six==1.17.0")


class Environment(NamedTuple):
    """What to build: the first of ``pythons`` that this machine has, with ``pins`` installed."""

    pythons: tuple[str, ...]
    pins: tuple[str, ...]


# Django 1.11 and daphne 1.4.2 as they were released; Twisted and autobahn as new as they bear.
CHANNELS1 = (
    *ASGIREF1,
    "channels==1.1.8",
    "daphne==1.4.2",
    "Django==1.11.29",
    "Twisted==26.4.0",
    "autobahn==24.4.2",
    "pytz",
    "setuptools<81",
)

KNOWN = {
    "channels1": Environment(
        pythons=("3.9",),
        pins=(*CHANNELS1, "websockets>=15", "pytest", "pytest-asyncio", *OWN_DEPENDENCIES),
    ),
    # It needs redis-py 2.10 and a msgpack of before 1.0, which brings the name msgpack-python too.
    "asgi_redis-local": Environment(
        pythons=("3.9",),
        pins=(*CHANNELS1, "asgi_redis==1.4.3", "msgpack<1", "posix_ipc", "async-timeout"),
    ),
    # Other layers, for the conformance suites.
    "channels_redis": Environment(
        pythons=("3.11", "3.12", "3.13", "3.10", "3.9"),
        pins=(
            *("channels==4.3.2", "channels_redis==4.3.0", "redis==6.4.0", "msgpack==1.1.2"),
            *("Django", "pytest==8.4.2", "pytest-asyncio==1.2.0", "pytest-timeout"),
        ),
    ),
    "asgi_ipc1": Environment(
        pythons=("3.9",),
        pins=(
            *(*ASGIREF1, "asgi_ipc==1.4.2", "msgpack-python==0.5.6", "posix_ipc"),
            "setuptools<81",  # for pkg_resources
            *("pytest==8.4.2", "pytest-timeout"),
        ),
    ),
    "asgi_redis": Environment(
        pythons=("3.9",),
        pins=(
            *ASGIREF1,
            *("asgi_redis==1.4.3", "redis==2.10.6", "msgpack-python==0.5.6", "txredisapi"),
            *("Twisted==26.4.0", "setuptools<81", "pytest==8.4.2", "pytest-timeout"),
        ),
    ),
    # The layers that Channels 1 had: what the benchmarks compare with. Here asgi_ipc is 1.4.2.
    "channels1-peers": Environment(
        pythons=("3.9",),
        pins=(*CHANNELS1, "asgi_ipc==1.4.2", "asgi_redis==1.4.3", "async-timeout"),
    ),
    # The layers that Channels 4 has, and what people use without one. channels-lite needs 3.10.
    "channels4-peers": Environment(
        pythons=("3.11", "3.12", "3.13", "3.10"),
        pins=("channels>=4", "channels_redis", "channels-lite[aio]", "pyzmq", *OWN_DEPENDENCIES),
    ),
    # Other ways to run many things in one thread, and what runs them. Later gunicorns know no
    # eventlet.
    "loops": Environment(
        pythons=("3.11", "3.12", "3.13", "3.10", "3.9"),
        pins=(
            "eventlet",
            "gevent",
            "trio",
            "gunicorn==23.0.0",
            "celery",
            "redis",
            "Flask-SocketIO",
            "simple-websocket",
            *OWN_DEPENDENCIES,
        ),
    ),
    # Where interpreters have a GIL of their own: the first has no ctypes in them.
    "interpreters-3.12": Environment(pythons=("3.12",), pins=OWN_DEPENDENCIES),
    "interpreters": Environment(pythons=("3.13",), pins=OWN_DEPENDENCIES),
    # For the Python that Debian 12 has in its Apache.
    "mod_wsgi": Environment(pythons=("3.11",), pins=OWN_DEPENDENCIES),
    "asgiref1-oldest": Environment(ASGIREF1_PYTHONS, (*ASGIREF1, *OWN_DEPENDENCIES)),
    "asgiref1-newest": Environment(ASGIREF1_PYTHONS[::-1], (*ASGIREF1, *OWN_DEPENDENCIES)),
}


def environment(name: str) -> Path:
    """As `build`, but skips the calling test where this machine has none of the interpreters."""
    try:
        return build(name)
    except LookupError as error:
        import pytest

        pytest.skip(str(error))


def build(name: str) -> Path:
    """The Python of the environment ``name`` (a key of ``KNOWN``), which is built when needed.

    LookupError says that this machine has none of the interpreters. A build that fails is another
    error. Any number of processes may ask at once: one builds, the others wait.
    """
    wanted = KNOWN[name]
    base = next(filter(None, map(python, wanted.pythons)), None)
    if base is None:
        raise LookupError(
            f"lacking: Python {' or '.join(wanted.pythons)} (for the environment {name})"
        )
    version = subprocess.check_output(
        [base, "-c", "import platform as p; print(p.python_implementation(), p.python_version())"],
        text=True,
    )
    recipe = "\n".join([version.strip(), *wanted.pins])
    folder = ENVIRONMENTS / f"{name}-{hashlib.sha256(recipe.encode()).hexdigest()[:10]}"
    executable = folder / "bin" / "python"
    complete = folder / "complete"
    with only_one(folder.with_name(folder.name + ".lock")):
        # The executable is a link to the interpreter, which may have been removed since.
        if not (complete.exists() and os.access(executable, os.X_OK)):
            shutil.rmtree(folder, ignore_errors=True)
            _build(name, base, folder, wanted.pins)
            complete.write_text(recipe + "\n", encoding="utf-8")
    return executable


def python(version: str) -> Path | None:
    """An interpreter of ``version`` ("3.9"): pythonX.Y on PATH, else one of pyenv's; or None.

    Each candidate is run and asked, because a pyenv shim stands on PATH whether or not there is
    anything behind it.
    """
    on_path = shutil.which(f"python{version}")
    candidates = [Path(on_path)] if on_path else []
    candidates += sorted(
        _pyenv_root().glob(f"versions/{version}.*/bin/python"),
        key=lambda path: [int(number) for number in re.findall(r"\d+", path.parts[-3])],
        reverse=True,
    )
    return next((path for path in candidates if _answers(path, version)), None)


def child_environment(**variables: str) -> dict[str, str]:
    """Variables for a child that runs the code under test: this process's, with PYTHONPATH set."""
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), **variables}


def run_python(source: str) -> str:
    """What a new interpreter prints that runs `source`, which must succeed."""
    return run_script("-c", source)


def run_script(
    *arguments: str | Path, python: str | Path = sys.executable, **variables: str
) -> str:
    """What a new interpreter prints with these arguments; it must succeed. `variables` are more for
    its environment."""
    run = subprocess.run(
        [python, *arguments],
        env=child_environment(**variables),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stdout
    return run.stdout.strip()


def _pyenv_root() -> Path:
    named = os.environ.get("PYENV_ROOT")
    if not named and shutil.which("pyenv"):
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            named = subprocess.check_output(["pyenv", "root"], text=True).strip()
    return Path(named) if named else Path.home() / ".pyenv"


def _answers(path: Path, version: str) -> bool:
    """Whether ``path`` runs, and is CPython of ``version`` that can make virtual environments."""
    ask = (
        "import ensurepip, platform, sys, venv;"
        "print(platform.python_implementation(), '%d.%d' % sys.version_info[:2])"
    )
    try:
        asked = subprocess.run([path, "-c", ask], capture_output=True, text=True, check=False)
    except OSError:
        return False
    return asked.returncode == 0 and asked.stdout.split() == ["CPython", version]


def _build(name: str, base: Path, folder: Path, pins: tuple[str, ...]) -> None:
    print(f"building the environment {name} in {folder}", file=sys.stderr)
    python = str(folder / "bin" / "python")
    # uv takes seconds where pip takes a minute. It may not know of an index that only pip is told.
    with_uv = (
        [str(base), "-m", "venv", "--without-pip", str(folder)],
        [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", python, *pins],
    )
    pip = (python, "-m", "pip")
    with_pip = (
        [str(base), "-m", "venv", "--clear", str(folder)],
        [*pip, "install", "--quiet", "--disable-pip-version-check", "--no-compile", *pins],
        [*pip, "uninstall", "--quiet", "--yes", "pip"],  # it takes room, and nobody needs it again
    )
    if importlib.util.find_spec("uv") is not None and _failure(with_uv) is None:
        return
    failure = _failure(with_pip)
    if failure is not None:
        raise RuntimeError(f"{name} could not be built: {failure}")


def _failure(commands: Iterable[list[str]]) -> str | None:
    """Run the commands; what the first that fails had to say, or None."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    for command in commands:
        done = subprocess.run(
            command,
            env=clean,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode:
            return f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}"
    return None


@contextlib.contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on the file ``path``, which the kernel releases if we die."""
    path.parent.mkdir(exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
