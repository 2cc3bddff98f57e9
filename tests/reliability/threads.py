"""One process and many threads: all that they send and receive, and whether it can be so.

What the interpreter serializes where there is a GIL happens at once where there is none. So this
is meant for a free-threaded Python most of all, and holds on every other. By hand, for as long as
wanted::

    PYTHON_GIL=0 python3.13t -m tests.reliability.threads --seconds 120 --seed 7

It goes through rounds, each with a segment of its own, and each with all of these threads:

- ``send``: senders to normal channels, to channels with one reader, and to the process's own;
- ``patient``: senders that wait for room, in threads and as tasks of the loops, to channels that
  hold few messages: normal ones, and one of the process's own;
- ``broadcast``: senders to a group whose members are the process's own channels;
- ``publish``: senders to a group that others subscribe to, each by two threads or two tasks, one
  of which joins and leaves another group all the time;
- ``work``: blocking receivers that share normal channels; ``single``: one for each channel;
- ``own``: blocking receivers that share one process-specific queue;
- ``loop``: event loops that share one layer, with tasks that receive and are cancelled;
- ``pair``: two threads that make and attach layers at once, and close them;
- ``flush``: threads of another layer that send, receive, flush and close at once.

A failure ends the program with 1 and a list; a crash shows as the signal that ended it. Needs
nothing but the package and its dependencies: pytest need not be installed.
"""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import gc
import json
import os
import random
import secrets
import sys
import threading
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import asgi_ipc
import asgi_ipc.aio
from asgi_ipc import clock, segment
from asgi_ipc.store.layout import S_DROPS, S_LIVE
from asgi_ipc.verify import verify
from tests.waiting import LIVENESS

OPTIONS: dict[str, Any] = {
    "capacity": 100_000,
    "channel_capacity": {"work*": 200, "single*": 200, "room*": 4, "own.threads!room": 4},
    "receive_timeout": 0.05,
    "expiry": 10 * LIVENESS,
}
WORK = ["work1", "work2"]
SINGLE = ["single1", "single2"]
ROOM = ["room1", "room2"]
QUEUE = "own.threads!"
LOCALS = [f"{QUEUE}{letter}" for letter in "abc"]
GROUP = "everyone"
MEMBERS = [f"{QUEUE}member{number}" for number in range(3)]
NEWS, OTHER = "news", "other-news"
SENDERS, BROADCASTERS, LOOPS, TASKS = 3, 2, 2, 3
PATIENT = PUBLISHERS = SUBSCRIPTIONS = 2
AHEAD = 50  # messages that a sender may be ahead of the reader of an own channel
ROUND = 10.0  # seconds

Stream = tuple[str, str]  # a sender, and the channel or group that it sent to


