"""The tests that channels_redis has for its layer, run against ours: a peer's view of the contract.

They are fetched from the package registry when they are first needed, and kept in
``.environments``; none of them is part of this repository.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests import environments, processes
from tests.waiting import LIVENESS

pytest.importorskip("channels", reason="lacking: Channels 4")
pytest.importorskip("async_timeout", reason="lacking: async-timeout")

RELEASE = "channels_redis-4.3.0"
SHA256 = "740ee7b54f0e28cf2264a940a24453d3f00526a96931f911fcb69228ef245dd2"

# Three tests look at the inside of their layer: keys in Redis, and its buffer.
INTERNAL = (
    "test_default_group_key_format",
    "test_custom_group_key_format",
    "test_receive_buffer_respects_capacity",
)


def fetch_suite(scratch: Path) -> Path:
    """The file test_core.py of the release, downloaded unless it has been before."""
    suite = environments.ENVIRONMENTS / RELEASE / "test_core.py"
    if suite.exists():
        return suite
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    download += ["--no-deps", "--no-binary", "channels-redis", "--dest", str(scratch)]
    subprocess.run([*download, RELEASE.replace("-", "==")], check=True, stdin=subprocess.DEVNULL)
    source = scratch / f"{RELEASE}.tar.gz"
    assert hashlib.sha256(source.read_bytes()).hexdigest() == SHA256
    with tarfile.open(source) as archive:
        member = archive.extractfile(f"{RELEASE}/tests/test_core.py")
        assert member is not None
        content = member.read()
    # Complete or not there at all, whoever else is doing the same.
    suite.parent.mkdir(parents=True, exist_ok=True)
    part = suite.with_suffix(f".{os.getpid()}")
    part.write_bytes(content)
    part.replace(suite)
    return suite


def test_their_suite_passes_on_our_layer(prefix: str, tmp_path: Path) -> None:
    suite = fetch_suite(tmp_path)
    stand_in = f"{__package__}.channels_redis_stand_in"
    command = [sys.executable, "-m", "pytest", str(suite), "-p", stand_in, "-v", "-ra"]
    # None of our configuration and fixtures; a test that hangs tells where, well before the end.
    command += ["-c", os.devnull, "--rootdir", str(suite.parent), "-p", "no:cacheprovider"]
    command += ["-o", "asyncio_mode=auto", "-o", "asyncio_default_fixture_loop_scope=function"]
    command += ["-o", "faulthandler_timeout=30"]
    command += [f"--deselect={suite.name}::{test}" for test in INTERNAL]
    with processes.running(
        command,
        log=tmp_path / "suite.log",
        environment=environments.child_environment(STAND_IN_PREFIX=prefix),
        folder=suite.parent,
    ) as run:
        print(run.wait(timeout=2 * LIVENESS))
