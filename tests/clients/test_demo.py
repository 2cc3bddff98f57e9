"""demo/run.py says in words why it cannot start."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from ..environments import REPOSITORY, child_environment


def refused(prefix: str, *ports: str) -> str:
    ran = subprocess.run(
        [sys.executable, REPOSITORY / "demo" / "run.py", "--ports", *ports],
        env=child_environment(CHAT_PREFIX=prefix),
        capture_output=True,
        text=True,
    )
    assert ran.returncode != 0 and ran.stdout == ""
    return ran.stderr


@pytest.mark.parametrize("first", [True, False])
def test_a_port_that_is_used(prefix: str, first: bool) -> None:
    pytest.importorskip("channels", reason="lacking: Channels 4")
    with socket.create_server(("127.0.0.1", 0)) as used, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        ports = [str(used.getsockname()[1]), str(free.getsockname()[1])]
        said = refused(prefix, *(ports if first else reversed(ports)))
    assert f"Port {ports[0 if first else 1]} is used by another program. Choose two others" in said


def test_one_port_for_both_servers(prefix: str) -> None:
    pytest.importorskip("channels", reason="lacking: Channels 4")
    assert "Each server needs its own port" in refused(prefix, "8005", "8005")
