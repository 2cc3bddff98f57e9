"""The worker, with the test as the server: how it runs an application, and what it answers."""

from __future__ import annotations

import logging
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any
from wsgiref.validate import validator

import pytest

from asgi_ipc import IPCChannelLayer, errors
from asgi_ipc.aio import waiter
from asgi_ipc.wsgi import AsgiToWsgiWorker, exchange
from asgi_ipc.wsgi.messages import CONTENT_CHUNK

from ..environments import child_environment
from ..waiting import LIVENESS, until

Work = Callable[..., AsgiToWsgiWorker]
TEXT = [("Content-Type", "text/plain")]
WINDOW = 1 << 20
EVERYTHING = {"taken": 1 << 62}
REPLY = "server!1"
FLOW = "flow?1"


def send(layer: IPCChannelLayer, flow: bool = True, **keys: Any) -> None:
    """Send a request whose response goes to the channel ``server!1``."""
    request = {"method": "GET", "path": "/", "reply_channel": REPLY, "headers": [], **keys}
    if flow:
        request.update(flow_channel=FLOW, flow_window=WINDOW)
    layer.receive(["server!"])  # from now on it has a reader
    layer.send("http.request", request)


def take(layer: IPCChannelLayer, channel: str = "server!") -> dict[str, Any]:
    _, message = layer.receive([channel], block=True, timeout=LIVENESS)
    assert message is not None
    return message


def response(layer: IPCChannelLayer) -> tuple[dict[str, Any], bytes]:
    """Take a response as it comes, and return its head and whole content."""
    head = message = take(layer)
    pieces = [message["content"]]
    while message["more_content"]:
        layer.send(FLOW, EVERYTHING)
        message = take(layer)
        assert "status" not in message
        pieces.append(message["content"])
    return head, b"".join(pieces)


def application(*blocks: bytes, headers: Any = TEXT) -> Any:
    """Return an application that answers with `blocks`."""

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", list(headers))
        return iter(blocks)

    return app


def test_an_application_gets_what_pep_3333_says(layer: IPCChannelLayer, work: Work) -> None:
    seen: list[dict[str, Any]] = []

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        seen.append(environ)
        start_response("201 Created", [*TEXT, ("Set-Cookie", "a"), ("Set-Cookie", "b")])
        return [environ["wsgi.input"].read(5), b" too"]

    work(validator(app), threads=2)
    headers = [[b"content-length", b"5"], [b"x-a", b"1"]]
    send(layer, method="POST", path="/x", query_string=b"a=1", headers=headers, body=b"hello")
    head, content = response(layer)
    assert head["status"] == 201
    assert head["headers"] == [
        [b"content-type", b"text/plain"],
        [b"set-cookie", b"a"],
        [b"set-cookie", b"b"],
    ]
    assert content == b"hello too"
    assert {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": "/x",
        "QUERY_STRING": "a=1",
        "CONTENT_LENGTH": "5",
        "HTTP_X_A": "1",
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "wsgi.url_scheme": "http",
    }.items() <= seen[0].items()


