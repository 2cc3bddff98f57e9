"""Conversion of a WSGI environ to an HTTP message of Channels 1, and back."""

from __future__ import annotations

from typing import Any

import pytest

from asgi_ipc.wsgi import messages

from . import environ_for

REQUEST = {
    "http_version": "1.1",
    "method": "GET",
    "scheme": "http",
    "path": "/",
    "root_path": "",
    "query_string": b"",
    "headers": [[b"host", b"127.0.0.1"]],
    "client": None,
    "server": ["127.0.0.1", 80],
}


def test_the_keys_are_those_of_channels_1() -> None:
    assert messages.request_of(environ_for(SERVER_PROTOCOL="HTTP/1.1")) == REQUEST


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"REQUEST_METHOD": "patch"}, {"method": "PATCH"}),
        ({"SERVER_PROTOCOL": "HTTP/1.0"}, {"http_version": "1.0"}),
        ({"SERVER_PROTOCOL": "HTTP/2.0"}, {"http_version": "2"}),
        ({"wsgi.url_scheme": "https"}, {"scheme": "https"}),
        ({"QUERY_STRING": "a=%20&b=\xe9"}, {"query_string": b"a=%20&b=\xe9"}),
        ({"PATH_INFO": "/caf\xc3\xa9 \xf0\x9f\x98\x92"}, {"path": "/caf\xe9 \U0001f612"}),
        ({"PATH_INFO": "/\xe9"}, {"path": "/\ufffd"}),
        ({"PATH_INFO": ""}, {"path": "/"}),
        ({"SCRIPT_NAME": "/app", "PATH_INFO": "/x"}, {"path": "/app/x", "root_path": "/app"}),
        ({"SCRIPT_NAME": "/app", "PATH_INFO": ""}, {"path": "/app", "root_path": "/app"}),
        ({"REMOTE_ADDR": "::1", "REMOTE_PORT": "5000"}, {"client": ["::1", 5000]}),
        ({"REMOTE_ADDR": "::1"}, {"client": ["::1", 0]}),
        ({"REMOTE_ADDR": ""}, {"client": None}),
        ({"SERVER_NAME": "/run/socket", "SERVER_PORT": ""}, {"server": None}),
        (
            {"CONTENT_TYPE": "text/plain", "CONTENT_LENGTH": "5", "HTTP_X_MANY": "1,2"},
            {
                "headers": [
                    *REQUEST["headers"],
                    [b"content-type", b"text/plain"],
                    [b"content-length", b"5"],
                    [b"x-many", b"1,2"],
                ]
            },
        ),
        ({"CONTENT_TYPE": "", "CONTENT_LENGTH": ""}, {}),
    ],
    ids=str,
)
def test_a_request(changes: dict[str, Any], expected: dict[str, Any]) -> None:
    environ = environ_for(**{"SERVER_PROTOCOL": "HTTP/1.1", **changes})
    assert messages.request_of(environ) == {**REQUEST, **expected}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"SCRIPT_NAME": "/app", "PATH_INFO": "/caf\xc3\xa9"},
        {"SCRIPT_NAME": "/app", "PATH_INFO": ""},
        {"REMOTE_ADDR": "10.0.0.1", "REMOTE_PORT": "5000", "wsgi.url_scheme": "https"},
        {"CONTENT_TYPE": "text/plain", "CONTENT_LENGTH": "5", "HTTP_X_MANY": "1,2"},
        {"SERVER_PROTOCOL": "HTTP/1.0", "QUERY_STRING": "a=%20"},
        {"SERVER_PROTOCOL": "HTTP/2"},
    ],
    ids=str,
)
def test_an_environ_comes_back(changes: dict[str, Any]) -> None:
    environ = environ_for(**changes)
    back = messages.environ_of(messages.request_of(environ))
    strings = {key: value for key, value in environ.items() if isinstance(value, str)}
    assert {key: value for key, value in back.items() if isinstance(value, str)} == strings


def test_headers_that_came_several_times_are_joined() -> None:
    headers = [[b"x-many", b"1"], [b"cookie", b"a=1"], [b"x-many", b"2"], [b"cookie", b"b=2"]]
    environ = messages.environ_of({**REQUEST, "headers": headers})
    assert environ["HTTP_X_MANY"] == "1,2"
    assert environ["HTTP_COOKIE"] == "a=1; b=2"


def test_a_header_does_not_pass_for_another_one() -> None:
    """An environ cannot distinguish them. daphne, for one, lets such a name through."""
    headers = [[b"x_forwarded_for", b"a lie"], [b"x-forwarded-for", b"10.0.0.1"]]
    assert (
        messages.environ_of({**REQUEST, "headers": headers})["HTTP_X_FORWARDED_FOR"] == "10.0.0.1"
    )


def test_what_other_servers_leave_out_is_made_up() -> None:
    environ = messages.environ_of({"method": "GET", "path": "/x", "scheme": "https"})
    assert (environ["SERVER_NAME"], environ["SERVER_PORT"]) == ("localhost", "443")
    assert environ["SERVER_PROTOCOL"] == "HTTP/1.1"
    assert "REMOTE_ADDR" not in environ


def test_a_body_that_was_sent_in_chunks_is_no_longer() -> None:
    headers = [[b"transfer-encoding", b"chunked"]]
    assert "HTTP_TRANSFER_ENCODING" not in messages.environ_of({**REQUEST, "headers": headers})


def test_a_response_keeps_duplicate_headers_and_their_order() -> None:
    headers = [("Set-Cookie", "a=1"), ("X-A", "caf\xe9"), ("Set-Cookie", "b=2")]
    response = messages.response_of("404 Whatever", headers)
    assert response == {
        "status": 404,
        "headers": [[b"set-cookie", b"a=1"], [b"x-a", b"caf\xe9"], [b"set-cookie", b"b=2"]],
    }
    assert messages.start_of(response) == ("404 Not Found", headers)


def test_what_concerns_one_connection_stays_behind() -> None:
    headers = [[b"Connection", b"close"], [b"transfer-encoding", b"chunked"], [b"x-a", b"1"]]
    assert messages.start_of({"status": 299, "headers": headers}) == (
        "299 Unknown",
        [("X-A", "1")],
    )


@pytest.mark.parametrize(
    ("method", "status", "none"),
    [("HEAD", 200, True), ("GET", 200, False), ("GET", 204, True), ("POST", 304, True)],
)
def test_which_responses_have_no_body(method: str, status: int, none: bool) -> None:
    assert messages.has_no_body(method, status) is none
