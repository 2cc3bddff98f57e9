"""Many processes that attach at once, forked by a program of its own: a fork copies what there is,
and the processes of the tests are large. Must not import pytest."""

from __future__ import annotations

import os

from asgi_ipc.segment.files import Members, attach_lock
from asgi_ipc.segment.opening import attach
from asgi_ipc.segment.paths import Paths
from asgi_ipc.segment.wanted import Wanted

from ..waiting import LIVENESS


def attach_at_once(prefix: str, count: int) -> None:
    """A barrier holds them back: the flock that each of them needs."""
    wanted = Wanted(prefix, 1 << 18, 1 << 16, 1 << 12, 0o600, "mutex")
    barrier, starting, ending = os.pipe(), os.pipe(), os.pipe()
    pids = []
    try:
        with attach_lock(Paths(prefix), 0o600):
            for _ in range(count):
                pid = os.fork()
                if not pid:
                    try:
                        os.close(ending[1])
                        os.write(starting[1], b"s")
                        attach(wanted, LIVENESS)
                        os.write(barrier[1], b"+")
                        os.read(ending[0], 1)  # until all have
                        os._exit(0)
                    finally:
                        os.write(barrier[1], b"-")
                        os._exit(1)
                pids.append(pid)
            read_exactly(starting[0], count)
        assert read_exactly(barrier[0], count) == b"+" * count
        assert len(Members.glance(Paths(prefix).members)) == count
    finally:
        os.close(ending[1])
        codes = [os.waitpid(pid, 0)[1] for pid in pids]
    assert codes == [0] * count


def read_exactly(fd: int, count: int) -> bytes:
    read = b""
    while len(read) < count:
        read += os.read(fd, count - len(read))
    return read
