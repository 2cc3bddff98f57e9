"""top, as a person uses it: in a terminal of 80 × 24, with the screen read back."""

from __future__ import annotations

import html
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from asgi_ipc import IPCChannelLayer

from ..environments import REPOSITORY, child_environment
from ..waiting import until
from .conftest import Live, Run

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="lacking: tmux")

WIDTH, HEIGHT = 80, 24


class Terminal:
    """A tmux server of its own, with one program on one screen."""

    def __init__(self, folder: Path, prefix: str, *arguments: str, **variables: str) -> None:
        self._tmux = ["tmux", "-S", str(folder / "tmux"), "-f", "/dev/null"]
        self._environment = {**child_environment(**variables), "TERM": "xterm-256color"}
        for name in ("TMUX", "COLUMNS", "LINES"):  # pytest-xdist sets a size that would be kept
            self._environment.pop(name, None)
        self.exit_status = folder / "status"
        command = (
            f"{sys.executable} -m asgi_ipc top --prefix {prefix} --interval 0.2 "
            f"{' '.join(arguments)}; echo $? > {self.exit_status}"
        )
        self._run("new-session", "-d", "-x", str(WIDTH), "-y", str(HEIGHT), command)

    def _run(self, *arguments: str) -> str:
        return subprocess.run(
            [*self._tmux, *arguments],
            env=self._environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    def screen(self, *options: str) -> str:
        return self._run("capture-pane", "-p", *options)

    def press(self, *keys: str) -> None:
        self._run("send-keys", *keys)

    def wait_for(self, pattern: str) -> str:
        """The screen, once `pattern` is found on it."""

        def shown() -> bool:
            self.last = self.screen()
            return re.search(pattern, self.last, re.M) is not None

        until(shown, what=lambda: f"{pattern!r} on the screen:\n{self.last}", pause=0.05)
        return self.last

    def close(self) -> None:
        subprocess.run([*self._tmux, "kill-server"], capture_output=True, check=False)


@pytest.fixture
def terminal(live: Live, tmp_path: Path) -> Iterator[Terminal]:
    terminal = Terminal(tmp_path, live.prefix)
    yield terminal
    terminal.close()


def channels_on(screen: str) -> list[str]:
    """The names in the first table."""
    lines = screen.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("CHANNEL"))
    last = next(i for i, line in enumerate(lines) if line.startswith("PID"))
    return [line.split()[0] for line in lines[first + 1 : last] if line.strip()]


def test_a_membership_that_ends_soon_is_named(live: Live, tmp_path: Path) -> None:
    IPCChannelLayer(live.prefix, group_expiry=600).group_add("room", live.mine)
    terminal = Terminal(tmp_path, live.prefix)
    try:
        screen = terminal.wait_for(r"ends in \d+\.\dm unless renewed: specific\.\S+ of group room")
        lines = screen.splitlines()
        assert len(lines) <= HEIGHT and max(map(len, lines)) <= WIDTH
    finally:
        terminal.close()


def test_the_screen_shows_the_layer(terminal: Terminal, live: Live) -> None:
    terminal.wait_for("alive")
    screen = terminal.wait_for("q Quit")
    lines = screen.splitlines()
    assert len(lines) <= HEIGHT and max(map(len, lines)) <= WIDTH
    assert f"prefix {live.prefix}" in lines[0]
    assert "pending 8, oldest" in lines[1]
    assert re.search(r"memory \d.*B of 100\.0 MiB", lines[2])
    assert "dropped 0" in lines[3] and "processes 2" in lines[3]
    titles = "CHANNEL FILL PENDING OLDEST IN/S OUT/S REFUSED READERS"
    assert titles.split() == next(line for line in lines if line.startswith("CHANNEL")).split()
    assert set(channels_on(screen)) >= {"full", "backlog", "jobs"}
    assert re.search(r"^full +█{10} +5/5 .* 1 +-$", screen, re.M)
    assert re.search(r"^backlog +█{6}░{4} +3/5 ", screen, re.M)
    assert re.search(rf"^jobs +░{{10}} +0/\? .* {live.worker.pid}$", screen, re.M)
    assert re.search(rf"^{live.worker.pid} +alive .* jobs ", screen, re.M)
    assert re.search(rf"^{live.chat.pid} +alive ", screen, re.M)
    assert "q Quit" in lines[-1] and "s Sort" in lines[-1] and "/ Filter" in lines[-1]


def test_keys_to_sort_filter_and_quit(terminal: Terminal) -> None:
    terminal.wait_for("sorted by rate")
    terminal.press("s")
    assert channels_on(terminal.wait_for("sorted by fill"))[:2] == ["full", "backlog"]
    terminal.press("S", "S")
    assert channels_on(terminal.wait_for("sorted by name"))[:3] == ["backlog", "full", "jobs"]
    terminal.press("/")
    terminal.wait_for("channels whose names contain")
    terminal.press("o", "b")
    terminal.wait_for("filter 'ob'")
    terminal.press("Enter")
    assert channels_on(terminal.wait_for("q Quit")) == ["jobs"]
    terminal.press("Escape")
    until(lambda: len(channels_on(terminal.screen())) == 4, what="all channels")
    terminal.press("/")
    terminal.wait_for("channels whose names contain")
    terminal.press("f", "*", "Enter")
    until(lambda: channels_on(terminal.screen()) == ["full"], what="those of the pattern")
    terminal.press("q")
    until(terminal.exit_status.exists, what="the end")
    until(lambda: terminal.exit_status.read_text() == "0\n", what="exit status 0")


