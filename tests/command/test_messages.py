"""send, receive and group-send: the command as one more process of a live layer."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pytest

from asgi_ipc import IPCChannelLayer
from asgi_ipc.inspection.snapshot import Snapshot
from asgi_ipc.inspection.view import View

from ..environments import child_environment
from ..processes import running
from ..waiting import until
from .conftest import Live, Run


def test_a_message_is_sent_to_a_worker_and_its_answer_received(live: Live, run: Run) -> None:
    sent = run("send", "jobs", json.dumps({"job": 7, "reply_to": "answers"}))
    assert (sent.code, sent.output, sent.errors) == (0, "", "")
    got = run("receive", "answers", "--timeout", "30")
    assert (got.code, got.json) == (0, {"channel": "answers", "message": {"done": 7}})


def test_messages_are_taken_one_by_one(live: Live, run: Run) -> None:
    got = run("receive", "backlog", "nothing", "--timeout", "0", "--count", "2")
    lines = [json.loads(line) for line in got.output.splitlines()]
    assert [line["message"] for line in lines] == [{"number": 0}, {"number": 1}]
    got = run("receive", "backlog", "--timeout", "0", "--count", "2")
    assert (got.code, len(got.output.splitlines())) == (1, 1)  # there was only one more


def test_nothing_to_receive_is_exit_status_1(live: Live, run: Run) -> None:
    for seconds in ("0", "0.2"):
        got = run("receive", "empty", "--timeout", seconds)
        assert (got.code, got.output) == (1, "")
        assert got.errors.startswith("No message came")


def test_bytes_travel_in_base64(live: Live, run: Run) -> None:
    body = '{"body": {"$bytes": "AP8="}, "text": "ä"}'
    assert run("send", "bytes", "-", standard_input=body).code == 0
    layer = IPCChannelLayer(live.prefix)
    assert layer.receive(["bytes"])[1] == {"body": b"\x00\xff", "text": "ä"}
    layer.send("bytes", {"body": b"\x00\xff"})
    got = run("receive", "bytes", "--timeout", "0").json
    assert got["message"] == {"body": {"$bytes": "AP8="}}


def test_a_group_send_reaches_its_members(live: Live, run: Run) -> None:
    assert run("group-send", "room", '{"text": "hello"}').code == 0
    live.chat.wait_for_output("heard {'text': 'hello'}")
    nobody = run("group-send", "nobody", "{}")
    assert nobody.code == 0 and "has no members" in nobody.errors


def test_a_full_channel_is_exit_status_4(live: Live, run: Run) -> None:
    """By the capacity that the other senders go by, which is not the default."""
    full = run("send", "full", "{}")
    assert full.code == 4 and "capacity of 5" in full.errors


def test_what_cannot_be_sent_is_exit_status_2(live: Live, run: Run) -> None:
    for arguments, said in (
        (("send", "a b", "{}"), "a b"),
        (("send", "a", "3"), "JSON object"),
        (("send", "a", "{"), "not JSON"),
        (("send", "a", '{"b": {"$bytes": 1}}'), "base64"),
        (("send", "a", '{"n": 9223372036854775808}'), "message['n']"),
        (("group-send", "a!b", "{}"), "a!b"),
        (("receive", "a!b"), "up to the '!'"),
        (("send", "room", "{}"), "asgi-ipc group-send --prefix"),
    ):
        ran = run(*arguments)
        assert ran.code == 2 and said in ran.errors, ran
    assert run("channels", "a", "--interval", "0", "--json").json == []


def test_an_encrypted_layer_needs_its_keys(prefix: str, run: Run, tmp_path: Path) -> None:
    layer = IPCChannelLayer(prefix, symmetric_encryption_keys=["secret"])
    (keys := tmp_path / "keys").write_text("secret\n")
    layer.send("a", {"n": 1})
    assert run("receive", "a", "--timeout", "0", "--keys", str(keys)).json["message"] == {"n": 1}
    assert run("send", "a", '{"n": 2}', "--keys", str(keys)).code == 0
    assert layer.receive(["a"]) == ("a", {"n": 2})


@pytest.mark.parametrize("name", ["Infinity", "-Infinity", "NaN"])
def test_floats_that_json_does_not_have(prefix: str, run: Run, name: str) -> None:
    layer = IPCChannelLayer(prefix)
    layer.send("a", {"deep": [{"value": float(name)}]})
    ran = run("receive", "a", "--timeout", "0")
    found = json.loads(ran.output, parse_constant=pytest.fail)["message"]
    assert found == {"deep": [{"value": {"$float": name}}]}
    assert run("send", "a", json.dumps(found)).code == 0
    _, message = layer.receive(["a"])
    assert message is not None and repr(message["deep"][0]["value"]) == repr(float(name))
    ran = run("send", "a", f'{{"value": {name}}}')
    assert ran.code == 2 and f'write {{"$float": "{name}"}}' in ran.errors
    ran = run("send", "a", '{"value": {"$float": "1"}}')
    assert ran.code == 2 and "'$float' needs one of Infinity, -Infinity, NaN" in ran.errors
    assert layer.receive(["a"]) == (None, None)
    layer.close()


def test_a_layer_that_does_not_exist_is_not_made(prefix: str, run: Run) -> None:
    for arguments in (("send", "a", "{}"), ("receive", "a"), ("group-send", "a", "{}")):
        assert run(*arguments).code == 3
    assert prefix not in run("list").output


def test_the_options_of_the_live_segment_are_used(prefix: str, run: Run) -> None:
    """If no process is attached, one with other options would replace the segment."""
    layer = IPCChannelLayer(prefix, message_memory=8 << 20, lock="file", mode=0o660)
    layer.send("a", {"n": 1})
    layer.close()
    del layer
    until(lambda: run("list", "--json").output.count(prefix) == 1)
    assert run("receive", "a", "--timeout", "0").json["message"] == {"n": 1}


def test_ctrl_c_ends_a_receive(live: Live, tmp_path: Path, interruptible: None) -> None:
    arguments = ["receive", "empty", "--timeout", "60", "--prefix", live.prefix]
    with running(
        [sys.executable, "-m", "asgi_ipc", *arguments],
        log=tmp_path / "receive.log",
        environment=child_environment(),
    ) as process:

        def waits() -> bool:
            channels = Snapshot(View(live.prefix)).channels()
            return any(process.pid in channel.waiting for channel in channels)

        process.wait_until(waits, "it to wait")
        process._child.send_signal(signal.SIGINT)
        assert process.wait_for_end() == 130
    assert "Traceback" not in process.output()


def test_a_payload_does_not_control_the_terminal(live: Live, run: Run) -> None:
    IPCChannelLayer(live.prefix).send("bad", {"text": "\x1b[31m \x9b31m \u00e4"})
    got = run("receive", "bad", "--timeout", "0")
    assert got.json["message"]["text"] == "\x1b[31m \x9b31m \u00e4"
    assert got.output.rstrip("\n").isprintable()
