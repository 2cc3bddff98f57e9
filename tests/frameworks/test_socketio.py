"""The client managers for python-socketio and Flask-SocketIO, in real servers with real clients."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests import environments, processes
from tests.forks import on_linux
from tests.waiting import LIVENESS, until

from .servers import notices_at_once, uvicorn

socketio = pytest.importorskip("socketio", reason="lacking: python-socketio")
for module in ("aiohttp", "flask_socketio", "simple_websocket", "uvicorn"):
    pytest.importorskip(module, reason=f"lacking: {module}")

from asgi_ipc import segment  # noqa: E402
from asgi_ipc.errors import InvalidName, InvalidOption, MessageTooLarge, SegmentError  # noqa: E402
from asgi_ipc.socketio import AsyncIPCManager, IPCManager  # noqa: E402

PROGRAMS = Path(__file__).parent / "programs"
FLASK = ["threading", "gevent", "eventlet"]
BYTES = bytes(range(256))
# More than a channel holds that has no capacity of its own.
EVENTS = 5000 if os.environ.get("ASGI_IPC_TEST_LENGTH") == "full" else 1000


class Client:
    """A Socket.IO client that keeps what it is sent, and answers questions."""

    def __init__(self) -> None:
        self.got: asyncio.Queue[Any] = asyncio.Queue()
        self.numbers: list[int] = []
        self._socket = socketio.AsyncClient(reconnection=False)
        self._socket.on("said", self.got.put)
        self._socket.on("question", self._answer)
        self._socket.on("number", self._count)
        self.gone = asyncio.Event()
        self._socket.on("disconnect", self._leave)
        self.complete = asyncio.Event()
        self.pid = 0

    async def connect(self, address: str, **options: Any) -> None:
        await self._socket.connect(f"http://{address}", wait_timeout=LIVENESS, **options)
        self.pid = await self.call("who")

    async def close(self) -> None:
        await self._socket.disconnect()

    @property
    def sid(self) -> str:
        return str(self._socket.get_sid())

    async def call(self, event: str, *data: Any) -> Any:
        return await self._socket.call(event, data, timeout=LIVENESS)

    async def emit(self, event: str, *data: Any) -> None:
        await self._socket.emit(event, data)

    async def hears(self) -> Any:
        return await asyncio.wait_for(self.got.get(), LIVENESS)

    async def _answer(self, question: Any) -> Any:
        return {"length": len(question), "from": self.pid}

    async def _count(self, number: int) -> None:
        self.numbers.append(number)
        if len(self.numbers) == EVENTS:
            self.complete.set()

    async def _leave(self, *_: Any) -> None:
        self.gone.set()


@asynccontextmanager
async def two_clients(addresses: list[str]) -> AsyncIterator[tuple[Client, Client]]:
    """Clients of two processes. Any process may accept a connection: connect until both have."""
    async with AsyncExitStack() as stack:
        clients: list[Client] = []
        while len({client.pid for client in clients}) < 2:
            assert len(clients) < 100, "one process has accepted all connections"
            client = Client()
            address = addresses[len(clients) % len(addresses)]
            await client.connect(address, transports=["websocket"])
            stack.push_async_callback(client.close)
            clients.append(client)
        yield clients[0], next(each for each in clients if each.pid != clients[0].pid)


# -- the servers ----------------------------------------------------------------------------------


def site(prefix: str, folder: Path, workers: int = 2) -> Any:
    """One server of several processes, and its address."""
    log = folder / "log"
    return uvicorn("socketio_site:app", workers, folder=PROGRAMS, log=log, SITE_PREFIX=prefix)


@contextmanager
def flask(mode: str, prefix: str, folder: Path, count: int = 2) -> Iterator[list[str]]:
    """The addresses of several servers, each of one process."""
    python = sys.executable if mode == "threading" else environments.environment("loops")
    with ExitStack() as stack:
        ports = [processes.free_port() for _ in range(count)]
        started = [
            stack.enter_context(
                processes.running(
                    [python, "flask_socketio_site.py", mode, str(port)],
                    log=folder / f"{port}.log",
                    environment=environments.child_environment(SITE_PREFIX=prefix),
                    folder=PROGRAMS,
                )
            )
            for port in ports
        ]
        for server, port in zip(started, ports):
            server.wait_for_port(port)
        yield [f"127.0.0.1:{port}" for port in ports]
        assert all("rror" not in server.output() for server in started)


@pytest.fixture(params=["uvicorn", *FLASK])
def addresses(request: pytest.FixtureRequest, prefix: str, tmp_path: Path) -> Iterator[list[str]]:
    """Where two processes answer: on one port, or on two."""
    if request.param == "uvicorn":
        with site(prefix, tmp_path) as (server, address):
            yield [address]
            assert "rror" not in server.output(), server.output()
    else:
        with flask(request.param, prefix, tmp_path) as found:
            yield found


# -- what goes from one process to another --------------------------------------------------------


async def test_rooms_bytes_and_calls_span_the_processes(addresses: list[str], prefix: str) -> None:
    async with two_clients(addresses) as (here, there):
        await here.call("enter", "lobby")
        await there.call("enter", "lobby")
        await there.call("enter", "kitchen")
        values = ["hello", {"n": 1, "deep": [None, True, "ü"]}, BYTES, [BYTES, {"b": BYTES}]]
        for value in values:
            await here.emit("say", "lobby", value)
            assert await here.hears() == await there.hears() == value
        await here.emit("say", "kitchen", "dinner")
        await here.emit("say", "lobby", "last")
        assert (await there.hears(), await there.hears()) == ("dinner", "last")
        assert await here.hears() == "last"

        # Bytes in an answer do not come through: the library publishes no answer with bytes.
        for question in ("who are you?", BYTES):
            answer = await here.call("ask", there.sid, question)
            assert answer == {"length": len(question), "from": there.pid}

        # A program that is no server.
        source = f"""
