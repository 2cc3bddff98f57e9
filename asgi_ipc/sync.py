"""The channel layer of Channels 1: a blocking facade over the same operations.

A receive that has to wait sleeps in the kernel, in `poll` on its thread's doorbell. The coroutine
of the core is run to its end by hand: its waiter never suspends, so there is no event loop.
"""

from __future__ import annotations

import importlib.util
import math
import os
import select
import time

# Not `threading.active_count`: that takes a lock, which an exception of a signal handler can leave
# locked on Python 3.9.
from _thread import _count as other_threads
from collections.abc import Iterable
from functools import cached_property
from typing import Any

from .aio.operations import Core
from .aio.receiving import Busy, Receiving, Source
from .aio.session import Session
from .attachment.upkeep import CHECK_EVERY
from .base_layer import BaseChannelLayer
from .errors import InvalidName, LockTimeout
from .names import check_channel
from .options import Options
from .segment.doorbell import ALL, Doorbell
from .statistics import Stats
from .store.layout import Q_PENDING

_LOOK_EVERY = 0.05  # seconds between two looks where no doorbell is to be had


class ThreadWaiter:
    """The waiter of one thread: sleeps in `poll`.

    A thread that is woken first takes what there is, for which somebody waits. It reads the rings
    when it is about to park again.
    """

    bell: Doorbell | None = None
    rung: list[Source] | None = None  # where it was parked when it was rung, until it reads that

    def __init__(self, session: Session) -> None:
        self._give_back = session.attachment.give_back
        self._take_bell(session)

    def _take_bell(self, session: Session) -> None:
        self.index, self.bell, self.rung = 0, None, None
        self._poll = select.poll()
        taken = session.attachment.new_bell(session.section)
        if taken is not None:
            self.index, self._generation, self.bell = taken
            self._poll.register(self.bell.fileno(), select.POLLIN)

    def __del__(self) -> None:
        if self.bell is not None:
            self._give_back(self.bell, self.index, self._generation)

    def wake(self) -> None:
        """Another thread of this process has put something into an inbox that we wait for."""
        if self.bell is not None:
            self.bell.ring(ALL)

    def gone(self) -> bool:
        return False

    def spin(self, core: Receiving, sources: list[Source], deadline: float) -> None:
        """Go on looking for a moment, where that pays: see `spin`. Not beside other threads, which
        would wait for this one to let go of the interpreter."""
        for source in sources:
            if _sees(source) or source.awaited():
                return
        spin = sources[0].spin
        if not spin.due() or other_threads():
            return
        clock = time.monotonic
        now = clock()
        until = now + core.spin
        end = min(until, deadline)
        while now < end:
            for source in sources:
                if _sees(source):
                    spin.note(True)
                    return
                if source.awaited():
                    return
            now = clock()
        if now >= until:
            spin.note(False)

    def answer(self, session: Session, sources: list[Source]) -> bool:
        """Read the rings; whether one was for `sources`."""
        before, self.rung = self.rung, None
        if before is None or self.bell is None:
            return False  # a receive of a signal handler was quicker
        mine = False
        for row in self.bell.answer():
            if row == ALL or row in [source.target.row for source in sources]:
                mine = True
            elif (
                row not in [source.target.row for source in before]
                or session.words[row + Q_PENDING]
            ):
                session.attachment.pass_on(row)  # else it was answered, and there is no more
        return mine

    async def wait(
        self, core: Receiving, session: Session, sources: list[Source], deadline: float | None
    ) -> bool:
        if self.rung and self.answer(session, sources):
            return True  # it may have been rung since the receive looked
        joined = []
        try:
            for source in sources:
                if source.inbox is not None:
                    joined.append((source.inbox, source.local))
                    if source.inbox.join(source.local, self):
                        return True
            while True:
                seconds = CHECK_EVERY
                if deadline is not None:
                    seconds = min(seconds, deadline - time.monotonic())
                    if seconds <= 0:
                        return False
                if self.bell is None:
                    time.sleep(min(seconds, _LOOK_EVERY))
                    return True
                if not self._poll.poll(math.ceil(seconds * 1000)):
                    # Look, in case whoever should have rung was killed before it could.
                    try:
                        core.upkeep(session, time.monotonic())
                        if not session.store.is_waiter(self.index, self._generation):
                            # The doorbell was removed by hand, or its row damaged.
                            self._give_back(self.bell, self.index, self._generation)
                            self._take_bell(session)
                            return True
                    except LockTimeout:
                        return True  # ridden out by the receive
                    if any(map(_sees, sources)):
                        return True  # whoever sent, or flushed, may have been killed before it rang
                    continue
                self.rung = sources
                if not any(map(_sees, sources)):
                    self.answer(session, sources)  # another was quicker: it parks again at once
                return True
        finally:
            for inbox, local in joined:
                inbox.part(local, self)

    async def pause(self, seconds: float) -> None:
        time.sleep(seconds)

    def keeps(self, source: Source) -> bool:
        return False

    def awaits(self, source: Source) -> bool:
        return False

    def left(self, session: Session, source: Source) -> None:
        pass


