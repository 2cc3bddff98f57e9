"""Forks of every kind, and two PID namespaces: each child attaches as a process of its own.

The tests of forks run twice: with `os.fork`, and with the fork of C, of which Python's fork
handlers learn nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import asgi_ipc
import asgi_ipc.aio
from asgi_ipc.attachment import process
from asgi_ipc.conformance.base import MESSAGE
from asgi_ipc.errors import LockTimeout, NotOwner
from asgi_ipc.store.layout import W_TAKEN
from asgi_ipc.testing.sync import InProcessChannelLayer

from ..environments import child_environment
from ..forks import fork_in_c, state_of
from ..processes import running
from ..waiting import LIVENESS, until

LOCKS = ("mutex", "file")
FORKS: dict[str, Callable[[], int]] = {"python": os.fork, "c": fork_in_c}


@pytest.fixture
def make(prefix: str) -> Iterator[Callable[..., Any]]:
    made = []

    def make(**options: Any) -> Any:
        made.append(asgi_ipc.IPCChannelLayer(prefix, **{"receive_timeout": 0.2, **options}))
        return made[-1]

    yield make
    for layer in made:
        layer.close()


class Child:
    """A fork of this process that runs `work` and never returns from it."""

    def __init__(self, work: Callable[[], object], fork: Callable[[], int] = os.fork) -> None:
        read, write = os.pipe()
        self.pid = fork()
        if not self.pid:
            code, said = 1, ""
            try:
                os.close(read)
                signal.alarm(int(3 * LIVENESS))  # whatever happens to its parent
                said = repr(work())
                code = 0
            except BaseException:
                said = traceback.format_exc()
            finally:
                os.write(write, said.encode()[:60_000])
                os._exit(code)
        os.close(write)
        self._read = read
        self._status: int | None = None

    def result(self) -> str:
        """The repr of what `work` returned; fails with what it raised."""
        said = self.said()
        assert self.wait() == 0, said
        return said

    def said(self) -> str:
        with open(self._read, "rb", closefd=False) as file:
            return file.read().decode()

    def wait(self) -> int:
        if self._status is None:
            self._status = os.waitpid(self.pid, 0)[1]
        return os.waitstatus_to_exitcode(self._status)

    def end(self) -> None:
        if self._status is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait()
        os.close(self._read)


@pytest.fixture(params=FORKS)
def kind(request: pytest.FixtureRequest) -> str:
    """How `fork` forks: a key of FORKS."""
    return str(request.param)


@pytest.fixture
def fork(kind: str) -> Iterator[Callable[[Callable[[], object]], Child]]:
    """Forks this process. Children that are left at the end are killed, and all are reaped."""
    children: list[Child] = []

    def fork(work: Callable[[], object]) -> Child:
        children.append(Child(work, FORKS[kind]))
        return children[-1]

    yield fork
    for child in children:
        child.end()


@contextlib.contextmanager
def held_by_a_thread(layer: Any) -> Iterator[threading.Event]:
    """A thread of this process is inside a section until the event is set, or the block ends."""
    inside, release = threading.Event(), threading.Event()

    def operation() -> None:
        inside.set()
        release.wait(3 * LIVENESS)

    attachment = layer._core.attach().attachment
    holder = threading.Thread(target=attachment.section, args=(operation,))
    holder.start()
    try:
        assert inside.wait(LIVENESS)
        yield release
    finally:
        release.set()
        holder.join(LIVENESS)


# -- fork while another thread holds the lock ----------------------------------------------------


@pytest.mark.parametrize("lock", LOCKS)
def test_fork_while_a_thread_holds_the_lock(
    make: Callable[..., Any], fork: Callable[..., Child], lock: str
) -> None:
    """The child has no copy of the held lock: it waits for its parent like any other process."""
    layer = make(lock=lock, lock_timeout=LIVENESS)
    layer.send("warm", MESSAGE)

    def send() -> object:
        layer.send("c", {"from": os.getpid()})
        return layer.receive(["warm"])

    with held_by_a_thread(layer) as release:
        child = fork(send)
        until(lambda: state_of(child.pid) in "SR")
        release.set()
        assert child.result() == repr(("warm", MESSAGE))
    assert layer.receive(["c"]) == ("c", {"from": child.pid})
    assert layer.receive(["c"]) == (None, None)


@pytest.mark.parametrize("lock", LOCKS)
def test_child_never_enters_a_section_of_its_parent(
    make: Callable[..., Any], fork: Callable[..., Child], lock: str
) -> None:
    layer = make(lock=lock, lock_timeout=0.2)
    layer.send("warm", MESSAGE)

    def intrude() -> object:
        try:
            layer.send("c", MESSAGE)
        except LockTimeout as error:
            return str(os.getppid()) in str(error)
        return "came in"

    with held_by_a_thread(layer):
        assert fork(intrude).result() == "True"


@pytest.mark.parametrize("lock", LOCKS)
def test_child_does_not_keep_the_lock_of_a_dead_parent(
    prefix: str, tmp_path: Path, lock: str
) -> None:
    """A process is killed inside a section; a child that it forked meanwhile lives on."""
    source = f"""
