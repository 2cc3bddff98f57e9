"""list, stats, channels, groups, processes: what they say of a live layer with two processes."""

from __future__ import annotations

import os
import re
import signal

import pytest
from click.testing import CliRunner

from asgi_ipc import IPCChannelLayer, segment
from asgi_ipc.command.cli import cli
from asgi_ipc.errors import IncompatibleSegment
from asgi_ipc.inspection.layers import layers
from asgi_ipc.inspection.snapshot import Snapshot
from asgi_ipc.inspection.view import View
from asgi_ipc.store.layout import H_VERSION, Q_NAME, S_TABLES, T_HIGH, T_RESERVED, VERSION, WORD

from ..forks import NOBODY, in_child, is_root
from ..waiting import until
from .conftest import Live, Run, resume, stop, write_word


def test_list_shows_every_layer(live: Live, run: Run) -> None:
    (layer,) = (one for one in run("list", "--json").json if one["prefix"] == live.prefix)
    assert layer["layout_version"] == VERSION
    assert layer["mode"] == "0o600"
    assert (layer["pending"], layer["processes"], layer["problem"]) == (8, 2, "")
    assert layer["size"] > layer["reserved"] > 100_000 > layer["in_use"] > 8 * 64
    assert live.prefix in run("list").output


@is_root
def test_another_user_is_not_told_a_wrong_number_of_processes(live: Live) -> None:
    """The file that says who is attached is not that user's to read."""

    def look() -> tuple[str, object]:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        (found,) = (one for one in layers() if one.prefix == live.prefix)
        return CliRunner().invoke(cli, ["list"]).output, found.processes

    output, processes = in_child(look)
    assert processes is None
    (line,) = (line for line in output.splitlines() if line.startswith(f"{live.prefix} "))
    assert line.split()[2:5] == ["?", "?", "?"] and line.split()[-1] == "?"


@is_root
def test_one_note_is_for_all_layers_of_other_users(prefix: str) -> None:
    names = [f"{prefix}-{number}" for number in range(3)]
    for name in names:
        IPCChannelLayer(name).send("a", {})

    def look() -> str:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        return CliRunner().invoke(cli, ["list"]).output

    try:
        notes = [line for line in in_child(look).splitlines() if "cannot be inspected" in line]
    finally:
        for name in names:
            segment.destroy(name)
    (note,) = notes
    assert re.match(r"\d+ layers cannot be .* as root, or as the owner \(", note)


def test_stats_of_a_layer(live: Live, run: Run) -> None:
    found = run("stats", "--interval", "0", "--json").json
    assert found["prefix"] == live.prefix
    assert (found["pending"], found["sent"], found["refused"]) == (8, 8, 1)
    assert (found["channels"], found["groups"], found["memberships"]) == (4, 1, 1)
    assert found["processes"] == 2
    assert 0 < found["oldest"] < 60
    assert set(found["dropped"].values()) == {0}
    memory = found["memory"]
    assert 0 < memory["in_use"] <= memory["high_water"] < memory["reserved"] < memory["size"]
    assert memory["limit"] == 100 << 20
    assert found["lock"]["kind"] == "mutex" and found["lock"]["holder"] == 0
    assert found["rates"]["sent"] == pytest.approx(8 / found["rates"]["period"])
    text = run("stats", "--interval", "0").output
    assert "8 messages, the oldest for" in text and "100.0 MiB limit" in text


def test_rates_are_those_of_the_interval(live: Live, run: Run) -> None:
    """Messages sent long before do not count."""
    found = run("stats", "--interval", "0.3", "--json").json
    assert (found["sent"], found["rates"]["sent"]) == (8, 0)
    assert 0.3 <= found["rates"]["period"] < 30


def test_channels_with_depth_capacity_and_readers(live: Live, run: Run) -> None:
    queue = live.mine.partition("!")[0] + "!"
    found = {one["name"]: one for one in run("channels", "--interval", "0", "--json").json}
    assert found.keys() == {"backlog", "full", "jobs", queue}
    assert (found["backlog"]["pending"], found["backlog"]["capacity"]) == (3, 5)
    assert (found["full"]["pending"], found["full"]["refused"]) == (5, 1)
    assert 0 < found["full"]["oldest"] < 60
    assert (found["jobs"]["capacity"], found["jobs"]["waiting"]) == (0, [live.worker.pid])
    assert (found[queue]["owner"], found[queue]["members"]) == (live.chat.pid, 1)
    text = run("channels", "--interval", "0", "--sort", "fill").output.splitlines()
    assert text[1].startswith("full") and "5/5" in text[1]
    assert text[2].startswith("backlog") and "3/5" in text[2]


def test_channels_by_pattern(live: Live, run: Run) -> None:
    found = run("channels", "b*", "fu?l", "--interval", "0", "--json").json
    assert [one["name"] for one in found] == ["full", "backlog"]
    assert run("channels", "nothing*", "--interval", "0", "--json").json == []


def test_groups_with_their_members(live: Live, run: Run) -> None:
    (group,) = run("groups", "--json").json
    (member,) = group["members"]
    assert (group["name"], member["channel"]) == ("room", live.mine)
    assert 86_000 < member["expires"] <= 86_400
    assert live.mine in run("groups", "ro*").output
    assert run("groups", "other", "--json").json == []