class Log:
    """What one thread or task received, in its order. One owner: nobody else appends."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.got: list[tuple[str, str, str, int]] = []  # channel, sender, destination, number


class Round:
    """One segment, and all that happens in it. `prefix` is that of the segment."""

    def __init__(self, prefix: str, seed: int) -> None:
        self.prefix = prefix
        self.seed = seed
        self.layer = asgi_ipc.IPCChannelLayer(prefix, **OPTIONS)
        self.aio = asgi_ipc.aio.IPCChannelLayer(prefix, **OPTIONS)
        self.quiet = threading.Event()  # nobody sends any more once it is set, except
        self.drain = threading.Event()  # that receivers may stop where they find nothing
        self.logs: list[Log] = []
        self.sent: dict[Stream, int] = {}
        self.members: list[str] = list(MEMBERS)  # and those of the loops
        # Those who subscribe to the news: set once they do.
        self.subscribed = {
            f"{where}{number}": threading.Event()
            for where, numbers in (("subscription", SUBSCRIPTIONS), ("loop", LOOPS))
            for number in range(numbers)
        }
        # The loops: set once their tasks send no more.
        self.silent = {f"loop{number}": threading.Event() for number in range(LOOPS)}
        self.seen: dict[tuple[str, str], int] = {}  # by channel and sender: the last number
        self.problems: list[str] = []
        self.refused: list[int] = []
        self.counts: Counter[str] = Counter()  # of each thread's own key

    def log(self, name: str) -> Log:
        made = Log(name)
        self.logs.append(made)
        return made

    def guarded(self, function: Callable[..., None], *args: Any) -> Callable[[], None]:
        """`function` for a thread: what it raises is a problem."""

        def run() -> None:
            try:
                function(*args)
            except BaseException:
                self.problems.append(f"{function.__name__}{args}: {traceback.format_exc()}")
                self.quiet.set()

        return run

    def note(self, log: Log, channel: str, message: dict[str, Any]) -> None:
        sender, to, number = message["from"], message["to"], message["n"]
        log.got.append((channel, sender, to, number))
        self.seen[channel, sender] = number

    # -- senders ----------------------------------------------------------------------------------

    def send(self, name: str) -> None:
        chosen = random.Random(f"{self.seed}{name}")
        numbers: Counter[str] = Counter()
        own = [member for member in self.members if member not in MEMBERS]
        refused = 0
        while not self.quiet.is_set():
            channel = chosen.choice([*WORK, *SINGLE, *LOCALS, *own])
            if "!" in channel and numbers[channel] - self.seen.get((channel, name), -1) > AHEAD:
                continue
            message = {"from": name, "to": channel, "n": numbers[channel]}
            if chosen.random() < 0.2:
                message["nested"] = [{"padding": "x" * chosen.choice([1, 300])}]
            try:
                self.layer.send(channel, message)
            except self.layer.ChannelFull:
                refused += 1
                time.sleep(0.001)
                continue
            numbers[channel] += 1
        for channel, count in numbers.items():
            self.sent[name, channel] = count
        self.refused.append(refused)

    def is_ahead(self, name: str, number: int, readers: Iterable[str]) -> bool:
        """Whether a sender is too far ahead of the slowest reader; if so, it has paused."""
        ahead = number - min(self.seen.get((reader, name), -1) for reader in readers) > AHEAD
        if ahead:
            time.sleep(0.001)
        return ahead

    def broadcast(self, name: str) -> None:
        number = 0
        while not self.quiet.is_set():
            if self.is_ahead(name, number, self.members):
                continue
            self.layer.send_group(GROUP, {"from": name, "to": GROUP, "n": number})
            number += 1
        self.sent[name, GROUP] = number

    def patient(self, name: str) -> None:
        chosen = random.Random(f"{self.seed}{name}")
        numbers: Counter[str] = Counter()
        while not self.quiet.is_set():
            channel = chosen.choice([*ROOM, f"{QUEUE}room"])
            message = {"from": name, "to": channel, "n": numbers[channel]}
            self.layer.send(channel, message, timeout=LIVENESS)
            numbers[channel] += 1
        for channel, count in numbers.items():
            self.sent[name, channel] = count

    async def patient_task(self, name: str) -> None:
        chosen = random.Random(f"{self.seed}{name}")
        numbers: Counter[str] = Counter()
        while not self.quiet.is_set():
            channel = chosen.choice([*ROOM, f"{QUEUE}room"])
            message = {"from": name, "to": channel, "n": numbers[channel]}
            try:
                # Cancelled, it has sent nothing.
                timeout = chosen.choice([0.001, LIVENESS])
                await asyncio.wait_for(self.aio.send(channel, message, LIVENESS), timeout)
            except asyncio.TimeoutError:
                self.counts[f"cancelled by {name}"] += 1
                continue
            numbers[channel] += 1
            await asyncio.sleep(0)
        for channel, count in numbers.items():
            self.sent[name, channel] = count
        self.silent[name.partition(".")[0]].set()

    def publish(self, name: str) -> None:
        for subscribed in self.subscribed.values():
            assert subscribed.wait(LIVENESS)
        number = 0
        while not self.quiet.is_set():
            if self.is_ahead(name, number, self.subscribed):
                continue
            self.layer.send_group(NEWS, {"from": name, "to": NEWS, "n": number})
            number += 1
            if number % 8 == 0:
                self.layer.send_group(OTHER, {"from": name, "to": OTHER, "n": number})
        self.sent[name, NEWS] = number

    # -- subscriptions ----------------------------------------------------------------------------

    def subscription(self, name: str) -> None:
        with self.layer.subscribe(NEWS) as events:
            self.subscribed[name].set()
            run = self.guarded(self.read, name, f"{name}.b", events, True)
            other = threading.Thread(target=run, daemon=True)
            other.start()
            self.read(name, f"{name}.a", events, False)
            other.join(LIVENESS)
            assert not other.is_alive()
            if events.gaps:
                self.problems.append(f"{name}: {events.gaps} gaps")

    def read(self, name: str, reader: str, events: Any, moves: bool) -> None:
        """Read a subscription that another thread reads as well. One of them joins and leaves."""
        log = self.log(reader)
        while True:
            over = self.drain.is_set()
            try:
                message = events.get(timeout=0 if over else 0.05)
            except TimeoutError:
                if over:
                    return
                continue
            if message["to"] == NEWS:
                self.note(log, name, message)
            if moves and not over and len(log.got) % 16 == 0:
                (events.leave if OTHER in events.groups else events.join)(OTHER)

    async def subscribed_task(self, name: str) -> None:
        async with self.aio.subscribe(NEWS) as events:
            self.subscribed[name].set()
            readers = [self.reader(name, f"{name}.{of}", events, of == "b") for of in "ab"]
            await asyncio.gather(*readers)
            if events.gaps:
                self.problems.append(f"{name}: {events.gaps} gaps")

    async def reader(self, name: str, reader: str, events: Any, moves: bool) -> None:
        log = self.log(reader)
        while True:
            over = self.drain.is_set()
            try:
                message = await events.get(timeout=0.0 if over else 0.05)
            except TimeoutError:
                if over:
                    return
                continue
            if message["to"] == NEWS:
                self.note(log, name, message)
            if moves and not over and len(log.got) % 16 == 0:
                await (events.leave if OTHER in events.groups else events.join)(OTHER)

    # -- blocking receivers -----------------------------------------------------------------------

    def receive(self, name: str, channels: list[str]) -> None:
        log = self.log(name)
        block = True
        while True:
            over = self.drain.is_set()  # before it looks: what was sent before that is found
            channel, message = self.layer.receive(channels, block=block and not over)
            if message is not None:
                assert channel is not None
                self.note(log, channel, message)
            elif over:
                return
            block = not block or message is None

    # -- event loops ------------------------------------------------------------------------------

    def loop(self, name: str, channels: list[str]) -> None:
        asyncio.run(self.tasks(name, channels))

    async def tasks(self, name: str, channels: list[str]) -> None:
        tasks = [
            asyncio.ensure_future(self.task(f"{name}.{number}", channel))
            for number, channel in enumerate(channels)
        ]
        tasks.append(asyncio.ensure_future(self.cancelled(f"{name}.cancelled")))
        tasks.append(asyncio.ensure_future(self.patient_task(f"{name}.patient")))
        tasks.append(asyncio.ensure_future(self.subscribed_task(name)))
        await asyncio.gather(*tasks)

    async def task(self, name: str, channel: str) -> None:
        """The one reader of a channel of the layer, which all loops share. It stops when it has got
        all that was sent: a loop looks for nothing that nobody rang for."""
        log = self.log(name)
        end = None
        while len(log.got) < self.sent_to(channel) if self.drain.is_set() else True:
            message = await self.receive_for(channel, 0.05)
            if message is not None:
                self.note(log, channel, message)
            elif self.drain.is_set():
                end = end or time.monotonic() + LIVENESS
                if time.monotonic() > end:
                    break  # the judge names what is lost

    def sent_to(self, member: str) -> int:
        return sum(count for (_, to), count in self.sent.items() if to in (member, GROUP))

    async def cancelled(self, name: str) -> None:
        """Reads work beside the threads. Its receives are cancelled, and lose nothing by that."""
        log = self.log(name)
        chosen = random.Random(f"{self.seed}{name}")
        while not self.drain.is_set():
            channel = chosen.choice(WORK)
            message = await self.receive_for(channel, chosen.choice([0, 0.001, 0.01]))
            if message is not None:
                self.note(log, channel, message)

    async def receive_for(self, channel: str, seconds: float) -> dict[str, Any] | None:
        """Receive, and cancel that after some seconds. None if it took nothing."""
        receive = asyncio.ensure_future(self.aio.receive(channel))
        await asyncio.wait([receive], timeout=seconds)
        receive.cancel()
        await asyncio.wait([receive])
        return None if receive.cancelled() else receive.result()

    # -- layers that come and go ------------------------------------------------------------------

    def pair(self, number: int, barrier: threading.Barrier, shared: list[Any]) -> None:
        """One of two threads. They attach the layer that they share at once, and make one each."""
        prefix = self.prefix + "-pair"
        mine, other = f"pair.x!{number}", f"pair.x!{1 - number}"
        count = 0
        while True:
            if barrier.wait(LIVENESS) == 0:
                shared[:] = [asgi_ipc.IPCChannelLayer(prefix, **OPTIONS), self.quiet.is_set()]
            barrier.wait(LIVENESS)
            layer, over = shared
            if over:
                break
            own = asgi_ipc.IPCChannelLayer(prefix, **OPTIONS)
            for using in (layer, own) if number else (own, layer):
                using.send(other, {"n": count})
                count += 1
            for _ in range(2):  # by either layer, whoever of the two threads it is for
                channel, message = layer.receive(["pair.x!"], block=True, timeout=LIVENESS)
                if message is None:
                    self.problems.append(f"pair: no message for {mine}")
            own.close()
            self.quiet.wait(0.02)  # mapping and unmapping memory holds up all threads
            barrier.wait(LIVENESS)
            layer.close()
        self.counts[f"attached by pair {number}"] = count

    def flush(self, number: int, layer: Any) -> None:
        """Send, receive, flush and close at once. What a flush discards is not counted; the rest
        comes once and in order."""
        chosen = random.Random(f"{self.seed}flush{number}")
        sent = calls = 0
        last: dict[Stream, int] = {}
        while not self.quiet.is_set():
            calls += 1
            step = chosen.random()
            if step < 0.45:
                channel = chosen.choice(["flushed", "flushed.x!a", "flushed.x!b"])
                message = {"from": str(number), "n": sent}
                sent += 1
                try:
                    layer.send(channel, message)
                except layer.ChannelFull:
                    pass
            elif step < 0.9:
                queue = chosen.choice(["flushed", "flushed.x!"])
                channel, message = layer.receive([queue], block=step < 0.5, timeout=0.01)
                if message is not None:
                    stream = message["from"], str(channel)
                    if message["n"] <= last.get(stream, -1):
                        self.problems.append(f"flush {number}: {stream} {message} again, or late")
                    last[stream] = message["n"]
            elif step < 0.94:
                layer.group_add("flushes", f"flushed.x!{chosen.choice('ab')}")
                layer.send_group("flushes", {"from": f"group{number}", "n": sent})
                sent += 1
            elif step < 0.98:
                layer.stats()
                layer.global_statistics()
                layer.group_channels("flushes")
            elif step < 0.995:
                layer.flush()
            else:
                layer.close()
        self.counts[f"calls of flush {number}"] = calls

    # -- all of it --------------------------------------------------------------------------------

    def run(self, seconds: float) -> None:
        loops = [[asyncio.run(self.aio.new_channel()) for _ in range(TASKS)] for _ in range(LOOPS)]
        self.members += [channel for channels in loops for channel in channels]
        for member in self.members:
            self.layer.group_add(GROUP, member)
        # The queue is this process's from the start. Before, a send that waits for a channel of few
        # messages has the others of the queue refused.
        self.layer.receive([QUEUE])
        flushed = asgi_ipc.IPCChannelLayer(self.prefix + "-flush", **OPTIONS)
        barrier, shared = threading.Barrier(2), []  # type: ignore[var-annotated]
        receivers: list[tuple[Any, ...]] = [
            *((self.receive, f"work{number}", WORK) for number in range(2)),
            *((self.receive, channel, [channel]) for channel in SINGLE),
            *((self.receive, f"room{number}", ROOM) for number in range(2)),
            *((self.receive, f"own{number}", [QUEUE]) for number in range(3)),
            *((self.subscription, f"subscription{number}") for number in range(SUBSCRIPTIONS)),
            *((self.loop, f"loop{number}", loops[number]) for number in range(LOOPS)),
        ]
        others: list[tuple[Any, ...]] = [
            *((self.send, f"send{number}") for number in range(SENDERS)),
            *((self.patient, f"patient{number}") for number in range(PATIENT)),
            *((self.broadcast, f"broadcast{number}") for number in range(BROADCASTERS)),
            *((self.publish, f"publish{number}") for number in range(PUBLISHERS)),
            *((self.pair, number, barrier, shared) for number in range(2)),
            *((self.flush, number, flushed) for number in range(3)),
        ]

        def thread(each: tuple[Any, ...]) -> threading.Thread:
            return threading.Thread(target=self.guarded(*each), daemon=True)

        receiving, sending = [*map(thread, receivers)], [*map(thread, others)]
        for started in receiving + sending:
            started.start()
        self.quiet.wait(seconds)
        self.quiet.set()
        self._join(sending)
        for silent in self.silent.values():
            silent.wait(LIVENESS)
        self.drain.set()
        self._join(receiving)
        flushed.close()

    def _join(self, threads: list[threading.Thread]) -> None:
        deadline = time.monotonic() + 2 * LIVENESS
        for thread in threads:
            thread.join(max(deadline - time.monotonic(), 0))
        if any(thread.is_alive() for thread in threads):
            faulthandler.dump_traceback()
            self.problems.append("a thread did not come to its end")

    def judge(self) -> None:
        """Find what was lost, what came twice, and what came in another order than it was sent."""
        received: dict[Stream, Counter[tuple[str, int]]] = defaultdict(Counter)
        for log in self.logs:
            last: dict[tuple[str, str, str], int] = {}
            for channel, sender, to, number in log.got:
                received[sender, to][channel, number] += 1
                # A reader takes one message after the other, so it gets those of a sender in order.
                if number <= last.get((channel, sender, to), -1):
                    before = last[channel, sender, to]
                    self.problems.append(f"{log.name}: {sender} {to} {number} after {before}")
                last[channel, sender, to] = number
        for (sender, to), count in self.sent.items():
            groups = {GROUP: self.members, NEWS: list(self.subscribed)}
            channels = groups.get(to, [to])
            wanted = {(channel, number) for channel in channels for number in range(count)}
            found = received.pop((sender, to), Counter())
            lost, strange = wanted - found.keys(), found.keys() - wanted
            twice = [which for which, times in found.items() if times > 1]
            for what, which in (("lost", lost), ("twice", twice), ("never sent", strange)):
                if which:
                    self.problems.append(f"{sender} to {to}: {what}: {sorted(which)[:9]}")
        if received:
            self.problems.append(f"received, and sent by nobody: {list(received)[:9]}")
        session = self.layer._core.attach()
        store, inboxes = session.store, session.attachment.inboxes
        if store.words[S_LIVE] or any(map(len, inboxes.values())):
            self.problems.append("messages were left, and nobody got them")
        drops = sum(store.words[S_DROPS + reason] for reason in range(6))
        if drops:
            self.problems.append(f"{drops} messages were dropped")
        self.problems += [f"the store: {problem}" for problem in verify(store, clock.monotonic())]

    def end(self) -> None:
        asyncio.run(self.aio.close())
        self.layer.close()
        for suffix in ("", "-pair", "-flush"):
            segment.destroy(self.prefix + suffix)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.reliability.threads")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=None)
    options = parser.parse_args()
    faulthandler.enable()
    seed = secrets.randbelow(1 << 31) if options.seed is None else options.seed
    gil = getattr(sys, "_is_gil_enabled", lambda: True)
    figures: Counter[str] = Counter()
    problems: list[str] = []
    end = time.monotonic() + options.seconds
    while not problems and (left := end - time.monotonic()) > 0:
        prefix = f"t{os.getpid()}-{secrets.token_hex(4)}"
        round_ = Round(prefix, seed + figures["rounds"])
        try:
            round_.run(min(ROUND, left))
            round_.judge()
        finally:
            round_.end()
        problems += round_.problems
        figures["rounds"] += 1
        figures["sent"] += sum(n for (_, to), n in round_.sent.items() if to not in (GROUP, NEWS))
        figures["broadcasts"] += sum(n for (_, to), n in round_.sent.items() if to == GROUP)
        figures["published"] += sum(n for (_, to), n in round_.sent.items() if to == NEWS)
        figures["waited for room"] += sum(
            n for (name, _), n in round_.sent.items() if "patient" in name
        )
        figures["cancelled sends"] += sum(
            count for name, count in round_.counts.items() if name.startswith("cancelled")
        )
        figures["received"] += sum(len(log.got) for log in round_.logs)
        figures["refused"] += sum(round_.refused)
        figures["layers attached"] += sum(
            count for name, count in round_.counts.items() if name.startswith("attached")
        )
        figures["calls beside flushes"] += sum(
            count for name, count in round_.counts.items() if name.startswith("calls")
        )
        del round_
        gc.collect()
    print(json.dumps({"seed": seed, "gil": gil(), **figures}, indent=2))
    for problem in problems[:20]:
        print(problem)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