def test_rates_and_pause(terminal: Terminal, live: Live) -> None:
    layer = IPCChannelLayer(live.prefix)
    over = threading.Event()

    def traffic() -> None:
        while not over.wait(0.01):
            layer.send("busy", {})
            layer.receive(["busy"])

    sending = threading.Thread(target=traffic)
    sending.start()
    try:
        screen = terminal.wait_for(r"^busy +░{10} +0/100 +- +[1-9]\d +[1-9]\d ")
        assert channels_on(screen)[0] == "busy"
        terminal.press("p")
        terminal.wait_for("PAUSED")
    finally:
        over.set()
        sending.join()
    frozen = terminal.screen()
    assert "PAUSED" in frozen
    terminal.press("p")
    terminal.wait_for(r"^busy +░{10} +0/100 +- +0 +0 ")


def test_without_colour(live: Live, tmp_path: Path) -> None:
    """What colour says is also said by the bars."""
    terminal = Terminal(tmp_path, live.prefix, NO_COLOR="1")
    try:
        terminal.wait_for(r"^full +█{10} ")
        screen = terminal.screen("-e")
        assert re.search("\x1b\\[[\\d;:]+m", screen)
        assert colours(screen) == set(), screen
    finally:
        terminal.close()


def colours(screen: str) -> set[str]:
    """The codes on a screen that give a colour other than a grey."""
    found = set()
    for code in re.findall(r"\x1b\[([\d;:]+)m", screen):
        numbers = iter(map(int, re.findall(r"\d+", code)))
        for number in numbers:
            if number in (38, 48, 58):  # what comes next says which colour: of 256, or its parts
                parts = [next(numbers)] if next(numbers) == 5 else [next(numbers) for _ in "rgb"]
                grey = parts[0] in GREYS if len(parts) == 1 else len(set(parts)) == 1
            else:
                grey = number not in range(31, 37) and number not in range(41, 47)
                grey = grey and number not in range(91, 97) and number not in range(101, 107)
            if not grey:
                found.add(code)
    return found


# Of the 256 colours: black, white and what is between them.
GREYS = {0, 7, 8, 15, 16, 59, 102, 145, 188, 231, *range(232, 256)}


def test_the_colours_of_a_screen_are_found() -> None:
    greys = "\x1b[1;38;5;236;48;2;33;33;33mx\x1b[0;37;40m\x1b[38:2:42:42:42m"
    assert colours(greys) == set()
    for code in ("31", "1;46", "95", "38;5;33", "48;2;1;2;3", "38:2:36:36:37"):
        assert colours(f"{greys}\x1b[{code}mx") == {code}


def test_a_layer_that_goes_and_comes_back(terminal: Terminal, live: Live, run: Run) -> None:
    terminal.wait_for("pending 8")
    live.chat.stop()
    live.worker.stop()
    run("destroy")
    terminal.wait_for("there is no layer with prefix")
    layer = IPCChannelLayer(live.prefix)
    layer.send("again", {})
    assert channels_on(terminal.wait_for("pending 1,")) == ["again"]


def test_a_window_of_another_size(terminal: Terminal) -> None:
    terminal.wait_for("sorted by rate")
    terminal._run("resize-window", "-x", "120", "-y", "40")
    terminal.wait_for(r"^full {40,}█{10} ")


def test_it_needs_a_terminal_and_a_layer(live: Live, run: Run) -> None:
    ran = run("top")
    assert ran.code == 2 and "needs a terminal" in ran.errors
    source = "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)"
    asked = subprocess.run(
        [sys.executable, "-c", source, sys.executable, "-m", "asgi_ipc", "top", "--prefix", "no"],
        env=child_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert asked.returncode == 3 and live.prefix in asked.stdout


def test_without_textual_it_says_what_to_install(live: Live) -> None:
    source = (
        "import sys, os; sys.modules['textual'] = None\n"
        "for stream in (sys.stdin, sys.stdout, sys.stderr): stream.isatty = lambda: True\n"
        f"sys.argv = ['asgi-ipc', 'top', '--prefix', {live.prefix!r}]\n"
        "from asgi_ipc.command import main\nmain()"
    )
    ran = subprocess.run(
        [sys.executable, "-c", source],
        env={**os.environ, **child_environment()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 3 and "pip install 'asgi_ipc[cli]'" in ran.stderr, ran.stderr


def test_the_picture_is_drawn_of_the_real_screen(prefix: str, tmp_path: Path) -> None:
    """And the one in the documentation shows the same columns."""
    made = tmp_path / "top.svg"
    subprocess.run(
        [sys.executable, REPOSITORY / "docs" / "draw_top.py", "--to", made, "--prefix", prefix],
        env=child_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
    )
    for picture in (made, REPOSITORY / "docs" / "images" / "top.svg"):
        text = picture.read_text(encoding="utf-8")
        assert text.startswith("<svg") and str(REPOSITORY) not in text
        shown = " ".join(re.sub("<[^>]*>", " ", html.unescape(text)).split())
        assert "CHANNEL FILL PENDING OLDEST IN/S OUT/S REFUSED READERS" in shown
        assert "PID STATE ATTACHED WAITS FOR COMMAND" in shown
        assert re.search(r"thumbnails █{9,10}( ░)? (50|4[5-9])/50 ", shown)
