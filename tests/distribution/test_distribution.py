"""What is published: the sdist, the wheel made from it, and what pip makes of each."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from email.parser import Parser
from pathlib import Path

import pytest

import asgi_ipc
from asgi_ipc import native
from tests import environments

from ..waiting import LIVENESS

pytest.importorskip("build", reason="lacking: build")
Requirement = pytest.importorskip("packaging.requirements").Requirement

EXTENSION = "asgi_ipc/_native.abi3.so"
BUILD = (sys.executable, "-m", "build")

# Run where nothing but the package and what it needs is installed.
PROGRAM = """
import asyncio, importlib.util, sys
import asgi_ipc, asgi_ipc.aio
from asgi_ipc import segment

assert asgi_ipc.__file__.startswith(sys.prefix), asgi_ipc.__file__
assert importlib.util.find_spec("tests") is None

async def main(prefix):
    blocking, layer = asgi_ipc.IPCChannelLayer(prefix=prefix), asgi_ipc.aio.IPCChannelLayer(prefix)
    blocking.send("numbers", {"number": 1})
    assert await layer.receive("numbers") == {"number": 1}

try:
    asyncio.run(main(sys.argv[1]))
finally:
    segment.destroy(sys.argv[1])
from asgi_ipc import native
print(asgi_ipc.__version__, native.PURE if native.why_not else native.COMPILED)
"""

# Two processes with one segment: each tells what it has received.
SENDER = """
import sys, asgi_ipc
layer = asgi_ipc.IPCChannelLayer(sys.argv[1])
layer.send("there", {"from": layer.stats().implementation})
print(layer.receive(["back"], block=True, timeout=60)[1]["from"])
"""
ANSWERER = """
import sys, asgi_ipc
layer = asgi_ipc.IPCChannelLayer(sys.argv[1])
print(layer.receive(["there"], block=True, timeout=60)[1]["from"])
layer.send("back", {"from": layer.stats().implementation})
"""


def run(*command: str | Path, folder: Path, **environment: str) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        command,
        cwd=folder,
        env={**clean, **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """The sdist of what git would publish, and the wheel that is built from the sdist."""
    if not (environments.REPOSITORY / ".git").exists():
        pytest.skip("lacking: a git checkout, which knows what is to be published")
    folder = tmp_path_factory.mktemp("built")
    source = folder / "source"
    # A copy, so that the build leaves nothing in the checkout.
    source.mkdir()
    names = run("git", "ls-files", "-z", folder=environments.REPOSITORY).split("\0")
    for name in filter(None, names):
        path = environments.REPOSITORY / name
        if path.is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes(path.read_bytes())
    run(*BUILD, "--outdir", folder, source, folder=folder)
    pure = folder / "pure"
    run(*BUILD, "--wheel", "--outdir", pure, source, folder=folder, ASGI_IPC_PURE="1")
    [sdist], [wheel], [other] = folder.glob("*.tar.gz"), folder.glob("*.whl"), pure.glob("*.whl")
    yield {"sdist": sdist, "wheel": wheel, "pure": other}


def can_compile() -> bool:
    """Whether this machine makes a wheel with the compiled path."""
    headers = Path(sysconfig.get_path("include"), "Python.h")
    return (
        (native.LOADED or native.could_be_built)
        and shutil.which("cc") is not None
        and headers.exists()
    )


def test_the_sdist_holds_what_it_takes_to_test_it(built: dict[str, Path]) -> None:
    with tarfile.open(built["sdist"]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for name in (
        *("README.rst", "CHANGELOG.txt", "CONTRIBUTING.rst", "LICENSE", "Makefile", "noxfile.py"),
        *("asgi_ipc/py.typed", "demo/chat/templates/chat/room.html", "docs/images/chat.png"),
        *("docs/tutorial.rst", "tests/unit/store/test_log.py", "benchmarks/workloads/wakeups.py"),
    ):
        assert name in names
    assert not [name for name in names if "__pycache__" in name or name.startswith(".")]


def test_the_wheels_are_for_what_they_hold(built: dict[str, Path]) -> None:
    assert built["pure"].name.endswith("-py3-none-any.whl")
    if can_compile():
        assert "-cp311-abi3-linux_" in built["wheel"].name


@pytest.mark.parametrize("kind", ["wheel", "pure"])
def test_the_wheel_holds_the_package_and_nothing_else(kind: str, built: dict[str, Path]) -> None:
    with zipfile.ZipFile(built[kind]) as archive:
        names = archive.namelist()
    package = {
        str(path.relative_to(environments.REPOSITORY))
        for path in (environments.REPOSITORY / "asgi_ipc").rglob("*")
        if path.suffix == ".py" or path.name == "py.typed"
    }
    if kind == "wheel" and can_compile():
        package.add(EXTENSION)
    information = f"asgi_ipc-{asgi_ipc.__version__}.dist-info/"
    assert {name for name in names if not name.startswith(information)} == package


def installed(what: Path, folder: Path, **environment: str) -> Path:
    """The Python of a new environment where a file is installed."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    pip = ("-m", "pip", "--disable-pip-version-check")
    run(python, *pip, "install", "--quiet", what, folder=folder, **environment)
    assert "No broken requirements" in run(python, *pip, "check", folder=folder)
    return python


