"""`verify`, `doctor` and `top` beside traffic of all kinds, and beside kills of their own.

`history` runs beside them: blocking, asyncio and forked processes with groups and process-specific
channels are killed, stopped and cancelled. The onlookers must find no damage, must keep the lock
while they hold it, and must not change what the history is judged by. They are killed as well. By
hand, for as long as wanted::

    python -m tests.reliability.onlookers --seconds 180
"""

from __future__ import annotations

import argparse
import contextlib
import json
import mmap
import os
import pty
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from asgi_ipc.errors import CorruptHeader, NoSuchLayer, SegmentVanished
from asgi_ipc.inspection import locked
from asgi_ipc.inspection.diagnosis import diagnose
from asgi_ipc.inspection.snapshot import Snapshot
from asgi_ipc.inspection.surroundings import PROBLEM
from asgi_ipc.inspection.view import View
from asgi_ipc.segment.lock import Mutex
from asgi_ipc.segment.opening import open_existing
from asgi_ipc.store.layout import H_LOCK, PAGE, WORD
from asgi_ipc.store.store import Store
from tests.waiting import LIVENESS, until

from .history import REPOSITORY

KILL_EVERY = 3.0  # seconds, about, between two kills of an onlooker
# Seconds that a call may take: who verifies under the lock holds it while it makes its copy, and
# may be without a processor meanwhile.
LONGEST = 5.0
PAUSE = 0.05  # seconds between two looks: the machine is for those who are looked at

# -- what an onlooker does ------------------------------------------------------------------------

Look = Callable[[str], list[str]]


def verifies(prefix: str) -> list[str]:
    """As ``asgi-ipc verify`` does."""
    return [f"damage: {one}" for one in locked.damage(locked.complaints(View(prefix), LIVENESS))]


def verifies_under_lock(prefix: str) -> list[str]:
    """The same where the first copy seemed wrong: it makes another under the lock."""
    view, problems = View(prefix), []
    writable = open_existing(view.paths, write=True)
    lock = Mutex(mmap.mmap(writable.number, PAGE), H_LOCK * WORD)
    copy = locked._copy

    def copy_and_look(view: View, store: Store) -> float:
        if not lock.mine():
            problems.append("the lock was not taken")
        now = copy(view, store)
        if not lock.mine():
            problems.append("the lock was lost")
        return now

    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | locked._NO_RESERVE
    store = Store(mmap.mmap(-1, view.layout.size, flags), view.layout)
    locked._copy = copy_and_look
    try:
        now = locked._copy_under_lock(view, store, LIVENESS)
        found = locked.damage(locked.verify(store, now))
        problems += [f"damage under the lock: {one}" for one in found]
    finally:
        locked._copy = copy
        store.close()
    return problems


def asks_the_doctor(prefix: str) -> list[str]:
    """As ``asgi-ipc doctor`` does. It may find that who holds the lock is stopped, which is so."""
    found = [f"{one.subject}: {one.text}" for one in diagnose(prefix) if one.level == PROBLEM]
    return [text for text in found if "holds the lock" not in text and "has held" not in text]


def takes_figures(prefix: str) -> list[str]:
    """What each refresh of ``asgi-ipc top`` reads."""
    snapshot = Snapshot(View(prefix))
    snapshot.channels()
    snapshot.stats()
    return []


LOOKS: dict[str, Look] = {
    "verify": verifies,
    "verify under the lock": verifies_under_lock,
    "doctor": asks_the_doctor,
    "figures": takes_figures,
}


def keep_looking(kind: str, prefix: str) -> None:
    """Until the segment is gone. Each look is a line: "." if all was well."""
    while True:
        try:
            problems = LOOKS[kind](prefix)
        except (NoSuchLayer, SegmentVanished):
            return
        except CorruptHeader:
            if not os.path.exists(View(prefix).paths.file):
                return
            raise
        for problem in problems or ["."]:
            # In one piece: it may be killed at any time.
            os.write(sys.stdout.fileno(), (problem.replace("\n", " ") + "\n").encode())
        time.sleep(PAUSE)


# -- all of them ----------------------------------------------------------------------------------


