"""Sorts the replies to a server process, whose threads share one reply channel, into a mailbox for
each request. Must not look into replies, except into those that come too late.

The local part of a channel's name names the mailbox. No thread exists only to receive. One of the
threads that wait for a reply receives for all of them, and puts the replies for others into their
mailboxes. When it has its own reply, it hands over to one of these threads. So a process with one
thread receives directly, and no thread outlives a request. A thread that waits for room to send
takes part in this.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque

from .. import clock
from ..aio.sending import Meanwhile
from ..aio.thread import ThreadWaiter
from ..base_layer import Message
from ..errors import IPCError
from ..sync import IPCChannelLayer
from .room import send_when_room


class Mailbox:
    """The replies to one request, until its thread takes them."""

    __slots__ = ("channel", "flow_channel", "local", "messages", "sender", "sleeps", "wake")

    def __init__(self, process: str, local: str) -> None:
        self.local = local
        self.channel = f"http.response.{process}!{local}"
        self.flow_channel = f"http.response.flow?{process}.{local}"
        self.messages: deque[Message] = deque()
        self.sleeps = False
        self.wake = threading.Event()
        self.sender: ThreadWaiter | None = None  # that of its thread, while it waits for room

    def rouse(self) -> None:
        """Wake its thread, which then checks for messages, and whether it has to receive."""
        self.wake.set()
        sender = self.sender
        if sender is not None:
            sender.wake()


class Mailboxes:
    """The reply channel of this process. A forked child needs its own."""

    def __init__(self, layer: IPCChannelLayer) -> None:
        self.pid = os.getpid()
        self._layer = layer
        self._process = os.urandom(8).hex()
        self._channels = [f"http.response.{self._process}!"]
        self._boxes: dict[str, Mailbox] = {}
        self._lock = threading.Lock()
        self._receiving = False
        # From now on the channel has a reader, which workers check with `readers.has_reader`.
        layer.receive(self._channels)

    def open(self) -> Mailbox:
        """Return a new mailbox. It must be closed."""
        # Not counted: without the GIL, two threads could count the same number.
        box = Mailbox(self._process, os.urandom(8).hex())
        self._boxes[box.local] = box
        return box

    def close(self, box: Mailbox) -> None:
        """Remove a mailbox. Replies that come for it later are dropped."""
        self._boxes.pop(box.local, None)

    def take(self, box: Mailbox, deadline: float) -> Message | None:
        """Return the next reply in `box`; None if none has come by `deadline`, which may have
        passed."""
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
                if not box.wake.wait(max(0.0, deadline - clock.monotonic())):
                    break
            return box.messages.popleft() if box.messages else None
        finally:
            self._hand_over(box, leads)

    def send_or_take(
        self, box: Mailbox, channel: str, message: Message, capacity: int | None, deadline: float
    ) -> bool:
        """Send `message` as soon as fewer than `capacity` are pending in `channel`. Return False if
        a reply came first, which `take` then returns. Raises ChannelFull at `deadline`."""

        leads = False
        channels: list[str] = []

        def hear(found: tuple[str, Message] | None) -> bool:
            nonlocal leads
            if found is not None:
                self._deliver(*found)
            with self._lock:
                box.sleeps = True  # so it may be told to receive for all
                if not (leads or self._receiving):
                    leads = self._receiving = True
                    channels.extend(self._channels)
            return bool(box.messages)

        def begin(waiter: ThreadWaiter) -> None:
            box.sender = waiter

        try:
            meanwhile = Meanwhile(channels, hear, begin, capacity)
            return send_when_room(self._layer, channel, message, deadline, meanwhile)
        finally:
            box.sender = None
            self._hand_over(box, leads)

    def _receive_for(self, box: Mailbox, deadline: float) -> None:
        """Receive for all threads, until there is a reply in `box` or the time is up."""
        while not box.messages:
            seconds = deadline - clock.monotonic()
            channel, message = self._layer.receive(self._channels, seconds > 0, max(seconds, 0.0))
            if channel is not None and message is not None:
                self._deliver(channel, message)
            elif seconds <= 0:
                return

    def _deliver(self, channel: str, message: Message) -> None:
        box = self._boxes.get(channel.partition("!")[2])
        if box is None:
            self._drop(channel, message)
            return
        with self._lock:
            box.messages.append(message)
            box.rouse()

    def _drop(self, channel: str, message: Message) -> None:
        """Drop a reply that came too late; if more would follow, tell the worker to stop."""
        if "status" in message and message.get("flow_control"):
            late = Mailbox(self._process, channel.partition("!")[2])
            with contextlib.suppress(IPCError):
                self._layer.send(late.flow_channel, {"closed": True})

    def _hand_over(self, box: Mailbox, led: bool) -> None:
        """Stop waiting, and make another thread receive."""
        with self._lock:
            box.sleeps = False
            if led:
                self._receiving = False
            if not self._receiving:
                # A copy: other threads open and close mailboxes without the lock.
                for other in self._boxes.copy().values():
                    if other.sleeps:
                        other.rouse()
                        return
