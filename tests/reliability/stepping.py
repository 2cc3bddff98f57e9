"""Stopping an operation at its n-th bytecode instruction inside the package.

`Stepper` counts the instructions that the package executes, in whatever it calls in turn, and acts
at one of them: kills the process (`deaths`), raises an exception (`interruptions`), or looks at
what was written (`test_torn_writes`).
"""

from __future__ import annotations

import dis
import gc
import os
import random
import re
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from functools import cache
from itertools import groupby
from multiprocessing.connection import Connection, Pipe
from types import CodeType, FrameType
from typing import Any, NamedTuple, TypeVar

import asgi_ipc

from ..waiting import LIVENESS

T = TypeVar("T")

FULL_LENGTH = os.environ.get("ASGI_IPC_TEST_LENGTH") == "full"
PACKAGE = os.path.dirname(asgi_ipc.__file__) + os.sep
WORKERS = os.cpu_count() or 1
DISTINCT = 40  # moments of an operation that are picked outside of a change
SPREAD = 25  # steps of an operation that are picked wherever they fall
FEW = 10  # the same where every state of the memory is picked anyway

# From Python 3.14 on, an instruction that only a monitor sees, and that no `try` covers. Nothing is
# raised there: signals are handled after calls, and where a loop or a function begins.
NOT_TAKEN = dis.opmap.get("NOT_TAKEN")


class Stepper:
    """Runs a call and counts the package's instructions; before each it calls `at(frame, n)`.

    What `at` raises is raised at that instruction, and nothing is counted after it. `only`: the
    function whose instructions are wanted, as in `Step.instruction`; the others then go unseen,
    which is faster.
    """

    def __init__(
        self, at: Callable[[FrameType, int], None], only: tuple[str, int] | None = None
    ) -> None:
        self._at = at
        self._only = only
        self._counting = False
        self.taken = 0

    def run(self, call: Callable[[], Any]) -> Any:
        # Without the collector, whose finalizers would be counted now in one run, now in another.
        gc.collect()
        gc.disable()
        try:
            if sys.version_info >= (3, 12):
                return self._run_monitored(call)
            # What is traced shows opcodes only if some frame had asked for them before.
            sys._getframe().f_trace_opcodes = True
            sys.settrace(self._call)
            self._counting = True
            return call()
        finally:
            self._counting = False
            sys.settrace(None)
            gc.enable()

    def _call(self, frame: FrameType, event: str, arg: Any) -> Any:
        if not self._wants(frame.f_code):
            return None
        frame.f_trace_opcodes = True
        return self._step

    def _wants(self, code: CodeType) -> bool:
        if self._only is not None:
            return code.co_firstlineno == self._only[1] and code.co_filename == self._only[0]
        return code.co_filename.startswith(PACKAGE)

    def _step(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == "opcode":
            self._count(frame)
        return self._step

    def _run_monitored(self, call: Callable[[], Any]) -> Any:
        """From Python 3.12 on a frame that asks for opcodes while it is called gets none, or not
        until it is called again: there every function of the package is told beforehand."""
        monitoring: Any = sys.monitoring
        tool = monitoring.DEBUGGER_ID
        monitoring.use_tool_id(tool, "stepping")
        try:
            wanted = monitoring.events.INSTRUCTION
            monitoring.register_callback(
                tool, wanted, lambda code, at: self._count(sys._getframe(1))
            )
            for code in filter(self._wants, package_code()):
                monitoring.set_local_events(tool, code, wanted)
            self._counting = True
            return call()
        finally:
            self._counting = False
            for code in filter(self._wants, package_code()):
                monitoring.set_local_events(tool, code, 0)
            monitoring.register_callback(tool, wanted, None)
            monitoring.free_tool_id(tool)

    def _count(self, frame: FrameType) -> None:
        if not self._counting or (NOT_TAKEN and is_inert(frame)):
            return
        self.taken += 1
        try:
            self._at(frame, self.taken)
        except BaseException:
            self._counting = False
            raise


def is_inert(frame: FrameType) -> bool:
    """Whether a frame is at an instruction where nothing can be raised."""
    return frame.f_lasti in _inert(frame.f_code)


@cache
def _inert(code: CodeType) -> frozenset[int]:
    return frozenset(one.offset for one in dis.get_instructions(code) if one.opcode == NOT_TAKEN)


@cache
def package_code() -> list[CodeType]:
    """The code of every function of the package that is imported, also of those inside others."""
    found: dict[int, CodeType] = {}
    seen: set[int] = set()
    left: list[Any] = [
        vars(module) for name, module in [*sys.modules.items()] if name.startswith("asgi_ipc")
    ]
    while left:
        thing = left.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, dict):
            left += thing.values()
        elif isinstance(thing, CodeType):
            if thing.co_filename.startswith(PACKAGE):
                found[id(thing)] = thing
                left += thing.co_consts
        elif isinstance(thing, type):
            if thing.__module__.startswith("asgi_ipc"):
                left += vars(thing).values()
        else:
            for name in ("__code__", "__func__", "__wrapped__", "fget", "func"):
                left.append(getattr(thing, name, None))
    return [*found.values()]


