"""Who may open a layer, and that others can do nothing to it.

Tests with a second user run as root, in children that give it up.
"""

from __future__ import annotations

import ast
import asyncio
import errno
import logging
import os
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest

import asgi_ipc
from asgi_ipc import IPCChannelLayer, segment
from asgi_ipc.aio import IPCChannelLayer as AsyncLayer
from asgi_ipc.errors import ForeignSegment, InvalidOption
from asgi_ipc.inspection.snapshot import Snapshot
from asgi_ipc.inspection.view import View
from asgi_ipc.segment.notes import tell
from asgi_ipc.segment.paths import Paths
from asgi_ipc.store.layout import Q_DROPS, S_DROPS, UNDECODABLE

from ..environments import child_environment
from ..forks import bounded
from ..waiting import LIVENESS, until
from .test_corruption import in_child

FIRST, SECOND, STRANGER = 61_001, 61_002, 61_003  # user ids that need no names
SHARED = 61_100  # group id

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="lacking: root")
pytestmark = pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="lacking: /dev/shm")


def as_user(
    uid: int, work: Callable[[], Any], gid: int | None = None, groups: tuple[int, ...] = ()
) -> Any:
    """What `work` returns, or the name and text of the error that it raises, as another user."""

    def inside(alive: Callable[[str], None]) -> Any:
        os.setgroups(groups)
        os.setgid(uid if gid is None else gid)
        os.setuid(uid)
        try:
            return ["done", work()]
        except Exception as error:
            return [type(error).__name__, str(error)]

    return in_child(inside)


def use(prefix: str, **options: Any) -> bool:
    layer = IPCChannelLayer(prefix, **options)
    layer.send("a", {"n": 1})
    return layer.receive(["a"]) == ("a", {"n": 1})


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def remove(prefix: str) -> None:
    """What another user made, which `segment.destroy` refuses to touch."""
    paths = Paths(prefix)
    with suppress(FileNotFoundError):
        os.unlink("/dev/shm" + paths.segment)
    with suppress(FileNotFoundError, IsADirectoryError):
        os.unlink(paths.directory)  # a link or a FIFO
    shutil.rmtree(paths.directory, ignore_errors=True)


@pytest.fixture
def foreign(prefix: str) -> Iterator[str]:
    """A prefix that other users may use, which is cleared up as root."""
    yield prefix
    remove(prefix)


def modes(prefix: str) -> dict[str, int]:
    """The permission bits of all files of a prefix; the doorbells as one."""
    paths = Paths(prefix)
    found = {
        "segment": os.stat("/dev/shm" + paths.segment).st_mode,
        "directory": os.stat(paths.directory).st_mode,
    }
    for name in os.listdir(paths.directory):
        mode = os.stat(os.path.join(paths.directory, name)).st_mode
        kind = "doorbell" if stat.S_ISFIFO(mode) else name
        found[kind] = mode
    return {name: stat.S_IMODE(mode) for name, mode in found.items()}


def bells(prefix: str) -> list[Path]:
    directory = Path(Paths(prefix).directory)
    if not directory.is_dir():
        return []
    return [path for path in directory.iterdir() if stat.S_ISFIFO(path.stat().st_mode)]


# -- permissions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("lock", ["mutex", "file"])
@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o277])
def test_0600_whatever_the_umask(prefix: str, mask: int, lock: str) -> None:
    with umask(mask):
        layer = IPCChannelLayer(prefix, receive_timeout=0.01, lock=lock)
        layer.receive(["a"], block=True)
        found = modes(prefix)
        layer.close()
    directory = found.pop("directory")
    assert directory == 0o700
    assert {"segment", "doorbell", "attach.lock", "members"} <= set(found)
    assert ("section.lock" in found) == (lock == "file")
    assert set(found.values()) == {0o600}, found


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_a_group_when_it_is_asked_for(prefix: str, mask: int) -> None:
    with umask(mask):
        layer = IPCChannelLayer(prefix, receive_timeout=0.01, mode=0o660)
        layer.receive(["a"], block=True)
        found = modes(prefix)
        layer.close()
    directory = found.pop("directory")
    assert directory & 0o777 == 0o770
    assert set(found.values()) == {0o660}, found


