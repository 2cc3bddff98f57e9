"""doctor: what it finds on a machine that is set up wrong, and its exit status."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from asgi_ipc import IPCChannelLayer
from asgi_ipc.errors import CorruptStore
from asgi_ipc.inspection.diagnosis import _layer, diagnose
from asgi_ipc.inspection.surroundings import (
    OK,
    PROBLEM,
    WARNING,
    Finding,
    descriptors,
    leftovers,
    remove_ipc,
    shared_memory,
)
from asgi_ipc.segment.procfs import user_name
from asgi_ipc.store.layout import (
    DIRTY,
    FLUSHING,
    H_VERSION,
    M_EXPIRES,
    M_QUEUE,
    S_DIRTY,
    S_MARK,
    S_RECOVERIES,
    VERSION,
)
from asgi_ipc.store.verify import INTERRUPTED

from ..forks import (
    NOBODY,
    child,
    in_child,
    is_root,
    make_shared_memory_read_only,
    mount_small_shared_memory,
    on_linux,
    or_skip,
    rests,
    unshare_pids,
)
from .conftest import Live, Run, resume, stop, stopped_holder, write_word
from .conftest import asgi_ipc as run_command


def of(prefix: str, findings: list[Finding]) -> dict[str, Finding]:
    """The findings for a layer by subject; the worst one of each."""
    order = (OK, WARNING, PROBLEM)
    mine = [finding for finding in findings if finding.prefix == prefix]
    return {one.subject: one for one in sorted(mine, key=lambda one: order.index(one.level))}


def test_all_is_well_with_a_layer_in_use(prefix: str, run: Run) -> None:
    layer = IPCChannelLayer(prefix)
    layer.send("a", {})
    ran = run("doctor", "--json")
    mine = {one["subject"]: one["level"] for one in ran.json if one["prefix"] == prefix}
    assert mine == dict.fromkeys(("processes", "memory", "lock", "invariants", "channels"), "ok")
    assert ran.code == 0
    text = run("doctor").output
    assert f"{prefix}: invariants: all hold" in text and "/dev/shm has" in text


def test_full_and_unread_channels(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asgi_ipc.inspection.diagnosis.UNREAD_AFTER", 0)
    found = [one for one in diagnose(live.prefix) if one.subject == "channels"]
    assert {one.level for one in found} == {WARNING}
    assert any("at capacity: full" in one.text for one in found)
    (unread,) = (one for one in found if "backlog" in one.text)
    assert "jobs" not in unread.text and live.mine not in unread.text


def test_a_stale_layer_and_how_to_remove_it(prefix: str, run: Run) -> None:
    layer = IPCChannelLayer(prefix)
    layer.send("a", {})
    layer.close()
    del layer
    found = of(prefix, diagnose(prefix))["processes"]
    assert found.level == WARNING and "1 messages pending" in found.text
    assert found.remedy.endswith(f"asgi-ipc destroy --prefix {prefix}")
    assert run("doctor").code == 0


def test_versions_of_two_sides(prefix: str, run: Run) -> None:
    layer = IPCChannelLayer(prefix)
    layer.send("a", {})
    with child(rests_attached(prefix)) as process:
        process.hear()
        write_word(prefix, H_VERSION, VERSION + 1)
        ran = run("doctor", "--json")
        assert ran.code == 1
        (found,) = (one for one in ran.json if one["prefix"] == prefix)
        assert found["level"] == "problem" and f"version {VERSION + 1}" in found["text"]
        assert "stop the processes of one" in found["remedy"]


def rests_attached(prefix: str):  # type: ignore[no-untyped-def]
    def attached(line):  # type: ignore[no-untyped-def]
        layer = IPCChannelLayer(prefix)
        layer.send("a", {})
        rests(line)

    return attached


def test_a_stopped_holder_of_the_lock(prefix: str) -> None:
    layer = IPCChannelLayer(prefix)
    layer.send("a", {})
    with stopped_holder(layer) as pid:
        found = of(prefix, diagnose(prefix))["lock"]
        assert found.level == PROBLEM and f"process {pid} " in found.text
        assert found.remedy.startswith(f"kill -CONT {pid}")
    assert of(prefix, diagnose(prefix))["lock"].level == OK


def test_a_process_that_is_stopped(live: Live) -> None:
    stop(live.worker)
    found = of(live.prefix, diagnose(live.prefix))["processes"]
    resume(live.worker)
    assert found.level == WARNING and f"process {live.worker.pid} " in found.text


def test_damage_is_a_problem(prefix: str, run: Run) -> None:
    layer = IPCChannelLayer(prefix)
    layer.send("a", {})
    write_word(prefix, S_MARK, 0)
    write_word(prefix, S_DIRTY, DIRTY)
    found = of(prefix, diagnose(prefix))["invariants"]
    assert found.level == PROBLEM and found.remedy == f"asgi-ipc flush --prefix {prefix}"
    assert "interrupted" not in found.text
    assert run("doctor").code == 1
    run("flush")
    assert of(prefix, diagnose(prefix))["invariants"].level == OK


@pytest.mark.parametrize("state", [DIRTY, FLUSHING])
def test_an_interrupted_call_is_no_problem(prefix: str, state: int) -> None:
    """To flush then would delete messages for nothing."""
    layer = IPCChannelLayer(prefix)
    layer.send("a", {})
    write_word(prefix, S_DIRTY, state)
    found = of(prefix, diagnose(prefix))["invariants"]
    assert (found.level, found.remedy) == (OK, "") and found.text.startswith(INTERRUPTED)
    layer.send("a", {})
    assert of(prefix, diagnose(prefix))["invariants"].text == "all hold"


NOT_A_NUMBER = 0x7FF8 << 48


@pytest.mark.parametrize(
    ("table", "word", "value", "text"),
    [
        ("members", M_QUEUE, 1 << 40, "the store cannot be recovered: queues: no row begins"),
        ("", S_RECOVERIES, (1 << 64) - 1, "the store cannot be recovered: "),
        ("members", M_EXPIRES, NOT_A_NUMBER, "member 'a' at "),
    ],
)
def test_what_the_next_call_does_not_put_in_order_is_a_problem(
    prefix: str, run: Run, table: str, word: int, value: int, text: str
) -> None:
    """Of a dirty store, only a part of what recovery relies on can be checked before it."""
    layer = IPCChannelLayer(prefix)
    layer.group_add("g", "a")
    layout = layer._core.attach().store.layout
    write_word(prefix, (getattr(layout, table).base if table else 0) + word, value)
    write_word(prefix, S_DIRTY, DIRTY)
    found = of(prefix, diagnose(prefix))["invariants"]
    assert found.level == PROBLEM and found.text.startswith(text) and "flush" not in found.text
    ran = run("verify")
    assert ran.code == 1 and ran.output.startswith(text)
    if "cannot" in text:
        with pytest.raises(CorruptStore):
            layer.send("a", {})
    run("flush")
    assert run("verify").code == 0
    layer.send("a", {})


def test_a_process_that_uses_a_segment_that_was_removed(live: Live, prefix: str) -> None:
    stop(live.chat, live.worker)
    os.unlink(f"/dev/shm/asgi_ipc.{prefix}")
    os.unlink(f"/dev/shm/asgi_ipc.{prefix}.d/members")
    layer = IPCChannelLayer(prefix)
    layer.send("a", {})
    found = [one for one in diagnose(prefix) if one.subject == "containers"]
    resume(live.chat, live.worker)
    assert len(found) == 2 and all("was removed" in one.text for one in found)


@is_root
@on_linux
def test_a_process_with_a_shared_memory_of_its_own(prefix: str) -> None:
    """A container that does not share /dev/shm, seen from the host."""

    def elsewhere(line):  # type: ignore[no-untyped-def]
        mount_small_shared_memory(8 << 20)
        layer = IPCChannelLayer(prefix, message_memory=1 << 20, max_message_size=1 << 16)
        layer.send("a", {})
        rests(line)

    layer = IPCChannelLayer(prefix, message_memory=1 << 20, max_message_size=1 << 16)
    layer.send("a", {})
    or_skip(lambda: mount_small_shared_memory(8 << 20))
    with child(elsewhere) as process:
        process.hear()
        (found,) = (one for one in diagnose(prefix) if one.subject == "containers")
    assert found.level == PROBLEM and "its own /dev/shm" in found.text
    assert f"process {process.pid or ''}" in found.text


@is_root
@on_linux
def test_another_pid_namespace(prefix: str) -> None:
    """The segment of a container that shares /dev/shm and not its PID namespace."""
    layer = IPCChannelLayer(prefix)
    layer.send("a", {})

    def contained() -> object:
        unshare_pids()
        return in_child(lambda: of(prefix, diagnose(prefix))["namespaces"])

    found = or_skip(contained)
    assert found.level == WARNING and "PID namespace" in found.text
    assert "--pid=container:" in found.remedy


@is_root
@on_linux
def test_a_tiny_shared_memory() -> None:
    """Docker's, and one that is full. In a mount namespace, so that the command sees it."""

    def docker() -> object:
        mount_small_shared_memory(64 << 20)
        small = run_command("doctor", "--json")
        with open("/dev/shm/filler", "wb") as file:
            os.posix_fallocate(file.fileno(), 0, (64 << 20) - 4096 * 20)
        return small, run_command("doctor", "--json"), run_command("doctor")

    small, full, text = or_skip(docker)
    (found,) = (one for one in small.json if one["subject"] == "shared memory")
    assert (small.code, found["level"]) == (0, "warning")
    assert "64.0 MiB" in found["text"] and "--shm-size" in found["remedy"]
    (found,) = (one for one in full.json if one["subject"] == "shared memory")
    assert (full.code, found["level"]) == (1, "problem")
    assert "PROBLEM shared memory" in text.output and "asgi-ipc destroy" in text.output