class Step(NamedTuple):
    """One instruction of a recorded run. `dirty`: in the middle of a change. `moment`: a number,
    which goes up where it makes a difference to be stopped here and not one instruction before."""

    instruction: tuple[str, int, int]
    where: str
    dirty: bool
    moment: int


def instruction_of(frame: FrameType) -> tuple[str, int, int]:
    return frame.f_code.co_filename, frame.f_code.co_firstlineno, frame.f_lasti


def place_of(frame: FrameType) -> str:
    code = frame.f_code
    return f"{os.path.basename(code.co_filename)}:{frame.f_lineno} {code.co_name}"


# Instructions that read or compute or jump, and leave all but the stack of their frame as it is.
IDLE = re.compile(
    "LOAD(?!_FAST_AND_CLEAR)|PUSH_NULL|COPY|SWAP|DUP|ROT|BINARY|COMPARE|CONTAINS|IS_OP|UNARY|BUILD"
    "|JUMP|POP_JUMP|GET_ITER|RESUME|NOP|CACHE|EXTENDED|PRECALL|KW_NAMES|MAKE_CELL|FORMAT|TO_BOOL"
)


# Those after which other processes may see something new. What a finalizer does that runs after
# another one, such as POP_TOP, is seen after the next of these.
SHOWN = re.compile("CALL|STORE_(SUBSCR|SLICE|ATTR)|DELETE|FOR_ITER|SEND|.*WITH|IMPORT")


@cache
def shown_instructions(code: CodeType) -> frozenset[int]:
    """Where those of a function are."""
    return frozenset(one.offset for one in dis.get_instructions(code) if SHOWN.match(one.opname))


@cache
def idle_instructions(code: CodeType) -> frozenset[int]:
    """Where those of a function are."""
    return frozenset(
        one.offset
        for one in dis.get_instructions(code)
        if IDLE.match(one.opname) and not one.argrepr.endswith("=")  # x += 1
    )


@cache
def handler_of(code: CodeType, lasti: int) -> int:
    """What handles an exception of an instruction. Before Python 3.11 instructions set it, which
    are not idle; 0 for these, and for none."""
    for entry in getattr(dis.Bytecode(code), "exception_entries", ()):
        if entry.start <= lasti < entry.end:
            return int(entry.target)
    return 0


def record(
    call: Callable[[], Any],
    dirty: Callable[[], bool],
    seen: Callable[[], object] | None = None,
) -> list[Step]:
    """The instructions that `call` takes when nothing stops it.

    With `seen`, which returns all that other processes can see of this one, a new moment begins
    when that has changed. Without it, after each instruction that is not idle, and where another
    frame runs or another handler is in charge: for this process itself, an exception before an idle
    instruction and one after it are the same.
    """
    steps: list[Step] = []
    moment, changed = 0, False
    last = seen() if seen else None

    def at(frame: FrameType, n: int) -> None:
        nonlocal moment, last, changed
        if seen is None:
            now: object = (id(frame), handler_of(frame.f_code, frame.f_lasti))
            moment += changed or now != last
        else:
            now = seen() if changed else last
            moment += now != last
        last = now
        steps.append(Step(instruction_of(frame), place_of(frame), dirty(), moment))
        if seen is None:
            changed = frame.f_lasti not in idle_instructions(frame.f_code)
        else:
            changed = frame.f_lasti in shown_instructions(frame.f_code)

    Stepper(at).run(call)
    return steps