from asgi_ipc.socketio import IPCManager
IPCManager({prefix!r}, write_only=True).emit("said", "from a script", room="kitchen")
"""
        environments.run_python(source)
        assert await there.hears() == "from a script"
        writer = AsyncIPCManager(prefix, write_only=True)
        await writer.emit("said", BYTES, room="kitchen")
        assert await there.hears() == BYTES
        await writer._layer.close()


async def test_a_burst_is_complete_and_in_order(addresses: list[str]) -> None:
    async with two_clients(addresses) as (here, there):
        await here.emit("burst", EVENTS)
        for client in (here, there):
            await asyncio.wait_for(client.complete.wait(), LIVENESS)
            assert client.numbers == list(range(EVENTS))


async def test_a_client_of_another_process_is_moved_and_ended(prefix: str, tmp_path: Path) -> None:
    with site(prefix, tmp_path) as (_, address):
        async with two_clients([address]) as (here, there):
            await here.call("enter_other", there.sid, "lobby")
            await here.emit("say", "lobby", "hello")
            assert await there.hears() == "hello"
            await here.emit("end", there.sid)
            await asyncio.wait_for(there.gone.wait(), LIVENESS)


# -- outages --------------------------------------------------------------------------------------


async def heard_again(here: Client, there: Client, room: str) -> None:
    """Say something until it is heard in the other process."""
    word = secrets.token_hex(4)  # not what is left of an earlier call

    async def hears() -> None:
        while await there.hears() != word:
            pass

    waiting = asyncio.ensure_future(hears())
    while not waiting.done():
        await here.emit("say", room, word)
        await asyncio.wait({waiting}, timeout=0.05)
    await waiting


@on_linux
async def test_it_goes_on_after_the_memory_was_removed(addresses: list[str], prefix: str) -> None:
    async with two_clients(addresses) as (here, there):
        await there.call("enter", "lobby")
        await here.call("enter", "hall")
        for _ in range(2):
            loading = asyncio.ensure_future(here.call("burst", 500))
            segment.destroy(prefix)
            await loading
            await heard_again(here, there, "lobby")
            await heard_again(there, here, "hall")


async def test_it_goes_on_after_a_worker_was_killed(prefix: str, tmp_path: Path) -> None:
    with site(prefix, tmp_path, workers=3) as (_, address):
        async with two_clients([address]) as (here, there):
            await there.call("enter", "lobby")
            third = Client()
            while True:
                await third.connect(address, transports=["websocket"])
                if third.pid not in (here.pid, there.pid):
                    break
                await third.close()
                third = Client()
            os.kill(third.pid, signal.SIGKILL)
            await asyncio.wait_for(third.gone.wait(), LIVENESS)
            for number in range(10):
                await here.emit("say", "lobby", number)
                assert await there.hears() == number
            await third.close()


def test_a_subscription_that_fails_is_tried_again_after_a_pause(prefix: str) -> None:
    manager = IPCManager(prefix)
    socketio.Server(client_manager=manager, async_mode="threading")
    pauses: list[float] = []

    class Failing:
        def subscribe(self, group: str) -> Any:
            raise SegmentError("not now")

    working, manager._layer = manager._layer, Failing()  # type: ignore[assignment]

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            manager._layer = working

    manager.server.sleep = sleep
    received = manager._listen()
    writer = IPCManager(prefix, write_only=True)

    def emit() -> None:
        until(lambda: working.group_channels("socketio"))
        writer.emit("said", 1)

    thread = threading.Thread(target=emit)
    thread.start()
    assert '"said"' in next(received)
    thread.join()
    assert pauses == [1.0, 1.0, 1.0]
    received.close()  # type: ignore[attr-defined]
    assert working.group_channels("socketio") == []
    for layer in (working, writer._layer):
        layer.close()


@on_linux
@pytest.mark.parametrize("kind", [IPCManager, AsyncIPCManager])
async def test_an_event_is_sent_although_the_memory_was_removed(prefix: str, kind: Any) -> None:
    manager = kind(prefix, write_only=True)
    for text in ("before", "after"):
        sent = manager.emit("said", text)
        if sent is not None:
            await sent
        segment.destroy(prefix)
        notices_at_once(manager._layer._core.session.attachment)
    closed = manager._layer.close()
    if closed is not None:
        await closed


# -- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize("manager", [IPCManager, AsyncIPCManager])
def test_bad_options_fail_in_the_constructor(manager: Any) -> None:
    for wrong in (
        {"capcity": 3},
        {"capacity": 0},
        {"prefix": "redis://localhost"},
        {"write_only": "yes"},
        {"lock": "none"},
    ):
        with pytest.raises(InvalidOption):
            manager(**wrong)
    for channel in ("not a name", 5, "a!b"):
        with pytest.raises(InvalidName):
            manager(channel=channel)


@pytest.mark.parametrize("manager", [IPCManager, AsyncIPCManager])
def test_options_reach_the_layer(manager: Any) -> None:
    assert manager()._layer.capacity == 10_000
    made = manager("site", channel="chat", write_only=True, capacity=5, expiry=2)
    assert (made._layer.prefix, made._layer.capacity, made._layer.expiry) == ("site", 5, 2)
    assert (made.channel, made.write_only) == ("chat", True)


def test_channels_are_apart(prefix: str) -> None:
    one = IPCManager(prefix, channel="one", write_only=True)
    with one._layer.subscribe("one") as events, one._layer.subscribe("two") as others:
        one.emit("said", 1)
        assert '"said"' in events.get(timeout=LIVENESS)["json"]
        with pytest.raises(TimeoutError):
            others.get(timeout=0)
    one._layer.close()


def test_an_event_that_is_too_large_is_refused(prefix: str) -> None:
    manager = IPCManager(prefix, write_only=True, max_message_size=2048)
    with pytest.raises(MessageTooLarge):
        manager.emit("said", "x" * 5000)
    manager._layer.close()


def test_green_threads_need_the_patch(prefix: str) -> None:
    python = environments.environment("loops")
    source = """
import sys
import socketio
from asgi_ipc.socketio import IPCManager

manager = IPCManager(sys.argv[1])
server = socketio.Server(client_manager=manager, async_mode="gevent")
try:
    manager.initialize()
except RuntimeError as error:
    print(error)
"""
    done = subprocess.run(
        [python, "-c", source, prefix],
        env=environments.child_environment(),
        capture_output=True,
        text=True,
        timeout=LIVENESS,
        check=True,
    )
    assert "monkey patching, with select" in done.stdout