@is_root
@on_linux
def test_a_layer_that_cannot_grow_to_its_limit(prefix: str) -> None:
    def inside() -> object:
        mount_small_shared_memory(4 << 20)
        layer = IPCChannelLayer(prefix)
        layer.send("a", {})
        return of(prefix, diagnose(prefix))["memory"]

    found = or_skip(inside)
    assert found.level == WARNING and "ChannelFull before that" in found.text


@is_root
def test_a_shared_memory_that_may_not_be_written() -> None:
    def inside() -> object:
        mount_small_shared_memory(128 << 20)
        os.chmod("/dev/shm", 0o755)
        os.setuid(NOBODY)
        return [one for one in shared_memory() if one.level == PROBLEM]

    (found,) = or_skip(inside)
    assert "cannot write to /dev/shm, which has mode 0o755" in found.text
    assert found.remedy == "as root: chmod 1777 /dev/shm"


@is_root
def test_a_read_only_shared_memory_is_not_mended_by_chmod() -> None:
    def inside() -> object:
        mount_small_shared_memory(128 << 20)
        make_shared_memory_read_only()
        return [one for one in shared_memory() if one.level == PROBLEM]

    (found,) = or_skip(inside)
    assert found.text == "/dev/shm is read-only" and "remount,rw" in found.remedy