@pytest.mark.parametrize("flow", [True, False])
@pytest.mark.parametrize("size", [0, 1, CONTENT_CHUNK, 5 * CONTENT_CHUNK + 1])
@pytest.mark.parametrize("announced", [True, False])
def test_a_response_of_any_size(
    layer: IPCChannelLayer, work: Work, size: int, announced: bool, flow: bool
) -> None:
    """If the length is announced, no last empty message is needed."""
    headers = [*TEXT, ("Content-Length", str(size))] if announced else TEXT
    work(application(bytes(size), headers=headers))
    send(layer, flow=flow)
    messages = []
    while not messages or messages[-1]["more_content"]:
        messages.append(take(layer))
        layer.send(FLOW, EVERYTHING)
    assert b"".join(message["content"] for message in messages) == bytes(size)
    if announced:
        assert len(messages) == max(1, -(-size // CONTENT_CHUNK))
    assert [message["order"] for message in messages] == list(range(len(messages)))


def test_a_list_is_one_message(layer: IPCChannelLayer, work: Work) -> None:
    work(lambda environ, start_response: start_response("200 OK", TEXT) and [b"a", b"b"])
    send(layer)
    message = take(layer)
    assert (message["content"], message["more_content"]) == (b"ab", False)


def test_a_block_does_not_wait_for_the_next_one(layer: IPCChannelLayer, work: Work) -> None:
    """PEP 3333 forbids holding it back."""
    go_on = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", TEXT)
        yield b"first"
        assert go_on.wait(LIVENESS)
        yield b"second"

    work(app)
    send(layer)
    assert take(layer)["content"] == b"first"
    go_on.set()
    assert take(layer)["content"] == b"second"
    assert take(layer)["more_content"] is False


def test_what_was_announced_is_the_end(layer: IPCChannelLayer, work: Work) -> None:
    work(application(b"hello", b" and more", headers=[*TEXT, ("Content-Length", "7")]))
    send(layer)
    assert response(layer)[1] == b"hello a"


def test_write(layer: IPCChannelLayer, work: Work) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        write = start_response("200 OK", TEXT)
        write(b"one ")
        return [b"two"]

    work(validator(app))
    send(layer)
    assert response(layer)[1] == b"one two"


def test_head(layer: IPCChannelLayer, work: Work) -> None:
    work(application(b"hello", headers=[*TEXT, ("Content-Length", "5")]))
    send(layer, method="HEAD")
    head, content = response(layer)
    assert [b"content-length", b"5"] in head["headers"]
    assert content == b""


def endless() -> tuple[Any, threading.Event]:
    """An application whose response does not end, and whether it was closed."""
    closed = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", TEXT)
        try:
            while True:
                yield b"x"
        finally:
            closed.set()

    return app, closed


@pytest.mark.parametrize("ends_by", ["success", "failure", "a reader that is gone"])
def test_the_response_is_closed(layer: IPCChannelLayer, work: Work, ends_by: str) -> None:
    class Blocks:
        closed = threading.Event()

        def __iter__(self) -> Any:
            yield b"block"
            if ends_by == "failure":
                raise RuntimeError("on purpose")
            while ends_by != "success":
                yield b"block"

        def close(self) -> None:
            self.closed.set()

    work(lambda environ, start_response: start_response("200 OK", TEXT) and Blocks())
    send(layer)
    if ends_by == "a reader that is gone":
        layer.send(FLOW, {"closed": True})
    assert Blocks.closed.wait(LIVENESS)


def test_an_application_that_fails_is_500(
    layer: IPCChannelLayer, work: Work, caplog: pytest.LogCaptureFixture
) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", TEXT)
        raise SystemExit("on purpose")

    work(app)
    for _ in range(2):  # the worker continues
        send(layer)
        head, content = response(layer)
        assert head["status"] == 500
        assert content == b"Internal Server Error\n"
    assert "on purpose" in caplog.text


def test_an_application_that_replaces_its_response(layer: IPCChannelLayer, work: Work) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        start_response("200 OK", [*TEXT, ("Content-Length", "1")])
        try:
            raise RuntimeError
        except RuntimeError:
            start_response("503 Busy", TEXT, sys.exc_info())
        return [b"sorry"]

    work(app)
    send(layer)
    head, content = response(layer)
    assert head["status"] == 503 and content == b"sorry"


@pytest.mark.parametrize(
    "app",
    [
        lambda environ, start_response: [b"no start_response"],
        lambda environ, start_response: [start_response("200 OK", TEXT) for _ in "ab"],
        lambda environ, start_response: start_response("so so", TEXT) and [],
        lambda environ, start_response: start_response("200 OK", TEXT) and ["text"],
    ],
)
def test_an_application_that_is_not_wsgi_is_500(
    layer: IPCChannelLayer, work: Work, app: Any
) -> None:
    work(app)
    send(layer)
    assert response(layer)[0]["status"] == 500


@pytest.mark.parametrize("flow", [True, False])
def test_an_application_that_fails_in_the_middle(
    layer: IPCChannelLayer, work: Work, flow: bool
) -> None:
    """The end must not look normal. A server that knows only the normal end gets none."""

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        if environ["PATH_INFO"] == "/next":
            start_response("200 OK", TEXT)
            return
        start_response("200 OK", TEXT)
        yield b"block"
        raise RuntimeError("on purpose")

    send(layer, flow=flow)
    send(layer, flow=flow, path="/next", reply_channel="server!2")
    work(app)  # not before: the second `send` would receive the first answer
    assert take(layer)["content"] == b"block"
    if flow:
        assert take(layer)["aborted"] is True
    assert take(layer)["status"] == 200  # the response to the next request


@pytest.mark.parametrize(("size", "ahead"), [(1, 16), (WINDOW // 4, 4), (WINDOW // 5, 5)])
def test_it_is_no_further_ahead_than_it_may(
    layer: IPCChannelLayer, work: Work, size: int, ahead: int
) -> None:
    """Ahead of what the server has taken; the number of small messages is limited."""
    weight = max(size, WINDOW // 16)
    total = 2 * ahead + 1
    work(application(*[bytes(size)] * total))
    send(layer)

    def pending() -> Any:
        return layer.channel_statistics("server!")["messages_pending"]

    until(lambda: pending() == ahead)
    assert [take(layer)["order"] for _ in range(ahead)] == list(range(ahead))
    assert pending() == 0
    layer.send(FLOW, {"taken": 2 * weight})
    until(lambda: pending() == 2)
    layer.send(FLOW, EVERYTHING)
    rest = range(ahead, total + 1)
    assert [take(layer)["order"] for _ in rest] == list(rest)


def test_a_window_of_any_size_lets_it_go_on(layer: IPCChannelLayer, work: Work) -> None:
    work(application(b"hello"))
    send(layer, flow_channel=FLOW, flow_window=1, flow=False)
    assert response(layer)[1] == b"hello"


def test_it_waits_while_the_channel_is_full(prefix: str, work: Work, layer: Any) -> None:
    """A server without flow control, such as daphne, causes that."""
    narrow = IPCChannelLayer(prefix, channel_capacity={"server!*": 2})
    worker = AsgiToWsgiWorker(narrow, application(*[b"x"] * 10))
    thread = threading.Thread(target=worker.run)
    thread.start()
    send(layer, flow=False)
    until(lambda: layer.channel_statistics("server!")["channel_full_count"])
    assert response(layer)[1] == b"x" * 10
    worker.stop()
    thread.join(LIVENESS)
    narrow.close()


def test_it_notices_a_client_that_goes_while_the_channel_is_full(
    prefix: str, layer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, and not when it next looks whether the server is alive."""
    monkeypatch.setattr(exchange, "_LOOK_EVERY", 10 * LIVENESS)
    monkeypatch.setattr(waiter, "CHECK_EVERY", 10 * LIVENESS)
    narrow = IPCChannelLayer(prefix, channel_capacity={"server!*": 2})
    app, closed = endless()
    worker = AsgiToWsgiWorker(narrow, app, timeout=20 * LIVENESS)
    thread = threading.Thread(target=worker.run)
    thread.start()
    send(layer)
    until(lambda: layer.channel_statistics("server!")["channel_full_count"])
    assert not closed.is_set()
    layer.send(FLOW, {"closed": True})
    assert closed.wait(LIVENESS)
    worker.stop()
    thread.join(LIVENESS)
    assert not thread.is_alive()
    narrow.close()


@pytest.mark.parametrize("flow", [True, False])
def test_it_gives_up_when_the_reader_is_dead(
    prefix: str, work: Work, layer: IPCChannelLayer, caplog: pytest.LogCaptureFixture, flow: bool
) -> None:
    caplog.set_level(logging.INFO, "asgi_ipc")
    app, closed = endless()
    work(app)
    source = (
        f"import asgi_ipc; layer = asgi_ipc.IPCChannelLayer({prefix!r});"
        "print(layer.receive(['dead!']), flush=True); input()"
    )
    reader = subprocess.Popen(
        [sys.executable, "-c", source],
        env=child_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert reader.stdout is not None and reader.stdout.readline()
    send(layer, flow=flow, reply_channel="dead!1")
    until(lambda: layer.channel_statistics("dead!")["messages_pending"] >= 10)
    assert not closed.is_set()
    reader.kill()
    reader.communicate()
    assert closed.wait(LIVENESS)
    until(lambda: "is dead" in caplog.text)


def test_it_gives_up_when_the_reader_stands_still(
    prefix: str, work: Work, layer: IPCChannelLayer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "asgi_ipc")
    work(application(*[b"x"] * 100), timeout=0.1)
    send(layer)
    until(lambda: "neither sent nor took data for 0.1 seconds" in caplog.text)


class Chunks:
    """The body of a request, on a channel."""

    def __init__(self, layer: IPCChannelLayer, **keys: Any) -> None:
        self.layer = layer
        send(layer, method="POST", body=b"0", body_channel="body?1", **keys)

    def send(self, *pieces: bytes, more: bool = False, **keys: Any) -> None:
        for number, piece in enumerate(pieces):
            more_content = more or number + 1 < len(pieces)
            message = {"content": piece, "more_content": more_content, **keys}
            self.layer.send("body?1", message)


def reads(environ: dict[str, Any], start_response: Any) -> Any:
    """An application that answers with what it read."""
    body = environ["wsgi.input"].read()
    start_response("200 OK", TEXT)
    return [environ["CONTENT_LENGTH"].encode(), b" ", body]


def test_a_body_in_chunks(layer: IPCChannelLayer, work: Work) -> None:
    work(reads)
    Chunks(layer, headers=[[b"content-length", b"5"]]).send(b"12", b"", b"34")
    assert response(layer)[1] == b"5 01234"


@pytest.mark.parametrize("size", [4, 3 << 20])
def test_a_body_of_unknown_length_gets_one(layer: IPCChannelLayer, work: Work, size: int) -> None:
    """Django would take it for empty."""
    work(reads)
    piece = bytes(size // 4)
    Chunks(layer).send(*[piece] * 4)
    assert response(layer)[1] == b"%d 0%s" % (size + 1, bytes(size))


def test_lines_of_a_body(layer: IPCChannelLayer, work: Work) -> None:
    def app(environ: dict[str, Any], start_response: Any) -> Any:
        body = environ["wsgi.input"]
        lines = [body.readline(), body.readline(1), *body]
        start_response("200 OK", TEXT)
        return [repr(lines).encode()]

    work(validator(app))
    Chunks(layer, headers=[[b"content-length", b"8"]]).send(b"a\nb", b"c\nd\n")
    assert response(layer)[1] == b"[b'0a\\n', b'b', b'c\\n', b'd\\n']"


@pytest.mark.parametrize(
    ("keys", "error"),
    [
        ({"closed": True}, "ConnectionResetError"),
        ({"order": 7}, "ConnectionAbortedError"),
        (None, "ConnectionAbortedError"),
    ],
    ids=str,
)
def test_a_body_that_breaks_off(
    layer: IPCChannelLayer, work: Work, caplog: pytest.LogCaptureFixture, keys: Any, error: str
) -> None:
    """The application gets an OSError, as from a socket, and never a shorter body."""
    work(reads, timeout=LIVENESS if keys else 0.1)
    chunks = Chunks(layer, headers=[[b"content-length", b"3"]])
    if keys is not None:
        chunks.send(b"1", **keys)
    assert response(layer)[0]["status"] == 500
    assert error in caplog.text


def test_a_body_that_is_not_read_does_not_stay(layer: IPCChannelLayer, work: Work) -> None:
    work(application(b"no"))
    chunks = Chunks(layer, headers=[[b"content-length", b"3"]])
    chunks.send(b"1", b"2", more=True)
    assert response(layer)[1] == b"no"
    until(lambda: not layer.channel_statistics("body?1")["messages_pending"])


def test_a_request_that_nobody_waits_for_is_let_be(layer: IPCChannelLayer, work: Work) -> None:
    seen: list[str] = []

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        seen.append(environ["PATH_INFO"])
        start_response("200 OK", TEXT)
        return []

    send(layer, path="/late", deadline=time.monotonic() - 1)
    send(layer, path="/in-time", deadline=time.monotonic() + LIVENESS)
    work(app)
    take(layer)
    assert seen == ["/in-time"]


def test_threads_work_at_once(layer: IPCChannelLayer, work: Work) -> None:
    both = threading.Barrier(2, timeout=LIVENESS)

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        both.wait()
        start_response("200 OK", TEXT)
        return []

    work(app, threads=2)
    send(layer)
    send(layer)
    assert [take(layer)["status"] for _ in range(2)] == [200, 200]


PROGRAM = """
import sys
def app(environ, start_response):
    print("working", flush=True)
    sys.stdin.readline()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"done"]
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
@pytest.mark.parametrize("command", [["asgi_ipc.wsgi"], ["asgi_ipc", "wsgi-worker"]], ids="-".join)
def test_a_signal_ends_it_after_what_is_in_hand(
    layer: IPCChannelLayer,
    prefix: str,
    tmp_path: Any,
    command: list[str],
    number: signal.Signals,
) -> None:
    if command == ["asgi_ipc", "wsgi-worker"]:
        pytest.importorskip("click", reason="lacking: click")
        pytest.importorskip("rich", reason="lacking: rich")
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    worker = subprocess.Popen(
        [
            *(sys.executable, "-m", *command, "program:app", "--prefix", prefix),
            *("--threads", "2"),
        ],
        env=child_environment(),
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert worker.stdout and worker.stderr and worker.stdin
    assert re.search("worker .* is ready", worker.stderr.readline())
    send(layer)
    assert worker.stdout.readline() == "working\n"
    worker.send_signal(number)
    worker.stdin.write("go on\n")
    worker.stdin.flush()
    assert take(layer)["content"] == b"done"
    assert worker.wait(LIVENESS) == 0
    assert "ends" in worker.stderr.read()
    worker.communicate()
    send(layer, path="/for-others")
    assert take(layer, "http.request")["path"] == "/for-others"


def test_a_layer_can_be_named_instead_of_a_prefix(
    layer: IPCChannelLayer, prefix: str, tmp_path: Any
) -> None:
    """Even if a prefix is set for all commands."""
    pytest.importorskip("click", reason="lacking: click")
    pytest.importorskip("rich", reason="lacking: rich")
    made = f"import asgi_ipc\nlayer = asgi_ipc.IPCChannelLayer({prefix!r}, capacity=5)\n"
    (tmp_path / "program.py").write_text(PROGRAM + made, encoding="utf-8")
    command = [sys.executable, "-m", "asgi_ipc", "wsgi-worker", "program:app"]
    worker = subprocess.Popen(
        [*command, "--layer", "program:layer"],
        env=child_environment(ASGI_IPC_PREFIX="another"),
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    send(layer)
    assert take(layer)["content"] == b"done"
    worker.terminate()
    assert worker.wait(LIVENESS) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["program:nothing"], "has no 'nothing'"),
        (["no_such_module:app"], "no module 'no_such_module'"),
        (["program:"], "module:name"),
        (["program:app", "--threads", "0"], "threads"),
        (["program:app", "--layer", "program:app"], "channel_layer"),
        (["program:app", "--layer", "program:app", "--prefix", "x"], "not both"),
        (["program:app", "--prefix", "a/b"], "prefix"),
    ],
    ids=str,
)
def test_a_command_that_cannot_work_says_why(
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    from asgi_ipc.wsgi import command

    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    with pytest.raises(SystemExit, match="2"):
        command.main(arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("options", [{"threads": 0}, {"timeout": -1}, {"application": 5}], ids=str)
def test_an_option_that_cannot_work_is_refused(
    layer: IPCChannelLayer, options: dict[str, Any]
) -> None:
    with pytest.raises(errors.InvalidOption, match=next(iter(options))):
        AsgiToWsgiWorker(**{"channel_layer": layer, "application": print, **options})
