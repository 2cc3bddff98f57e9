"""When memory is used up: ChannelFull or LimitReached, and nothing is lost, killed or stuck.

A full tmpfs kills a process with SIGBUS that touches a page for which it has no memory. So each of
these tests runs in a child that has mounted a small tmpfs as its shared memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from asgi_ipc import IPCChannelLayer
from asgi_ipc.errors import ChannelFull, LimitReached, MessageTooLarge, SegmentError
from asgi_ipc.inspection.diagnosis import diagnose
from asgi_ipc.inspection.surroundings import WARNING
from asgi_ipc.options import MIN_MEMORY
from asgi_ipc.segment import destroy
from asgi_ipc.statistics import size
from asgi_ipc.store.layout import DROP_REASONS, OVERHEAD, S_DROPS

from ..waiting import until
from .test_corruption import in_child

_CLONE_NEWNS = 0x20000
_MS_REC, _MS_PRIVATE, _MS_REMOUNT = 0x4000, 1 << 18, 0x20
_libc = ctypes.CDLL(None, use_errno=True)

MIB = 1 << 20
MANY = 1 << 20  # a capacity that is never reached


def mount(source: bytes, at: bytes, kind: bytes, flags: int, options: bytes = b"") -> bool:
    return bool(_libc.mount(source, at, kind, flags, options or None) == 0)


def private_shared_memory(size: str) -> bool:
    """Mount a small tmpfs over /dev/shm, for this process and its children only."""
    return (
        _libc.unshare(_CLONE_NEWNS) == 0
        and mount(b"none", b"/", b"none", _MS_REC | _MS_PRIVATE)
        and mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, f"size={size}".encode())
    )


def with_shared_memory_of(size: str, work: Callable[[Callable[[str], None]], Any]) -> Any:
    def inside(alive: Callable[[str], None]) -> Any:
        if not private_shared_memory(size):
            return "not permitted"
        return ["done", work(alive)]

    result = in_child(inside)
    if result == "not permitted":
        pytest.skip("lacking: permission to mount a tmpfs in a private namespace")
    return result[1]


def fill(
    layer: IPCChannelLayer, channels: list[str], sizes: Callable[[], int], first: int = 0
) -> tuple[dict[str, list[int]], str]:
    """Send until there is no more room: what was accepted, by channel, and what the error says."""
    accepted: dict[str, list[int]] = {channel: [] for channel in channels}
    number = first
    while True:
        channel = channels[number % len(channels)]
        try:
            layer.send(channel, {"n": number, "pad": b"x" * sizes()})
        except ChannelFull as error:
            return accepted, str(error)
        accepted[channel].append(number)
        number += 1


def drain(layer: IPCChannelLayer, channels: list[str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {channel: [] for channel in channels}
    while True:
        channel, message = layer.receive(channels)
        if channel is None or message is None:
            return found
        assert set(message["pad"]) <= {ord("x")}
        found[channel].append(message["n"])


# -- a small tmpfs --------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "body", "least"), [("64m", 100_000, 35 * MIB), ("8m", 5000, MIB)])
def test_full_shared_memory(prefix: str, size: str, body: int, least: int) -> None:
    """Docker's 64 MB, and much less, with the default options, which ask for 100 MiB."""

    def work(alive: Callable[[str], None]) -> dict[str, Any]:
        layer = IPCChannelLayer(prefix, capacity=MANY)
        channels = ["a", "b", "c?d"]
        stored = []
        for turn in range(3):
            accepted, error = fill(layer, channels, lambda: body)
            assert "no memory" in error and "/dev/shm is full" in error and "--shm-size" in error
            assert "message_memory" not in error
            alive(f"full, {turn}")
            # It stays full, and nothing else breaks.
            for _ in range(100):
                with pytest.raises(ChannelFull):
                    layer.send("a", {"n": -1, "pad": b"x" * body})
            assert drain(layer, channels) == accepted
            stored.append(sum(map(len, accepted.values())) * body)
            alive(f"drained, {turn}")
        largest = {"n": 0, "pad": b"x" * (layer._options.max_message_size - 100)}
        fits = []
        for _ in range(10):
            try:
                layer.send("largest", largest)
            except ChannelFull:
                fits.append(False)
            else:
                fits.append(layer.receive(["largest"]) == ("largest", largest))
        return {"stored": stored, "fits": fits}

    result = with_shared_memory_of(size, work)
    assert min(result["stored"]) >= least
    # What one filling could use the next can, too: nothing is lost to fragments.
    assert min(result["stored"][1:]) >= 0.9 * result["stored"][0]
    if size == "64m":
        assert result["fits"] == [True] * 10
    else:
        assert len(set(result["fits"])) == 1, "it fits now and then"


