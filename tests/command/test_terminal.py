"""What the subcommands print in a terminal of 80 columns: nothing is wrapped within a name."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import resource
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator

import pytest

from asgi_ipc import IPCChannelLayer
from asgi_ipc.command.common import Column, breadth, counted, cut, print_json, print_table, rate
from asgi_ipc.statistics import Ending

from ..environments import child_environment
from .conftest import Live, Run

LONG = "chat.notifications.by-email.of-customers-who-are-of-some-importance-to-somebody"
OTHER = "chat.notifications.by-email.of-customers-who-are-not-of-so-much-importance-to-us"


def in_terminal(
    *arguments: str, columns: int = 80, answer: str = "", **variables: str
) -> list[str]:
    """The lines that a command prints in a terminal, after it got an `answer`; and its exit status
    as the last one."""
    master, slave = pty.openpty()
    try:
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        environment = {**child_environment(**variables), "TERM": "xterm"}
        environment.pop("COLUMNS", None)
        process = subprocess.Popen(
            [sys.executable, "-m", "asgi_ipc", *arguments],
            env=environment,
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )
        os.write(master, answer.encode())
    finally:
        os.close(slave)
    read = b""
    try:
        while chunk := _read(master):
            read += chunk
    finally:
        os.close(master)
    text = re.sub(r"\x1b\[[0-9;]*m", "", read.decode()).replace("\r\n", "\n")
    return [*text.splitlines(), str(process.wait())]


def _read(master: int) -> bytes:
    try:
        return os.read(master, 65536)
    except OSError:  # the last process has closed the other end
        return b""


@pytest.fixture
def many(prefix: str) -> Iterator[IPCChannelLayer]:
    """A layer with long names."""
    layer = IPCChannelLayer(prefix, expiry=600)
    for name in (LONG, OTHER):
        layer.send(name, {"text": "hello"})
    layer.send(OTHER, {"text": "hello again"})
    layer.group_add("a-group-whose-name-is-longer-than-it-has-to-be", layer.new_channel())
    yield layer
    layer.close()


@pytest.mark.parametrize("command", ["list", "channels", "groups", "processes", "stats", "doctor"])
@pytest.mark.parametrize("columns", [60, 80, 132])
def test_lines_end_between_words(
    command: str, columns: int, many: IPCChannelLayer, prefix: str
) -> None:
    shown = in_terminal(command, columns=columns, ASGI_IPC_PREFIX=prefix)
    assert max(map(len, shown)) <= columns, "\n".join(shown)
    if columns == 80 and command in ("channels", "groups", "processes"):
        assert "…" in "\n".join(shown)
    for line in shown:
        for word in re.findall(r"\S*chat\.\S*", line):
            assert word.rstrip(",") in (LONG, OTHER) or "…" in word, line


def test_wide_shows_all(many: IPCChannelLayer, prefix: str) -> None:
    shown = in_terminal("channels", "--wide", "--interval", "0", ASGI_IPC_PREFIX=prefix)
    assert {LONG, OTHER} < {line.split()[0] for line in shown}
    assert {"SENT", "DROPPED"} < set(shown[0].split())
    assert not any("Not shown" in line for line in shown)


def test_a_pipe_gets_whole_lines(many: IPCChannelLayer, run: Run) -> None:
    assert {LONG, OTHER} < {line.split()[0] for line in run("channels").output.splitlines()}


def test_the_busiest_channels_come_first(many: IPCChannelLayer, run: Run) -> None:
    ran = run("channels", "--interval", "0")
    assert [line.split()[0] for line in ran.output.splitlines()][1:3] == [OTHER, LONG]
    limited = run("channels", "--interval", "0", "--limit", "1")
    assert len(limited.output.splitlines()) == 2 and "2 more: --limit 0 shows all" in limited.errors
    (first,) = run("channels", "--interval", "0", "--limit", "1", "--json").json
    assert first["name"] == OTHER


def test_a_terminal_gets_a_hundred_channels(prefix: str) -> None:
    layer = IPCChannelLayer(prefix)
    for number in range(120):
        layer.send(f"channel-{number}", {})
    shown = in_terminal("channels", "--interval", "0", ASGI_IPC_PREFIX=prefix)
    assert sum(line.startswith("channel-") for line in shown) == 100
    assert "20 more: --limit 0 shows all." in shown
    layer.close()


def test_ten_thousand_channels_take_little_work(prefix: str, run: Run) -> None:
    """1.5 seconds of a processor; on the machine where this was written, half a second."""
    layer = IPCChannelLayer(prefix, expiry=600)
    for number in range(10_000):
        layer.send(f"channel-{number}", {})
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ran = run("channels", "--interval", "0.1")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert len(ran.output.splitlines()) == 10_001
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert spent < 15, "ten times the margin"
    layer.close()


def test_errors_and_wrong_usage_end_their_lines_between_words(live: Live) -> None:
    for arguments in (
        ("stats", "--prefix", f"no-{live.prefix}-of-this-name-is-there-on-this-machine"),
        ("channels", "--sort", "a-figure-that-nobody-has-ever-thought-of"),
        ("destroy", "--prefix", live.prefix),
    ):
        shown = in_terminal(*arguments)
        assert any(line.startswith("Error: ") for line in shown)
        assert max(map(len, shown)) <= 80, shown


def test_tail_cuts_names_and_shows_messages_below(many: IPCChannelLayer, prefix: str) -> None:
    options = ("tail", "--all", "--payload", "--count", "1", "--prefix", prefix)
    # Those that are there already are not shown: others come while it looks.
    stop = threading.Event()

    def send() -> None:
        while not stop.wait(0.05):
            many.receive([LONG])
            many.send(LONG, {"text": "hello", "far": float("inf")})

    sender = threading.Thread(target=send)
    sender.start()
    try:
        shown = in_terminal(*options)
        whole = in_terminal(*options, "--wide")
    finally:
        stop.set()
        sender.join()
    assert shown[2] == '  {"text": "hello", "far": {"$float": "Infinity"}}'
    assert "…" in shown[1] and len(shown[1]) <= 80 and "expires after " in shown[1]
    assert LONG in whole[1] and whole[1].endswith('"Infinity"}}')


# -- the table itself -----------------------------------------------------------------------------


def printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, most: int) -> str:
    columns = [Column("NAME", least=8), Column("A", right=True, spare=1), Column("B", spare=2)]
    monkeypatch.setattr("asgi_ipc.command.common.room", lambda err=False: most)
    print_table(columns, [["name-of-something", "0", "some"], ["x", "0", "thing"]])
    return capsys.readouterr().out


def test_a_column_that_says_nothing_goes_first(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert printed(capsys, monkeypatch, 40).splitlines() == [
        "NAME               A  B",
        "name-of-something  0  some",
        "x                  0  thing",
    ]
    assert printed(capsys, monkeypatch, 20).splitlines()[1] == "name-…hing  0  some"
    assert printed(capsys, monkeypatch, 15).splitlines()[1] == "name…ing  some"
    assert printed(capsys, monkeypatch, 10).splitlines()[1] == "name-…hing"
    assert printed(capsys, monkeypatch, 5).splitlines()[1] == "na…ng"


@pytest.mark.parametrize("columns", [20, 40])
@pytest.mark.parametrize("command", ["list", "channels", "groups", "processes", "stats"])
def test_a_narrow_terminal_gets_the_columns_that_fit(
    live: Live, prefix: str, command: str, columns: int
) -> None:
    named = [] if command == "list" else ["--prefix", prefix]
    *lines, code = in_terminal(command, *named, columns=columns)
    assert code == "0"
    # A note's longest word is not broken.
    assert [line for line in lines if breadth(line) > columns and " " in line] == []


def test_east_asian_characters_take_two_columns(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([Column("COMMAND"), Column("N")], [["引数", "1"], ["ab", "2"]])
    assert capsys.readouterr().out.splitlines()[1:] == ["引数     1", "ab       2"]
    assert cut("とても長い引数", 9) == "とて…引数"
    assert cut("とても長い引数", 8) == "とて…数"


def test_doctor_shortens_names_that_no_line_holds(prefix: str) -> None:
    with IPCChannelLayer(prefix, capacity=1) as layer:
        layer.send("x" * 99, {})
        *lines, code = in_terminal("doctor", "--prefix", prefix, columns=60)
        assert code == "0"
        assert any("xx…xx" in line for line in lines)
        assert [line for line in lines if len(line) > 60] == []


def test_a_name_is_cut_in_its_middle() -> None:
    assert cut("abcdefgh", 8) == "abcdefgh"
    assert cut("abcdefghi", 8) == "abcd…ghi"
    assert cut("abcdefghi", 7) == "abc…ghi"


@pytest.mark.parametrize(
    ("figure", "text"),
    [(0, "0"), (1e-9, "<0.01"), (0.012, "0.012"), (0.25, "0.25"), (5.31, "5.3"), (9.99, "10")]
    + [(99_999, "99999"), (123_456, "123k")],
)
def test_rates_have_five_columns(figure: float, text: str) -> None:
    assert rate(figure) == text and len(text) <= 5


def test_json_has_no_infinity(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": [float("inf"), (1.5, float("nan"))], "b": Ending("g", "c", -float("inf"))})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {
        "a": [None, [1.5, None]],
        "b": {"group": "g", "channel": "c", "expires": None},
    }


def test_counts_are_those_of_people() -> None:
    assert [counted(n, "message") for n in range(3)] == ["no message", "1 message", "2 messages"]
