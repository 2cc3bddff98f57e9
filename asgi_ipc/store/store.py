"""The store: everything that a segment holds, over one piece of memory.

Sans-IO: the store is given a buffer and, with each call, the time; it knows no clock, no lock and
no system call (memory to grow into is asked for through `reserve`). Tests run it on a bytearray.

Whoever calls holds the lock, and has called `recovery.recover` if the dirty word was set. A call
sets the dirty word before its first change and clears it with its last store; what it refuses
(ChannelFull) it refuses before. So a call that was killed or interrupted leaves the dirty word
set, and the next holder of the lock computes everything derived anew from what is primary.

It is put together from `memory` (the words), `waiters` (who is rung), and `queues` (messages); here
are the processes that own queues, what happens when they die, and the upkeep.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..errors import CorruptStore
from .layout import (
    CLEAN,
    DEAD_OWNER,
    DIRTY,
    G_NAME,
    M_GROUP,
    M_NAME,
    MAX_WAITERS,
    P_ATTACHED,
    P_DEAD_SINCE,
    P_GENERATION,
    P_LEFT,
    P_OWNED,
    P_PID,
    P_UID,
    PROCESS_WORDS,
    Q_FIRST,
    Q_MEMBERS,
    Q_NEXT_OWNED,
    Q_OWNER,
    Q_OWNER_GENERATION,
    Q_WAITING,
    R_GENERATION,
    S_COUNTER,
    S_DIRTY,
    S_ENDS,
    S_EPOCH,
    S_LIVE,
    S_MARK,
    S_PEAK,
    S_SINCE,
    W_GENERATION,
    W_PROCESS,
    W_PROCESS_GENERATION,
    W_TAKEN,
    WAITER_WORDS,
    Layout,
)
from .queues import EXPIRED_AT_ONCE, IDLE, Queues
from .table import Table


class Store(Queues):
    """Queues, groups and processes in `buffer`, laid out by `layout`."""

    def __init__(
        self,
        buffer: Any,
        layout: Layout,
        reserve: Callable[[int, int], bool] = lambda offset, length: True,
    ) -> None:
        super().__init__(buffer, layout, reserve)
        self.groups = Table("groups", buffer, self.words, layout.groups, G_NAME, reserve)
        self.members = Table(
            "members", buffer, self.words, layout.members, M_NAME, reserve, salt_word=M_GROUP
        )

    def format(self, first_mark: int, now: float) -> None:
        """Make zeroed memory an empty store; all before the word `first_mark` is reserved."""
        words, doubles = self.words, self.doubles
        words[S_ENDS] = self.log.empty
        words[S_MARK] = first_mark
        words[S_COUNTER] = 1
        words[S_EPOCH] = 1
        doubles[S_SINCE] = now

    # -- ownership of process-specific queues -----------------------------------------------------

    def own(self, row: int, process: int) -> int:
        """Make `process` the owner of a process-specific queue.

        Returns 0, or the reference of the process that owns it already; nothing is changed then.
        """
        words = self.words
        owner, generation = words[row + Q_OWNER], words[row + Q_OWNER_GENERATION]
        if owner == process and generation == words[process + P_GENERATION]:
            return 0
        if owner and words[self.process(owner) + P_GENERATION] == generation:
            if not self.doubles[owner + P_DEAD_SINCE]:
                return owner
        words[S_DIRTY] = DIRTY
        if owner:
            self._disown(row, owner)
            if not words[owner + P_LEFT]:
                # The reader died, and with it who was in groups: their memberships are ghosts.
                words[row + R_GENERATION] = self.advance_counter()
        words[row + Q_OWNER_GENERATION] = words[process + P_GENERATION]
        words[row + Q_OWNER] = process
        words[row + Q_NEXT_OWNED] = words[process + P_OWNED]
        words[process + P_OWNED] = row
        words[S_DIRTY] = CLEAN
        return 0

    def _disown(self, row: int, owner: int) -> None:
        """Take the queue at `row` out of the list of what `owner` owns."""
        words = self.words
        following = words[row + Q_NEXT_OWNED]
        here = words[owner + P_OWNED]
        if here == row:
            words[owner + P_OWNED] = following
            return
        for _ in range(self.queues.used):
            if not here:
                return
            if words[self.queues.checked(here) + Q_NEXT_OWNED] == row:
                words[here + Q_NEXT_OWNED] = following
                return
            here = words[here + Q_NEXT_OWNED]

    def drop_queue(self, row: int, limit: int = EXPIRED_AT_ONCE) -> int:
        """Drop up to `limit` messages of a queue whose reader is dead; return how many it were."""
        words = self.words
        for dropped in range(limit):
            at = words[row + Q_FIRST]
            if not at:
                return dropped
            self._inside(at)
            words[S_DIRTY] = DIRTY
            self._free(row, at)
            self.count_drop(row, DEAD_OWNER)
            words[S_DIRTY] = CLEAN
        return limit

    # -- processes --------------------------------------------------------------------------------

    def process_row(self, index: int) -> int:
        """The reference of the process whose byte lock is at offset `index`."""
        return self.layout.processes + index * PROCESS_WORDS

    def attach(self, index: int, pid: int, uid: int, now: float) -> int:
        """Enter a process that holds the byte lock at `index`; its row was buried before."""
        words, doubles = self.words, self.doubles
        row = self.process_row(index)
        words[S_DIRTY] = DIRTY
        words[row + P_OWNED] = 0
        words[row + P_PID] = pid
        words[row + P_UID] = uid
        words[row + P_LEFT] = 0
        doubles[row + P_ATTACHED] = now
        doubles[row + P_DEAD_SINCE] = 0.0
        words[row + P_GENERATION] = self.advance_counter()
        words[S_DIRTY] = CLEAN
        return row

    def bury(self, process: int, now: float, expiry: float) -> bool:
        """Clear up after a process that is dead, a bounded number of steps for each call.

        What waits in its queues is dropped at once (later, if it left in good order). The queues,
        and so its memberships, go `expiry` seconds after the death was noticed, or as soon as a
        message for them expires unread (A6). False if there is more to do at once.
        """
        words, doubles = self.words, self.doubles
        generation = words[process + P_GENERATION]
        if not generation:
            return True
        since = doubles[process + P_DEAD_SINCE]
        if not since or not since <= now:
            for index in range(MAX_WAITERS):
                at = self.layout.waiters + index * WAITER_WORDS
                mine = words[at + W_PROCESS] == process
                if mine and words[at + W_PROCESS_GENERATION] == generation:
                    words[at + W_GENERATION] = 0
                    words[at + W_TAKEN] = 0
                    words[at + W_PROCESS_GENERATION] = 0
            doubles[process + P_DEAD_SINCE] = since = now
        over = now - since >= expiry
        row, budget = words[process + P_OWNED], EXPIRED_AT_ONCE
        steps = self.queues.used
        while row:
            following = words[self.queues.checked(row) + Q_NEXT_OWNED]
            steps -= 1
            if words[row + Q_OWNER] != process or steps < 0:
                raise CorruptStore("the list of a process's queues leads to what is not its own")
            if over or not words[process + P_LEFT]:
                budget -= self.drop_queue(row, budget)
            if budget <= 0:
                return False
            if over:
                words[S_DIRTY] = DIRTY
                if words[row + Q_MEMBERS] or words[row + Q_WAITING]:
                    # Memberships name the queue by its generation: with another they are ghosts.
                    # First of all: without its owner nobody would come back to the queue.
                    words[row + R_GENERATION] = self.advance_counter()
                    words[row + Q_OWNER] = 0
                else:
                    words[row + Q_OWNER] = 0
                    self.queues.remove(row)
                words[process + P_OWNED] = following
                words[S_DIRTY] = CLEAN
                budget -= 1
            row = following
        if over:
            words[process + P_GENERATION] = 0
        return True

    def leave(self, process: int, now: float) -> None:
        """A process detaches in good order.

        It may attach again, so what waits in queues of its own stays until `bury` is over.
        """
        words = self.words
        words[process + P_LEFT] = 1
        self.bury(process, now, float("inf") if words[process + P_OWNED] else 0.0)

    # -- upkeep -----------------------------------------------------------------------------------

    def note_peak(self) -> None:
        """Keep the most words of live records that were seen, for `inspection` to read."""
        words = self.words
        live = words[S_LIVE]
        if live > words[S_PEAK]:
            words[S_PEAK] = live

    def sweep(self, now: float) -> bool:
        """A bounded round of upkeep: messages that nobody reads expire, and the rows of queues
        that nobody uses are reclaimed. True if the log has more that is over."""
        self.note_peak()
        self.reclaim(now, IDLE, 32)
        return self.sweep_log(32, now)
