"""`WsgiToAsgiAdapter`: passes the requests of a WSGI server to workers in other processes, over a
channel layer, and their responses back. Must not know the workers: they may be those of Channels 1.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator
from typing import Optional

from .. import clock
from ..base_layer import Message
from ..errors import InvalidOption, IPCError, ReplyLost
from ..options import check_seconds
from ..sync import IPCChannelLayer
from .mailboxes import Mailboxes
from .messages import (
    BODY_CHUNK,
    DISCONNECTS,
    REQUESTS,
    Environ,
    StartResponse,
    has_no_body,
    request_of,
    start_of,
    weight,
)

logger = logging.getLogger("asgi_ipc")

WINDOW = 1 << 20  # bytes of a response that a worker may be ahead of the client
UPLOAD_WINDOW = 16  # messages of a request's body that may be pending for the worker

# What to send: the channel, the message, and how many may be pending there.
_Outgoing = tuple[str, Message, Optional[int]]


class WsgiToAsgiAdapter:
    """A WSGI application (PEP 3333) that passes each request to a worker, over a channel layer.

    ::

        application = WsgiToAsgiAdapter(IPCChannelLayer(prefix="mysite"))

    It answers by itself: with 503 and Retry-After if the channel ``http.request`` is full or the
    layer cannot be used; with 504 if no response comes within `timeout` seconds; with 502 if the
    beginning of the response is lost; with 431 if the request without its body is larger than
    ``max_message_size``; with 400 if the client sends less than it announced. If a response that
    has begun breaks off, it raises `errors.ReplyLost`, and the server ends the connection.

    Many threads may use it, and so may processes that are forked after it was created.
    """

    def __init__(
        self, channel_layer: IPCChannelLayer, timeout: float = 25, retry_after: int = 1
    ) -> None:
        """`timeout`: seconds that a worker may be silent (gunicorn kills its own sync workers
        after 30); `retry_after`: seconds, for clients that get 503. Raises InvalidOption."""
        if not isinstance(channel_layer, IPCChannelLayer):
            raise InvalidOption(
                f"channel_layer must be an asgi_ipc.IPCChannelLayer, not {channel_layer!r}"
            )
        check_seconds("timeout", timeout)
        if type(retry_after) is not int or retry_after < 0:
            raise InvalidOption(
                f"retry_after must be a whole number of seconds, 0 or more, not {retry_after!r}"
            )
        self.channel_layer = channel_layer
        self.timeout = timeout
        self.retry_after = retry_after
        self._mailboxes: Mailboxes | None = None

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        exchange: _Exchange | None = None
        try:
            try:
                exchange = _Exchange(self, environ)
                first = exchange.ask()
            except (_ShortBody, IPCError) as error:
                return self._refuse(start_response, environ, self._status(error, exchange), error)
            if first is None:
                why = f"no response within {self.timeout} seconds"
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

    def mailboxes(self) -> Mailboxes:
        """Return the mailboxes of this process, made when first needed."""
        found = self._mailboxes
        if found is None or found.pid != os.getpid():  # or this process was forked
            # If two threads get here at the same time, there are two, and both are read.
            found = self._mailboxes = Mailboxes(self.channel_layer)
        return found

    def _status(self, error: Exception, exchange: _Exchange | None) -> int:
        """Return the status with which to answer an error."""
        if isinstance(error, _ShortBody):
            return 400
        if isinstance(error, self.channel_layer.MessageTooLarge):
            return 431
        return 502 if exchange is not None and exchange.sent else 503

    def _refuse(
        self, start_response: StartResponse, environ: Environ, status: int, why: object
    ) -> Iterable[bytes]:
        """Answer with `status`, and log why."""
        full = isinstance(why, self.channel_layer.ChannelFull)
        # The layer counts what a full channel refuses; many requests must not fill the log.
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
    """One request, and its response as an iterable (PEP 3333)."""

    def __init__(self, adapter: WsgiToAsgiAdapter, environ: Environ) -> None:
        self._layer = adapter.channel_layer
        self._timeout = adapter.timeout
        self._mailboxes = adapter.mailboxes()
        self._request = request_of(environ)
        self._body = _RequestBody(environ)
        self._chunk: Message | None = None  # of the body: read, and not yet sent
        self._chunks = 0
        self.sent = False
        self._first: Message | None = None
        self._flow = False
        self._order = 0  # messages of the response that were taken
        self._taken = self._reported = 0  # their weight, and how much was reported to the worker
        self.has_body = self.complete = False
        self._box = self._mailboxes.open()

    def ask(self) -> Message | None:
        """Send the request, and return the first message of the response; None if none comes.

        Raises what `send` and `receive` of the layer raise, ReplyLost, and _ShortBody.
        """
        request, box = self._request, self._box
        request["body"] = self._body.read()
        request["reply_channel"] = box.channel
        request["flow_channel"], request["flow_window"] = box.flow_channel, WINDOW
        if self._body.complete:
            request["body_channel"] = None
            request["deadline"] = clock.monotonic() + self._timeout
        else:
            request["body_channel"] = self._layer.new_channel(f"{REQUESTS}.body?")
        self._layer.send(REQUESTS, request)
        self.sent = True
        first = self._first = self._next_message()
        if first is not None:
            if "status" not in first:
                raise self._lost("its first message is lost (it expired, or the layer was flushed)")
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
                raise self._lost(f"its worker was silent for {self._timeout} seconds")
            if message.get("aborted"):
                raise self._lost("the application failed: see the log of its worker")
            if message.get("order", self._order) != self._order:
                raise self._lost("the next one is lost (it expired, or the layer was flushed)")
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
        """End the exchange, possibly before its end (PEP 3333): later messages are dropped."""
        self._mailboxes.close(self._box)
        if self.complete or not self.sent:
            return
        self.complete = True
        # Tell the worker. If that fails, the worker finds out by a time-out.
        with contextlib.suppress(IPCError):
            if self._flow:
                self._layer.send(self._box.flow_channel, {"closed": True})
            else:
                gone = {"reply_channel": self._box.channel, "path": self._request["path"]}
                self._layer.send(DISCONNECTS, gone)

    def _next_message(self) -> Message | None:
        """Return the next message of the response; None if the worker is silent for too long.

        Meanwhile, send the rest of the body, as fast as the worker reads it.
        """
        box, mailboxes = self._box, self._mailboxes
        while True:
            deadline = clock.monotonic() + self._timeout
            if self._chunk is None and not self._body.complete:
                message = mailboxes.take(box, 0.0)  # before a read, which waits for the client
                if message is not None:
                    return message
            report, chunk = self._report_taken(), self._next_chunk()
            if chunk is not None:
                what: _Outgoing = self._request["body_channel"], chunk, UPLOAD_WINDOW
            elif report is not None:
                what = box.flow_channel, report, None
            else:
                return mailboxes.take(box, deadline)
            try:
                if not mailboxes.send_or_take(box, *what, deadline):
                    return mailboxes.take(box, 0.0)
            except self._layer.ChannelFull:
                return None
            if chunk is not None:
                self._chunk = None
                self._chunks += 1
            else:
                self._reported = self._taken

    def _next_chunk(self) -> Message | None:
        """Return the next piece of the body to send, or None."""
        if self._chunk is None and not self._body.complete:
            try:
                content = self._body.read()
            except BaseException:
                gone = {"content": b"", "closed": True}
                with contextlib.suppress(IPCError):
                    self._layer.send(self._request["body_channel"], gone)
                raise
            more = not self._body.complete
            self._chunk = {"content": content, "more_content": more, "order": self._chunks}
        return self._chunk

    def _report_taken(self) -> Message | None:
        """Tell the worker how much the server has taken, if the worker may be waiting for that.
        Return the message for which there is no room."""
        if not self._flow or self._taken - self._reported < WINDOW // 2:
            return None
        report: Message = {"taken": self._taken}
        try:
            self._layer.send(self._box.flow_channel, report)
        except self._layer.ChannelFull:
            return report
        self._reported = self._taken
        return None

    def _lost(self, why: str) -> ReplyLost:
        method, path = self._request["method"], self._request["path"]
        return ReplyLost(
            f"the response to {method} {path} broke off after {self._order} messages: {why}"
        )


class _ShortBody(Exception):
    """The client sent less than its Content-Length."""


class _RequestBody:
    """The body of a request, in pieces that fit into one message each."""

    def __init__(self, environ: Environ) -> None:
        self._input = environ["wsgi.input"]
        self._left: int | None = None  # bytes; None: until the end of the input
        length = environ.get("CONTENT_LENGTH")
        if length:
            self._left = int(length)
        elif not (
            environ.get("wsgi.input_terminated")
            or environ.get("HTTP_TRANSFER_ENCODING", "").lower() == "chunked"
        ):
            self._left = 0  # the input of such a server does not end: a read would wait for ever
        self.complete = self._left == 0

    def read(self) -> bytes:
        """Return the next piece, of BODY_CHUNK bytes except the last. Raises _ShortBody."""
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
