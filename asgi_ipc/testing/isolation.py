"""Keeps the layers of a test run apart from those of programs that run beside it.

While an `Isolation` is begun, an environment variable adds a suffix of the run's own to every
prefix: in this process, and in every process that it starts, by fork, spawn, forkserver or as
another program. So tests use the settings of the site, and meet neither the site that runs on the
same machine nor another run of the same tests. Afterwards nothing of the run is left.

The suffix stays the same for the whole run, because the server process of multiprocessing's
"forkserver" is started once and gives its environment to all children.
"""

from __future__ import annotations

import os
import re
import secrets
import time

from ..attachment.attachment import Attachment
from ..attachment.process import detach_all
from ..segment.files import Members
from ..segment.opening import remove
from ..segment.paths import SHM, SUFFIX, Paths
from ..segment.procfs import command_line

PATIENCE = 2.0  # seconds that processes which are about to end are given for it


class Isolation:
    """The shared memory of one test run.

    ``clean`` and ``end`` return what tests have left undone, one sentence for each, for people.
    """

    def __init__(self) -> None:
        self.suffix = f".test-{os.getpid()}-{secrets.token_hex(4)}"
        self._before: str | None = None
        self._prefixes: set[str] = set()  # those that this process used

    def begin(self) -> None:
        """From now on layers have prefixes of the run's own, those that exist included."""
        detach_all()
        self._before = os.environ.get(SUFFIX)
        os.environ[SUFFIX] = self.suffix

    def end(self) -> list[str]:
        """Remove everything that is left of the run, and let layers be what they were."""
        leaks = self.clean()
        detach_all()
        if self._before is None:
            os.environ.pop(SUFFIX, None)
        else:
            os.environ[SUFFIX] = self._before
        return leaks

    def clean(self) -> list[str]:
        """Remove everything that layers of the run have made. They begin anew when next called."""
        leaks = []
        for attachment in detach_all():
            if self.suffix in attachment.prefix:
                self._prefixes.add(attachment.prefix)
                leaks += _waiting(attachment)
        for prefix in self._found():
            leaks += _processes(prefix)
            remove(Paths(prefix))
        leaks += [f"shared memory of prefix {prefix!r} was made anew" for prefix in self._found()]
        for prefix in self._found():
            remove(Paths(prefix))
        return leaks

    def _found(self) -> list[str]:
        """The prefixes of the run for which something exists."""
        if not os.path.isdir(SHM):
            return [name for name in self._prefixes if os.path.isdir(Paths(name).directory)]
        pattern = re.compile(rf"asgi_ipc\.(.*{re.escape(self.suffix)}(?:-\d+)?)(?:\.d)?")
        return sorted({found[1] for name in os.listdir(SHM) if (found := pattern.fullmatch(name))})


def isolate_worker() -> None:
    """In one of several processes that run tests at once: give it prefixes of its own.

    They are removed by the `Isolation` of the process that started it.
    """
    detach_all()
    os.environ[SUFFIX] = f"{os.environ.get(SUFFIX, '')}-{os.getpid()}"


def _waiting(attachment: Attachment) -> list[str]:
    waiting = sum(hub.sleepers for hub in attachment.hubs.values() if not hub.closed())
    if not waiting:
        return []
    return [
        f"prefix {attachment.prefix!r}: {waiting} receive(s) still wait in an event loop of this "
        "process. Cancel them, or end the consumers (communicator.disconnect()) in the test"
    ]


def _processes(prefix: str) -> list[str]:
    """Who else is attached, and stays so."""
    path = Paths(prefix).members
    if not os.path.exists(path):
        return []
    members = Members.open(path, 0o600)
    try:
        deadline = time.monotonic() + PATIENCE
        while (pids := members.pids()) and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        members.close()
    return [
        f"prefix {prefix!r}: process {pid} ({command_line(pid)[:100] or 'of unknown name'}) still "
        "uses it. Whoever started it has to end it, and to wait for its end"
        for pid in sorted(pids)
    ]