def _sees(source: Source) -> bool:
    """A glance, without the lock: whether there may be something that a receive could have."""
    return source.stirs() or source.holds()


def _waiter_of_thread(session: Session) -> ThreadWaiter:
    """The waiter of the calling thread, made when it first waits."""
    local = session.attachment.local
    try:
        found: ThreadWaiter = local.waiter
    except AttributeError:
        found = local.waiter = ThreadWaiter(session)
    return found


def _ridden_out(
    core: Core, session: Session, error: LockTimeout, deadline: float
) -> ThreadWaiter | None:
    """The waiter of a thread whose first try to receive met a lock that stays busy."""
    busy = Busy(core)
    while True:
        busy(error)
        try:
            return _waiter_of_thread(session)
        except LockTimeout as again:
            error = again
            if time.monotonic() >= deadline:
                return None


class IPCChannelLayer(BaseChannelLayer):
    """A channel layer over shared memory, blocking, for Channels 1 and plain threads.

    Every process of the machine that names the same `prefix` exchanges messages with the others,
    asyncio ones (`asgi_ipc.aio.IPCChannelLayer`) included. `asgi_ipc.options.Options` lists the
    options. One layer may be used from many threads.
    """

    _options_class = Options

    def __init__(self, prefix: str = "asgi", **options: Any) -> None:
        """Raises InvalidOption. Shared memory is attached to by the first call."""
        self._options = read = self._options_class.read(prefix, options)
        super().__init__(read.expiry, read.group_expiry, read.capacity, read.channel_capacity)
        self._core = Core(read)
        self._receive_timeout = read.receive_timeout
        self.prefix = prefix
        self.extensions = ["groups", "flush", "statistics", "async", "asyncio"]
        if importlib.util.find_spec("twisted") is not None:
            self.extensions.insert(3, "twisted")

    # -- channels ---------------------------------------------------------------------------------

    def send(self, channel: str, message: dict[str, Any]) -> None:
        """Send `message` to `channel`; never blocks on readers (A1, M8).

        Raises ChannelFull at capacity or when memory is used up, MessageTooLarge, InvalidName,
        InvalidMessage, NotAChannel; nothing was sent then.
        """
        self._core.send(channel, message)

    def receive(
        self, channels: Iterable[str], block: bool = False, timeout: float | None = None
    ) -> tuple[str | None, dict[str, Any] | None]:
        """Return (channel, message) from the first of `channels` that has one (A1).

        With nothing there: (None, None), at once, or with `block` after `timeout` seconds, by
        default ``receive_timeout`` (A2). Process-specific channels are named up to the ``!``; the
        full name comes back. Raises InvalidName, NotOwner.
        """
        core = self._core
        session = core.session or core.attach()
        source = sources = deadline = None
        try:
            if type(channels) is list and len(channels) == 1:
                source = session.sources[channels[0]][0]
        except (KeyError, TypeError):
            pass  # not looked up yet, or no name
        try:
            # What a glance shows to be there can be had without a waiter and without a deadline.
            if source is not None and source.inbox is None and source.target.words[Q_PENDING]:
                found = core.take_one(session, source)
                if found is not None:
                    return found
            sources = core.sources(session, channels)
            if not sources:
                return None, None
            if not block:
                return core.take(session, sources) or (None, None)
            deadline = time.monotonic() + self._seconds(timeout)
            waiter = _waiter_of_thread(session)
            if waiter.rung:
                waiter.answer(session, sources)  # before it looks, and parks
            if core.spin:
                waiter.spin(core, sources, deadline)
            found = core.take(session, sources, waiter)
            if found is not None:
                return found
            parked = True
        except LockTimeout as error:
            if not block:
                raise
            if deadline is None:  # the time for the lock is over
                deadline = time.monotonic() + self._seconds(timeout) - self._options.lock_timeout
            late = _ridden_out(core, session, error, deadline)
            if late is None:
                return None, None
            waiter, parked = late, False
            sources = sources or core.sources(session, channels)  # which may be iterated only once
        receiving = core.receive(session, sources, waiter, deadline, parked)
        try:
            receiving.send(None)
        except StopIteration as finished:
            return finished.value or (None, None)
        raise AssertionError("a blocking waiter suspended")

    def _seconds(self, timeout: float | None) -> float:
        return self._receive_timeout if timeout is None else timeout

    async def receive_async(
        self, channels: Iterable[str]
    ) -> tuple[str | None, dict[str, Any] | None]:
        """`receive` with ``block=True`` as a coroutine, on whatever asyncio loop runs it (A9)."""
        from .aio.loop import receive

        deadline = time.monotonic() + self._options.receive_timeout
        return await receive(self._for_loops, channels, deadline)

    def receive_twisted(self, channels: Iterable[str]) -> Any:
        """`receive` with ``block=True`` as a Deferred, driven by the reactor's readers (A9)."""
        from .aio.reactor import receive

        return receive(self._for_loops, channels, self._options.receive_timeout)

    @cached_property
    def _for_loops(self) -> Core:
        """This layer for event loops, which a lock that is busy must not hold up."""
        return Core.for_loops(self._options)

    def new_channel(self, pattern: str) -> str:
        """Return an unused name for `pattern`, which ends in ``?`` (A3). Raises InvalidName."""
        if not isinstance(pattern, str) or not pattern.endswith("?"):
            raise InvalidName(
                f"new_channel takes a pattern that ends in '?', not {pattern!r}: names with '!' "
                "are made up by the process that receives on them"
            )
        return check_channel(pattern + os.urandom(8).hex())

    # -- groups -----------------------------------------------------------------------------------

    def group_add(self, group: str, channel: str) -> None:
        """Add `channel` to `group`, or renew its membership for ``group_expiry`` seconds (A5)."""
        self._core.group_add(group, channel)

    def group_discard(self, group: str, channel: str) -> None:
        """Remove `channel` from `group`; it need not be a member (A5)."""
        self._core.group_discard(group, channel)

    def group_channels(self, group: str) -> list[str]:
        """The members of `group` whose readers live (A5)."""
        return self._core.group_channels(group)

    def send_group(self, group: str, message: dict[str, Any]) -> None:
        """Send `message` to every member of `group`; full channels are left out (A5, M7)."""
        self._core.group_send(group, message)

    # -- the rest ---------------------------------------------------------------------------------

    def flush(self) -> None:
        """Forget all messages and groups, of every process (A7)."""
        self._core.flush()

    def global_statistics(self) -> dict[str, Any]:
        """The figures of the statistics extension for the whole layer (A8)."""
        return self._core.global_statistics()

    def channel_statistics(self, channel: str) -> dict[str, Any]:
        """The figures of the statistics extension for one channel (A8)."""
        return self._core.channel_statistics(channel)

    def stats(self) -> Stats:
        """Everything that is known of the layer: see `asgi_ipc.statistics.Stats`. It takes no lock
        and disturbs nobody. Rates are those since the last call that is a second ago."""
        return self._core.stats()

    def close(self) -> None:
        """Free what this layer holds of the process: descriptors and memory. Nothing is removed
        from shared memory, and the next call attaches again."""
        self._core.detach()
        if "_for_loops" in vars(self):
            self._for_loops.detach()

    def __repr__(self) -> str:
        return f"<{type(self).__module__}.{type(self).__name__} prefix={self.prefix!r}>"
