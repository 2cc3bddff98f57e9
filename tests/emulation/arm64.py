"""An emulated 64-bit ARM machine: Debian's kernel and Python, in the memory of QEMU, with no disk.

The whole machine is emulated and not only its programs: the lock of a segment needs a kernel that
knows robust lists, and QEMU's emulation of single programs refuses them.

What the machine is made of is downloaded once, with Debian's sources and keys as this machine has
them and in folders of its own: nothing of this machine's packages changes, and it takes no rights.
It is kept in ``.environments``, as two files: the kernel, and an archive of all files, which the
kernel unpacks into memory. Each run adds the project as it is now.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from tests import environments

from .first import MARK

HERE = Path(__file__).resolve().parent

EMULATOR = "qemu-system-aarch64"
SOURCES = ("/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list")
KERNEL = "linux-image-cloud-arm64"
PACKAGES = ("python3", "gcc", "libc6-dev", "musl-tools", "dash")
WHEELS = ("pytest", "pytest-asyncio", "hypothesis", "msgpack", "posix_ipc", "cryptography")
PLATFORMS = ("manylinux2014_aarch64", "manylinux_2_28_aarch64")
# What takes room and is not run.
LEFT_OUT = (
    *("usr/share", "var", "usr/lib/*/gconv", "usr/bin/*lto-dump*", "usr/bin/*ld.gold"),
    *("usr/bin/*-dwp", "usr/lib/gcc/*/*/lto1", "usr/lib/gcc/*/*/*san*", "usr/lib/*/lib*san*"),
)
PROJECT = ("asgi_ipc", "tests", "pyproject.toml")

# An ordinary processor of a small server, two of it, each in a thread of its own.
MACHINE = (
    *("-machine", "virt", "-cpu", "cortex-a72", "-smp", "2", "-m", "1536"),
    *("-accel", "tcg,thread=multi", "-nic", "none", "-display", "none", "-monitor", "none"),
    *("-serial", "stdio", "-no-reboot"),
)
LONGEST = 3600  # seconds


def prepare() -> Path:
    """The folder with the kernel and the archive, made when needed; skips where it cannot be."""
    for program in (EMULATOR, "apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            pytest.skip(f"lacking: {program}")
    sources = next((Path(path) for path in SOURCES if _names_debian(Path(path))), None)
    if sources is None:
        pytest.skip("lacking: package sources of Debian")
    recipe = "\n".join(
        [sources.read_text(encoding="utf-8"), KERNEL, *PACKAGES, *WHEELS, *LEFT_OUT, *PLATFORMS]
    )
    digest = hashlib.sha256(recipe.encode()).hexdigest()[:10]
    folder = environments.ENVIRONMENTS / f"arm64-{digest}"
    with environments.only_one(folder.with_name(folder.name + ".lock")):
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            print(f"building the machine in {folder}", file=sys.stderr)
            _build(folder, sources)
            (folder / "complete").write_text(recipe + "\n", encoding="utf-8")
    return folder


def run(folder: Path, scratch: Path, arguments: list[str]) -> tuple[list[dict[str, Any]], str]:
    """Start a machine that runs pytest with `arguments`, none of which may contain a space.

    Returns what the machine told, and all that its console showed.
    """
    archive, log = scratch / "files.cpio", scratch / "console"
    command = [EMULATOR, *MACHINE, "-kernel", str(folder / "kernel"), "-initrd", str(archive)]
    kernel = f"console=ttyAMA0 quiet panic=-1 -- {' '.join(arguments)}"
    try:
        shutil.copyfile(folder / "files.cpio", archive)
        with open(archive, "r+b") as file:
            file.seek(0, os.SEEK_END)
            _write_archive(file, _project())
        with open(log, "wb") as console, contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(
                [*command, "-append", kernel],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=subprocess.STDOUT,
                timeout=LONGEST,
                check=False,
            )
    finally:
        archive.unlink(missing_ok=True)
    shown = log.read_text(encoding="utf-8", errors="replace")
    lines = [line for line in shown.splitlines() if line.startswith(MARK)]
    return [json.loads(line[len(MARK) :]) for line in lines], shown


def _names_debian(sources: Path) -> bool:
    return sources.is_file() and "debian" in sources.read_text(encoding="utf-8")


def _build(folder: Path, sources: Path) -> None:
    packages, root = folder / "packages", folder / "root"
    for needed in (packages / "lists" / "partial", packages / "archives" / "partial", root / "usr"):
        needed.mkdir(parents=True)
    (packages / "status").touch()  # nothing is installed
    own = {
        "APT::Architecture": "arm64",
        "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "",
        "Acquire::Languages": "none",
        "Dir::Cache": packages,
        "Dir::Cache::archives": packages / "archives",
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "-",
        "Dir::State": packages,
        "Dir::State::status": packages / "status",
    }
    options = [f"-o{name}={value}" for name, value in own.items()]
    _do("apt-get", *options, "-qq", "update")
    described = _do("apt-cache", *options, "depends", KERNEL)
    kernel = re.findall(r"Depends: (linux-image-\S+)", described)[0]
    _do("apt-get", *options, "-qq", "--yes", "--download-only", "install", *PACKAGES)
    _do("apt-get", *options, "-qq", "download", kernel, folder=packages)
    [kernel_package] = packages.glob("*.deb")
    for name in ("bin", "sbin", "lib"):
        (root / "usr" / name).mkdir()
        (root / name).symlink_to(f"usr/{name}")
    for package in sorted((packages / "archives").glob("*.deb")):
        _unpack(package, root)
    _unpack(kernel_package, folder / "kernel-files", "--wildcards", "./boot/vmlinuz*")
    [image] = (folder / "kernel-files").glob("boot/vmlinuz*")
    image.rename(folder / "kernel")
    for pattern in LEFT_OUT:
        for path in root.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (root / "usr" / "bin" / "cc").symlink_to("gcc")  # as update-alternatives would
    _add_python_packages(root)
    with open(folder / "files.cpio", "wb") as file:
        _write_archive(file, _tree(root, ""))
    for left in (packages, root, folder / "kernel-files"):
        shutil.rmtree(left)


def _unpack(package: Path, folder: Path, *what: str) -> None:
    folder.mkdir(exist_ok=True)
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE) as deb:
        _do("tar", "-x", "--keep-directory-symlink", "-C", folder, *what, stdin=deb.stdout)


def _add_python_packages(root: Path) -> None:
    version = os.readlink(root / "usr" / "bin" / "python3").removeprefix("python")
    library, packages = root / f"usr/lib/python{version}", root / "usr/lib/python3/dist-packages"
    _do(
        *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
        *("--no-compile", "--target", packages, "--only-binary=:all:", "--implementation=cp"),
        *(f"--python-version={version}", *(f"--platform={name}" for name in PLATFORMS), *WHEELS),
    )
    # Bytecode is the same on every processor. To compile it there takes minutes.
    if compiler := environments.python(version):
        options = ("-q", "-s", root, "--invalidation-mode", "unchecked-hash")
        _do(compiler, "-m", "compileall", *options, packages, library)


def _do(*command: str | Path, folder: Path | None = None, stdin: Any = subprocess.DEVNULL) -> str:
    done = subprocess.run(
        command,
        cwd=folder,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}:\n{done.stdout}")
    return done.stdout


# -- the archive that a kernel unpacks: cpio, in its "newc" form ----------------------------------

Entry = tuple[str, Path]


def _tree(folder: Path, name: str) -> Iterator[Entry]:
    """All that lies in `folder`, each after the folder that it lies in; nothing for a file."""
    for path in sorted(folder.iterdir() if folder.is_dir() else ()):
        inside = f"{name}/{path.name}".lstrip("/")
        yield inside, path
        if path.is_dir() and not path.is_symlink():
            yield from _tree(path, inside)


def _project() -> Iterator[Entry]:
    yield "init", HERE / "first.py"
    repository = environments.REPOSITORY
    yield "project", repository
    for name in PROJECT:
        yield f"project/{name}", repository / name
        for inside, path in _tree(repository / name, f"project/{name}"):
            if "__pycache__" not in inside:
                yield inside, path


def _write_archive(file: BinaryIO, entries: Iterator[Entry]) -> None:
    for number, (name, path) in enumerate(entries, 1):
        _write_entry(file, number, name, path)
    _write_header(file, 0, "TRAILER!!!", 0, 0)


def _write_entry(file: BinaryIO, number: int, name: str, path: Path) -> None:
    mode = path.lstat().st_mode
    if name == "init":
        mode |= 0o111
    content = b""
    if stat.S_ISLNK(mode):
        content = os.readlink(path).encode()
    elif stat.S_ISREG(mode):
        content = path.read_bytes()
    _write_header(file, number, name, mode, len(content))
    file.write(content + bytes(-len(content) % 4))


def _write_header(file: BinaryIO, number: int, name: str, mode: int, size: int) -> None:
    encoded = name.encode() + b"\0"
    fields = (number, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, len(encoded), 0)
    header = b"070701" + b"".join(b"%08x" % field for field in fields) + encoded
    file.write(header + bytes(-len(header) % 4))