def test_sizes_of_all_kinds_until_full(prefix: str) -> None:
    def work(alive: Callable[[str], None]) -> list[int]:
        layer = IPCChannelLayer(prefix, capacity=MANY, max_message_size=300_000)
        chance = random.Random(5)
        counts = []
        for turn in range(8):
            channels = [f"c{i}" for i in range(1 + turn * 5)]
            accepted, _ = fill(layer, channels, lambda: int(10 ** (chance.random() * 5)))
            # Half of it goes, in turns, and more comes: the log wraps and moves what is left.
            for _ in range(sum(map(len, accepted.values())) // 2):
                channel, message = layer.receive(channels)
                assert channel is not None and message is not None
                assert message["n"] == accepted[channel].pop(0)
            more, _ = fill(layer, channels, lambda: int(10 ** (chance.random() * 5)), first=10**6)
            for channel in channels:
                accepted[channel] += more[channel]
            assert drain(layer, channels) == accepted
            counts.append(sum(map(len, accepted.values())))
            layer.send("a", {"pad": b"x" * 290_000})
            assert layer.receive(["a"])[0] == "a"
            alive(f"turn {turn}")
        return counts

    counts = with_shared_memory_of("8m", work)
    assert min(counts) > 50


def test_several_senders_until_full(prefix: str) -> None:
    """What each was told was accepted is there, in its order, and nothing else."""

    def work(alive: Callable[[str], None]) -> int:
        layer = IPCChannelLayer(prefix, capacity=MANY)
        layer.send("first", {"n": 0, "pad": b""})
        senders = []
        for i in range(3):
            reader, writer = os.pipe()
            pid = os.fork()
            if not pid:
                try:
                    mine = IPCChannelLayer(prefix, capacity=MANY)
                    accepted, _ = fill(mine, [f"from.{i}"], lambda i=i: 3000 * (i + 1))
                    os.write(writer, str(len(accepted[f"from.{i}"])).encode())
                    os._exit(0)
                finally:
                    os._exit(1)
            os.close(writer)
            senders.append((pid, reader))
        counts = []
        for pid, reader in senders:
            counts.append(int(os.read(reader, 100) or -1))
            os.close(reader)
            assert os.waitpid(pid, 0)[1] == 0
            alive("a sender has ended")
        found = drain(layer, [f"from.{i}" for i in range(3)])
        assert [found[f"from.{i}"] for i in range(3)] == [list(range(n)) for n in counts]
        layer.send("a", {"pad": b"x" * 3000})
        return sum(counts)

    assert with_shared_memory_of("8m", work) > 100


def test_somebody_else_fills_it(prefix: str) -> None:
    """What was reserved stays usable, whatever others do with the rest."""

    def work(alive: Callable[[str], None]) -> list[bool]:
        layer = IPCChannelLayer(prefix, capacity=MANY)
        channels = ["a"]
        accepted, _ = fill(layer, channels, lambda: 2000)
        assert drain(layer, channels) == accepted
        try:
            with open("/dev/shm/other", "wb") as file:
                while True:
                    file.write(bytes(4096))
                    file.flush()
        except OSError:
            pass
        again, _ = fill(layer, channels, lambda: 2000)
        assert drain(layer, channels) == again
        os.unlink("/dev/shm/other")
        return [len(accepted["a"]) > 100, len(again["a"]) >= len(accepted["a"]) * 0.9]

    assert with_shared_memory_of("8m", work) == [True, True]


def test_no_room_for_a_segment(prefix: str) -> None:
    """Refused with the remedy, with nothing left behind, and fine once there is room."""

    def work(alive: Callable[[str], None]) -> list[str]:
        layer = IPCChannelLayer(prefix)
        with pytest.raises(SegmentError, match="--shm-size"):
            layer.send("a", {})
        left = [name for name in os.listdir("/dev/shm") if not name.endswith(".d")]
        mount(b"tmpfs", b"/dev/shm", b"tmpfs", _MS_REMOUNT, b"size=8m")
        layer.send("a", {"n": 1})
        assert layer.receive(["a"]) == ("a", {"n": 1})
        return left

    assert with_shared_memory_of("64k", work) == []


def test_groups_until_shared_memory_is_full(prefix: str) -> None:
    def work(alive: Callable[[str], None]) -> dict[str, Any]:
        layer = IPCChannelLayer(prefix, capacity=MANY)
        layer.send("first", {"n": 0, "pad": b""})
        fill(layer, ["a"], lambda: 2000)
        members = refused = 0
        for i in range(20_000):
            try:
                layer.group_add("g", f"x.{i % 50}!{i}")
            except LimitReached as error:
                refused += 1
                assert "/dev/shm is full" in str(error) and "group_memory" not in str(error)
                if refused > 20:
                    break
            else:
                members += 1
        alive("no room for more members")
        channels = layer.group_channels("g")
        assert len(channels) == members
        layer.send_group("g", {"n": 1, "pad": b""})  # what does not fit is dropped
        assert layer.receive(["first"]) == ("first", {"n": 0, "pad": b""})
        drain(layer, ["a"])
        layer.send_group("g", {"n": 2, "pad": b""})
        drain(layer, ["x.0!"])
        layer.send("a", {"n": 3, "pad": b""})
        assert layer.receive(["a"])[1] == {"n": 3, "pad": b""}
        return {"members": members, "refused": refused}

    result = with_shared_memory_of("8m", work)
    assert result["refused"] > 20


# -- a small cgroup -------------------------------------------------------------------------------


@contextlib.contextmanager
def own_cgroup(limit: int) -> Iterator[str]:
    """A memory cgroup inside that of this process; its folder. Skips where none can be made."""
    folder, version = "", 2
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            folder, version = f"/sys/fs/cgroup/memory{path}", 1
        elif not controllers and not folder:
            folder = f"/sys/fs/cgroup{path}"
    folder = os.path.join(folder, f"asgi_ipc.{os.getpid()}")
    try:
        os.mkdir(folder)
    except OSError as error:
        pytest.skip(f"lacking: the right to make a cgroup ({error})")
    try:
        file = os.path.join(folder, "memory.limit_in_bytes" if version == 1 else "memory.max")
        try:
            Path(file).write_text(str(limit))
        except OSError as error:
            pytest.skip(f"lacking: a cgroup that limits memory ({error})")
        yield folder
    finally:
        until(lambda: _removed(folder), what="the cgroup to be empty")


def _removed(folder: str) -> bool:
    try:
        os.rmdir(folder)
    except OSError:
        return False
    return True


def test_memory_that_the_page_cache_takes_can_be_had(prefix: str, tmp_path: Path) -> None:
    """A file that is read again and again fills a cgroup. The kernel gives that up for messages.
    When these have taken it, the error names the cgroup, and nobody is killed."""
    limit, cached = 96 * MIB, 72 * MIB
    file = tmp_path / "read"
    with open(file, "wb") as writing:
        writing.write(os.urandom(MIB) * (cached // MIB))
        os.fsync(writing.fileno())
        os.posix_fadvise(writing.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def work(alive: Callable[[str], None]) -> Any:
        Path(folder, "cgroup.procs").write_text(str(os.getpid()))
        for _ in range(4):
            with open(file, "rb", buffering=0) as reading:
                while reading.read(MIB):
                    pass
        stat = dict(line.split() for line in Path(folder, "memory.stat").read_text().splitlines())
        if int(stat["inactive_file"]) + int(stat["active_file"]) < cached // 2:
            return "not cached"
        layer = IPCChannelLayer(prefix, capacity=MANY)
        alive("cached")
        accepted, error = fill(layer, ["a"], lambda: 100_000)
        alive("full")
        in_use = layer.stats().memory.in_use
        assert drain(layer, ["a"]) == accepted
        destroy(prefix)
        return [int(stat["active_file"]), in_use, error]

    with own_cgroup(limit) as folder:
        result = in_child(work)
    if result == "not cached":
        pytest.skip("lacking: a file system whose page cache counts")
    active, in_use, error = result
    assert active > cached // 3, "what was read is not active, so this shows nothing"
    assert in_use > 40 * MIB
    assert f"cgroup {folder}, 96.0 MiB" in error and "--memory" in error
    assert "message_memory=" not in error and "--shm-size" not in error


# -- a segment that is small by its options -------------------------------------------------------


@pytest.mark.parametrize("memory", [64 * 1024, 256 * 1024, 2 * MIB])
def test_message_memory_is_a_limit(prefix: str, memory: int) -> None:
    layer = IPCChannelLayer(
        prefix, message_memory=memory, max_message_size=20_000, capacity=MANY, expiry=600
    )
    channels = ["a", "b"]
    stored = []
    for _ in range(5):
        accepted, error = fill(layer, channels, lambda: 900)
        assert f"message_memory={memory}" in error
        used = layer.stats().memory
        assert used.in_use <= used.limit == memory
        assert drain(layer, channels) == accepted
        stored.append(sum(map(len, accepted.values())) * 900)
    assert memory * 0.9 < stored[0] < memory and len(set(stored)) == 1
    layer.send("a", {"pad": b"x" * 19_900})
    assert layer.receive(["a"])[0] == "a"
    layer.close()


def test_the_largest_message_fits_into_the_least_memory(prefix: str) -> None:
    """Also where it goes to many sockets of a process, whose names are stored with it."""
    largest = MIN_MEMORY - OVERHEAD
    layer = IPCChannelLayer(prefix, message_memory=MIN_MEMORY, max_message_size=largest)
    message = {"pad": b"x" * (largest - 8)}
    for _ in range(3):
        layer.send("a", message)
        with pytest.raises(ChannelFull):
            layer.send("a", message)
        assert layer.receive(["a"]) == ("a", message)
    for number in range(10):
        layer.group_add("g", f"socket!{number}")
    layer.send_group("g", message)
    found = [layer.receive(["socket!"]) for _ in range(10)]
    assert sorted(found) == [(f"socket!{number}", message) for number in range(10)]
    with pytest.raises(MessageTooLarge):
        layer.send("a", {"pad": b"x" * largest})
    layer.close()


def test_the_limit_is_the_same_figure_everywhere(prefix: str) -> None:
    """In the error, in `stats` and in `doctor`."""
    layer = IPCChannelLayer(prefix, message_memory=2 * MIB, max_message_size=MIB, capacity=MANY)
    accepted, error = fill(layer, ["a"], lambda: 100_000)
    memory = layer.stats().memory
    shown = f"{size(memory.in_use)} of 2.0 MiB in use"
    assert shown in error
    (found,) = (one for one in diagnose(prefix) if (one.prefix, one.subject) == (prefix, "memory"))
    assert found.text.startswith(shown) and found.level == WARNING
    assert drain(layer, ["a"]) == accepted
    layer.close()


@pytest.mark.parametrize("first", ["send", "send_group"])
def test_a_live_segment_with_a_lower_limit_holds_for_the_first_call_too(
    prefix: str, first: str
) -> None:
    layer = IPCChannelLayer(prefix, max_message_size=10_000)
    layer.group_add("g", "a")
    other = IPCChannelLayer(prefix)
    with pytest.raises(MessageTooLarge, match="max_message_size is 10000"):
        getattr(other, first)("g" if first == "send_group" else "a", {"pad": b"x" * 20_000})
    other.close()
    layer.close()


def test_channel_full_for_memory_is_counted(prefix: str) -> None:
    layer = IPCChannelLayer(prefix, message_memory=64 * 1024, max_message_size=2000, capacity=MANY)
    fill(layer, ["a"], lambda: 1500)
    assert layer.global_statistics()["channel_full_count"] == 1
    layer.group_add("g", "a")
    layer.send_group("g", {"pad": b"x" * 1500})  # never raises
    assert layer._core.session is not None
    words = layer._core.session.store.words
    assert words[S_DROPS + DROP_REASONS.index("memory")] == 1
    layer.close()


def test_group_memory_full(prefix: str) -> None:
    """4,000 memberships for each MB; the next is refused, and everything else goes on."""
    layer = IPCChannelLayer(prefix, group_memory=100_000)
    added = []
    with pytest.raises(LimitReached, match="group_memory"):
        for i in range(10_000):
            layer.group_add(f"g{i % 7}", f"x!{i}")
            added.append(i)
    assert len(added) >= 400
    before = [sorted(layer.group_channels(f"g{i}")) for i in range(7)]
    assert sum(map(len, before)) == len(added), "something is half done"
    for group in ("g0", "new"):
        with pytest.raises(LimitReached):
            layer.group_add(group, "x!more")
    assert layer.group_channels("new") == []
    layer.group_add("g0", "x!0")  # a renewal needs no room
    layer.send("a", {"n": 1})
    assert layer.receive(["a"]) == ("a", {"n": 1})
    layer.send_group("g1", {"n": 2})
    assert layer.receive(["x!"])[1] == {"n": 2}
    layer.group_discard("g0", "x!0")
    layer.group_add("new", "x!more")
    assert layer.group_channels("new") == ["x!more"]
    assert [sorted(layer.group_channels(f"g{i}")) for i in range(1, 7)] == before[1:]
    layer.close()


def test_an_expired_membership_makes_room(prefix: str) -> None:
    layer = IPCChannelLayer(prefix, group_memory=65_536, group_expiry=0.05)
    with pytest.raises(LimitReached):
        while True:
            for i in range(10_000):
                layer.group_add("g", f"x!{i}")
                assert i < 9999
    while layer.group_channels("g"):
        pass
    for i in range(100):
        layer.group_add("h", f"y!{i}")
    layer.close()
