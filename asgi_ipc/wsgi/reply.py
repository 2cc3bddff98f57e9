"""A worker's side of one exchange: the body that comes in, and the response that goes out.

It waits while there is nothing, or no room, and gives up when nobody is there any more.
"""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import Any, cast

from ..errors import ReplyLost
from ..sync import IPCChannelLayer
from .messages import BODY_CHUNK, CONTENT_CHUNK, response_of, weight
from .readers import has_reader

_PAUSE, _LONGEST_PAUSE = 0.001, 0.05  # seconds between two looks whether there is room
_LOOK_EVERY = 1.0  # seconds between two looks whether the other side lives
_IN_MEMORY = 1 << 20  # bytes of a body of unknown length; what is more goes to a temporary file


class Peer:
    """Who sent a request and waits for its reply: a WSGI server, or daphne."""

    def __init__(self, layer: IPCChannelLayer, reply_channel: str, timeout: float) -> None:
        """`timeout`: seconds that it may stand still, although its process lives."""
        self.layer = layer
        self.channel = reply_channel
        self.timeout = timeout

    def wait(self, channel: str) -> dict[str, Any]:
        """The next message that it sends to us alone, on `channel`. Raises ReplyLost."""
        deadline = time.monotonic() + self.timeout
        while True:
            seconds = min(_LOOK_EVERY, deadline - time.monotonic())
            _, message = self.layer.receive([channel], block=True, timeout=seconds)
            if message is not None:
                return message
            self.check(deadline)

    def check(self, deadline: float) -> None:
        """Raises ReplyLost if its process is dead, or `deadline` is past."""
        if not has_reader(self.layer._core, self.channel):
            raise ReplyLost(f"the process that reads {self.channel!r} is dead")
        if time.monotonic() >= deadline:
            raise ReplyLost(f"{self.channel!r} stood still for {self.timeout} seconds")


class Body(io.RawIOBase):
    """The body of a request whose first piece came with it, and the rest on a channel."""

    def __init__(self, peer: Peer, first: bytes, channel: str) -> None:
        self._peer = peer
        self._rest = memoryview(first)
        self._channel = channel
        self._order = 0
        self._complete = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest and not self._complete:
            self._next()
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size

    def _next(self) -> None:
        try:
            chunk = self._peer.wait(self._channel)
        except ReplyLost as error:
            raise ConnectionAbortedError(f"the rest of the body does not come: {error}") from None
        if chunk.get("closed"):
            raise ConnectionResetError("the client went away before it had sent the whole body")
        if chunk.get("order", self._order) != self._order:
            raise ConnectionAbortedError(
                f"a piece of the body is lost: it expired, or the layer was flushed (piece "
                f"{self._order} on {self._channel!r})"
            )
        self._order += 1
        self._rest = memoryview(chunk.get("content") or b"")
        self._complete = not chunk.get("more_content", False)

    def discard(self) -> None:
        """Free the memory of what is there and will not be read."""
        while not self._complete:
            _, chunk = self._peer.layer.receive([self._channel])
            if chunk is None:
                return
            self._complete = not chunk.get("more_content", False)


def whole(body: Body) -> tuple[io.BufferedIOBase, int]:
    """All of a body, and its length in bytes."""
    kept = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)
    piece = bytearray(BODY_CHUNK)
    while size := body.readinto(piece):
        kept.write(piece[:size])
    length = kept.tell()
    kept.seek(0)
    return cast(io.BufferedIOBase, kept), length


class Reply:
    """What an application answers, on its way to the one who asked."""

    def __init__(self, peer: Peer, request: dict[str, Any]) -> None:
        self._peer = peer
        self._is_head = request["method"] == "HEAD"
        self._flow_channel: str | None = request.get("flow_channel")
        self._window: int = request.get("flow_window") or 0
        self._piece = CONTENT_CHUNK
        if self._flow_channel is not None:
            self._piece = max(1, min(CONTENT_CHUNK, self._window // 2))
        self._head: dict[str, Any] | None = None  # until it is sent
        self._length: int | None = None  # that the application announced
        self._content = 0  # bytes sent
        self._messages = 0
        self._sent = self._taken = 0  # their weight, and how much of it the other side has taken
        self.complete = False

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], None]:
        """PEP 3333's: keeps the head until there is something of the body."""
        try:
            if exc_info is not None:
                if self._messages:
                    raise exc_info[1].with_traceback(exc_info[2])
            elif self._head is not None or self._messages:
                raise AssertionError("start_response was called twice, without exc_info")
        finally:
            exc_info = None  # PEP 3333: no cycle through the traceback
        self._head = response_of(status, headers)
        lengths = [value for name, value in self._head["headers"] if name == b"content-length"]
        self._length = int(lengths[0]) if lengths else None
        return self.write

    def send_all(self, blocks: Iterable[bytes]) -> None:
        """Send what an application returned, each block as soon as it is there (PEP 3333)."""
        if isinstance(blocks, (list, tuple)):
            self.write(b"".join(blocks), last=True)
            return
        for block in blocks:
            if block:
                self.write(block)
            if self.complete:
                return
        self.write(b"", last=True)

    def write(self, content: bytes, last: bool = False) -> None:
        """Send `content`, in as many messages as it needs. `last`: no more will follow, which also
        goes without saying when the announced length is reached."""
        if self._head is None and not self._messages:
            raise AssertionError("the application sent a body before it called start_response")
        if self._length is not None:
            content = content[: self._length - self._content]
            last = last or self._content + len(content) == self._length
        if self._is_head:
            content, last = b"", True
        at = 0
        while not self.complete:
            piece = content[at : at + self._piece]
            at += self._piece
            self._content += len(piece)
            self._send({"content": piece, "more_content": not (last and at >= len(content))})
            if at >= len(content):
                return

    def fail(self) -> None:
        """The application raised: say so, in the way that is left."""
        if self.complete:
            return
        if not self._messages:
            self._head = None
            text = b"Internal Server Error\n"
            headers = [("Content-Type", "text/plain; charset=utf-8")]
            headers.append(("Content-Length", str(len(text))))
            self.start_response("500 Internal Server Error", headers)
            self.write(text)
        elif self._flow_channel is not None:
            self._send({"content": b"", "more_content": False, "aborted": True})
        # Another kind of server would take an end for a good one: it must find out by waiting.

    def _send(self, message: dict[str, Any]) -> None:
        if self._flow_channel is not None:
            size = weight(message, self._window)
            while self._sent > self._taken and self._sent + size > self._taken + self._window:
                self._hear(self._peer.wait(self._flow_channel))
            self._sent += size
        message["order"] = self._messages
        if self._head is not None:
            message.update(self._head)
            if self._flow_channel is not None and message["more_content"]:
                message["flow_control"] = True
        deadline, pause = time.monotonic() + self._peer.timeout, _PAUSE
        while True:
            try:
                self._peer.layer.send(self._peer.channel, message)
                break
            except self._peer.layer.ChannelFull:
                self._peer.check(deadline)
            self._pause(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        self._head = None
        self._messages += 1
        self.complete = not message["more_content"]

    def _pause(self, seconds: float) -> None:
        """Nobody rings when there is room again; but the other side may say that it has gone."""
        if self._flow_channel is None:
            time.sleep(seconds)
            return
        _, word = self._peer.layer.receive([self._flow_channel], block=True, timeout=seconds)
        if word is not None:
            self._hear(word)

    def _hear(self, word: dict[str, Any]) -> None:
        if word.get("closed"):
            raise ReplyLost(f"the client behind {self._peer.channel!r} has gone")
        self._taken = max(self._taken, word.get("taken", 0))