import os, sys, threading, time, warnings, asgi_ipc
warnings.simplefilter("ignore")  # of a fork beside a thread, which is what this is about
layer = asgi_ipc.IPCChannelLayer({prefix!r}, lock={lock!r})
layer.send("warm", {{}})
inside = threading.Event()
def operation():
    inside.set()
    time.sleep(1000)
section = layer._core.session.attachment.section
threading.Thread(target=section, args=(operation,), daemon=True).start()
inside.wait()
child = os.fork()
if not child:
    os.setpgid(0, 0)
    time.sleep({3 * LIVENESS})
    os._exit(0)
print("child", child, flush=True)
threading.Event().wait()
"""
    with running(
        [sys.executable, "-c", source], log=tmp_path / "log", environment=child_environment()
    ) as process:
        process.wait_until(lambda: process.output().endswith("\n"), "the child")
        child = int(process.output().split()[1])
        try:
            os.kill(process.pid, signal.SIGKILL)
            process.wait_for_end()
            os.kill(child, 0)  # the child is still there
            layer = asgi_ipc.IPCChannelLayer(prefix, lock=lock, lock_timeout=2)
            assert layer.receive(["warm"]) == ("warm", {})
            layer.close()
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_child_of_a_fork_in_c_forks_before_its_first_call(make: Callable[..., Any]) -> None:
    """A thread of the parent was attaching meanwhile, which the child knows nothing of."""
    layer = make()
    layer.send("warm", MESSAGE)
    inside, release = threading.Event(), threading.Event()

    def attach() -> None:
        inside.set()
        release.wait(3 * LIVENESS)

    attaching = threading.Thread(target=process._guard.run, args=(attach,))
    attaching.start()

    def work() -> object:
        grandchild = Child(lambda: layer.receive(["warm"]))
        return until(lambda: os.waitpid(grandchild.pid, os.WNOHANG)[0]) and grandchild.said()

    child = Child(work, FORKS["c"])
    try:
        assert inside.wait(LIVENESS)
        assert child.result() == repr(repr(("warm", MESSAGE)))
    finally:
        release.set()
        attaching.join(LIVENESS)
        child.end()


# -- a layer that was made and used before the fork ----------------------------------------------


@pytest.mark.parametrize("lock", LOCKS)
def test_child_holds_nothing_of_its_parent(
    make: Callable[..., Any], fork: Callable[..., Child], kind: str, prefix: str, lock: str
) -> None:
    """After a fork in C, from its first call on."""
    layer = make(lock=lock)
    layer.send("c", MESSAGE)
    layer.receive(["c", "own!"], block=True)
    assert layer.receive(["c"], block=True) == (None, None)

    def held() -> list[str]:
        if kind == "c":
            layer.close()
        gc.collect()
        return [link for link in links() if prefix in link]

    assert any(prefix in link for link in links())
    assert fork(held).result() == "[]"
    # What the child closed was its own: the parent is rung as before.
    child = fork(lambda: layer.send("c", MESSAGE))
    peer = make(lock=lock, receive_timeout=LIVENESS)
    assert peer.receive(["c"], block=True) == ("c", MESSAGE)
    child.result()


def links() -> list[str]:
    """What the descriptors of this process are open for."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/self/fd/{number}"))
    return found