def test_processes_with_what_they_wait_for(live: Live, run: Run) -> None:
    found = {one["pid"]: one for one in run("processes", "--json").json}
    assert found.keys() == {live.chat.pid, live.worker.pid}
    worker = found[live.worker.pid]
    assert (worker["state"], worker["waiting"], worker["owns"]) == ("alive", ["jobs"], [])
    assert (worker["uid"], worker["holds_lock"]) == (os.geteuid(), False)
    assert live.prefix in worker["command"] and 0 < worker["attached"] < 60
    assert found[live.chat.pid]["owns"] == [live.mine.partition("!")[0] + "!"]


def test_the_dead_and_the_stopped_are_told_apart(live: Live, run: Run) -> None:
    stop(live.worker)
    os.kill(live.chat.pid, signal.SIGKILL)
    live.chat.wait_for_end()
    states = {one["pid"]: one["state"] for one in run("processes", "--json").json}
    resume(live.worker)
    assert states == {live.worker.pid: "stopped", live.chat.pid: "dead"}


def test_a_message_that_has_expired_is_not_counted(prefix: str, run: Run) -> None:
    """No process is attached that could drop it."""
    layer = IPCChannelLayer(prefix, expiry=0.05)
    layer.send("a", {})
    layer.close()
    view = View(prefix)
    until(lambda: Snapshot(view).totals().pending == 0)
    found = run("channels", "--interval", "0", "--json").json
    assert [(one["name"], one["pending"], one["oldest"]) for one in found] == [("a", 0, 0.0)]


def test_looking_changes_nothing(live: Live, run: Run) -> None:
    def whole() -> bytes:
        with open(f"/dev/shm/asgi_ipc.{live.prefix}", "rb") as file:
            return file.read(1 << 20)

    stop(live.chat, live.worker)
    try:
        before = whole()
        for command in ("stats", "channels", "groups", "processes", "verify", "list"):
            ran = run(command, "--json")
            assert ran.code == 0, ran
        assert whole() == before
    finally:
        resume(live.chat, live.worker)


def test_a_wrong_prefix_says_which_ones_exist(live: Live, run: Run) -> None:
    for command in ("stats", "channels", "groups", "processes", "verify", "flush", "destroy"):
        ran = run(command, "--prefix", "no-such-layer")
        assert ran.code == 3
        assert "'no-such-layer'" in ran.errors and live.prefix in ran.errors


def test_a_wrong_prefix_suggests_near_ones(prefix: str, run: Run) -> None:
    layer = IPCChannelLayer(f"{prefix}-production")
    layer.send("a", {})
    try:
        for wrong in (f"{prefix}-prodution", prefix, f"{prefix}-PRODUCTION"):
            ran = run("stats", "--prefix", wrong)
            assert ran.code == 3 and f"did you mean '{prefix}-production'" in ran.errors
    finally:
        segment.destroy(f"{prefix}-production")


def test_what_nothing_matches_is_said(live: Live, run: Run) -> None:
    at_once = ("--interval", "0")
    assert run("channels", "no*", "nor*", *at_once).output == "No channel matches no* or nor*.\n"
    assert run("groups", "no*").output == "No group matches no*.\n"
    assert (
        run("channels", "no*", *at_once, "--json").json == run("groups", "no*", "--json").json == []
    )


def test_a_layer_without_messages_says_so(prefix: str, run: Run) -> None:
    layer = IPCChannelLayer(prefix)
    layer.flush()
    assert re.search(r"^pending +no message waits$", run("stats", "--interval", "0").output, re.M)
    layer.close()


def test_another_layout_version_is_said(prefix: str, run: Run) -> None:
    layer = IPCChannelLayer(prefix)
    layer.send("a", {})
    layer.close()
    with open(f"/dev/shm/asgi_ipc.{prefix}", "r+b") as file:
        file.seek(H_VERSION * WORD)
        file.write((VERSION + 1).to_bytes(8, "little"))
    ran = run("stats")
    assert ran.code == 3 and f"version {VERSION + 1}" in ran.errors
    (listed,) = (one for one in run("list", "--json").json if one["prefix"] == prefix)
    assert listed["layout_version"] == VERSION + 1 and "version" in listed["problem"]
    with pytest.raises(IncompatibleSegment):
        View(prefix)


@is_root
def test_another_user_sees_that_it_is_there_and_no_more(live: Live) -> None:
    def look() -> object:
        os.setuid(NOBODY)
        (layer,) = (one for one in layers() if one.prefix == live.prefix)
        return layer.owner, layer.pending, layer.problem

    owner, pending, problem = in_child(look)
    assert (owner, pending) == ("root", None) and "another user" in problem


def test_nothing_in_a_segment_controls_the_terminal(prefix: str, run: Run) -> None:
    """A name that no version of this package wrote, in a layer that root may look at."""
    layer = IPCChannelLayer(prefix)
    layer.send("name", {"text": "\x1b[31m\x9b31m"})
    ((row, _),) = Snapshot(View(prefix)).queues.items()
    with open(f"/dev/shm/asgi_ipc.{prefix}", "r+b") as file:
        file.seek((row + Q_NAME) * WORD)
        file.write(b"\x1b[3m")
    assert [channel.name for channel in Snapshot(View(prefix)).channels()] == ["?[3m"]
    assert "\x1b" not in run("channels", "--interval", "0").output


@pytest.mark.parametrize("word", [T_HIGH, T_RESERVED])
def test_a_segment_that_claims_what_is_not_there(prefix: str, run: Run, word: int) -> None:
    """Otherwise the command would read gigabytes of nothing."""
    layer = IPCChannelLayer(prefix)
    layer.send("a", {})
    write_word(prefix, S_TABLES + word, 1 << 17)
    write_word(prefix, S_TABLES + T_RESERVED, 1 << 40)
    ran = run("stats")
    assert ran.code == 3 and "contradict" in ran.errors
