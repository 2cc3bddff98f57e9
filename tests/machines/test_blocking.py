"""The blocking layer on two machines, used as daphne 1.x and its workers use it. They make up the
names of their reply channels themselves, and these names do not contain a machine."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from asgi_ipc import LocalAndRemoteChannelLayer, errors, segment

from ..waiting import LIVENESS, until
from .helpers import CORE, PUBSUB, redis
from .servers import Server

pytest.importorskip("channels_redis", reason="lacking: channels_redis")

Make = Callable[..., Any]
NOTHING = (None, None)


@pytest.fixture
def machine(prefix: str, server: Server) -> Iterator[Make]:
    """Return a function that makes a layer on machine `number`."""
    made: list[Any] = []

    def make(number: int, backend: str = CORE, **options: Any) -> Any:
        local = {"prefix": f"{prefix}-{number}", "receive_timeout": 0.2, **options}
        made.append(LocalAndRemoteChannelLayer(redis(server, backend=backend), local, 3))
        return made[-1]

    yield make
    for layer in made:
        layer.close()
    for name in {layer.prefix for layer in made}:
        segment.destroy(name)


def receive(layer: Any, channel: str) -> Any:
    def received() -> Any:
        got = layer.receive([channel], block=True)
        return got if got != NOTHING else None

    return until(received)


@pytest.mark.parametrize("backend", [CORE, PUBSUB], ids=["core", "pubsub"])
def test_a_reply_channel_of_another_machine_is_reached(machine: Make, backend: str) -> None:
    worker, server = machine(1, backend), machine(2, backend)
    assert server.receive(["daphne.response.abc!"], block=True) == NOTHING
    for number in range(20):
        worker.send("daphne.response.abc!one", {"number": number})
    got = [receive(server, "daphne.response.abc!") for _ in range(20)]
    assert got == [("daphne.response.abc!one", {"number": number}) for number in range(20)]
    assert server.receive(["daphne.response.abc!"]) == NOTHING


class Safe(str):
    """As Django's SafeString and the members of a str Enum, no plain str."""


@pytest.mark.parametrize("plain", [str, Safe])
def test_a_name_of_a_subclass_leads_to_the_same_machine(machine: Make, plain: type[str]) -> None:
    worker, server = machine(1), machine(2)
    name = plain(server.new_channel("reply?"))
    worker.send(name, {"number": 1})
    assert receive(server, name) == (name, {"number": 1})
    assert server.receive([plain("daphne.response.abc!")], block=True) == NOTHING
    worker.send(plain("daphne.response.abc!one"), {"number": 2})
    got = receive(server, plain("daphne.response.abc!"))
    assert got == ("daphne.response.abc!one", {"number": 2})


@pytest.mark.parametrize("backend", [CORE, PUBSUB], ids=["core", "pubsub"])
def test_a_group_of_reply_channels_on_two_machines(machine: Make, backend: str) -> None:
    layers = machine(1, backend), machine(2, backend)
    for layer, name in zip(layers, "ab"):
        assert layer.receive([f"daphne.response.{name}!"]) == NOTHING
        for socket in ("one", "two"):
            layer.group_add("room", f"daphne.response.{name}!{socket}")
    for number in range(10):
        layers[0].send_group("room", {"number": number})
    for layer, name in zip(layers, "ab"):
        for socket in ("one", "two"):
            channel = f"daphne.response.{name}!{socket}"
            assert channel in layer.group_channels("room")
        got = [receive(layer, f"daphne.response.{name}!") for _ in range(20)]
        numbers = [message["number"] for _, message in got]
        assert sorted(numbers) == sorted([*range(10)] * 2)
        assert layer.receive([f"daphne.response.{name}!"]) == NOTHING


def test_what_is_read_on_this_machine_needs_no_server(machine: Make, server: Server) -> None:
    here = machine(1)
    assert here.receive(["daphne.response.abc!"], block=True) == NOTHING
    server.pause()
    try:
        here.send("daphne.response.abc!one", {"text": "hello"})
        assert here.receive(["daphne.response.abc!"])[1] == {"text": "hello"}
        body = here.new_channel("http.request.body?")
        here.send(body, {"content": b"chunk"})
        assert here.receive([body]) == (body, {"content": b"chunk"})
    finally:
        server.go_on()


def test_a_new_channel_is_reached_from_another_machine(machine: Make) -> None:
    here, there = machine(1), machine(2)
    reply = there.new_channel("reply?")
    here.send(reply, {"text": "hello"})  # it is pending there until it is received
    assert receive(there, reply) == (reply, {"text": "hello"})
    with pytest.raises(errors.NotOwner, match="another machine"):
        here.receive([reply], block=True)


def test_a_signal_handler_that_raises_gets_out(machine: Make, server: Server) -> None:
    """Even from a call that waits for a server that does not answer."""
    here, there = machine(1), machine(2)
    reply = there.new_channel("reply?")
    here.send(reply, {"number": 1})

    class Raised(Exception):
        pass

    def handler(*_: Any) -> None:
        raise Raised

    before = signal.signal(signal.SIGUSR1, handler)
    server.pause()
    try:
        began = time.monotonic()
        main = threading.main_thread().ident
        assert main is not None
        threading.Timer(0.2, signal.pthread_kill, (main, signal.SIGUSR1)).start()
        with pytest.raises(Raised):
            here.send(reply, {"number": 2})
        assert time.monotonic() - began < 3  # the time-out of the call
    finally:
        signal.signal(signal.SIGUSR1, before)
        server.go_on()


def test_a_handler_of_its_log_lines_is_refused_instead_of_waiting_for_itself(
    machine: Make,
) -> None:
    """What the relay logs, it logs in the thread in which the calls on the server are made."""
    layer = machine(1)
    layer.group_add("room", "a")

    async def logs() -> None:
        with pytest.raises(errors.Reentered, match="another thread"):
            layer.send_group("room", {})
        layer._local.send("a", {})

    layer._gateway.run(logs()).result(LIVENESS)
    assert layer.receive(["a"]) == ("a", {})
