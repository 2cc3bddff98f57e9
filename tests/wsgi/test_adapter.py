"""The adapter, with the test as the worker: what it sends, and what it does with responses."""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from asgi_ipc import IPCChannelLayer, errors
from asgi_ipc.aio import waiter
from asgi_ipc.store.layout import CROWDED, Q_PENDING, S_LIVE
from asgi_ipc.wsgi import WsgiToAsgiAdapter
from asgi_ipc.wsgi.adapter import UPLOAD_WINDOW, WINDOW
from asgi_ipc.wsgi.messages import BODY_CHUNK

from ..waiting import LIVENESS, in_threads, until
from . import Response, answer, ask, environ_for

QUARTER = WINDOW // 4
OK = {"status": 200, "headers": [[b"content-type", b"text/plain"]]}


@pytest.fixture
def adapter(layer: IPCChannelLayer) -> WsgiToAsgiAdapter:
    return WsgiToAsgiAdapter(layer, timeout=LIVENESS)


@pytest.fixture
def asked(adapter: WsgiToAsgiAdapter) -> Iterator[Callable[..., Any]]:
    """Return a function that asks in a thread; its future has the Response."""
    with ThreadPoolExecutor(4) as pool:
        yield lambda *args, **kw: pool.submit(ask, adapter, environ_for(*args, **kw))


def take(layer: IPCChannelLayer, channel: str = "http.request") -> dict[str, Any]:
    _, message = layer.receive([channel], block=True, timeout=LIVENESS)
    assert message is not None
    return message


def body_of(layer: IPCChannelLayer, request: dict[str, Any]) -> bytes:
    pieces, more = [request["body"]], request["body_channel"] is not None
    while more:
        chunk = take(layer, request["body_channel"])
        pieces.append(chunk["content"])
        more = chunk["more_content"]
    return b"".join(pieces)


def test_a_request_and_its_answer(layer: IPCChannelLayer, asked: Callable[..., Any]) -> None:
    future = asked("POST", b"hello", PATH_INFO="/x", HTTP_X_A="1")
    request = take(layer)
    assert request["method"] == "POST" and request["path"] == "/x"
    assert [b"x-a", b"1"] in request["headers"]
    assert request["body"] == b"hello" and request["body_channel"] is None
    headers = [*OK["headers"], [b"set-cookie", b"a"], [b"set-cookie", b"b"]]
    layer.send(request["reply_channel"], {**OK, "headers": headers, "content": b"hello too"})
    response = future.result(LIVENESS)
    assert response.status == "200 OK"
    assert response.header("Set-Cookie") == ["a", "b"]
    assert response.header("Content-Length") == ["9"]
    assert response.content == b"hello too"


def test_one_reply_channel_for_all_threads(
    layer: IPCChannelLayer, asked: Callable[..., Any]
) -> None:
    asked_first = asked(PATH_INFO="/warm-up")
    layer.send(take(layer)["reply_channel"], OK)
    asked_first.result(LIVENESS)
    futures = [asked(PATH_INFO=f"/{number}") for number in range(4)]
    requests = [take(layer) for _ in futures]
    names = [request["reply_channel"] for request in requests]
    assert len(set(names)) == 4
    assert len({layer.non_local_name(name) for name in names}) == 1
    for request in requests[::-1]:
        layer.send(request["reply_channel"], {**OK, "content": request["path"].encode()})
    assert [f.result(LIVENESS).content for f in futures] == [b"/0", b"/1", b"/2", b"/3"]


def test_many_threads_get_their_own_answers(
    layer: IPCChannelLayer, adapter: WsgiToAsgiAdapter
) -> None:
    """Even if another thread receives the reply, and then goes with its own."""
    times, threads = 100, 8

    def worker() -> None:
        for _ in range(times * threads):
            request = take(layer)
            reply = request["reply_channel"]
            layer.send(reply, {**OK, "content": b"you are ", "more_content": True})
            layer.send(reply, {"content": request["path"].encode()})

    def client(name: int) -> set[bytes]:
        environs = (environ_for(PATH_INFO=f"/{name}") for _ in range(times))
        return {ask(adapter, environ).content for environ in environs}

    clients = [lambda name=name: client(name) for name in range(threads)]  # type: ignore[misc]
    _, *seen = in_threads([worker, *clients])
    assert seen == [{b"you are /%d" % name} for name in range(threads)]


