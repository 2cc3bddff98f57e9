"""The newest Pythons of Debian, unpacked beside this machine's own: ``make pythons`` runs this.

``python -m tests.pythons`` downloads them by apt, from the mirror that this machine uses, with the
C library and all else that they need, into a folder of the user's cache. Nothing is installed, and
it takes no rights of root. Elsewhere than on Debian it says so and does nothing.

This module must not import the package under test, nor anything that is not in the standard
library: noxfile.py imports it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

VERSIONS = ("3.14", "3.15")
SUITE = "sid"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
ROOT = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "asgi_ipc" / "pythons"
BIN = ROOT / "usr" / "bin"

# A Python that is started by the dynamic linker of its own C library. It takes the name of the
# Python, beside its library: from there it finds that, in a virtual environment as well.
STARTER = """\
#!/bin/sh
exec {lib}/{linker} --argv0 "$0" --library-path {lib} {binary} "$@"
"""
WHEELS = "/usr/share/python-wheels"  # where Debian's ensurepip looks for pip


def run(*command: str | Path, folder: Path | None = None) -> str:
    return subprocess.run(
        command, cwd=folder, check=True, stdout=subprocess.PIPE, stderr=sys.stderr, text=True
    ).stdout


def mirror() -> str | None:
    """The address from which this machine gets Debian's packages; None if it gets none."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb") and Path(KEYRING).exists()):
        return None
    asked = ("--format", "$(REPO_URI)", "Created-By: Packages", "Origin: Debian", "Component: main")
    found = run("apt-get", "indextargets", *asked).split()
    return next((address for address in found if "security" not in address), None)


def download(packages: list[str], address: str, folder: Path) -> list[Path]:
    """Download packages and all that they depend on, whatever this machine has."""
    for name in ("lists/partial", "cache/archives/partial", "state"):
        (folder / name).mkdir(parents=True)
    (folder / "state" / "status").touch()
    (folder / "sources.list").write_text(f"deb [signed-by={KEYRING}] {address} {SUITE} main\n")
    options = {
        "Dir::Etc::SourceList": folder / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State": folder / "state",
        "Dir::State::Status": folder / "state" / "status",
        "Dir::State::Lists": folder / "lists",
        "Dir::Cache": folder / "cache",
        "APT::Sandbox::User": "",
        "APT::Install-Recommends": "false",
        "Debug::NoLocking": "true",
    }
    apt = ["apt-get", "--quiet=2", *(f"--option={key}={value}" for key, value in options.items())]
    run(*apt, "update")
    run(*apt, "--yes", "--download-only", "install", *packages)
    return sorted((folder / "cache" / "archives").glob("*.deb"))


def unpack(archives: list[Path], root: Path) -> None:
    for archive in archives:
        run("dpkg-deb", "--extract", archive, root)


def make_startable(version: str, root: Path, home: Path) -> None:
    """Let the Python that was unpacked into `root` be started once it has moved to `home`."""
    started = root / "usr" / "bin" / f"python{version}"
    binary = started.with_suffix(started.suffix + ".elf")
    started.rename(binary)
    [linker] = (root / "usr" / "lib").glob("*/ld-linux-*")
    lib = home / linker.parent.relative_to(root)
    moved = home / binary.relative_to(root)
    started.write_text(STARTER.format(lib=lib, linker=linker.name, binary=moved))
    started.chmod(0o755)
    for data in (root / "usr" / "lib" / f"python{version}").glob("_sysconfigdata*.py"):
        if not data.is_symlink():
            data.write_text(data.read_text().replace(WHEELS, f"{home}{WHEELS}"))


def main() -> int:
    lacking = [version for version in VERSIONS if not (BIN / f"python{version}").exists()]
    if not lacking:
        return 0
    address = mirror()
    if address is None:
        print(f"not Debian: Python {' and '.join(lacking)} are tested only if they are installed")
        return 0
    ROOT.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT.parent) as scratch:
        root = Path(scratch) / "root"
        packages = [f"python{version}-venv" for version in VERSIONS]
        unpack(download(packages, address, Path(scratch) / "apt"), root)
        for version in VERSIONS:
            make_startable(version, root, ROOT)
        shutil.rmtree(ROOT, ignore_errors=True)
        root.rename(ROOT)
    for version in VERSIONS:
        print(run(BIN / f"python{version}", "-VV"), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
