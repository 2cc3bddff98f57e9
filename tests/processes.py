"""Real programs for tests and benchmarks: started, watched, waited for, always reaped.

Every wait here is for a condition and has a bound, which is there for liveness only. What a process
writes goes to a file, so that no full pipe holds it up, and is shown when something goes wrong.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.client import HTTPConnection
from pathlib import Path

from tests.waiting import LIVENESS, until


class Process:
    """One running program; ``stop`` is always called in the end, ``running`` sees to it."""

    def __init__(
        self,
        arguments: Sequence[str | Path],
        *,
        log: Path,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        self.arguments = [str(argument) for argument in arguments]
        self.log = log
        with open(log, "wb") as file:
            self._child = subprocess.Popen(
                self.arguments,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=None if environment is None else dict(environment),
                cwd=folder,
                start_new_session=True,
            )
        self.pid = self._child.pid

    def output(self) -> str:
        """All that it has written so far, both streams in one."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def describe(self) -> str:
        """For the message of a failure."""
        code = self._child.poll()
        state = "is running" if code is None else f"ended with {code}"
        return f"{' '.join(self.arguments)} (pid {self.pid}) {state}; it wrote:\n{self.output()}"

    def alive(self) -> bool:
        return self._child.poll() is None

    def wait(self, timeout: float = LIVENESS) -> str:
        """Waits until it has ended, which must be with 0, and returns its output."""
        assert self.wait_for_end(timeout) == 0, self.describe()
        return self.output()

    def wait_for_end(self, timeout: float = LIVENESS) -> int:
        """Waits until it has ended, and returns its exit code: -N where signal N ended it."""
        try:
            return self._child.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout} s: {self.describe()}") from None

    def wait_for_output(self, text: str, timeout: float = LIVENESS) -> None:
        """Waits until it has written ``text``."""
        self.wait_until(lambda: text in self.output(), f"{text!r} in the output", timeout)

    def wait_for_port(self, port: int, timeout: float = LIVENESS) -> None:
        """Waits until a TCP connection to ``port`` of this machine is accepted."""
        self.wait_until(lambda: _answers(port), f"port {port} to answer", timeout)

    def wait_until(
        self, condition: Callable[[], object], what: str, timeout: float = LIVENESS
    ) -> None:
        """Waits for ``condition``, but no longer than this process lives."""

        def come_true_or_died() -> bool:
            # Asked first: a condition that came true before the end of the process has come true.
            alive = self.alive()
            if condition():
                return True
            assert alive, f"waited for {what}, but {self.describe()}"
            return False

        until(
            come_true_or_died,
            what=lambda: f"{what}: {self.describe()}",
            bound=timeout,
            pause=0.02,
        )

    def signal(self, number: signal.Signals) -> None:
        """Sends it a signal."""
        self._child.send_signal(number)

    def pause(self) -> None:
        """Stops it, as a debugger would, until it gets SIGCONT. Returns once it stands still."""
        self.signal(signal.SIGSTOP)
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), self.describe()

    def kill(self) -> None:
        """Ends it by SIGKILL, and reaps it."""
        self._child.kill()
        self._child.wait()

    def stop(self, patience: float = 10.0) -> int | None:
        """Ends it by SIGTERM, by SIGKILL after ``patience`` seconds, and reaps it.

        What it started itself and left behind is killed as well. Returns its exit code, or None
        where it had to be killed.
        """
        if self.alive():
            self._child.terminate()
        try:
            return self._child.wait(patience)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
            return None
        finally:
            # Its session is its own, so that this reaches nobody else. macOS answers EPERM where
            # those who are left have ended already.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)


@contextlib.contextmanager
def running(
    arguments: Sequence[str | Path],
    *,
    log: Path,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Iterator[Process]:
    """A process that does not outlive the block; its output is shown if the block fails."""
    process = Process(arguments, log=log, environment=environment, folder=folder)
    try:
        yield process
    except BaseException:
        print(process.describe())
        raise
    finally:
        process.stop()


def free_port() -> int:
    """A TCP port of the loopback interface that nobody has bound at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def status(port: int, path: str) -> int:
    """What an HTTP server of this machine answers to a GET."""
    connection = HTTPConnection("127.0.0.1", port, timeout=LIVENESS)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