class Onlooker:
    """A process that looks, whose lines are counted; killed and started anew."""

    def __init__(self, kind: str, prefix: str) -> None:
        self.kind, self.prefix = kind, prefix
        self.looks, self.kills, self.before = 0, 0, 0
        self.problems: list[str] = []
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "tests.reliability.onlookers"]
        self.child = subprocess.Popen(
            [*command, "--look", self.kind, "--prefix", self.prefix],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.child.stdout is not None
        with self.child.stdout as lines:
            for line in lines:
                if line == ".\n":
                    self.looks += 1
                else:
                    self.problems.append(f"{self.kind}: {line.rstrip()}")

    def kill(self) -> None:
        self.child.kill()
        self.child.wait()
        self._reader.join()
        self.kills += 1
        self.before = self.looks

    def end(self) -> None:
        """Wait for its own end, which comes with that of the segment."""
        try:
            self.child.wait(LIVENESS)
        except subprocess.TimeoutExpired:
            self.problems.append(f"{self.kind}: it did not end with the segment")
            self.child.kill()
        self._reader.join()


@contextlib.contextmanager
def top(prefix: str) -> Iterator[subprocess.Popen[bytes]]:
    """The real one, in a terminal whose screen nobody sees."""
    mine, its = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "asgi_ipc", "top", "--prefix", prefix, "--interval", "0.2"],
        cwd=REPOSITORY,
        stdin=its,
        stdout=its,
        stderr=its,
        env={**os.environ, "TERM": "xterm-256color", "NO_COLOR": "1"},
    )
    os.close(its)

    def swallow() -> None:
        with contextlib.suppress(OSError):
            while os.read(mine, 65536):
                pass

    reader = threading.Thread(target=swallow)
    reader.start()
    try:
        yield child
    finally:
        child.terminate()
        child.wait()
        reader.join()
        os.close(mine)


def look_on(seconds: float, seed: int) -> tuple[list[str], dict[str, Any]]:
    """Problems and figures."""
    chance = random.Random(seed)
    command = [sys.executable, "-m", "tests.reliability.history", "--seconds", f"{seconds:g}"]
    problems: list[str] = []
    with contextlib.ExitStack() as stack:
        log = stack.enter_context(tempfile.TemporaryFile("w+"))
        history = stack.enter_context(
            subprocess.Popen(
                [*command, "--seed", str(seed), "--longest", f"{LONGEST}"],
                cwd=REPOSITORY,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        )

        def layer() -> str:
            assert history.poll() is None, "the history ended before it began"
            found = list(Path("/dev/shm").glob(f"asgi_ipc.h{history.pid}-*"))
            named = [path.name.removeprefix("asgi_ipc.") for path in found if path.is_file()]
            return named[0] if named else ""

        prefix = until(layer, what="the segment of the history")
        screen = stack.enter_context(top(prefix))
        onlookers = [Onlooker(kind, prefix) for kind in LOOKS]
        over = time.monotonic() + seconds
        while time.monotonic() < over and history.poll() is None:
            time.sleep(chance.uniform(0, 2 * KILL_EVERY))
            if time.monotonic() < over:
                one = chance.choice(onlookers)
                if one.looks > one.before:  # else it has not even begun
                    one.kill()
                    one.start()
        if screen.poll() is not None:
            problems.append(f"top ended with {screen.returncode}")
        history.wait()
        for one in onlookers:
            one.end()
        log.seek(0)
        said = log.read()
        if history.returncode:
            problems.append(f"the history is not as it must be ({history.returncode}): {said}")
    problems += [problem for one in onlookers for problem in one.problems]
    figures = json.loads(said[said.index("{") : said.rindex("}") + 1]) if "{" in said else None
    return problems, {
        "looks": {one.kind: one.looks for one in onlookers},
        "kills of onlookers": sum(one.kills for one in onlookers),
        "history": figures,
        "problems": Counter(problem.partition(":")[0] for problem in problems),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--look", choices=LOOKS, help=argparse.SUPPRESS)
    parser.add_argument("--prefix", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.look:
        keep_looking(given.look, given.prefix)
        return 0
    seed = random.randrange(1 << 30) if given.seed is None else given.seed
    print(f"seed {seed}, {given.seconds:g} s", flush=True)
    problems, figures = look_on(given.seconds, seed)
    print(json.dumps(figures, indent=1), flush=True)
    for problem in problems[:50]:
        print("PROBLEM:", problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
