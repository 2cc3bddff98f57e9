"""Layers opened in processes of their own, and roles played on them.

A workload writes each role twice, once for each contract, in the words of that contract. An adapter
between the loop and the layer would be paid for by every call, and not equally: a coroutine around
a blocking call is a price that only one side would pay.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.layers.contenders import BLOCKING, Contender, contender, new_prefix
from benchmarks.processes import Child, Children, Cores


@dataclass(frozen=True)
class Role:
    """One process's part of a workload, once for each contract; called with the layer first."""

    blocking: Callable[..., Any]
    asyncio: Callable[..., Coroutine[Any, Any, Any]]


class Player:
    """A layer in a child process, and what is played on it."""

    def __init__(self, child: Child, key: str) -> None:
        self._child, self._key = child, key

    @property
    def pid(self) -> int:
        return self._child.pid

    def begin(self, role: Role, *args: Any) -> None:
        """Start the role's loop for the layer's contract; `result` waits for what it returns."""
        self._child.begin(_play, self._key, role, *args)

    def result(self, timeout: float = 120) -> Any:
        return self._child.result(timeout)

    def play(self, role: Role, *args: Any) -> Any:
        self.begin(role, *args)
        return self.result()

    def do(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call a function in the process of the layer."""
        return self._child.call(function, *args)

    def kill(self) -> None:
        self._child.end()


class Stage:
    """`with Stage(loop) as stage:` processes end and places are removed with the block.

    Players of one contender meet at one place, which they share with those of the same store.
    """

    _numbers = itertools.count()

    def __init__(self, loop: str) -> None:
        self._loop = loop
        self._children = Children()
        self._places: dict[tuple[str, int], tuple[Contender, Any]] = {}
        self._shared: dict[str, Child] = {}

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        self._children.__exit__()
        for one, place in self._places.values():
            one.destroy(place)

    def place(self, one: Contender, number: int = 0, apart: bool = False) -> Any:
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
        listens: Sequence[str] = (),
        sends: Sequence[str] = (),
        cores: Cores = frozenset(),
        shared: bool = False,
        at: int = 0,
    ) -> Player:
        """Open the layer in a new process, which will receive on `listens` and send to `sends`.

        Who receives has to enter before who sends. `at` tells one place of a store from another.

        `shared`: in one process for all layers of an interpreter, each at a place of its own. What
        is not found by a name has to be inherited, and stays alone.
        """
        python, path = one.python()
        key = python if one.groups else one.name
        child = self._shared.get(key) if shared else None
        if child is None:
            child = self._children.child(cores, python, path)
            if shared:
                self._shared[key] = child
        place = self.place(one, at, apart=shared)
        child.begin(_open, one.name, self._loop, place, capacity, tuple(listens), tuple(sends))
        return Player(child, child.result())


# -- in the child ---------------------------------------------------------------------------------

_opened: dict[str, tuple[Contender, Any]] = {}
_loops: list[asyncio.AbstractEventLoop] = []


def new_loop(kind: str) -> asyncio.AbstractEventLoop:
    """An event loop of the given kind: "asyncio" or "uvloop"."""
    if kind == "uvloop":
        import uvloop

        made: asyncio.AbstractEventLoop = uvloop.new_event_loop()
        return made
    return asyncio.new_event_loop()


def only_loop() -> asyncio.AbstractEventLoop:
    """The event loop that all roles of this process are played on."""
    return _loops[0]


def _open(
    name: str,
    loop: str,
    place: Any,
    capacity: int,
    listens: tuple[str, ...],
    sends: tuple[str, ...],
) -> str:
    one = contender(name)
    if not _loops:
        _loops.append(new_loop(loop))
    layer = one.make(place, capacity)
    if one.contract != BLOCKING:
        _loops[0].run_until_complete(_listen(layer, listens))
    elif one.connects:
        for channel in listens:
            layer.listen(channel)
        for channel in sends:
            layer.reach(channel)
    _opened[name] = one, layer
    return name


async def _listen(layer: Any, channels: tuple[str, ...]) -> None:
    """With pub/sub nothing is kept for a receiver that has not begun to receive."""
    if type(layer).__name__ == "RedisPubSubChannelLayer":
        for channel in channels:
            await layer._get_layer()._subscribe_to_channel(channel)


def _play(key: str, role: Role, *args: Any) -> Any:
    one, layer = _opened[key]
    if one.contract == BLOCKING:
        return role.blocking(layer, *args)
    return _loops[0].run_until_complete(role.asyncio(layer, *args))
