"""Compiles C for tests: helpers of theirs, and the compiled path with other flags."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from asgi_ipc.store import native

from .environments import REPOSITORY, child_environment

NATIVE = sorted((REPOSITORY / "native").glob("*.c"))
MODULE = "asgi_ipc._native"

needs_compiled = pytest.mark.skipif(
    not native.LOADED, reason=f"lacking: the compiled path: {native.why_not}"
)


@cache
def compiler() -> str:
    """The C compiler, or skip the test."""
    found = shutil.which("cc")
    if found is None:
        pytest.skip("lacking: cc")
    return found


def shared_object(to: Path, sources: list[Path], *flags: str) -> Path:
    """A shared object of C files, at `to`."""
    command = [compiler(), "-shared", "-fPIC", "-pthread", *flags, "-o", to, *sources]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return to


def native_variant(folder: Path, *flags: str, more: tuple[Path, ...] = ()) -> Path:
    """The compiled path with other flags, and `more` files, in `folder`."""
    include = sysconfig.get_paths()["include"]
    if not (Path(include) / "Python.h").exists():
        pytest.skip("lacking: the headers of Python")
    includes = f"-I{include}", f"-I{REPOSITORY / 'native'}"
    return shared_object(folder / "_native.so", [*NATIVE, *more], *includes, *flags)


def python_with(variant: Path, *program: str) -> list[str]:
    """The command of a Python that uses this variant, and runs ``-m`` module with arguments."""
    return [sys.executable, "-c", _WITH, str(variant), *program]


# The package takes a module that is there already for its own.
_WITH = f"""
import importlib.util, runpy, sys
variant, module, *arguments = sys.argv[1:]
spec = importlib.util.spec_from_file_location("{MODULE}", variant)
sys.modules["{MODULE}"] = found = importlib.util.module_from_spec(spec)
spec.loader.exec_module(found)
sys.argv = [module, *arguments]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


def run_with(
    variant: Path, *program: str, timeout: float, **environment: str
) -> subprocess.CompletedProcess[Any]:
    """Run ``-m`` module with this variant of the compiled path."""
    return subprocess.run(
        python_with(variant, *program),
        cwd=REPOSITORY,
        env={**child_environment(), **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
