"""What is published: the sdist, the wheel made from it, and what pip makes of each."""

from __future__ import annotations

import os
import re
import shlex
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
from asgi_ipc.store import native
from tests import environments
from tests.documentation import pages

from ..waiting import LIVENESS

pytest.importorskip("build", reason="lacking: build")
Requirement = pytest.importorskip("packaging.requirements", reason="lacking: packaging").Requirement

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
from asgi_ipc.store import native
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


PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")


def run(*command: str | Path, folder: Path, **environment: str) -> str:
    """What a program says. pip compiles nothing: little of what it installs here is imported."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        command,
        cwd=folder,
        env={**clean, "PIP_COMPILE": "0", **environment},
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
    """What git would publish, the sdist of that, and the wheel that is built from the sdist."""
    if not (environments.REPOSITORY / ".git").exists():
        pytest.skip("lacking: a git checkout, which knows what is to be published")
    folder = tmp_path_factory.mktemp("built")
    source = folder / "asgi_ipc"
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
    yield {"sdist": sdist, "wheel": wheel, "pure": other, "source": source}


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
        *(
            "docs/tutorial.rst",
            "docs/asgi-ipc.1",
            "tests/unit/store/test_log.py",
            "benchmarks/workloads/wakeups.py",
        ),
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
    distribution = f"asgi_ipc-{asgi_ipc.__version__}"
    man_page = f"{distribution}.data/data/share/man/man1/asgi-ipc.1"
    others = {name for name in names if not name.startswith(f"{distribution}.dist-info/")}
    assert others == package | {man_page}


def test_the_metadata_say_what_it_is(built: dict[str, Path]) -> None:
    with zipfile.ZipFile(built["wheel"]) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = Parser().parsestr(archive.read(name).decode())
        points = archive.read(name.replace("METADATA", "entry_points.txt")).decode()
    licence = (environments.REPOSITORY / "LICENSE").read_text(encoding="utf-8")
    assert f"Copyright (c) 2026, {metadata['Author']}\n" in licence
    urls = [one.partition(", ")[2] for one in metadata.get_all("Project-URL", [])]
    assert len(urls) >= 3 and all(url.startswith("https://") for url in urls)
    assert {"channels", "django", "shared memory"} <= set(metadata["Keywords"].split(","))
    classifiers = metadata.get_all("Classifier", [])
    for minor in range(9, 15):
        assert f"Programming Language :: Python :: 3.{minor}" in classifiers
    assert [one for one in classifiers if one.startswith("Framework :: Django :: ")]
    assert "asgi-ipc = asgi_ipc.command:main" in points
    assert re.search(r"\[pipx\.run\]\nasgi_ipc = asgi_ipc\.command:main", points)


def installed(what: Path, folder: Path, **environment: str) -> Path:
    """The Python of a new environment where a file is installed."""
    venv.create(folder)  # with no pip of its own, which would take seconds to install
    python = folder / "bin" / "python"
    pip = (*PIP, "--python", python)
    run(*pip, "install", "--quiet", what, folder=folder, **environment)
    version = run(folder / "bin" / "asgi-ipc", "--version", folder=folder)
    assert version == f"asgi-ipc, version {asgi_ipc.__version__}\n"
    assert (folder / "share" / "man" / "man1" / "asgi-ipc.1").is_file()
    assert "No broken requirements" in run(*pip, "check", folder=folder)
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


def test_the_page_on_installing(built: dict[str, Path], tmp_path: Path) -> None:
    """docs/install.rst, in a folder beside the checkout. What the package needs is left out."""
    environment = tmp_path / "environment"
    venv.create(environment)
    folder = built["source"].parent / "mine"
    folder.mkdir()
    for block in pages.blocks(pages.DOCS / "install.rst"):
        for command, _ in block.commands():
            program, verb, *arguments = shlex.split(command)
            if program == "pipx":
                assert arguments == ["--spec", "../asgi_ipc[cli]", "asgi-ipc", "list"]
                continue
            pip = (*PIP, "--python", environment / "bin" / "python")
            run(*pip, verb, "--quiet", "--no-deps", *arguments, folder=folder)
    done = run(*pip, "list", folder=folder)
    assert re.search(rf"asgi_ipc +{re.escape(asgi_ipc.__version__)}", done), done


# The Pythons that the package names, as an ordinary machine has them; and one without the GIL.
# A short run asks for the oldest and the newest of each kind.
FULL = os.environ.get("ASGI_IPC_TEST_LENGTH") == "full"
MINORS = range(9, 15) if FULL else (9, 14)
PYTHONS = [*((f"3.{minor}", "") for minor in MINORS), ("3.14", "t")]
PLATFORMS = ["manylinux2014_x86_64", "manylinux_2_28_x86_64", "musllinux_1_2_x86_64"]


def downloaded(requirements: list[str], folder: Path, *options: str) -> str:
    """Let pip put a wheel of each requirement into `folder`. "", or what it says where it
    cannot."""
    wheels = ["--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    done = subprocess.run(
        [*PIP, "download", "--quiet", *wheels, *options, *requirements],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.stdout if done.returncode else ""


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> None:
    if downloaded(["msgpack"], tmp_path_factory.mktemp("index")):
        pytest.skip("lacking: a package index")


@pytest.mark.parametrize("libc", ["glibc", "musl"])
@pytest.mark.parametrize(("version", "build"), PYTHONS, ids="".join)
def test_all_that_it_needs_has_wheels(
    version: str, build: str, libc: str, index: None, built: dict[str, Path], tmp_path: Path
) -> None:
    """So nobody needs a compiler. pip itself would judge the markers for the Python that it runs
    on."""
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
    wanted = [f"{one.name}{one.specifier}" for one in needed]
    assert downloaded(wanted, tmp_path, *options) == ""
