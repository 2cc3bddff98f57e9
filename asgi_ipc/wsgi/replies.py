"""The reply channel of a process, shared by its threads.

Each request has a mailbox, and a local part of the channel for a name. There is no thread that
receives for all: one of those that wait for a reply does so, puts what is for others into their
mailboxes, and hands over to one of them when it has its own. So a process with one thread receives
directly, and nothing of this outlives a request.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections import deque
from typing import Any

from ..errors import IPCError
from ..sync import IPCChannelLayer


class Mailbox:
    """Where replies to one request wait for its thread."""

    __slots__ = ("channel", "flow_channel", "local", "messages", "sleeps", "wake")

    def __init__(self, process: str, number: int) -> None:
        self.local = f"{number:x}"
        self.channel = f"http.response.{process}!{self.local}"
        self.flow_channel = f"http.response.flow?{process}.{self.local}"
        self.messages: deque[dict[str, Any]] = deque()
        self.sleeps = False
        self.wake = threading.Event()


class Replies:
    """What comes in on the reply channel of this process. Not to be used by another one."""

    def __init__(self, layer: IPCChannelLayer) -> None:
        self.pid = os.getpid()
        self._layer = layer
        self._process = os.urandom(8).hex()
        self._channels = [f"http.response.{self._process}!"]
        self._numbers = itertools.count()
        self._boxes: dict[str, Mailbox] = {}
        self._lock = threading.Lock()
        self._receiving = False
        # From now on the channel has a reader: workers ask for it (readers.has_reader).
        layer.receive(self._channels)

    def open(self) -> Mailbox:
        """A mailbox with a name of its own. It must be closed."""
        box = Mailbox(self._process, next(self._numbers))
        self._boxes[box.local] = box
        return box

    def close(self, box: Mailbox) -> None:
        """Forget a mailbox: what still comes for it is dropped."""
        self._boxes.pop(box.local, None)

    def take(self, box: Mailbox, deadline: float) -> dict[str, Any] | None:
        """The next reply in `box`; None if none has come by `deadline`, which may be past."""
        leads = False
        try:
            while not box.messages:
                with self._lock:
                    if not self._receiving:
                        leads = self._receiving = True
                    elif not box.messages:
                        box.wake.clear()
                        box.sleeps = True
                if leads:
                    self._receive_for(box, deadline)
                    break
                if not box.wake.wait(max(0.0, deadline - time.monotonic())):
                    break
            return box.messages.popleft() if box.messages else None
        finally:
            self._hand_over(box, leads)

    def _receive_for(self, box: Mailbox, deadline: float) -> None:
        """Receive for all, until there is something in `box` or time is up."""
        while not box.messages:
            seconds = deadline - time.monotonic()
            channel, message = self._layer.receive(self._channels, seconds > 0, max(seconds, 0.0))
            if channel is not None and message is not None:
                self._deliver(channel, message)
            elif seconds <= 0:
                return

    def _deliver(self, channel: str, message: dict[str, Any]) -> None:
        box = self._boxes.get(channel.partition("!")[2])
        if box is None:
            self._drop(channel, message)
            return
        with self._lock:
            box.messages.append(message)
            box.wake.set()

    def _drop(self, channel: str, message: dict[str, Any]) -> None:
        """A reply that came too late: if more is to come, tell the worker that nobody waits."""
        if "status" in message and message.get("flow_control"):
            local = channel.partition("!")[2]
            with contextlib.suppress(IPCError, ValueError):
                late = Mailbox(self._process, int(local, 16))
                self._layer.send(late.flow_channel, {"closed": True})

    def _hand_over(self, box: Mailbox, led: bool) -> None:
        """This thread does not wait any more: see to it that another one receives."""
        with self._lock:
            box.sleeps = False
            if led:
                self._receiving = False
            if not self._receiving:
                # A list: other threads open and close mailboxes without the lock.
                for other in list(self._boxes.values()):
                    if other.sleeps:
                        other.wake.set()
                        return
