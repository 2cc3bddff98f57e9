"""`AsgiToWsgiWorker`: takes requests from a channel layer and runs a WSGI application for each.
Must not know the application, nor the server that accepted the request.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Iterator

from .. import clock
from ..base_layer import Message
from ..errors import InvalidOption, IPCError, ReplyLost
from ..options import check_int, check_seconds
from ..sync import IPCChannelLayer
from .exchange import Peer, RequestBody, Response, read_whole
from .messages import REQUESTS, Application, Environ, environ_of

logger = logging.getLogger("asgi_ipc")

_AFTER_ERROR = 1.0  # seconds that a thread waits after an error of the layer


class AsgiToWsgiWorker:
    """Answers requests from the channel ``http.request`` with a WSGI application (PEP 3333).

    ::

        AsgiToWsgiWorker(IPCChannelLayer(prefix="mysite"), application, threads=4).run()

    A process runs one of these; to use more cores, start more processes. A thread takes a request
    only when it is idle.
    """

    def __init__(
        self,
        channel_layer: IPCChannelLayer,
        application: Application,
        threads: int = 1,
        timeout: float = 60,
    ) -> None:
        """`threads`: requests to work on at a time; `timeout`: seconds that a client may neither
        take more of a response nor send more of a body. Raises InvalidOption."""
        if not isinstance(channel_layer, IPCChannelLayer):
            raise InvalidOption(
                f"channel_layer must be an asgi_ipc.IPCChannelLayer, not {channel_layer!r}"
            )
        if not callable(application):
            raise InvalidOption(
                f"application must be callable, as a WSGI application is, not {application!r}"
            )
        check_int("threads", threads, 1, 1000)
        check_seconds("timeout", timeout)
        self.channel_layer = channel_layer
        self.application = application
        self.threads = threads
        self.timeout = timeout
        self._stopping = False
        self._stops: queue.SimpleQueue[None] = queue.SimpleQueue()  # a signal handler may put

    def run(self) -> None:
        """Work until `stop` is called, or SIGTERM or SIGINT comes; then finish the requests in
        progress.

        Signals are handled only in the main thread. A second signal has the effect that it had
        before `run`. Raises what the layer raises if it cannot attach.
        """
        ends = f"wsgi.worker.{os.urandom(8).hex()}!"
        self.channel_layer.receive([ends])
        threads = [
            threading.Thread(target=self._work, args=([REQUESTS, ends],), name=f"wsgi-{number}")
            for number in range(self.threads)
        ]
        with self._signals():
            for thread in threads:
                thread.start()
            logger.info(
                "prefix %r: wsgi worker %s is ready, threads: %s",
                self.channel_layer.prefix,
                os.getpid(),
                self.threads,
            )
            self._stops.get()
        self._stopping = True
        for _ in threads:
            with contextlib.suppress(IPCError):  # otherwise it ends at its next receive_timeout
                self.channel_layer.send(f"{ends}end", {})
        for thread in threads:
            thread.join()
        logger.info("prefix %r: wsgi worker %s ends", self.channel_layer.prefix, os.getpid())

    def stop(self) -> None:
        """Make `run` return when the requests in progress are finished. May be called in any
        thread, or in a signal handler."""
        self._stops.put(None)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = signal.SIGTERM, signal.SIGINT
        before = {number: signal.signal(number, lambda *_: self.stop()) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _work(self, channels: list[str]) -> None:
        """Take requests, in one of the threads, until the worker stops."""
        while not self._stopping:
            try:
                channel, message = self.channel_layer.receive(channels, block=True)
            except Exception:
                logger.exception(
                    "prefix %r: the worker could not receive, and tries again in %g s",
                    self.channel_layer.prefix,
                    _AFTER_ERROR,
                )
                time.sleep(_AFTER_ERROR)
                continue
            if channel == REQUESTS and message is not None:
                try:
                    self._answer(message)
                except BaseException:  # nobody would notice that the thread has died
                    logger.exception(
                        "prefix %r: a request was not answered", self.channel_layer.prefix
                    )

    def _answer(self, request: Message) -> None:
        if clock.monotonic() > request.get("deadline", float("inf")):
            return  # nobody waits for the response
        peer = Peer(self.channel_layer, request["reply_channel"], self.timeout)
        response = Response(peer, request)
        channel = request.get("body_channel")
        body = RequestBody(peer, request.get("body") or b"", channel) if channel else None
        try:
            try:
                self._call(self._environ(request, body), response)
            except BaseException as error:
                if not isinstance(error, ReplyLost):
                    logger.exception(
                        "prefix %r: %s %s failed",
                        self.channel_layer.prefix,
                        request["method"],
                        request["path"],
                    )
                    response.fail()
                    return
                raise
        except ReplyLost as error:
            logger.info(
                "prefix %r: gave up %s %s: %s",
                self.channel_layer.prefix,
                request["method"],
                request["path"],
                error,
            )
        finally:
            if body is not None:
                body.discard()

    def _call(self, environ: Environ, response: Response) -> None:
        with environ["wsgi.input"]:
            blocks = self.application(environ, response.start_response)
            try:
                response.send_all(blocks)
            finally:
                close = getattr(blocks, "close", None)
                if close is not None:
                    close()

    def _environ(self, request: Message, body: RequestBody | None) -> Environ:
        environ = environ_of(request)
        environ["wsgi.multithread"] = self.threads > 1
        environ["wsgi.input_terminated"] = True  # a read at the end returns b""
        if body is None:
            content = request.get("body") or b""
            environ["wsgi.input"] = io.BytesIO(content)
            if content:
                environ.setdefault("CONTENT_LENGTH", str(len(content)))
        elif "CONTENT_LENGTH" in environ:
            environ["wsgi.input"] = io.BufferedReader(body)
        else:
            # Sent in chunks, of unknown length. Django, for example, would think that it is empty.
            environ["wsgi.input"], length = read_whole(body)
            environ["CONTENT_LENGTH"] = str(length)
        return environ