@pytest.mark.parametrize("lock", LOCKS)
def test_preload_as_gunicorn_does(
    make: Callable[..., Any], fork: Callable[..., Child], lock: str
) -> None:
    """The layer is made and used, then the workers are forked; all of them work at once."""
    layer = make(lock=lock, capacity=10_000, receive_timeout=LIVENESS)
    layer.send("warm", MESSAGE)
    assert layer.receive({"warm", "own!"}, block=True) == ("warm", MESSAGE)
    layer.send("own!a", {"to": "parent"})
    layer.send("own!b", {"to": "parent"})
    assert layer.receive(["own!"]) == ("own!a", {"to": "parent"})  # and the other is drained
    workers, each = 4, 300

    def work() -> list[int]:
        own = f"own{os.getpid()}!"
        layer.group_add("all", own + "x")
        layer.send("ready", {})
        got = []
        while True:
            channel, message = layer.receive({"work", own}, block=True)
            if message is None or channel == own + "x":
                return got  # the broadcast ends it
            got.append(message["number"])
            layer.send("answers", message)

    children = [fork(work) for _ in range(workers)]
    for _ in children:
        assert layer.receive(["ready"], block=True) == ("ready", {})
    for number in range(workers * each):
        layer.send("work", {"number": number})
    answers = [layer.receive(["answers"], block=True)[1]["number"] for _ in range(workers * each)]
    layer.send_group("all", {})
    shares = [eval(child.result()) for child in children]
    assert sorted(answers) == list(range(workers * each))
    assert sorted(number for share in shares for number in share) == list(range(workers * each))
    assert all(share == sorted(share) for share in shares)
    # What the parent had drained still belongs to the parent.
    assert layer.receive(["own!"]) == ("own!b", {"to": "parent"})
    assert layer.receive(["own!", "work", "answers"]) == (None, None)


def test_preload_as_uvicorn_does(prefix: str, fork: Callable[..., Child]) -> None:
    """The same with asyncio: each worker has its own loop and makes its own channels."""
    layer = asgi_ipc.aio.IPCChannelLayer(prefix)

    async def use() -> None:
        name = await layer.new_channel()
        await layer.group_add("all", name)
        await layer.send(name, MESSAGE)
        assert await layer.receive(name) == MESSAGE

    asyncio.run(use())

    async def work() -> str:
        name = await layer.new_channel()
        await layer.send("names", {"name": name})
        message = await asyncio.wait_for(layer.receive(name), LIVENESS)
        assert message == {"to": name}
        return layer.client_prefix

    async def lead(workers: int) -> None:
        names = [(await layer.receive("names"))["name"] for _ in range(workers)]
        queues = {name.partition("!")[0] for name in names}
        assert len(queues) == workers, "workers share the queue of one process"
        for name in names:
            await layer.send(name, {"to": name})

    children = [fork(lambda: asyncio.run(work())) for _ in range(3)]
    asyncio.run(asyncio.wait_for(lead(3), LIVENESS))
    prefixes = {child.result() for child in children}
    assert len(prefixes | {repr(layer.client_prefix)}) == 4
    asyncio.run(use())
    asyncio.run(layer.close())


def test_children_of_children(
    make: Callable[..., Any], fork: Callable[..., Child], kind: str
) -> None:
    layer = make(receive_timeout=LIVENESS)
    layer.send("c", {"generation": 0})

    def descend(generation: int) -> object:
        got = layer.receive(["c"], block=True)
        assert got == ("c", {"generation": generation - 1}), got
        layer.send("c", {"generation": generation})
        if generation < 4:
            child = Child(lambda: descend(generation + 1), FORKS[kind])
            try:
                return child.result()
            finally:
                child.end()
        return generation

    assert fork(lambda: descend(1)).result().count("4")
    assert layer.receive(["c"], block=True) == ("c", {"generation": 4})


# -- what a process remembers of itself ----------------------------------------------------------


@pytest.mark.parametrize("lock", LOCKS)
def test_a_loop_of_a_child_takes_no_waiter_id_of_its_parent(
    prefix: str, fork: Callable[..., Child], lock: str
) -> None:
    """Not even where it receives again on a channel that the parent knows."""
    layer = asgi_ipc.aio.IPCChannelLayer(prefix, lock=lock)

    async def own() -> str:
        name = await layer.new_channel()
        await layer.send(name, MESSAGE)
        assert await layer.receive(name) == MESSAGE
        return name

    name = asyncio.run(own())
    attachment: Any = layer._core.attach().attachment
    store = attachment.store
    numbers = [row + W_TAKEN for row in store.waiter_rows()]

    def taken() -> list[int]:
        return [store.words[number] for number in numbers]

    before = taken()

    def receive() -> object:
        with pytest.raises(NotOwner):
            asyncio.run(asyncio.wait_for(layer.receive(name), LIVENESS))
        return layer._core.attach().attachment is not attachment

    assert fork(receive).result() == "True"
    assert taken() == before
    asyncio.run(layer.close())


