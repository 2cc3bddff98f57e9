"""Opens layers in processes of their own, and runs workloads on them there."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Sequence
from functools import cache
from typing import Any

from benchmarks.layers import redis_server
from benchmarks.layers.contenders import BLOCKING, Contender, Place, contender, new_prefix
from benchmarks.layers.contracts import Asynchronous, Blocking, Layer, run_to_end
from benchmarks.processes import Child, Cores, spent

# One process's part of a workload: `await role(layer, ...)`.
Role = Callable[..., Coroutine[Any, Any, Any]]


class Player:
    """A layer in a child process, and the roles that are played on it."""

    def __init__(self, child: Child, name: str) -> None:
        self._child, self._name = child, name
        self._opening = True

    @property
    def pid(self) -> int:
        return self._child.pid

    def begin(self, role: Role, *args: object) -> None:
        """Start `role(layer, *args)`; `result` waits for what it returns."""
        self.wait_until_open()
        self._child.begin(_play, self._name, role, *args)

    def result(self, timeout: float = 120) -> Any:
        return self._child.result(timeout)

    def play(self, role: Role, *args: object) -> Any:
        self.begin(role, *args)
        return self.result()

    def wait_until_open(self) -> None:
        if self._opening:
            self._child.result()
            self._opening = False


class Stage:
    """`with Stage() as stage:` processes end and places are removed with the block.

    Players of one contender meet at one place, which they share with those of the same store.
    """

    _numbers = itertools.count()

    def __init__(self) -> None:
        self._children: list[Child] = []
        self._places: dict[tuple[str, int], tuple[Contender, Place]] = {}
        self._shared: dict[str, Child] = {}

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            child.end()
        for one, place in self._places.values():
            one.destroy(place)

    def spent(self) -> float:
        """Seconds on a core of all players together, and of Redis, up to now."""
        return spent([*(child.pid for child in self._children), *redis_server.pids()])

    def _place(self, one: Contender, number: int = 0, apart: bool = False) -> Place:
        """Where players of `one` meet; `apart`: a place for this contender alone."""
        key = one.name if apart else one.store, number
        if key not in self._places:
            prefix = new_prefix(f"{next(self._numbers)}-{one.name}")
            self._places[key] = one, one.meet(prefix)
        return self._places[key][1]

    def enter(
        self,
        one: Contender,
        capacity: int = 100,
        *,
        listens: Sequence[str] = (),
        sends: Sequence[str] = (),
        cores: Cores = frozenset(),
        shared: bool = False,
        at: int = 0,
    ) -> Player:
        """Open the layer in a new process, which will receive on `listens` and send to `sends`.

        Processes start at the same time, except where their layers have to connect: there,
        receivers enter before senders. `at` tells one place of a store from another.

        `shared`: in one process for all layers of an interpreter, each at a place of its own. A
        layer that is inherited, because it has no name to be found by, stays alone.
        """
        key = one.python()[0] if one.groups else one.name
        child = self._shared.get(key) if shared else None
        if child is None:
            child = Child(*one.python(), cores)
            self._children.append(child)
            if shared:
                self._shared[key] = child
        place = self._place(one, at, apart=shared)
        child.begin(_open, one.name, place, capacity, tuple(listens), tuple(sends))
        player = Player(child, one.name)
        if shared or one.connect is not None:
            player.wait_until_open()
        return player


# -- in the child ---------------------------------------------------------------------------------

_opened: dict[str, Layer] = {}


def _open(
    name: str, place: Place, capacity: int, listens: tuple[str, ...], sends: tuple[str, ...]
) -> None:
    one = contender(name)
    _opened[name] = layer = opened(one, place, capacity)
    if one.connect is not None:
        _run(layer, one.connect(layer.layer, listens, sends))


def opened(one: Contender, place: Place, capacity: int = 100) -> Layer:
    """A new layer in this process, in the shape that roles expect."""
    made = one.make(place, capacity)
    return Blocking(made) if one.contract == BLOCKING else Asynchronous(made)


def _run(layer: Layer, coroutine: Coroutine[Any, Any, Any]) -> Any:
    if isinstance(layer, Blocking):
        return run_to_end(coroutine)
    return _loop().run_until_complete(coroutine)


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """The one that all roles of this process run on."""
    return asyncio.new_event_loop()


def _play(name: str, role: Role, *args: object) -> Any:
    return _run(_opened[name], role(_opened[name], *args))