@is_root
@on_linux
def test_a_healthy_layer_of_another_user_is_no_problem(prefix: str) -> None:
    layer = IPCChannelLayer(prefix)
    layer.send("a", {})

    def look() -> object:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        return of(prefix, list(_layer(prefix)))

    found = in_child(look)
    assert found.keys() == {"segment"} and found["segment"].level == OK
    assert "belongs to user root" in found["segment"].text
    assert found["segment"].remedy == "to check it, run this as root"


def test_few_descriptors() -> None:
    def inside() -> Finding:
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
        return descriptors()

    found = in_child(inside)
    assert found.level == WARNING and "may open 100 files" in found.text
    assert "ulimit -n" in found.remedy


@is_root
def test_what_1x_and_a_removed_segment_leave_behind() -> None:
    def inside() -> object:
        mount_small_shared_memory(1 << 20)
        for name in ("old-messages", "sem.old-messages", "asgi_ipc.here", "unrelated-messages"):
            Path("/dev/shm", name).touch()
        for name in ("asgi_ipc.gone.d", "asgi_ipc.here.d"):
            Path("/dev/shm", name).mkdir()
        return {one.prefix: one for one in leftovers()}

    found = or_skip(inside)
    assert found.keys() == {"old", "gone"}
    assert "1.x" in found["old"].text and "rm /dev/shm/old-{" in found["old"].remedy
    assert found["gone"].remedy.endswith("now: asgi-ipc destroy --prefix gone")
    assert "could not be created" in found["gone"].text


