"""Keeps the layers of a test run apart from those of programs that run at the same time. Must not
touch the shared memory of other runs and programs.

While an `Isolation` is active, an environment variable adds a suffix to every prefix. Each run has
its own suffix. It applies to this process, and to every process that it starts, by fork, spawn,
forkserver or as another program. So tests use the settings of the site, but share nothing with the
site that runs on the same machine, or with another run of the same tests. Nothing of the run is
left afterwards.

The suffix stays the same for the whole run, because the server process of multiprocessing's
"forkserver" starts once and passes its environment on to all children.
"""

from __future__ import annotations

import os
import re
import secrets
import time

from .. import clock
from ..attachment.attachment import Attachment
from ..attachment.process import detach_all
from ..segment.files import Members
from ..segment.opening import remove
from ..segment.paths import SHM, SUFFIX, Paths
from ..segment.procfs import command_line

PATIENCE = 2.0  # seconds to wait for processes that are about to end


class Isolation:
    """The shared memory of one test run.

    ``clean`` and ``end`` return what the tests have left behind, as one text for each thing.
    """

    def __init__(self) -> None:
        self.suffix = f".test-{os.getpid()}-{secrets.token_hex(4)}"
        self._before: str | None = None
        self._prefixes: set[str] = set()  # those that this process used

    def begin(self) -> None:
        """Add the suffix to all prefixes from now on, including those of existing layers."""
        detach_all()
        self._before = os.environ.get(SUFFIX)
        os.environ[SUFFIX] = self.suffix

    def end(self) -> list[str]:
        """Remove everything that is left of the run, and restore the prefixes."""
        leaks = self.clean()
        detach_all()
        if self._before is None:
            os.environ.pop(SUFFIX, None)
        else:
            os.environ[SUFFIX] = self._before
        return leaks

    def clean(self) -> list[str]:
        """Remove everything that layers of the run have made. The next call of a layer attaches
        to empty memory."""
        leaks = []
        for attachment in detach_all():
            if self.suffix in attachment.prefix:
                self._prefixes.add(attachment.prefix)
                leaks += _waiting(attachment)
        for prefix in self._found():
            leaks += _processes(prefix)
            remove(Paths(prefix))
        leaks += [
            f"shared memory of prefix {prefix!r} was created again while it was removed: end all "
            "processes and threads that use it in the test"
            for prefix in self._found()
        ]
        for prefix in self._found():
            remove(Paths(prefix))
        return leaks

    def _found(self) -> list[str]:
        """Return the prefixes of the run for which shared memory exists."""
        if not os.path.isdir(SHM):
            return [name for name in self._prefixes if os.path.isdir(Paths(name).directory)]
        pattern = re.compile(rf"asgi_ipc\.(.*{re.escape(self.suffix)}(?:-\d+)?)(?:\.d)?")
        return sorted({found[1] for name in os.listdir(SHM) if (found := pattern.fullmatch(name))})


def isolate_worker() -> None:
    """Give separate prefixes to this process, one of several that run tests at the same time.

    The `Isolation` of the process that started it removes them.
    """
    detach_all()
    os.environ[SUFFIX] = f"{os.environ.get(SUFFIX, '')}-{os.getpid()}"


def _waiting(attachment: Attachment) -> list[str]:
    waiting = sum(hub.sleepers for hub in attachment.hubs.values() if not hub.closed())
    if not waiting:
        return []
    return [
        f"prefix {attachment.prefix!r}: {waiting} receive(s) still wait in an event loop of this "
        "process. Cancel them in the test, or end its consumers (communicator.disconnect())"
    ]


def _processes(prefix: str) -> list[str]:
    """Report the other processes that are attached and do not end."""
    path = Paths(prefix).members
    if not os.path.exists(path):
        return []
    members = Members.open(path, 0o600)
    try:
        deadline = clock.monotonic() + PATIENCE
        while (pids := members.pids()) and clock.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        members.close()
    return [
        f"prefix {prefix!r}: process {pid} ({command_line(pid)[:100] or 'of unknown name'}) still "
        "uses it. The test that started it must end it and wait for its end"
        for pid in sorted(pids)
    ]
