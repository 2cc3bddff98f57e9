"""`WsgiToAsgiAdapter`: what a WSGI server runs so that workers in other processes do the work.

It takes a request from the server, sends it over the channel layer, and hands the reply on. It must
not know what the workers are: ours, or those of Channels 1.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ..errors import InvalidOption, IPCError, ReplyLost
from ..options import check_seconds
from ..sync import IPCChannelLayer
from .messages import BODY_CHUNK, DISCONNECTS, REQUESTS, has_no_body, request_of, start_of, weight
from .replies import Replies

logger = logging.getLogger("asgi_ipc")

WINDOW = 1 << 20  # bytes of a response that may be under way
UPLOAD_WINDOW = 16  # messages of a request's body that may wait for the worker
_PAUSE, _LONGEST_PAUSE = 0.001, 0.02  # seconds between two looks whether there is room


class WsgiToAsgiAdapter:
    """A WSGI application (PEP 3333) that passes each request to a worker, over a channel layer.

    ::

        application = WsgiToAsgiAdapter(IPCChannelLayer(prefix="mysite"))

    What it answers itself: 503 with Retry-After, if the channel ``http.request`` is full or the
    layer cannot be used; 504, if no answer comes within `timeout` seconds; 502, if its beginning is
    lost; 431, if the request without its body is larger than ``max_message_size``; 400, if the
    client sends less than it announced. A response that has begun and does not go on raises
    `errors.ReplyLost`, and the server ends the connection.

    It may be used by many threads, and by processes that are forked after it was made.
    """

    def __init__(
        self, channel_layer: IPCChannelLayer, timeout: float = 25, retry_after: int = 1
    ) -> None:
        """`timeout`: seconds that a worker may be silent (gunicorn kills a sync worker of its own
        that takes 30); `retry_after`: seconds, for clients that get 503. Raises InvalidOption."""
        if not isinstance(channel_layer, IPCChannelLayer):
            raise InvalidOption(
                f"channel_layer must be an asgi_ipc.IPCChannelLayer, not {channel_layer!r}"
            )
        check_seconds("timeout", timeout)
        if type(retry_after) is not int or retry_after < 0:
            raise InvalidOption(f"retry_after must be an int of seconds, not {retry_after!r}")
        self.channel_layer = channel_layer
        self.timeout = timeout
        self.retry_after = retry_after
        self._replies: Replies | None = None

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        exchange: _Exchange | None = None
        try:
            try:
                exchange = _Exchange(self, environ)
                first = exchange.ask()
            except (_ShortBody, IPCError) as error:
                return self._refuse(start_response, environ, self._status(error, exchange), error)
            if first is None:
                why = f"no answer within {self.timeout} seconds"
                return self._refuse(start_response, environ, 504, why)
            status, headers = start_of(first)
            if not exchange.has_body:
                start_response(status, headers)
                return []
            if exchange.complete:
                content = first.get("content") or b""
                if not any(name == "Content-Length" for name, _ in headers):
                    headers.append(("Content-Length", str(len(content))))
                start_response(status, headers)
                return [content]
            start_response(status, headers)
            response, exchange = exchange, None  # the server closes it
            return response
        finally:
            if exchange is not None:
                exchange.close()

    def replies(self) -> Replies:
        """The reply channel of this process."""
        found = self._replies
        if found is None or found.pid != os.getpid():  # or this process has been forked
            # Two threads may both come here at first: then there are two, and both are read.
            found = self._replies = Replies(self.channel_layer)
        return found

    def _status(self, error: Exception, exchange: _Exchange | None) -> int:
        """Which answer of our own an error leads to."""
        if isinstance(error, _ShortBody):
            return 400
        if isinstance(error, self.channel_layer.MessageTooLarge):
            return 431
        return 502 if exchange is not None and exchange.sent else 503

    def _refuse(
        self, start_response: Callable[..., Any], environ: dict[str, Any], status: int, why: object
    ) -> Iterable[bytes]:
        """An answer of our own."""
        full = isinstance(why, self.channel_layer.ChannelFull)
        # A full channel is counted by the layer, and a flood of requests must not flood the log.
        (logger.debug if full else logger.warning)(
            "prefix %r: answered %s to %s %s: %s",
            self.channel_layer.prefix,
            status,
            environ["REQUEST_METHOD"],
            environ.get("PATH_INFO", ""),
            why,
        )
        line, headers = start_of({"status": status})
        content = b"" if environ["REQUEST_METHOD"] == "HEAD" else f"{line}\n".encode()
        headers.append(("Content-Type", "text/plain; charset=utf-8"))
        headers.append(("Content-Length", str(len(line) + 1)))
        if status == 503:
            headers.append(("Retry-After", str(self.retry_after)))
        start_response(line, headers)
        return [content]


class _Exchange:
    """One request, and its response as the iterable that PEP 3333 asks for."""

    def __init__(self, adapter: WsgiToAsgiAdapter, environ: dict[str, Any]) -> None:
        self._layer = adapter.channel_layer
        self._timeout = adapter.timeout
        self._replies = adapter.replies()
        self._request = request_of(environ)
        self._body = _Body(environ)
        self._chunk: dict[str, Any] | None = None  # of the body: read, and not yet sent
        self._chunks = 0
        self.sent = False
        self._first: dict[str, Any] | None = None
        self._flow = False
        self._order = 0  # messages of the response that were taken
        self._taken = self._told = 0  # their weight, and how much of it the worker knows of
        self.has_body = self.complete = False
        self._box = self._replies.open()

    def ask(self) -> dict[str, Any] | None:
        """Send the request; the first message of the response, or None if it does not come.

        Raises what `send` and `receive` of the layer do, ReplyLost, and _ShortBody.
        """
        request, box = self._request, self._box
        request["body"] = self._body.read()
        request["reply_channel"] = box.channel
        request["flow_channel"], request["flow_window"] = box.flow_channel, WINDOW
        if self._body.complete:
            request["body_channel"] = None
            request["deadline"] = time.monotonic() + self._timeout
        else:
            request["body_channel"] = self._layer.new_channel(f"{REQUESTS}.body?")
        self._layer.send(REQUESTS, request)
        self.sent = True
        first = self._first = self._next_message()
        if first is not None:
            if "status" not in first:
                raise self._lost("sent a first one that expired, or the layer was flushed")
            self.has_body = not has_no_body(request["method"], first["status"])
            self.complete = not first.get("more_content", False)
            self._flow = bool(first.get("flow_control"))
        return first

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        while self._first is not None or not self.complete:
            message, self._first = self._first or self._next_message(), None
            if message is None:
                raise self._lost(f"has been silent for {self._timeout} seconds")
            if message.get("aborted"):
                raise self._lost("reported that the application failed, see its log")
            if message.get("order", self._order) != self._order:
                raise self._lost("sent one that is lost: it expired, or the layer was flushed")
            self._order += 1
            self._taken += weight(message, WINDOW)
            self.complete = not message.get("more_content", False)
            if self.complete:
                self.close()
            content: bytes = message.get("content") or b""
            if content:
                return content
        raise StopIteration

    def close(self) -> None:
        """End the exchange, for PEP 3333 also in the middle: what still comes is dropped."""
        self._replies.close(self._box)
        if self.complete or not self.sent:
            return
        self.complete = True
        # Tell who works on it. If that cannot be, it finds out by waiting in vain.
        with contextlib.suppress(IPCError):
            if self._flow:
                self._layer.send(self._box.flow_channel, {"closed": True})
            else:
                gone = {"reply_channel": self._box.channel, "path": self._request["path"]}
                self._layer.send(DISCONNECTS, gone)

    def _next_message(self) -> dict[str, Any] | None:
        """The next message of the response; None if the worker is silent for too long.

        Until then the rest of the body goes out, as fast as the worker reads it.
        """
        deadline, pause = time.monotonic() + self._timeout, _PAUSE
        while True:
            owes = self._owes_word()
            uploads = self._chunk is not None or not self._body.complete
            if not (owes or uploads):
                return self._replies.take(self._box, deadline)
            message = self._replies.take(self._box, 0.0)
            if message is not None:
                return message
            if uploads and self._upload():
                deadline, pause = time.monotonic() + self._timeout, _PAUSE
                continue
            # Nobody rings when there is room again, so look; an answer wakes us at once.
            message = self._replies.take(self._box, time.monotonic() + pause)
            if message is not None or time.monotonic() >= deadline:
                return message
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _upload(self) -> bool:
        """Send the next piece of the body; False if there is no room for it."""
        channel = self._request["body_channel"]
        if self._chunk is None:
            try:
                content = self._body.read()
            except BaseException:
                with contextlib.suppress(IPCError):
                    self._layer.send(channel, {"content": b"", "closed": True})
                raise
            more = not self._body.complete
            self._chunk = {"content": content, "more_content": more, "order": self._chunks}
        pending = self._layer.channel_statistics(channel)["messages_pending"]
        if pending >= UPLOAD_WINDOW:
            return False
        try:
            self._layer.send(channel, self._chunk)
        except self._layer.ChannelFull:
            return False
        self._chunk = None
        self._chunks += 1
        return True

    def _owes_word(self) -> bool:
        """Tell the worker how much the server has taken, if it may be waiting for that; True if it
        could not be told."""
        if not self._flow or self._taken - self._told < WINDOW // 2:
            return False
        try:
            self._layer.send(self._box.flow_channel, {"taken": self._taken})
        except self._layer.ChannelFull:
            return True
        self._told = self._taken
        return False

    def _lost(self, why: str) -> ReplyLost:
        method, path = self._request["method"], self._request["path"]
        return ReplyLost(
            f"the response to {method} {path} broke off after {self._order} messages: its worker "
            f"{why}"
        )


class _ShortBody(Exception):
    """The client sent less than its Content-Length."""


class _Body:
    """The body of a request, in pieces as large as one message."""

    def __init__(self, environ: dict[str, Any]) -> None:
        self._input = environ["wsgi.input"]
        self._left: int | None = None  # bytes; None: until the end of the input
        length = environ.get("CONTENT_LENGTH")
        if length:
            self._left = int(length)
        elif not (
            environ.get("wsgi.input_terminated")
            or environ.get("HTTP_TRANSFER_ENCODING", "").lower() == "chunked"
        ):
            self._left = 0  # the input of such a server does not end: it would wait for ever
        self.complete = self._left == 0

    def read(self) -> bytes:
        """The next piece, of BODY_CHUNK bytes but for the last. Raises _ShortBody."""
        pieces = []
        room = BODY_CHUNK if self._left is None else min(BODY_CHUNK, self._left)
        while room:
            piece = self._input.read(room)
            if not piece:
                self.complete = True
                if self._left is not None:
                    raise _ShortBody(f"the client sent {self._left} bytes less than it announced")
                break
            pieces.append(piece)
            room -= len(piece)
            if self._left is not None:
                self._left -= len(piece)
                self.complete = self._left == 0
        return b"".join(pieces)
