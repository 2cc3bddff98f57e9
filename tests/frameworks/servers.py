"""What the tests of this folder share: how an application is run on several processes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests import environments, processes


def notices_at_once(attachment: Any) -> None:
    """Have the next call of a layer notice that its memory was removed."""
    attachment.upkeep.check_at = attachment.due = 0.0


@contextmanager
def uvicorn(
    app: str, workers: int, *, folder: Path, log: Path, **variables: str
) -> Iterator[tuple[processes.Process, str]]:
    """uvicorn with `app`, whose module lies in `folder`, and the address where it answers. All of
    its processes are ready."""
    port = processes.free_port()
    with processes.running(
        [sys.executable, "-m", "uvicorn", app, "--workers", str(workers), "--port", str(port)],
        log=log,
        environment=environments.child_environment(**variables),
        folder=folder,
    ) as server:
        ready = "Application startup complete."
        server.wait_until(lambda: server.output().count(ready) == workers, "all workers")
        yield server, f"127.0.0.1:{port}"