def test_a_full_channel_is_503(prefix: str) -> None:
    layer = IPCChannelLayer(prefix, channel_capacity={"http.request": 1})
    layer.send("http.request", {})
    response = ask(WsgiToAsgiAdapter(layer, retry_after=7), environ_for("POST", b"hello"))
    assert response.status == "503 Service Unavailable"
    assert response.header("Retry-After") == ["7"]
    layer.close()


def test_no_answer_is_504(layer: IPCChannelLayer, caplog: pytest.LogCaptureFixture) -> None:
    adapter = WsgiToAsgiAdapter(layer, timeout=0.05)
    response = ask(adapter, environ_for(PATH_INFO="/slow"))
    assert response.status == "504 Gateway Timeout"
    assert "/slow" in caplog.text
    request = take(layer)
    assert time.monotonic() > request["deadline"]
    assert take(layer, "http.disconnect") == {
        "reply_channel": request["reply_channel"],
        "path": "/slow",
    }


def test_an_answer_that_comes_too_late_is_dropped(layer: IPCChannelLayer) -> None:
    """And the worker is told to send no more."""
    adapter = WsgiToAsgiAdapter(layer, timeout=0.05)
    ask(adapter, environ_for())
    late = take(layer)
    more = {**OK, "more_content": True, "flow_control": True}
    layer.send(late["reply_channel"], more)
    assert ask(adapter, environ_for()).status == "504 Gateway Timeout"
    assert take(layer, late["flow_channel"]) == {"closed": True}


def test_a_request_that_is_too_large_but_for_its_body_is_431(prefix: str) -> None:
    layer = IPCChannelLayer(prefix, max_message_size=8192)
    response = ask(WsgiToAsgiAdapter(layer), environ_for(HTTP_X_A="x" * 9000))
    assert response.status == "431 Request Header Fields Too Large"
    layer.close()


def test_a_client_that_sends_less_than_it_announced_is_400(
    layer: IPCChannelLayer, adapter: WsgiToAsgiAdapter
) -> None:
    short = environ_for("POST", b"hello", CONTENT_LENGTH="6")
    assert ask(adapter, short).status == "400 Bad Request"
    assert layer.receive(["http.request"]) == (None, None)


def test_a_client_that_goes_away_in_the_middle_of_its_body(
    layer: IPCChannelLayer, asked: Callable[..., Any]
) -> None:
    future = asked("POST", bytes(BODY_CHUNK + 1), CONTENT_LENGTH=str(BODY_CHUNK + 2))
    assert take(layer, take(layer)["body_channel"])["closed"] is True
    assert future.result(LIVENESS).status == "400 Bad Request"


@pytest.mark.parametrize("size", [BODY_CHUNK, BODY_CHUNK + 1, 3 * BODY_CHUNK, 3 * BODY_CHUNK + 5])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body(
    layer: IPCChannelLayer, asked: Callable[..., Any], size: int, chunked: bool
) -> None:
    """With its length, or sent in chunks until its end."""
    body = os.urandom(size)
    if chunked:
        changes = {"HTTP_TRANSFER_ENCODING": "chunked", "wsgi.input": io.BytesIO(body)}
        future = asked("POST", **changes)
    else:
        future = asked("POST", body)
    request = take(layer)
    assert body_of(layer, request) == body
    layer.send(request["reply_channel"], OK)
    assert future.result(LIVENESS).status == "200 OK"


