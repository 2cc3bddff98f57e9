"""`AsgiToWsgiWorker`: takes requests from a channel layer and runs a WSGI application for each.

It must not know what the application is, nor which server took the request.
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
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ..errors import InvalidOption, IPCError, ReplyLost
from ..options import check_int, check_seconds
from ..sync import IPCChannelLayer
from .messages import REQUESTS, environ_of
from .reply import Body, Peer, Reply, whole

logger = logging.getLogger("asgi_ipc")

_AFTER_ERROR = 1.0  # seconds that a thread waits after an error of the layer

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class AsgiToWsgiWorker:
    """Answers requests from the channel ``http.request`` with a WSGI application (PEP 3333).

    ::

        AsgiToWsgiWorker(IPCChannelLayer(prefix="mysite"), application, threads=4).run()

    A process runs one of these; to use more cores start more processes. Each thread takes a
    request only when it has nothing else to do.
    """

    def __init__(
        self,
        channel_layer: IPCChannelLayer,
        application: Application,
        threads: int = 1,
        timeout: float = 60,
    ) -> None:
        """`threads`: requests that are worked on at once; `timeout`: seconds that a client may
        neither take more of a response, nor send more of a body. Raises InvalidOption."""
        if not isinstance(channel_layer, IPCChannelLayer):
            raise InvalidOption(
                f"channel_layer must be an asgi_ipc.IPCChannelLayer, not {channel_layer!r}"
            )
        if not callable(application):
            raise InvalidOption(f"application must be a WSGI application, not {application!r}")
        check_int("threads", threads, 1, 1000)
        check_seconds("timeout", timeout)
        self.channel_layer = channel_layer
        self.application = application
        self.threads = threads
        self.timeout = timeout
        self._stopping = False
        self._stops: queue.SimpleQueue[None] = queue.SimpleQueue()  # a signal handler may put

    def run(self) -> None:
        """Work until `stop` is called, or SIGTERM or SIGINT comes: then finish what is in hand.

        Signals are looked after where that is possible, in the main thread; a second one has the
        effect that it had before. Raises what the layer raises if it cannot be attached to.
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
            with contextlib.suppress(IPCError):  # or it ends with its next receive_timeout
                self.channel_layer.send(f"{ends}end", {})
        for thread in threads:
            thread.join()
        logger.info("prefix %r: wsgi worker %s ends", self.channel_layer.prefix, os.getpid())

    def stop(self) -> None:
        """Let `run` return as soon as what is in hand is finished. From any thread, or a signal
        handler."""
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
        """What each thread does."""
        while not self._stopping:
            try:
                channel, message = self.channel_layer.receive(channels, block=True)
            except Exception:
                logger.exception("prefix %r: a worker goes on after", self.channel_layer.prefix)
                time.sleep(_AFTER_ERROR)
                continue
            if channel == REQUESTS and message is not None:
                try:
                    self._answer(message)
                except BaseException:  # a thread that died would never be missed
                    logger.exception("prefix %r: a request was lost", self.channel_layer.prefix)

    def _answer(self, request: dict[str, Any]) -> None:
        if time.monotonic() > request.get("deadline", float("inf")):
            return  # nobody waits any more
        peer = Peer(self.channel_layer, request["reply_channel"], self.timeout)
        reply = Reply(peer, request)
        channel = request.get("body_channel")
        body = Body(peer, request.get("body") or b"", channel) if channel else None
        try:
            try:
                self._call(self._environ(request, body), reply)
            except BaseException as error:
                if not isinstance(error, ReplyLost):
                    logger.exception(
                        "prefix %r: %s %s failed",
                        self.channel_layer.prefix,
                        request["method"],
                        request["path"],
                    )
                    reply.fail()
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

    def _call(self, environ: dict[str, Any], reply: Reply) -> None:
        blocks = self.application(environ, reply.start_response)
        try:
            reply.send_all(blocks)
        finally:
            close = getattr(blocks, "close", None)
            if close is not None:
                close()

    def _environ(self, request: dict[str, Any], body: Body | None) -> dict[str, Any]:
        environ = environ_of(request)
        environ["wsgi.multithread"] = self.threads > 1
        environ["wsgi.input_terminated"] = True  # reading past the end gives b""
        if body is None:
            content = request.get("body") or b""
            environ["wsgi.input"] = io.BytesIO(content)
            if content:
                environ.setdefault("CONTENT_LENGTH", str(len(content)))
        elif "CONTENT_LENGTH" in environ:
            environ["wsgi.input"] = io.BufferedReader(body)
        else:
            # Sent in chunks, of unknown length. To Django, for one, it would be empty.
            environ["wsgi.input"], length = whole(body)
            environ["CONTENT_LENGTH"] = str(length)
        return environ