@is_root
def test_root_is_told_to_act_as_the_owner() -> None:
    """What `destroy` refuses to root is not what root is told to do."""

    def inside() -> object:
        mount_small_shared_memory(1 << 20)
        Path("/dev/shm/asgi_ipc.gone.d").mkdir()
        os.chown("/dev/shm/asgi_ipc.gone.d", NOBODY, NOBODY)
        by_root = next(leftovers()).remedy
        os.chown("/dev/shm/asgi_ipc.gone.d", 61_001, 61_001)
        without_name = next(leftovers()).remedy
        os.setuid(NOBODY)
        return by_root, without_name, next(leftovers()).remedy

    by_root, without_name, by_another = or_skip(inside)
    command = "asgi-ipc destroy --prefix gone"
    assert by_root.endswith(f"now: sudo -u {user_name(NOBODY)} {command}")
    assert without_name.endswith(f"now: sudo -u '#61001' {command}")
    assert by_another.endswith(f"now: as 61001: {command}")


class Root:
    """A root directory with systemd in it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self.write("run/systemd/system/nothing", "")
        self.write("etc/login.defs", "SYS_UID_MAX\t\t  499\n")

    def write(self, name: str, text: str) -> None:
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


@pytest.mark.parametrize(
    ("uid", "files", "level"),
    [
        (1234567, {}, WARNING),  # systemd's default is yes
        (400, {}, OK),
        (1234567, {"etc/systemd/logind.conf": "[Login]\nRemoveIPC=no\n"}, OK),
        (1234567, {"etc/systemd/logind.conf": "[Login]\n#RemoveIPC=no\n"}, WARNING),
        (1234567, {"usr/lib/systemd/logind.conf.d/x.conf": "[Login]\nRemoveIPC=no\n"}, OK),
        (
            1234567,
            {
                "etc/systemd/logind.conf": "[Login]\nRemoveIPC=no\n",
                "etc/systemd/logind.conf.d/x.conf": "[Login]\nRemoveIPC=yes\n",
            },
            WARNING,
        ),
        (
            1234567,
            {
                "usr/lib/systemd/logind.conf.d/x.conf": "[Login]\nRemoveIPC=yes\n",
                "etc/systemd/logind.conf.d/x.conf": "[Login]\nRemoveIPC=off\n",
            },
            OK,
        ),
        (1234567, {"var/lib/systemd/linger/1234567": ""}, OK),
        (1234567, {"etc/systemd/logind.conf": "no section\n\x00"}, WARNING),
    ],
)
def test_remove_ipc(uid: int, files: dict[str, str], level: str, tmp_path: Path) -> None:
    root = Root(tmp_path)
    for name, text in files.items():
        root.write(name, text)
    found = remove_ipc(uid, tmp_path)
    assert found.level == level
    assert bool(found.remedy) == (level == WARNING)


def test_remove_ipc_without_systemd(tmp_path: Path) -> None:
    assert remove_ipc(1234567, tmp_path).level == OK


def test_a_wrong_prefix(run: Run) -> None:
    ran = run_command("doctor", "--prefix", "no-such-layer")
    assert ran.code == 3 and "'no-such-layer'" in ran.errors
