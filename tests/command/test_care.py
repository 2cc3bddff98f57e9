"""verify, flush and destroy."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest

from asgi_ipc import IPCChannelLayer, segment
from asgi_ipc.inspection.diagnosis import diagnose
from asgi_ipc.inspection.snapshot import Snapshot
from asgi_ipc.inspection.unused import unused
from asgi_ipc.inspection.view import View, attached_to
from asgi_ipc.segment.opening import remove_unless
from asgi_ipc.segment.paths import SUFFIX, Paths, full_prefix
from asgi_ipc.segment.procfs import user_name
from asgi_ipc.store.layout import (
    DIRTY,
    FLUSHING,
    H_MESSAGE_MEMORY,
    Q_PENDING,
    S_DIRTY,
    S_EPOCH,
    S_MARK,
    S_SEQ,
    S_SEQ_BASE,
)
from asgi_ipc.store.verify import INTERRUPTED

from ..forks import NOBODY, Line, child, in_child, is_root
from ..reliability.scenarios import ruin
from ..waiting import until
from .conftest import Live, Run, stopped_holder, write_word
from .test_terminal import in_terminal


def test_verify_says_that_all_is_well(live: Live, run: Run) -> None:
    assert run("verify", "--json").json == {"prefix": live.prefix, "well": True, "problems": []}
    assert "hold" in run("verify").output


def test_verify_says_in_words_what_is_wrong(prefix: str, run: Run) -> None:
    layer = IPCChannelLayer(prefix)
    layer.send("a", {})
    ((row, _),) = Snapshot(View(prefix)).queues.items()
    write_word(prefix, row + Q_PENDING, 5)
    ran = run("verify", "--json")
    assert ran.code == 1
    assert ran.json["problems"] == ["queue 'a': 5 messages are counted as pending, not 1"]
    assert run("verify").output == "queue 'a': 5 messages are counted as pending, not 1\n"


@pytest.mark.parametrize("state", [DIRTY, FLUSHING])
def test_verify_does_not_put_in_order_what_was_interrupted(
    prefix: str, run: Run, state: int
) -> None:
    layer = IPCChannelLayer(prefix)
    layer.send("a", {})
    ruin(layer._core.attach().store)
    write_word(prefix, S_DIRTY, state)
    ran = run("verify")
    assert (ran.code, ran.output[: len(INTERRUPTED)]) == (0, INTERRUPTED)
    assert run("verify", "--json").json == {"prefix": prefix, "well": True, "problems": []}
    assert View(prefix).words(S_DIRTY, 1)[0] == state
    layer.send("a", {})
    assert run("verify").code == 0


def test_what_an_interrupted_flush_writes_again_is_no_damage(prefix: str, run: Run) -> None:
    layer = IPCChannelLayer(prefix)
    layer.send("a", {})
    for word in (S_EPOCH, S_SEQ_BASE):
        write_word(prefix, word, 1 << 60)
    write_word(prefix, S_DIRTY, FLUSHING)
    assert run("verify").code == 0
    layer.send("a", {})
    assert run("verify").output == f"All invariants of prefix {prefix!r} hold.\n"


def test_verify_of_a_header_that_contradicts_itself(prefix: str, run: Run) -> None:
    layer = IPCChannelLayer(prefix)
    layer.send("a", {})
    write_word(prefix, H_MESSAGE_MEMORY, 1)
    ran = run("verify", "--json")
    assert ran.code == 1 and "contradicts itself" in ran.json["problems"][0]


def test_verify_under_traffic_finds_nothing(live: Live, run: Run) -> None:
    """The copy is made under the lock."""
    layer = IPCChannelLayer(live.prefix)

    def keep_busy(_line: Line) -> None:
        while True:
            layer.send("busy", {"text": "x" * 100})
            layer.receive(["busy"])

    with child(keep_busy):
        before = View(live.prefix).words(S_SEQ, 1)[0]
        until(lambda: View(live.prefix).words(S_SEQ, 1)[0] > before + 100)
        for _ in range(3):
            ran = run("verify")
            assert ran.code == 0, ran.output


def test_a_lock_that_stays_busy_is_exit_status_4_and_names_the_holder(
    prefix: str, run: Run, tmp_path: Path
) -> None:
    layer = IPCChannelLayer(prefix)
    layer.send("a", {})
    with stopped_holder(layer) as pid:
        ran = run("flush", "--timeout", "0.2")
        assert ran.code == 4 and f"process {pid}" in ran.errors
        assert run("verify").code == 0  # which sees that all is well without the lock
        write_word(prefix, S_SEQ_BASE, 1 << 40)
        ran = run("verify", "--timeout", "0.2")
        assert ran.code == 4 and f"process {pid}" in ran.errors
        write_word(prefix, S_SEQ_BASE, 0)
        (holder,) = (one for one in run("processes", "--json").json if one["holds_lock"])
        assert (holder["pid"], holder["state"]) == (pid, "stopped")
        assert run("stats", "--json", "--interval", "0").json["lock"]["holder"] == pid
    assert run("verify").code == 0


def test_flush_forgets_and_the_processes_go_on(live: Live, run: Run) -> None:
    assert run("flush").code == 0
    found = run("stats", "--interval", "0", "--json").json
    assert (found["pending"], found["groups"], found["processes"]) == (0, 0, 2)
    run("send", "jobs", '{"job": 1, "reply_to": "answers"}')
    assert run("receive", "answers", "--timeout", "30").json["message"] == {"done": 1}


def test_flush_mends_what_recovery_gives_up_on(prefix: str, run: Run) -> None:
    layer = IPCChannelLayer(prefix)
    layer.send("a", {})
    layer.close()
    del layer
    write_word(prefix, S_MARK, 0)
    write_word(prefix, S_DIRTY, DIRTY)
    epoch = View(prefix).words(S_EPOCH, 1)[0]
    assert run("verify").code == 1
    assert run("flush").code == 0
    assert run("verify").code == 0
    assert View(prefix).words(S_EPOCH, 1)[0] > epoch
    layer = IPCChannelLayer(prefix)
    layer.send("a", {"n": 1})
    assert layer.receive(["a"]) == ("a", {"n": 1})


def test_flush_with_a_file_lock(prefix: str, run: Run) -> None:
    layer = IPCChannelLayer(prefix, lock="file")
    layer.send("a", {})
    assert run("verify").code == 0
    assert run("flush").code == 0
    assert layer.receive(["a"]) == (None, None)


def test_destroy_refuses_while_processes_are_attached(live: Live, run: Run) -> None:
    ran = run("destroy")
    assert ran.code == 4
    assert str(live.chat.pid) in ran.errors and str(live.worker.pid) in ran.errors
    assert "in use by 2 processes" in ran.errors
    assert run("stats", "--interval", "0").code == 0


def test_destroy_with_force(live: Live, run: Run) -> None:
    assert run("destroy", "--force").code == 0
    assert not Path(f"/dev/shm/asgi_ipc.{live.prefix}").exists()
    live.chat.wait_until(
        lambda: not live.chat.alive() or "SegmentVanished" in live.chat.output(),
        "the chat process to notice",
    )


def test_destroy_of_an_unused_layer(prefix: str, run: Run) -> None:
    layer = IPCChannelLayer(prefix)
    layer.send("a", {})
    layer.close()
    del layer
    assert run("destroy").code == 0
    assert not list(Path("/dev/shm").glob(f"asgi_ipc.{prefix}*"))
    assert run("destroy").code == 3


def test_destroy_of_leftovers(prefix: str, run: Run) -> None:
    layer = IPCChannelLayer(prefix)
    layer.send("a", {})
    layer.close()
    del layer
    os.unlink(f"/dev/shm/asgi_ipc.{prefix}")
    assert run("destroy").code == 0
    assert not list(Path("/dev/shm").glob(f"asgi_ipc.{prefix}*"))


@pytest.fixture
def apart(prefix: str) -> dict[str, str]:
    """Variables with which the command sees only what this test makes, under names that end so."""
    return {SUFFIX: f".{prefix}"}


def make_and_leave(name: str) -> None:
    layer = IPCChannelLayer(name)
    layer.send("a", {})
    layer.close()


def test_destroy_unused_leaves_what_is_in_use(prefix: str, run: Run, apart: dict[str, str]) -> None:
    used = IPCChannelLayer(f"used.{prefix}")
    used.send("a", {})
    make_and_leave(f"one.{prefix}")
    make_and_leave(f"two.{prefix}")
    os.mkdir(f"/dev/shm/asgi_ipc.rest.{prefix}.d", 0o700)  # beside no segment
    ran = run("destroy", "--unused", "--older", "1h", "--yes", **apart)
    assert ran.code == 0 and "nothing to remove" in ran.output and "for 1 h 0 min." in ran.output
    ran = run("destroy", "--unused", **apart)
    assert ran.code == 2 and "--yes" in ran.errors
    assert [line.split()[0] for line in ran.output.splitlines()] == ["PREFIX", "one", "rest", "two"]
    ran = run("destroy", "--unused", "--yes", **apart)
    removed = "".join(
        rf"Removed prefix '{name}', unused for .*\({what}\)\.\n"
        for name, what in (("one", ".* KiB, 1 message"), ("rest", "0 B"), ("two", ".*, 1 message"))
    )
    assert ran.code == 0 and re.fullmatch(removed, ran.output)
    assert {path.name for path in Path("/dev/shm").glob(f"asgi_ipc.*{prefix}*")} == {
        f"asgi_ipc.used.{prefix}",
        f"asgi_ipc.used.{prefix}.d",
    }
    assert used.receive(["a"]) == ("a", {})
    used.close()
    segment.destroy(f"used.{prefix}")


def test_destroy_unused_asks(prefix: str, apart: dict[str, str]) -> None:
    make_and_leave(f"one.{prefix}")
    shown = in_terminal("destroy", "--unused", answer="n\n", **apart)
    assert shown[-2].endswith("Nothing was removed.") and shown[-1] == "1"
    assert any(re.match(r"one .* 1$", line) for line in shown)
    shown = in_terminal("destroy", "--unused", answer="y\n", **apart)
    assert "Removed prefix 'one', unused for" in shown[-2] and shown[-1] == "0"
    assert not Path(f"/dev/shm/asgi_ipc.one.{prefix}").exists()


@pytest.mark.parametrize("end", ["close", "kill"])
def test_unused_since_the_last_process_ended(prefix: str, end: str) -> None:
    """Not since it attached, however it ended."""

    def use() -> None:
        layer = IPCChannelLayer(prefix)
        layer.send("a", {})
        layer.receive(["nothing"], block=True, timeout=2.5)
        if end == "close":
            layer.close()
        os._exit(0)

    pid = os.fork()
    if not pid:
        try:
            use()
        finally:
            os._exit(1)
    began = time.monotonic()
    assert os.waitpid(pid, 0)[1] == 0
    (found,) = (one for one in unused() if one.prefix == prefix)
    assert found.pending == 1
    assert 0 <= found.idle < time.monotonic() - began - 1  # it waited for longer than that


@pytest.mark.parametrize(
    "wrong",
    [("--older", "1h"), ("--yes",), ("--unused", "--force"), ("--unused", "--older", "soon")],
    ids=" ".join,
)
def test_destroy_refuses_options_that_do_not_go_together(
    wrong: tuple[str, ...], prefix: str, run: Run, apart: dict[str, str]
) -> None:
    make_and_leave(prefix)
    assert run("destroy", *wrong, **apart).code == 2
    assert run("destroy", "--unused", "--prefix", prefix, "--yes", **apart).code == 2
    assert run("stats", "--interval", "0").code == 0


def test_a_process_that_attaches_meanwhile_keeps_its_layer(live: Live) -> None:
    paths = Paths(full_prefix(live.prefix))
    assert remove_unless(paths, attached_to) is False
    assert Path(paths.file).exists()


@is_root
def test_only_the_owner_flushes_and_destroys(prefix: str, run: Run) -> None:
    """Not even root, who would leave files of its own among those of another user."""

    def make() -> None:
        os.setuid(NOBODY)
        layer = IPCChannelLayer(prefix)
        layer.send("a", {})

    in_child(make)
    try:
        assert run("verify").code == 0
        assert run("stats", "--interval", "0", "--json").json["pending"] == 1
        for command in ("flush", "destroy"):
            ran = run(command)
            assert ran.code == 3 and "belongs to" in ran.errors, ran
        user = user_name(NOBODY)
        others = run("destroy", "--unused", "--yes", **{SUFFIX: prefix[1:]})
        assert others.code == 0 and f"belong to {user}, who may remove them" in others.errors
        ran = run("destroy")
        assert f"sudo -u {user} asgi-ipc destroy --prefix {prefix}" in ran.errors
        (remedy,) = (one.remedy for one in diagnose(prefix) if one.subject == "processes")
        assert remedy.endswith(f"sudo -u {user} asgi-ipc destroy --prefix {prefix}")
        assert run("stats", "--interval", "0", "--json").json["pending"] == 1
    finally:
        in_child(lambda: (os.setuid(NOBODY), segment.destroy(prefix)))
