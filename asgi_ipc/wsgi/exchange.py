"""A worker's side of one exchange: the body that comes in, and the response that goes out. Must not
know the application.

It waits while nothing comes or there is no room, and gives up when the other side is gone.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, cast

from .. import clock
from ..aio.receiving import Received
from ..aio.sending import Meanwhile
from ..base_layer import Message
from ..errors import ReplyLost
from ..sync import IPCChannelLayer
from .messages import BODY_CHUNK, CONTENT_CHUNK, response_of, weight
from .readers import has_reader
from .room import send_when_room

if TYPE_CHECKING:
    from _typeshed import OptExcInfo

_LOOK_EVERY = 1.0  # seconds between two checks whether the other side is alive
_IN_MEMORY = 1 << 20  # bytes of a body of unknown length; a longer one goes to a temporary file


class Peer:
    """The server that sent a request and waits for its response: a WSGI server, or daphne."""

    def __init__(self, layer: IPCChannelLayer, reply_channel: str, timeout: float) -> None:
        """`timeout`: seconds that a client may neither send nor take data."""
        self.layer = layer
        self.channel = reply_channel
        self.timeout = timeout

    def wait(self, channel: str) -> Message:
        """Wait for its next message on `channel`, and return it. Raises ReplyLost."""
        deadline = clock.monotonic() + self.timeout
        while True:
            seconds = self.until_look(deadline)
            _, message = self.layer.receive([channel], block=True, timeout=seconds)
            if message is not None:
                return message
            self.check(deadline)

    def until_look(self, deadline: float) -> float:
        """Seconds until the next check whether it is alive."""
        return min(_LOOK_EVERY, deadline - clock.monotonic())

    def check(self, deadline: float) -> None:
        """Raise ReplyLost if its process is dead, or `deadline` has passed."""
        if not has_reader(self.layer._core, self.channel):
            raise ReplyLost(f"the process that reads {self.channel!r} is dead")
        if clock.monotonic() >= deadline:
            raise ReplyLost(
                f"the client behind {self.channel!r} neither sent nor took data for "
                f"{self.timeout} seconds"
            )


class RequestBody(io.RawIOBase):
    """The body of a request, whose first piece came with the request and the rest on a channel."""

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
            self._receive()
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size

    def _receive(self) -> None:
        try:
            chunk = self._peer.wait(self._channel)
        except ReplyLost as error:
            raise ConnectionAbortedError(f"the rest of the body did not come: {error}") from None
        if chunk.get("closed"):
            raise ConnectionResetError("the client disconnected before it had sent the whole body")
        if chunk.get("order", self._order) != self._order:
            raise ConnectionAbortedError(
                f"piece {self._order} of the body, on {self._channel!r}, is lost: it expired, or "
                "the layer was flushed"
            )
        self._order += 1
        self._rest = memoryview(chunk.get("content") or b"")
        self._complete = not chunk.get("more_content", False)

    def discard(self) -> None:
        """Take the pieces that are pending and will not be read, to free their memory."""
        while not self._complete:
            _, chunk = self._peer.layer.receive([self._channel])
            if chunk is None:
                return
            self._complete = not chunk.get("more_content", False)


def read_whole(body: RequestBody) -> tuple[io.BufferedIOBase, int]:
    """Read a body to its end; return it as a file, and its length in bytes."""
    kept = tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY)
    piece = bytearray(BODY_CHUNK)
    try:
        while size := body.readinto(piece):
            kept.write(piece[:size])
    except BaseException:
        kept.close()
        raise
    length = kept.tell()
    kept.seek(0)
    return cast(io.BufferedIOBase, kept), length


class Response:
    """The response of an application, as it is sent to the server that asked."""

    def __init__(self, peer: Peer, request: Message) -> None:
        self._peer = peer
        self._is_head = request["method"] == "HEAD"
        self._flow_channel: str | None = request.get("flow_channel")
        self._window: int = request.get("flow_window") or 0
        self._piece = CONTENT_CHUNK
        if self._flow_channel is not None:
            self._piece = max(1, min(CONTENT_CHUNK, self._window // 2))
        self._head: Message | None = None  # until it is sent
        self._length: int | None = None  # that the application announced
        self._content = 0  # bytes sent
        self._messages = 0
        self._sent = self._taken = 0  # their weight, and how much of it the client has taken
        self.complete = False

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: OptExcInfo | None = None
    ) -> Callable[[bytes], object]:
        """Keep the head until the first piece of the body is there (PEP 3333)."""
        try:
            if exc_info is not None:
                if self._messages:
                    raise exc_info[1].with_traceback(exc_info[2])  # type: ignore[union-attr]
            elif self._head is not None or self._messages:
                raise AssertionError("start_response was called twice, without exc_info")
        finally:
            exc_info = None  # PEP 3333: avoid a cycle through the traceback
        self._head = response_of(status, headers)
        lengths = [value for name, value in self._head["headers"] if name == b"content-length"]
        self._length = int(lengths[0]) if lengths else None
        return self.write

    def send_all(self, blocks: Iterable[bytes]) -> None:
        """Send what an application returned, each block as soon as it comes (PEP 3333)."""
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
        """Send `content`, in as many messages as it needs. `last`: nothing will follow, which is
        also clear when the announced length is reached."""
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
        """Report that the application raised, if the server can still be told."""
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
        # Another kind of server would take any end for a normal end: let its wait time out.

    def _send(self, message: Message) -> None:
        if self._flow_channel is not None:
            size = weight(message, self._window)
            while self._sent > self._taken and self._sent + size > self._taken + self._window:
                self._note(self._peer.wait(self._flow_channel))
            self._sent += size
        message["order"] = self._messages
        if self._head is not None:
            message.update(self._head)
            if self._flow_channel is not None and message["more_content"]:
                message["flow_control"] = True
        peer = self._peer
        try:
            # A full channel is looked at before the first wait, too: what is dropped for a dead
            # reader makes room.
            peer.layer.send(peer.channel, message)
        except peer.layer.ChannelFull:
            self._send_when_room(message)
        self._head = None
        self._messages += 1
        self.complete = not message["more_content"]

    def _send_when_room(self, message: Message) -> None:
        """Wait for room, and notice meanwhile if the client goes away."""
        peer = self._peer
        channels = [] if self._flow_channel is None else [self._flow_channel]
        meanwhile = Meanwhile(channels, self._hear)
        deadline = clock.monotonic() + peer.timeout
        while True:
            peer.check(deadline)
            until = clock.monotonic() + peer.until_look(deadline)
            with contextlib.suppress(peer.layer.ChannelFull):
                send_when_room(peer.layer, peer.channel, message, until, meanwhile)
                return

    def _hear(self, found: Received | None) -> bool:
        if found is not None:
            self._note(found[1])
        return False

    def _note(self, word: Message) -> None:
        """Note what the client has taken, or that it has gone."""
        if word.get("closed"):
            raise ReplyLost(f"the client behind {self._peer.channel!r} has disconnected")
        self._taken = max(self._taken, word.get("taken", 0))