async def test_doorbells_of_loops_are_0600(prefix: str) -> None:
    layer = AsyncLayer(prefix)
    with umask(0):
        assert await layer.receive_async(["a"], timeout=0.01) == (None, None)
    assert modes(prefix)["doorbell"] == 0o600
    await layer.close()


@pytest.mark.parametrize("mode", [0o666, 0o606, 0o662, 0o777, 0o400, 0o640, 0])
def test_no_other_mode(prefix: str, mode: int) -> None:
    with pytest.raises(InvalidOption, match="mode"):
        IPCChannelLayer(prefix, mode=mode)


@pytest.mark.parametrize("still", [False, True], ids=["left", "in use"])
@pytest.mark.parametrize(("made", "asked"), [(0o600, 0o660), (0o660, 0o600)])
def test_another_mode_than_that_of_the_segment_is_warned_of(
    prefix: str, made: int, asked: int, still: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The mode of its creator holds; a process that asks for another one is warned."""
    first = IPCChannelLayer(prefix, mode=made)
    first.send("b", {})
    if not still:
        first.close()
    assert caplog.messages == []
    assert use(prefix, mode=asked)
    (line,) = caplog.messages
    assert prefix in line and f"{made:#o}" in line and f"{asked:#o}" in line
    assert (
        "have no access" if asked == 0o660 else "group can still"
    ) in line and "destroy()" in line
    assert modes(prefix)["segment"] == made
    first.close()


# -- another user ---------------------------------------------------------------------------------


@as_root
def test_another_user_is_refused(prefix: str) -> None:
    layer = IPCChannelLayer(prefix)
    layer.send("a", {"n": 1})
    kind, text = as_user(SECOND, lambda: use(prefix))
    assert kind == ForeignSegment.__name__
    assert prefix in text and str(SECOND) in text
    assert layer.receive(["a"]) == ("a", {"n": 1})
    layer.close()


@as_root
def test_another_user_is_refused_even_with_the_mode_of_a_group(prefix: str) -> None:
    layer = IPCChannelLayer(prefix, mode=0o660)
    layer.send("a", {"n": 1})
    assert as_user(SECOND, lambda: use(prefix, mode=0o660))[0] == ForeignSegment.__name__
    layer.close()


@as_root
def test_another_user_cannot_remove_it(prefix: str) -> None:
    layer = IPCChannelLayer(prefix)
    layer.send("a", {"n": 1})
    assert as_user(SECOND, lambda: segment.destroy(prefix))[0] == ForeignSegment.__name__
    assert layer.receive(["a"]) == ("a", {"n": 1})
    layer.close()


@as_root
def test_users_of_one_group_share_a_layer(foreign: str) -> None:
    def first() -> bool:
        with umask(0o077):
            return use(foreign, mode=0o660)

    def second() -> bool:
        layer = IPCChannelLayer(foreign, mode=0o660)
        layer.group_add("g", "b")
        layer.send_group("g", {"n": 2})
        return layer.receive(["a"]) == ("a", {"n": 3}) and layer.receive(["b"])[1] == {"n": 2}

    assert as_user(FIRST, first, gid=SHARED) == ["done", True]
    sends = as_user(
        FIRST, lambda: IPCChannelLayer(foreign, mode=0o660).send("a", {"n": 3}), gid=SHARED
    )
    assert sends == ["done", None]
    assert as_user(SECOND, second, gid=SHARED) == ["done", True]
    assert as_user(SECOND, lambda: use(foreign, mode=0o660), groups=(SHARED,)) == ["done", True]
    assert as_user(STRANGER, lambda: use(foreign, mode=0o660))[0] == ForeignSegment.__name__
    # Who did not ask for a group does not get into one by accident.
    without = as_user(SECOND, lambda: use(foreign), gid=SHARED)
    assert without[0] == ForeignSegment.__name__


# -- who comes first ------------------------------------------------------------------------------


def as_member(uid: int, work: Callable[[], Any]) -> Any:
    """As a user whose group is another, and who is a member of SHARED; or as root, who is not."""
    return as_user(uid, work, groups=(SHARED,)) if uid else as_user(0, work, gid=0)


@as_root
@pytest.mark.parametrize("lock", ["mutex", "file"])
@pytest.mark.parametrize("users", [*permutations((FIRST, SECOND, 0))], ids=str)
def test_in_a_group_that_is_named_it_does_not_matter_which_user_comes_first(
    foreign: str, users: tuple[int, ...], lock: str
) -> None:
    """A server, a user who deploys, and root: each may come first, and rings the others."""
    options: dict[str, Any] = {"mode": 0o660, "group": SHARED, "lock": lock}
    for user in users:
        assert as_member(user, lambda: use(foreign, **options)) == ["done", True]
    for waits, sends in zip(users, (*users[1:], users[0])):
        woken = os.pipe()

        def wait(woken: tuple[int, int] = woken) -> bool:
            layer = IPCChannelLayer(foreign, **options)
            layer.receive(["none"], block=True, timeout=0.001)
            os.write(woken[1], b".")
            return layer.receive(["b"], block=True, timeout=LIVENESS) == ("b", {"n": 2})

        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(as_member, waits, wait)
            os.read(woken[0], 1)
            until(lambda: _waits(foreign), what="the receiver to wait")
            send = lambda: IPCChannelLayer(foreign, **options).send("b", {"n": 2})  # noqa: E731
            assert as_member(sends, send) == ["done", None]
            assert waiting.result(LIVENESS) == ["done", True]
        for end in woken:
            os.close(end)
    paths = Paths(foreign)
    for path in ("/dev/shm" + paths.segment, paths.directory, *Path(paths.directory).iterdir()):
        assert os.stat(path).st_gid == SHARED
    assert as_user(STRANGER, lambda: use(foreign, **options))[0] == ForeignSegment.__name__


def _waits(prefix: str) -> bool:
    return any(channel.waiting for channel in Snapshot(View(prefix)).channels())


@as_root
def test_a_group_that_one_is_not_in_cannot_be_named(foreign: str) -> None:
    kind, said = as_user(FIRST, lambda: use(foreign, mode=0o660, group=SHARED))
    assert kind == ForeignSegment.__name__ and "member" in said and str(SHARED) in said
    assert not list(Path("/dev/shm").glob(f"asgi_ipc.{foreign}*"))


@as_root
def test_a_segment_of_another_group_than_is_named_is_refused_or_warned_of(
    foreign: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert use(foreign, mode=0o660)
    with caplog.at_level(logging.WARNING, "asgi_ipc"):
        assert use(foreign, mode=0o660, group=SHARED)
    assert f"this process asks for group {SHARED}" in caplog.text
    named = as_member(SECOND, lambda: use(foreign, mode=0o660, group=SHARED))
    assert named[0] == ForeignSegment.__name__


@as_root
@pytest.mark.parametrize("mode", [0o600, 0o660])
@pytest.mark.parametrize("first", [0, SECOND])
def test_the_remedy_where_another_user_came_first(foreign: str, first: int, mode: int) -> None:
    """Which is not another prefix: that would only divide the processes."""
    assert as_user(first, lambda: use(foreign, mode=mode)) == ["done", True]
    kind, said = as_user(FIRST, lambda: use(foreign, mode=mode))
    owner = "root" if not first else str(first)
    assert kind == ForeignSegment.__name__
    assert f"belongs to user {owner} " in said and f"runs as {FIRST}" in said
    assert f"meant to be {owner}, end what {owner} runs" in said and "asgi-ipc destroy" in said
    assert "mode=0o660 and the same group=" in said and "another prefix" not in said


# -- squatting ------------------------------------------------------------------------------------


def squat_segment(prefix: str, mode: int) -> None:
    path = "/dev/shm" + Paths(prefix).segment
    with open(path, "wb") as file:
        file.truncate(1 << 20)
    os.chmod(path, mode)


def squat_directory(prefix: str, mode: int) -> None:
    path = Paths(prefix).directory
    os.mkdir(path)
    os.chmod(path, mode)


def squat_real_segment(prefix: str, mode: int) -> None:
    """A whole working layer, opened to everybody."""
    assert use(prefix)
    paths = Paths(prefix)
    os.chmod("/dev/shm" + paths.segment, mode)
    os.chmod(paths.directory, mode | 0o111)
    for name in os.listdir(paths.directory):
        os.chmod(os.path.join(paths.directory, name), mode)


def squat_fifos(prefix: str, mode: int) -> None:
    """To open one of these must not block."""
    paths = Paths(prefix)
    for path in ("/dev/shm" + paths.segment, paths.directory):
        os.mkfifo(path)
        os.chmod(path, mode)


SQUATS = [squat_segment, squat_directory, squat_real_segment, squat_fifos]


@as_root
@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666, 0o777])
@pytest.mark.parametrize("squat", SQUATS, ids=lambda squat: str(squat.__name__))
def test_what_another_user_made_before_us_is_refused(
    foreign: str, squat: Callable[[str, int], None], mode: int
) -> None:
    assert as_user(SECOND, lambda: squat(foreign, mode)) == ["done", None]
    for ours in ({"mode": 0o600}, {"mode": 0o660}, {"mode": 0o660, "group": SHARED}):
        assert as_user(FIRST, lambda ours=ours: use(foreign, **ours), groups=(SHARED,))[0] == (
            ForeignSegment.__name__
        )
        with pytest.raises(ForeignSegment):  # and so is root
            use(foreign, **ours)


@as_root
def test_a_link_to_our_own_files_is_not_followed(foreign: str, tmp_path: Path) -> None:
    """Sticky or not, what is ours is never written to through a name that somebody else made."""
    mine = tmp_path / "mine"
    mine.write_bytes(b"precious")
    folder = tmp_path / "folder"
    folder.mkdir()
    paths = Paths(foreign)

    def link() -> None:
        os.symlink(mine, "/dev/shm" + paths.segment)
        os.symlink(folder, paths.directory)

    assert as_user(SECOND, link) == ["done", None]
    for left in (paths.directory, ""):
        with pytest.raises(ForeignSegment):
            use(foreign)
        if left:
            os.unlink(left)
    assert mine.read_bytes() == b"precious"
    assert os.listdir(folder) == []


@pytest.mark.parametrize("what", ["segment", "directory", "attach.lock", "members", "section.lock"])
def test_what_the_world_can_write_is_refused(prefix: str, what: str) -> None:
    """Although it is ours: somebody else may have written to it."""
    layer = IPCChannelLayer(prefix, lock="file")
    layer.send("a", {"n": 1})
    layer.close()
    paths = Paths(prefix)
    path = {"segment": "/dev/shm" + paths.segment, "directory": paths.directory}.get(
        what, os.path.join(paths.directory, what)
    )
    mode = stat.S_IMODE(os.stat(path).st_mode)
    os.chmod(path, mode | 0o002)
    try:
        with pytest.raises(ForeignSegment, match="everybody"):
            use(prefix, lock="file")
    finally:
        os.chmod(path, mode)


OTHER_KINDS = ["link", "fifo", "socket", "directory"]


@contextmanager
def of_another_kind(path: str, kind: str, target: Path) -> Iterator[None]:
    """Something at `path` that is no file. `target` is where a link leads, and is left alone."""
    target.write_bytes(b"precious")
    if kind == "link":
        os.symlink(target, path)
    elif kind == "fifo":
        os.mkfifo(path, 0o600)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path)
    else:
        os.mkdir(path)
    try:
        yield
        assert target.read_bytes() == b"precious"
    finally:
        if os.path.lexists(path):
            os.rmdir(path) if kind == "directory" else os.unlink(path)


@pytest.mark.parametrize("what", ["attach.lock", "members", "section.lock"])
@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_a_file_of_another_kind_is_refused(
    prefix: str, what: str, kind: str, tmp_path: Path
) -> None:
    paths = Paths(prefix)
    os.mkdir(paths.directory, 0o700)
    path = os.path.join(paths.directory, what)
    with of_another_kind(path, kind, tmp_path / "target"), bounded():
        with pytest.raises(ForeignSegment, match=f"{what} is of another type.*remove it"):
            use(prefix, lock="file")


@pytest.mark.parametrize("kind", OTHER_KINDS)
def test_a_segment_of_another_kind_is_refused_by_users_and_onlookers(
    prefix: str, kind: str, tmp_path: Path
) -> None:
    """To open a FIFO for reading would wait for somebody who writes."""
    path = "/dev/shm" + Paths(prefix).segment
    with of_another_kind(path, kind, tmp_path / "target"), bounded():
        for call in (use, View):
            with pytest.raises(ForeignSegment, match="is of another type.*remove it"):
                call(prefix)


OPENS = """
import os, sys
opened = []
def note(event, arguments):
    if event == "open" and isinstance(arguments[0], str) and "asgi_ipc." in arguments[0]:
        opened.append(arguments[2])
sys.addaudithook(note)
import asgi_ipc
layer = asgi_ipc.IPCChannelLayer(sys.argv[1], lock="file")
layer.send("a", {"n": 1})
layer.receive(["b"], block=True, timeout=0.01)
layer.close()
asgi_ipc.segment.destroy(sys.argv[1])
creates = [flags for flags in opened if flags & os.O_CREAT]
assert len(creates) >= 3, opened
assert all(flags & os.O_EXCL for flags in creates), creates
"""


def test_files_are_created_or_opened_and_never_either(prefix: str) -> None:
    """The kernel refuses an open that may create, where the directory is sticky and the file is
    another user's (fs.protected_regular, fs.protected_fifos)."""
    done = subprocess.run(
        [sys.executable, "-c", OPENS, prefix],
        env=child_environment(),
        capture_output=True,
        text=True,
        timeout=LIVENESS,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_directory_where_a_file_should_be_is_not_removed(prefix: str) -> None:
    paths = Paths(prefix)
    os.mkdir(paths.directory, 0o700)
    os.mkdir(os.path.join(paths.directory, "members"))
    with pytest.raises(ForeignSegment, match="members is of another type"):
        segment.destroy(prefix)
    os.rmdir(os.path.join(paths.directory, "members"))
    assert segment.destroy(prefix)


def a_regular_file(bell: Path) -> None:
    bell.unlink()
    bell.write_bytes(b"precious")


def a_fifo_of_another_user(bell: Path) -> None:
    if os.geteuid():
        pytest.skip("lacking: root")
    os.chown(bell, SECOND, SECOND)


def a_fifo_for_everybody(bell: Path) -> None:
    bell.chmod(0o622)


@pytest.mark.parametrize(
    "replace",
    [a_regular_file, a_fifo_of_another_user, a_fifo_for_everybody],
    ids=lambda replace: str(replace.__name__),
)
def test_a_doorbell_that_is_not_ours_is_not_rung(
    prefix: str, replace: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody who can write in the directory puts something in its place."""
    layer = IPCChannelLayer(prefix, receive_timeout=0.01)
    layer.receive(["a"], block=True)  # parked, and its bell made
    (bell,) = bells(prefix)
    replace(bell)
    session = layer._core.session
    assert session is not None
    ringer = session.attachment._ringer
    _, waiter, generation = bell.name.split(".")
    assert not ringer.ring(int(waiter), int(generation), 1)
    tell()
    assert str(bell) in caplog.text
    if bell.is_fifo():
        fd = os.open(bell, os.O_RDONLY | os.O_NONBLOCK)
        try:
            with pytest.raises(BlockingIOError):  # nothing was written, and its reader is there
                os.read(fd, 1)
        finally:
            os.close(fd)
    else:
        assert bell.read_bytes() == b"precious"
    layer.close()


@as_root
@pytest.mark.parametrize("mode", [0o600, 0o660])
def test_another_user_can_put_nothing_beside_a_segment(prefix: str, mode: int) -> None:
    """Neither a doorbell nor a lock: the directory is closed to them, to look and to write."""
    layer = IPCChannelLayer(prefix, mode=mode, receive_timeout=0.01)
    layer.receive(["a"], block=True)
    (bell,) = bells(prefix)
    directory = bell.parent
    for attempt in (
        lambda: os.mkfifo(directory / "0.1.2", 0o666),
        lambda: os.listdir(directory),
        lambda: os.close(os.open(bell, os.O_WRONLY | os.O_NONBLOCK)),
        lambda: os.rename(directory, directory.with_name("asgi_ipc.elsewhere")),
    ):
        assert as_user(STRANGER, attempt)[0] == PermissionError.__name__
    layer.close()


# -- what a doorbell can make its reader do -------------------------------------------------------

GARBAGE = {
    "one byte": b"\x07",
    "an odd length": b"\xff" * 7,
    "all ones": b"\xff" * 8,
    "small numbers": b"".join(i.to_bytes(4, "little") for i in range(1, 50)),
    "zeros": bytes(64),
    "more than is read at once": b"\xee" * 9000,
    "random": bytes(range(256)) * 4,
}


def write_into_bells(prefix: str, garbage: bytes) -> int:
    written = 0
    for path in bells(prefix):
        try:
            fd = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            assert error.errno == errno.ENXIO  # it was just made, and nobody has opened it to read
            continue
        try:
            written += os.write(fd, garbage)
        except BlockingIOError:
            pass
        finally:
            os.close(fd)
    return written


@pytest.mark.parametrize("what", GARBAGE)
def test_garbage_in_the_doorbell_of_a_thread_only_makes_it_look(prefix: str, what: str) -> None:
    layer = IPCChannelLayer(prefix, receive_timeout=2 * LIVENESS)
    results: list[Any] = []

    def wait() -> None:
        try:
            results.append(layer.receive(["a", "x!"], block=True))
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    until(lambda: bells(prefix) and write_into_bells(prefix, GARBAGE[what]))
    for _ in range(5):
        assert write_into_bells(prefix, GARBAGE[what]) or len(GARBAGE[what]) > 8000
        time.sleep(0.01)
    assert results == [], "it did more than look"
    layer.send("a", {"n": 1})
    thread.join(LIVENESS)
    assert results == [("a", {"n": 1})]
    layer.close()


@pytest.mark.parametrize("what", GARBAGE)
async def test_garbage_in_the_doorbell_of_a_loop_only_makes_it_look(prefix: str, what: str) -> None:
    layer = AsyncLayer(prefix)
    name = await layer.new_channel()
    receives = [asyncio.ensure_future(layer.receive(channel)) for channel in ("a", "b", name)]
    await asyncio.sleep(0.02)
    for _ in range(5):
        assert write_into_bells(prefix, GARBAGE[what])
        await asyncio.sleep(0.01)
    assert not any(receive.done() for receive in receives)
    for number, channel in enumerate(("a", "b", name)):
        await layer.send(channel, {"n": number})
    found = await asyncio.wait_for(asyncio.gather(*receives), LIVENESS)
    assert found == [{"n": 0}, {"n": 1}, {"n": 2}]
    await layer.close()


# -- nothing is run -------------------------------------------------------------------------------

_FORBIDDEN_MODULES = {
    "pickle",
    "cPickle",
    "marshal",
    "shelve",
    "dill",
    "yaml",
    "subprocess",
    "code",
}
_FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}


def test_nothing_is_unpickled_or_evaluated() -> None:
    folder = Path(asgi_ipc.__file__).parent
    files = sorted(folder.rglob("*.py"))
    assert len(files) > 15
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            where = f"{path.relative_to(folder)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Import):
                names = {alias.name.partition(".")[0] for alias in node.names}
                assert not names & _FORBIDDEN_MODULES, where
            elif isinstance(node, ast.ImportFrom) and not node.level:
                assert str(node.module).partition(".")[0] not in _FORBIDDEN_MODULES, where
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in _FORBIDDEN_CALLS, where


@pytest.mark.parametrize(
    "body", [b"\x80\x04N.", b"cos\nsystem\n(S'true'\ntR.", b"\xc7\x05\x01abcde"]
)
def test_a_body_that_another_program_wrote_is_only_data(prefix: str, body: bytes) -> None:
    """A pickle, or a msgpack extension type, in a record with a right checksum."""
    layer = IPCChannelLayer(prefix)
    layer.send("a", {"n": 1})
    session = layer._core.session
    assert session is not None
    target = session.targets["a"]
    now = time.monotonic()
    session.section(session.store.put, target, body, now)
    layer.send("a", {"n": 2})
    found = [layer.receive(["a"]) for _ in range(3)]
    assert found == [("a", {"n": 1}), ("a", {"n": 2}), (None, None)]
    assert session.store.words[S_DROPS + UNDECODABLE] == 1
    layer.close()


# -- encryption at rest ---------------------------------------------------------------------------

OLD, NEW = "an old key", b"a new key \xff"


@pytest.fixture
def keyed(prefix: str) -> Iterator[Callable[..., IPCChannelLayer]]:
    pytest.importorskip("cryptography", reason="lacking: cryptography")
    made = []

    def make(*keys: Any) -> IPCChannelLayer:
        made.append(IPCChannelLayer(prefix, symmetric_encryption_keys=keys))
        return made[-1]

    yield make
    for layer in made:
        layer.close()


def test_no_body_is_legible_in_memory(prefix: str, keyed: Callable[..., IPCChannelLayer]) -> None:
    secret = b"correct horse battery staple"
    plain = IPCChannelLayer(prefix)
    plain.send("a", {"text": secret})
    content = Path("/dev/shm" + Paths(prefix).segment)
    assert secret in content.read_bytes()  # so that the next says something
    plain.flush()
    plain.close()
    segment.destroy(prefix)
    layer = keyed(NEW)
    layer.send("a", {"text": secret})
    assert secret not in content.read_bytes()
    assert layer.receive(["a"]) == ("a", {"text": secret})


def test_the_first_key_encrypts_and_all_decrypt(keyed: Callable[..., IPCChannelLayer]) -> None:
    old, new, both, reverse = keyed(OLD), keyed(NEW), keyed(NEW, OLD), keyed(OLD, NEW)
    for sender, can in ((old, (old, both, reverse)), (new, (new, both, reverse))):
        for receiver in can:
            sender.send("a", {"n": 1})
            assert receiver.receive(["a"]) == ("a", {"n": 1})
    both.send("a", {"n": 2})
    assert new.receive(["a"]) == ("a", {"n": 2})
    reverse.send("a", {"n": 3})
    assert old.receive(["a"]) == ("a", {"n": 3})


@pytest.mark.parametrize("block", [False, True])
def test_an_unknown_key_drops_counts_and_logs_and_goes_on(
    keyed: Callable[..., IPCChannelLayer], block: bool, caplog: pytest.LogCaptureFixture
) -> None:
    sender, receiver = keyed(OLD), keyed(NEW)
    for number in range(3):
        sender.send("a", {"n": number})
    receiver.send("a", {"n": 99})
    with caplog.at_level(logging.WARNING, "asgi_ipc"):
        assert receiver.receive(["a"], block=block) == ("a", {"n": 99})
    lines = [record.getMessage() for record in caplog.records if record.name == "asgi_ipc"]
    assert len(lines) == 1 and "'a'" in lines[0] and "undecodable" in lines[0]
    session = receiver._core.session
    assert session is not None
    store = session.store
    assert store.words[S_DROPS + UNDECODABLE] == 3
    assert store.words[store.queues.find(b"a") + Q_DROPS + UNDECODABLE] == 3


async def test_a_waiting_loop_outlives_messages_under_an_unknown_key(prefix: str) -> None:
    pytest.importorskip("cryptography", reason="lacking: cryptography")
    receiver = AsyncLayer(prefix, symmetric_encryption_keys=[NEW])
    name = await receiver.new_channel()
    for other in (None, [OLD]):
        sender = AsyncLayer(prefix, symmetric_encryption_keys=other)
        receives = [asyncio.ensure_future(receiver.receive(channel)) for channel in ("a", name)]
        await asyncio.sleep(0.01)
        for channel in ("a", name):
            await sender.send(channel, {"n": 1})
        await asyncio.sleep(0.05)
        assert not any(receive.done() for receive in receives)
        for channel in ("a", name):
            await receiver.send(channel, {"n": 2})
        assert await asyncio.wait_for(asyncio.gather(*receives), LIVENESS) == [{"n": 2}] * 2
        await sender.close()
    await receiver.close()


def test_keys_are_rotated_without_a_gap(prefix: str) -> None:
    """Each process restarts on its own, in three steps, and every message arrives on the way."""
    pytest.importorskip("cryptography", reason="lacking: cryptography")
    steps = [[OLD], [OLD, NEW], [NEW, OLD], [NEW]]
    layers = [IPCChannelLayer(prefix, symmetric_encryption_keys=steps[0]) for _ in range(3)]
    sent = 0
    received: list[int] = []

    def exchange() -> None:
        nonlocal sent
        for sender in layers:
            for receiver in layers:
                sender.send("a", {"n": sent})
                sent += 1
                message = receiver.receive(["a"])[1]
                assert message is not None, "a message was dropped"
                received.append(message["n"])

    for keys in steps[1:]:
        for i in range(len(layers)):
            layers[i].send("late", {"n": i})  # read by a process of the next step
            layers[i].close()
            layers[i] = IPCChannelLayer(prefix, symmetric_encryption_keys=keys)
            assert layers[i].receive(["late"]) == ("late", {"n": i})
            exchange()
    assert received == list(range(sent)) and sent == 3 * 3 * 9
    for layer in layers:
        layer.close()


def test_expiry_is_ours_and_not_of_the_wall_clock(
    keyed: Callable[..., IPCChannelLayer], monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = keyed(NEW)
    layer.send("a", {"n": 1})
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 1e6)
    assert layer.receive(["a"]) == ("a", {"n": 1})