@pytest.mark.parametrize("used", [True, False], ids=["used", "made"])
def test_a_child_has_names_of_its_own(prefix: str, fork: Callable[..., Child], used: bool) -> None:
    """A layer that was used before the fork, and one that was only made."""
    layer = asgi_ipc.aio.IPCChannelLayer(prefix)

    async def own() -> str:
        name = await layer.new_channel()
        if used:
            await layer.send(name, MESSAGE)
            assert await layer.receive(name) == MESSAGE
        return name.partition("!")[0]

    async def use() -> str:
        name = await layer.new_channel()
        await layer.group_add("all", name)
        await layer.send(name, MESSAGE)
        assert await asyncio.wait_for(layer.receive(name), LIVENESS) == MESSAGE
        return name.partition("!")[0]

    mine = asyncio.run(own())
    names = {eval(fork(lambda: asyncio.run(use())).result()) for _ in range(3)}
    assert len(names | {mine, asyncio.run(use())}) == 4
    asyncio.run(layer.close())


@pytest.mark.parametrize("lock", LOCKS)
def test_fork_beside_receives_that_wait(
    make: Callable[..., Any], prefix: str, fork: Callable[..., Child], lock: str
) -> None:
    """A thread and an event loop of the parent wait; children receive and end, by themselves and
    with what they inherited dropped; the parent is rung as before."""
    layer = make(lock=lock, receive_timeout=LIVENESS)
    looping = asgi_ipc.aio.IPCChannelLayer(prefix, lock=lock)
    parked = layer._core.attach().attachment
    name: list[str] = []
    got: list[Any] = []

    async def wait() -> None:
        name.append(await looping.new_channel())
        got.append(await looping.receive(name[0]))

    threads = [
        threading.Thread(target=lambda: got.append(layer.receive(["c"], block=True)[1])),
        threading.Thread(target=lambda: asyncio.run(wait())),
    ]
    for thread in threads:
        thread.start()
    until(lambda: len(parked.bells) == 2)
    bells = {link for link in links() if prefix in link and link.count(".") > 3}

    def work() -> object:
        nonlocal layer
        mine = f"child{os.getpid()}"
        assert layer.receive([mine]) == (None, None)
        layer.send(mine, MESSAGE)
        assert layer.receive([mine], block=True) == (mine, MESSAGE)
        return None

    def drop() -> object:
        nonlocal layer, looping, parked
        del layer, looping, parked
        gc.collect()
        return None

    for child in (fork(work), fork(work), fork(drop)):
        child.result()
    assert bells and all(map(os.path.exists, bells))
    layer.send("c", MESSAGE)
    layer.send(name[0], MESSAGE)
    for thread in threads:
        thread.join(LIVENESS)
    assert got == [MESSAGE, MESSAGE]
    asyncio.run(looping.close())


def test_fork_in_a_signal_handler_of_a_receive(
    make: Callable[..., Any], kind: str, prefix: str
) -> None:
    """Both copies of the receive go on, each as a process of its own."""
    layer = make(receive_timeout=LIVENESS)
    receive, send = os.pipe()
    children = []

    def handle(number: int, frame: Any) -> None:
        children.append(FORKS[kind]())
        os.write(send, b"f")

    def give() -> None:
        os.read(receive, 1), os.read(receive, 1)
        sender = asgi_ipc.IPCChannelLayer(prefix)
        for _ in range(2):
            sender.send("c", MESSAGE)

    layer.receive(["c"], block=True, timeout=0.01)
    before = signal.signal(signal.SIGALRM, handle)
    parent = os.getpid()
    try:
        giver = threading.Thread(target=give)
        giver.start()
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        try:
            answer = layer.receive(["c"], block=True)
        finally:
            if os.getpid() != parent:
                os._exit(0 if answer == ("c", MESSAGE) else 1)
        assert answer == ("c", MESSAGE)
        giver.join(LIVENESS)
        assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 0
    finally:
        signal.signal(signal.SIGALRM, before)
        os.close(receive)
        os.close(send)


def test_layers_within_one_process_begin_anew(prefix: str, fork: Callable[..., Child]) -> None:
    layer = InProcessChannelLayer(prefix)
    layer.send("c", MESSAGE)
    assert fork(lambda: layer.receive(["c"])).result() == "(None, None)"
    assert layer.receive(["c"]) == ("c", MESSAGE)
    layer.close()