def says(python: Path, folder: Path, prefix: str) -> list[str]:
    """The version and the implementation that are installed."""
    return run(python, "-c", PROGRAM, prefix, folder=folder).split()


@pytest.mark.parametrize("compiler", ["cc", "missing"])
def test_the_sdist_can_be_installed_and_used(
    compiler: str, built: dict[str, Path], tmp_path: Path, prefix: str
) -> None:
    """Also where there is no compiler."""
    environment = {} if compiler == "cc" else {"CC": str(tmp_path / "missing")}
    python = installed(built["sdist"], tmp_path / "environment", **environment)
    compiled = compiler == "cc" and can_compile()
    wanted = native.COMPILED if compiled else native.PURE
    assert says(python, tmp_path, prefix) == [asgi_ipc.__version__, wanted]


def test_a_wheel_and_a_pure_install_use_one_segment(
    built: dict[str, Path], tmp_path: Path, prefix: str
) -> None:
    pure = installed(built["pure"], tmp_path / "pure")
    compiled = installed(built["wheel"], tmp_path / "compiled")
    kind = native.COMPILED if can_compile() else native.PURE
    assert says(pure, tmp_path, prefix) == [asgi_ipc.__version__, native.PURE]
    assert says(compiled, tmp_path, prefix) == [asgi_ipc.__version__, kind]
    for first, second, names in (
        (pure, compiled, [native.PURE, kind]),
        (compiled, pure, [kind, native.PURE]),
    ):
        with subprocess.Popen(
            [second, "-c", ANSWERER, prefix], cwd=tmp_path, stdout=subprocess.PIPE, text=True
        ) as answerer:
            assert run(first, "-c", SENDER, prefix, folder=tmp_path).strip() == names[1]
            assert answerer.communicate(timeout=LIVENESS)[0].strip() == names[0]


# The Pythons that the package names, as an ordinary machine has them; and one without the GIL.
PYTHONS = [*((f"3.{minor}", "") for minor in range(9, 15)), ("3.14", "t")]
PLATFORMS = ["manylinux2014_x86_64", "manylinux_2_28_x86_64", "musllinux_1_2_x86_64"]


def downloaded(requirement: str, folder: Path, *options: str) -> bool:
    """Whether there is a wheel for a requirement, which then lies in `folder`."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    wheels = ["--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    done = subprocess.run(
        [*pip, *wheels, *options, requirement],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    return done.returncode == 0


@pytest.mark.parametrize("libc", ["glibc", "musl"])
@pytest.mark.parametrize(("version", "build"), PYTHONS, ids="".join)
def test_all_that_it_needs_has_wheels(
    version: str, build: str, libc: str, built: dict[str, Path], tmp_path: Path
) -> None:
    """So nobody needs a compiler. pip itself would judge the markers for the Python that it runs
    on."""
    if not downloaded("msgpack", tmp_path):
        pytest.skip("lacking: a package index")
    with zipfile.ZipFile(built["wheel"]) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = Parser().parsestr(archive.read(name).decode())
    there = {"python_version": version, "sys_platform": "linux", "extra": ""}
    found = map(Requirement, metadata.get_all("Requires-Dist", []))
    needed = [one for one in found if one.marker is None or one.marker.evaluate(there)]
    assert needed
    digits = version.replace(".", "")
    options = ["--python-version", version, "--implementation", "cp"]
    for abi in (f"cp{digits}{build}", "abi3", "none"):
        options += ["--abi", abi]
    for platform in PLATFORMS:
        if platform.startswith("musl") == (libc == "musl"):
            options += ["--platform", platform]
    lacking = [
        str(one)
        for one in needed
        if not downloaded(f"{one.name}{one.specifier}", tmp_path, *options)
    ]
    assert lacking == []