def chosen(steps: list[Step], many: int, outside: bool = False) -> list[int]:
    """At which of `steps` to stop, from 1: all of them at full length.

    Else once in each moment, at any of its instructions, another one in each run. If there are more
    than `many` moments: in the first that each instruction begins, and in some of all.
    With `outside` this goes for the moments in the middle of a change; and no more than `DISTINCT`
    of the others are picked, others in each run.
    Also at some of all steps, evenly spread, others in each run. Always at the end, where nothing
    is stopped.
    """
    count = len(steps)
    if FULL_LENGTH:
        return [*range(1, count + 1), 2 * count + 1000]
    runs = [[*run] for _, run in groupby(range(1, count + 1), key=lambda n: steps[n - 1].moment)]
    changing = [run for run in runs if not outside or steps[run[0] - 1].dirty]
    if len(changing) > many:
        changing = _first(steps, changing) + some(changing, SPREAD)
    others = some(_first(steps, runs), DISTINCT) if outside else []
    spread = some(range(1, count + 1), SPREAD if outside else FEW)
    picked = map(random.choice, changing + others)
    return sorted({1, count, 2 * count + 1000, *picked, *spread})


def _first(steps: list[Step], runs: list[list[int]]) -> list[list[int]]:
    """The first of the runs that each instruction begins, by the last one before it."""
    found: dict[Any, list[int]] = {}
    for run in runs:
        found.setdefault(steps[max(run[0] - 2, 0)].instruction, run)
    return [*found.values()]


def some(things: Sequence[T], many: int) -> list[T]:
    """No more than `many` of them, evenly spread, others in each run."""
    every = -(-len(things) // many) or 1
    return [*things[random.randrange(every) :: every]]


class Moment(NamedTuple):
    """The `time`-th time that an instruction comes. Steadier than a number of steps: the way to it
    may be longer than it was in the recorded run."""

    instruction: tuple[str, int, int]
    time: int
    where: str


THE_END = Moment(("", 0, 0), 0, "the end")


def moments(steps: list[Step], numbers: Iterable[int]) -> Iterator[Moment]:
    """What the `numbers` of a recorded run stand for; one that is too high is the end."""
    wanted = set(numbers)
    times: Counter[Any] = Counter()
    for n, step in enumerate(steps, 1):
        times[step.instruction] += 1
        if n in wanted:
            yield Moment(step.instruction, times[step.instruction], step.where)
    if max(wanted) > len(steps):
        yield THE_END


def stop_at(moment: Moment, act: Callable[[FrameType], None], call: Callable[[], Any]) -> None:
    """Run `call`, with `act(frame)` when the moment comes."""
    *function, lasti = moment.instruction
    time = 0

    def at(frame: FrameType, n: int) -> None:
        nonlocal time
        if frame.f_lasti == lasti:
            time += 1
            if time == moment.time:
                act(frame)

    Stepper(at, (function[0], function[1])).run(call)


def die(frame: FrameType) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# -- child processes ------------------------------------------------------------------------------


def forked(child: Callable[[Connection], None]) -> tuple[int, Connection]:
    """Run `child` in a forked process, with its end of a pipe: (pid, our end)."""
    ours, theirs = Pipe()
    pid = os.fork()
    if pid:
        theirs.close()
        return pid, ours
    status = 1
    try:
        ours.close()
        child(theirs)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def reaped(pid: int) -> int:
    """How a child ended: its exit code, or minus the signal that killed it."""
    _, status = os.waitpid(pid, 0)
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)


def answer(connection: Connection, pid: int) -> Any:
    """The next thing that a child says; one that says nothing is killed, and the test fails."""
    if not connection.poll(LIVENESS):
        os.kill(pid, signal.SIGKILL)
        reaped(pid)
        raise AssertionError(f"the child hung for {LIVENESS:g} s")
    return connection.recv()


# -- several processes at once --------------------------------------------------------------------


class Outcome(NamedTuple):
    """What became of some of the moments of an operation."""

    failures: list[str]
    before: bool  # it was seen that nothing had happened, and
    after: bool  # that everything had
    astray: int  # the operation went on to its end although it was to be stopped


def in_parts(
    workers: Executor, work: Callable[..., Outcome], moments: list[Moment], *args: Any
) -> Outcome:
    """`work(part of moments, *args)` by each worker, put together."""
    parts = [moments[first::WORKERS] for first in range(WORKERS)]
    done = [future.result() for future in [workers.submit(work, part, *args) for part in parts]]
    return Outcome(
        [failure for outcome in done for failure in outcome.failures],
        any(outcome.before for outcome in done),
        any(outcome.after for outcome in done),
        sum(outcome.astray for outcome in done),
    )