def test_layers_over_several_machines_begin_anew(prefix: str, fork: Callable[..., Child]) -> None:
    """The child has no thread for the remote layer yet, and no connection."""
    remote = {"BACKEND": "asgi_ipc.aio.IPCChannelLayer", "CONFIG": {"prefix": f"{prefix}.remote"}}
    layer = asgi_ipc.LocalAndRemoteChannelLayer(remote, {"prefix": prefix})
    try:
        layer.group_add("all", "own!a")

        def work() -> object:
            layer.group_add("all", "child!a")
            layer.send_group("all", MESSAGE)
            got = layer.receive(["child!"], block=True)
            layer.close()
            return got

        assert fork(work).result() == repr(("child!a", MESSAGE))
        assert layer.receive(["own!"], block=True) == ("own!a", MESSAGE)
    finally:
        layer.close()
        asgi_ipc.segment.destroy(f"{prefix}.remote")


# -- multiprocessing ------------------------------------------------------------------------------


def answer(layer_or_prefix: Any) -> None:
    """Run by multiprocessing in its child: answers until it is told to end."""
    layer = layer_or_prefix
    if isinstance(layer, str):
        layer = asgi_ipc.IPCChannelLayer(layer, receive_timeout=LIVENESS)
    while True:
        message = layer.receive(["questions"], block=True)[1]
        if not message or "end" in message:
            return
        layer.send("answers", {**message, "pid": os.getpid()})


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(make: Callable[..., Any], method: str) -> None:
    layer = make(receive_timeout=LIVENESS)
    layer.send("warm", MESSAGE)
    assert layer.receive(["warm"], block=True) == ("warm", MESSAGE)
    context: Any = multiprocessing.get_context(method)
    given = layer if method == "fork" else layer.prefix
    children = [context.Process(target=answer, args=(given,), daemon=True) for _ in range(3)]
    for child in children:
        child.start()
    try:
        count = 300
        for start in range(0, count, 50):
            for number in range(start, start + 50):
                layer.send("questions", {"number": number})
            for _ in range(50):
                assert layer.receive(["answers"], block=True)[1]
        statistics = layer.channel_statistics("answers")
        assert statistics["messages_count"] == count
        assert statistics["messages_pending"] == 0
        for _ in children:
            layer.send("questions", {"end": True})
        for child in children:
            child.join(LIVENESS)
        assert [child.exitcode for child in children] == [0, 0, 0]
    finally:
        for child in children:
            if child.is_alive():
                child.kill()
            child.join()


# -- PID namespaces -------------------------------------------------------------------------------

UNSHARE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")

IN_A_NAMESPACE = """
import os, sys, asgi_ipc
prefix, lock, mine, other, count = *sys.argv[1:5], int(sys.argv[5])
print("pid", os.getpid(), flush=True)
layer = asgi_ipc.IPCChannelLayer(prefix, lock=lock, capacity=10_000, receive_timeout=60)
try:
    layer.send(other, {"number": 0})
except asgi_ipc.errors.IncompatibleSegment as error:
    print("refused", error, flush=True)
    sys.exit(0)
for number in range(1, count):
    layer.send(other, {"number": number})
got = [layer.receive([mine], block=True)[1]["number"] for _ in range(count)]
assert got == list(range(count)), got
assert layer.receive([mine]) == (None, None)
print("done", flush=True)
# Stay until the other one has what it needs: "go" is for whoever comes first.
layer.receive([mine + "-end"], block=True)
"""


@pytest.fixture(scope="module")
def namespaces() -> None:
    if sys.platform != "linux" or shutil.which("unshare") is None:
        pytest.skip("lacking: unshare, to make PID namespaces")
    tried = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"lacking: the right to make PID namespaces ({tried.stderr.strip()})")


def in_a_namespace(prefix: str, lock: str, mine: str, other: str, log: Path, count: int) -> Any:
    arguments = [*UNSHARE, sys.executable, "-c", IN_A_NAMESPACE, prefix, lock, mine, other]
    return running([*arguments, str(count)], log=log, environment=child_environment())


@pytest.mark.usefixtures("namespaces")
def test_other_pid_namespace_is_refused_with_the_remedy(prefix: str, tmp_path: Path) -> None:
    with in_a_namespace(prefix, "mutex", "a", "b", tmp_path / "a", 100) as first:
        first.wait_for_output("pid 1\n")
        first.wait_until(lambda: attached(prefix), "it to attach")
        with in_a_namespace(prefix, "mutex", "b", "a", tmp_path / "b", 100) as second:
            output = second.wait()
        assert "pid 1\n" in output
        assert "refused" in output and "PID namespace" in output and 'lock="file"' in output
        assert first.alive(), first.describe()
        os.kill(first.pid, signal.SIGKILL)  # process 1 of a namespace ignores SIGTERM