def test_input_that_does_not_end_is_not_read(
    layer: IPCChannelLayer, asked: Callable[..., Any]
) -> None:
    """PEP 3333 allows the input to be a socket: without a length, nothing may be read."""
    future = asked("POST", **{"wsgi.input": io.BytesIO(b"the next request")})
    request = take(layer)
    assert body_of(layer, request) == b""
    layer.send(request["reply_channel"], OK)
    assert future.result(LIVENESS).status == "200 OK"


def test_a_body_waits_for_its_reader(layer: IPCChannelLayer, asked: Callable[..., Any]) -> None:
    size = (UPLOAD_WINDOW + 4) * BODY_CHUNK
    future = asked("POST", bytes(size))
    request = take(layer)

    def pending() -> Any:
        return layer.channel_statistics(request["body_channel"])["messages_pending"]

    until(lambda: pending() == UPLOAD_WINDOW)
    assert len(body_of(layer, request)) == size
    layer.send(request["reply_channel"], OK)
    assert future.result(LIVENESS).status == "200 OK"


@pytest.fixture
def by_rings_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody looks by itself while the test lasts: rings alone must do."""
    monkeypatch.setattr(waiter, "CHECK_EVERY", 10 * LIVENESS)


def waits_for_room(layer: IPCChannelLayer, channel: str) -> bool:
    row = layer._core.attach().store.queues.find(channel.encode())
    return bool(row) and layer._core.attach().store.words[row + Q_PENDING] >= CROWDED


def stuck_upload(layer: IPCChannelLayer) -> dict[str, Any]:
    """Take the next request, whose adapter then waits for room."""
    request = take(layer)
    until(lambda: waits_for_room(layer, request["body_channel"]))
    return request


def test_a_body_goes_on_as_soon_as_there_is_room(
    layer: IPCChannelLayer, asked: Callable[..., Any], by_rings_alone: None
) -> None:
    size = (3 * UPLOAD_WINDOW) * BODY_CHUNK
    future = asked("POST", bytes(size))
    request = stuck_upload(layer)
    channel = request["body_channel"]
    assert layer.channel_statistics(channel)["messages_pending"] == UPLOAD_WINDOW
    assert len(body_of(layer, request)) == size
    assert not layer.channel_statistics(channel)["channel_full_count"]
    layer.send(request["reply_channel"], OK)
    assert future.result(LIVENESS).status == "200 OK"


def test_a_body_waits_for_memory(prefix: str, by_rings_alone: None) -> None:
    memory = IPCChannelLayer(
        prefix, message_memory=10 * BODY_CHUNK, max_message_size=2 * BODY_CHUNK
    )
    adapter = WsgiToAsgiAdapter(memory, timeout=LIVENESS)
    size = 2 * UPLOAD_WINDOW * BODY_CHUNK
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(ask, adapter, environ_for("POST", bytes(size)))
        request = take(memory)
        store = memory._core.attach().store
        until(lambda: store.words[S_LIVE] >= CROWDED)
        assert len(body_of(memory, request)) == size
        memory.send(request["reply_channel"], OK)
        assert future.result(LIVENESS).status == "200 OK"
    memory.close()


@pytest.mark.parametrize("others", [0, 1, 3])
def test_an_answer_wakes_an_upload_that_waits_for_room(
    layer: IPCChannelLayer, asked: Callable[..., Any], others: int, by_rings_alone: None
) -> None:
    """Whichever thread of the process takes the answer."""
    before = [asked() for _ in range(others)]
    answers = [take(layer)["reply_channel"] for _ in before]
    uploads = [asked("POST", bytes(100 * BODY_CHUNK)) for _ in range(4 - others)]
    for _ in uploads:
        layer.send(stuck_upload(layer)["reply_channel"], {**OK, "status": 413})
    for future in uploads:
        assert future.result(LIVENESS).status.startswith("413 ")
    for channel in answers:
        layer.send(channel, OK)
    for future in before:
        assert future.result(LIVENESS).status == "200 OK"


def test_an_upload_gets_the_answers_of_others(
    layer: IPCChannelLayer, asked: Callable[..., Any], by_rings_alone: None
) -> None:
    upload = asked("POST", bytes(100 * BODY_CHUNK))
    request = stuck_upload(layer)
    for number in range(30):
        others = [asked() for _ in range(1 + number % 3)]
        for _ in others:
            layer.send(take(layer)["reply_channel"], OK)
        for future in others:
            assert future.result(LIVENESS).status == "200 OK"
    assert len(body_of(layer, request)) == 100 * BODY_CHUNK
    layer.send(request["reply_channel"], OK)
    assert upload.result(LIVENESS).status == "200 OK"


def test_whoever_receives_for_all_may_be_an_upload(
    layer: IPCChannelLayer, asked: Callable[..., Any], by_rings_alone: None
) -> None:
    """The one that does so ends, and others, which wait for room or for a reply, go on."""
    futures, channels = [], []
    for body in (b"", bytes(100 * BODY_CHUNK), b"", bytes(100 * BODY_CHUNK)):
        futures.append(asked("POST", body))
        channels.append((stuck_upload if body else take)(layer)["reply_channel"])
    for at in (0, 1, 3, 2):
        layer.send(channels[at], OK)
        assert futures[at].result(LIVENESS).status == "200 OK"


def test_an_upload_that_nobody_reads_is_504(layer: IPCChannelLayer) -> None:
    adapter = WsgiToAsgiAdapter(layer, timeout=0.2)
    body = bytes(2 * UPLOAD_WINDOW * BODY_CHUNK)
    assert ask(adapter, environ_for("POST", body)).status.startswith("504 ")


def test_an_answer_before_the_end_of_the_body(
    layer: IPCChannelLayer, asked: Callable[..., Any]
) -> None:
    future = asked("POST", bytes(100 * BODY_CHUNK))
    layer.send(take(layer)["reply_channel"], {**OK, "status": 413})
    assert future.result(LIVENESS).status.startswith("413 ")


def test_an_answer_that_begins_before_the_end_of_the_body(
    layer: IPCChannelLayer, asked: Callable[..., Any]
) -> None:
    """An application may read, answer, and read more."""
    size = (UPLOAD_WINDOW + 4) * BODY_CHUNK
    future = asked("POST", bytes(size))
    request = take(layer)
    layer.send(request["reply_channel"], {**OK, "content": b"read ", "more_content": True})
    length = str(len(body_of(layer, request))).encode()
    layer.send(request["reply_channel"], {"content": length})
    assert future.result(LIVENESS).content == b"read %d" % size


@pytest.mark.parametrize("more", [False, True])
def test_head_has_headers_and_no_body(
    layer: IPCChannelLayer, asked: Callable[..., Any], more: bool
) -> None:
    future = asked("HEAD")
    headers = [*OK["headers"], [b"content-length", b"5"]]
    answer = {**OK, "headers": headers, "content": b"hello", "more_content": more}
    layer.send(take(layer)["reply_channel"], answer)
    response: Response = future.result(LIVENESS)
    assert response.header("Content-Length") == ["5"]
    assert response.content == b""


class Stream:
    """A response that has begun, seen from both ends."""

    def __init__(self, layer: IPCChannelLayer, adapter: WsgiToAsgiAdapter) -> None:
        self.layer = layer
        self._sent = 0
        threading.Thread(target=self._begin).start()
        self._answer = answer(adapter, environ_for())
        _, self.blocks = self._answer.__enter__()

    def _begin(self) -> None:
        self.request = take(self.layer)
        self.send(**OK, flow_control=True)

    def send(self, content: bytes = bytes(QUARTER), **keys: Any) -> None:
        message = {"content": content, "more_content": True, "order": self._sent, **keys}
        self._sent += 1  # before the other side can go on
        self.layer.send(self.request["reply_channel"], message)

    def told(self) -> Any:
        return self.layer.receive([self.request["flow_channel"]])[1]

    def close(self) -> None:
        self._answer.__exit__(None, None, None)


@pytest.fixture
def stream(layer: IPCChannelLayer, adapter: WsgiToAsgiAdapter) -> Iterator[Stream]:
    stream = Stream(layer, adapter)
    yield stream
    stream.close()


def test_the_worker_is_told_what_was_taken(stream: Stream) -> None:
    for _ in range(4):
        next(stream.blocks)
        stream.send()
    assert stream.request["flow_window"] == WINDOW
    assert stream.told() == {"taken": WINDOW // 2}
    stream.send(more_content=False)
    assert b"".join(stream.blocks) == bytes(2 * QUARTER)


def test_a_full_channel_does_not_keep_the_worker_from_being_told(
    layer: IPCChannelLayer, stream: Stream
) -> None:
    flow = stream.request["flow_channel"]
    for _ in range(layer.capacity):
        layer.send(flow, {})
    for _ in range(3):
        next(stream.blocks)
        stream.send()
    rest = threading.Thread(target=b"".join, args=(stream.blocks,))
    rest.start()
    until(lambda: layer.channel_statistics(flow)["channel_full_count"])
    while not (told := take(layer, flow)):
        pass
    assert told["taken"] >= WINDOW // 2
    stream.send(more_content=False)
    rest.join(LIVENESS)
    assert not rest.is_alive()


def test_a_client_that_goes_away(layer: IPCChannelLayer, stream: Stream) -> None:
    next(stream.blocks)
    stream.close()
    assert stream.told() == {"closed": True}
    assert layer.receive(["http.disconnect"]) == (None, None)


@pytest.mark.parametrize(
    ("keys", "why"),
    [({"aborted": True, "more_content": False}, "application failed"), ({"order": 5}, "lost")],
    ids=str,
)
def test_a_response_that_cannot_be_completed(
    stream: Stream, keys: dict[str, Any], why: str
) -> None:
    """It must not look complete: the server has to end the connection."""
    next(stream.blocks)
    stream.send(**keys)
    with pytest.raises(errors.ReplyLost, match=why):
        next(stream.blocks)


def test_a_response_that_stops(layer: IPCChannelLayer) -> None:
    stream = Stream(layer, WsgiToAsgiAdapter(layer, timeout=0.05))
    assert next(stream.blocks)
    with pytest.raises(errors.ReplyLost, match=r"silent for 0\.05 seconds"):
        next(stream.blocks)
    stream.close()


def test_a_forked_process_has_a_reply_channel_of_its_own(
    layer: IPCChannelLayer, asked: Callable[..., Any], adapter: WsgiToAsgiAdapter
) -> None:
    """gunicorn with --preload makes the adapter before it forks."""
    future = asked()
    mine = take(layer)["reply_channel"]
    layer.send(mine, OK)
    future.result(LIVENESS)
    child = os.fork()
    if not child:
        status = 1
        try:
            status = 0 if ask(adapter, environ_for()).content == b"to the child" else 2
        finally:
            os._exit(status)
    theirs = take(layer)["reply_channel"]
    assert layer.non_local_name(theirs) != layer.non_local_name(mine)
    layer.send(theirs, {**OK, "content": b"to the child"})
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize(
    "options", [{"timeout": 0}, {"retry_after": -1}, {"retry_after": 1.5}], ids=str
)
def test_an_option_that_cannot_work_is_refused(
    layer: IPCChannelLayer, options: dict[str, Any]
) -> None:
    with pytest.raises(errors.InvalidOption, match=next(iter(options))):
        WsgiToAsgiAdapter(layer, **options)


def test_a_layer_of_another_kind_is_refused() -> None:
    from asgi_ipc.aio import IPCChannelLayer as AsyncLayer

    with pytest.raises(errors.InvalidOption, match="channel_layer"):
        WsgiToAsgiAdapter(AsyncLayer())  # type: ignore[arg-type]
