"""An event loop in its own thread, made when first needed. Must not know channel layers.

A library that is bound to one event loop runs here. So it can be used from any thread and any loop,
and continues when these end.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import threading
import weakref
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from ..attachment.process import notice_fork
from ..attachment.weak import WeakKeys
from ..errors import RemoteUnavailable, SegmentError
from .tasks import cancel

T = TypeVar("T")
Started = Future[tuple[asyncio.AbstractEventLoop, "asyncio.Future[None]"]]

_PATIENCE = 5.0  # seconds that the tasks of a loop have to end when it is stopped
_running: WeakKeys[LoopThread, None] = WeakKeys()
_abandoned: list[object] = []  # loops of the parent of a forked child: must not be finalized


class LoopThread:
    """Runs coroutines in its own loop. `stop` ends it, and the next call starts another loop."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.forked()

    def forked(self) -> None:
        """Begin without a thread: in a forked child, which has none, and at first."""
        # The loop shares descriptors with the parent's: closing them would disturb the parent.
        _abandoned.append(getattr(self, "_loop", None))
        self._lock = threading.RLock()  # a finalizer may stop while its thread is in `submit`
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped: asyncio.Future[None] | None = None
        self._thread: threading.Thread | None = None
        self._stopped_threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Run `coroutine` in the thread. The future gets its result; cancelling the future cancels
        it. If the thread is stopped first, the future gets RemoteUnavailable. Raises CancelledError
        in a coroutine of a thread that was stopped."""
        notice_fork()
        try:
            with self._lock:
                if threading.current_thread() in self._stopped_threads:
                    # What still runs there must not start what was just stopped.
                    raise asyncio.CancelledError
                if self._loop is None:
                    self._start()
                assert self._loop is not None
                return _told_of_stop(asyncio.run_coroutine_threadsafe(coroutine, self._loop))
        except BaseException:
            coroutine.close()  # it will never run
            raise

    def is_current(self) -> bool:
        """Whether the caller runs in the thread, and would wait for itself."""
        return self._thread is threading.current_thread()

    def stop(self, wait: bool = True) -> None:
        """Cancel everything that runs in the thread and end it; `wait` until it has ended."""
        notice_fork()
        with self._lock:
            loop, stopped, thread = self._loop, self._stopped, self._thread
            self._loop = self._stopped = self._thread = None
            if thread is not None:
                self._stopped_threads.add(thread)
        if loop is None or stopped is None or thread is None:
            return
        with contextlib.suppress(RuntimeError):  # closed already
            loop.call_soon_threadsafe(_finish, stopped)
        if wait and thread is not threading.current_thread():
            thread.join(_PATIENCE)

    def _start(self) -> None:
        started: Started = Future()
        thread = threading.Thread(target=_run, args=(started,), name=self._name, daemon=True)
        try:
            thread.start()
            self._loop, self._stopped = started.result()
        except Exception as error:
            raise SegmentError(
                f"cannot run an event loop in a thread: {error}. Allow more threads or files "
                "(ulimit -u, ulimit -n), or check the policy for event loops that is set"
            ) from error
        self._thread = thread
        if not _running:
            # At exit a loop has to end in order, not in the middle of a call. Registered only now,
            # so that this runs before the finalizers of what its coroutines use.
            atexit.unregister(_stop_all)
            atexit.register(_stop_all)
        _running[self] = None


def _told_of_stop(running: Future[T]) -> Future[T]:
    """Return a future for what runs in the thread. If only the thread was stopped, a caller that
    waits for the future must not seem to be cancelled."""
    told: Future[T] = Future()

    def tell(running: Future[T]) -> None:
        if not told.set_running_or_notify_cancel():
            return
        if running.cancelled():
            told.set_exception(RemoteUnavailable("the layer was closed by another thread"))
        elif (error := running.exception()) is not None:
            told.set_exception(error)
        else:
            told.set_result(running.result())

    told.add_done_callback(lambda told: told.cancelled() and running.cancel())
    running.add_done_callback(tell)
    return told


def _run(started: Started) -> None:
    async def until_stopped() -> None:
        loop = asyncio.get_running_loop()
        stopped = loop.create_future()
        started.set_result((loop, stopped))
        await stopped
        # A task that ends may start another one.
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            await cancel(others)

    coroutine = until_stopped()
    try:
        asyncio.run(coroutine)
    except BaseException as error:
        coroutine.close()
        if started.done():
            raise
        started.set_exception(error)  # there is no loop: a caller that waits for one must return


def _finish(stopped: asyncio.Future[None]) -> None:
    if not stopped.done():
        stopped.set_result(None)


def _stop_all() -> None:
    for thread in _running.keys():
        thread.stop()