@pytest.mark.usefixtures("namespaces")
def test_two_pid_namespaces_with_file_locks(prefix: str, tmp_path: Path) -> None:
    """Both are process 1, both send and receive at once, and both see each other as alive."""
    layer = asgi_ipc.IPCChannelLayer(prefix, lock="file")
    count = 3000
    with in_a_namespace(prefix, "file", "a", "b", tmp_path / "a", count) as first:
        with in_a_namespace(prefix, "file", "b", "a", tmp_path / "b", count) as second:
            for process in (first, second):
                process.wait_for_output("done")
                assert "pid 1\n" in process.output()
            # An unprocessed death would show as a dead owner here; then both end by themselves.
            for name, process in (("a", first), ("b", second)):
                layer.send(f"{name}-end", MESSAGE)
                process.wait()
    assert layer.receive(["a", "b"]) == (None, None)
    layer.close()


CONTAINER = """
mount -t tmpfs none /dev/shm && mount --bind "$VOLUME" /dev/shm && exec "$@"
"""


@pytest.mark.usefixtures("namespaces")
def test_containers_of_a_pod(prefix: str, tmp_path: Path) -> None:
    """Two containers of Kubernetes: each with a PID namespace and mounts of its own, and one
    `emptyDir` in memory, of a size of its own, as /dev/shm of both."""
    volume = tmp_path / "volume"
    volume.mkdir()
    container = ["unshare", "--mount", "--ipc", "--uts", "sh", "-c", CONTAINER, "sh", *UNSHARE]
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "none", volume], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"lacking: the right to mount ({mounted.stderr.decode().strip()})")
    try:
        variables = child_environment(VOLUME=str(volume))
        for lock, said in (("mutex", "refused"), ("file", "done")):
            with contextlib.ExitStack() as stack:
                pod = []
                for mine, other in (("a", "b"), ("b", "a")):
                    command = [*container, sys.executable, "-c", IN_A_NAMESPACE]
                    command += [f"{prefix}-{lock}", lock, mine, other, "100"]
                    log = tmp_path / f"{lock}-{mine}"
                    pod.append(
                        stack.enter_context(running(command, log=log, environment=variables))
                    )
                    made = volume / f"asgi_ipc.{prefix}-{lock}.d"
                    pod[-1].wait_until(lambda made=made: list(made.glob("a*")), "it to attach")
                pod[1].wait_for_output(said)
                if lock == "file":
                    pod[0].wait_for_output(said)
                else:
                    assert 'lock="file"' in pod[1].output()
                for process in pod:
                    process.kill()
    finally:
        subprocess.run(["umount", "--lazy", volume], check=True)


def attached(prefix: str) -> bool:
    """Whether a process has made the segment; the test itself must not, in its namespace."""
    path = Path(f"/dev/shm/asgi_ipc.{prefix}")
    with contextlib.suppress(FileNotFoundError):
        return path.read_bytes()[:8] == b"asgi_ipc"
    return False


@pytest.mark.parametrize("kind", ["python"], indirect=True)
def test_moments_between_forks_and_calls(
    make: Callable[..., Any], fork: Callable[..., Child]
) -> None:
    """Threads that send, receive and attach while this process forks again and again. Not in C:
    where threads compete for the GIL, CPython itself may hang in the child of such a fork."""
    layer = make(capacity=100_000)
    stop = threading.Event()
    sent = [0, 0]

    def keep_sending(which: int) -> None:
        while not stop.is_set():
            layer.send("c", {"number": sent[which], "by": which})
            sent[which] += 1
            if sent[which] % 10 == 0:
                layer.close()  # so that it attaches again and again
                time.sleep(0)

    threads = [threading.Thread(target=keep_sending, args=(which,)) for which in range(2)]
    for thread in threads:
        thread.start()
    try:
        for number in range(60):
            child = fork(lambda n=number: layer.send("children", {"number": n}))
            child.result()
    finally:
        stop.set()
        for thread in threads:
            thread.join(LIVENESS)
    assert [layer.receive(["children"])[1] for _ in range(60)] == [{"number": n} for n in range(60)]
    got = []
    while (message := layer.receive(["c"])[1]) is not None:
        got.append((message["by"], message["number"]))
    for which in range(2):
        assert [number for by, number in got if by == which] == list(range(sent[which]))
