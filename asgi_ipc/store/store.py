"""The store: everything that a segment holds, over one buffer.

It must not use a clock, a lock or a system call. It is given a buffer, the time with each call, and
`reserve`, which it asks for more memory. Tests run it on a bytearray.

The caller holds the lock, and has called `recovery.recover` if the dirty word was set. A call sets
the dirty word before its first change and clears it with its last store; if it refuses to do
something (ChannelFull), it does so before. A call that is killed or interrupted therefore leaves
the dirty word set, and the next holder of the lock computes the derived words from the primary
ones.

The store is built on `memory` (the words), `waiters` (which waiter to ring), `room` (which sender
to ring), `wakes` (whether to ring) and `queues` (messages). This file adds the processes that own
queues, what happens when they die, and upkeep.
"""

from __future__ import annotations

from ..errors import CorruptStore
from . import layout as at
from .memory import Buffer, Reserve, Shortage
from .queues import EXPIRED_AT_ONCE, IDLE, Queues, Target
from .table import Table


class Store(Queues):
    """Queues, groups and processes in `buffer`, laid out by `layout`."""

    def __init__(
        self,
        buffer: Buffer,
        layout: at.Layout,
        reserve: Reserve = lambda offset, length: True,
        shortage: Shortage = lambda: "nobody says why",
    ) -> None:
        super().__init__(buffer, layout, reserve, shortage)
        self.groups = Table("groups", buffer, self.words, layout.groups, at.G_NAME, reserve)
        self.members = Table(
            "members", buffer, self.words, layout.members, at.M_NAME, reserve, salt_word=at.M_GROUP
        )

    def format(self, first_mark: int, now: float) -> None:
        """Make an empty store of zeroed memory that is reserved up to the word `first_mark`."""
        words, doubles = self.words, self.doubles
        words[at.S_ENDS] = self.log.empty
        words[at.S_MARK] = first_mark
        words[at.S_COUNTER] = 1
        words[at.S_EPOCH] = 1
        doubles[at.S_SINCE] = now

    # -- ownership of process-specific queues -----------------------------------------------------

    def own(self, row: int, process: int) -> int:
        """Make `process` the owner of a process-specific queue.

        Returns 0; or changes nothing and returns the reference of another process that owns it.
        """
        words = self.words
        owner, generation = words[row + at.Q_OWNER], words[row + at.Q_OWNER_GENERATION]
        if owner == process and generation == words[process + at.P_GENERATION]:
            return 0
        if self.owner(row) and not self.doubles[owner + at.P_DEAD_SINCE]:
            return owner
        words[at.S_DIRTY] = at.DIRTY
        if owner:
            self._disown(row, owner)
            if not words[owner + at.P_LEFT]:
                # The reader died. The memberships of its channels become ghosts.
                words[row + at.R_GENERATION] = self.advance_counter()
        words[row + at.Q_OWNER_GENERATION] = words[process + at.P_GENERATION]
        words[row + at.Q_OWNER] = process
        words[row + at.Q_NEXT_OWNED] = words[process + at.P_OWNED]
        words[process + at.P_OWNED] = row
        words[at.S_DIRTY] = at.CLEAN
        return 0

    def _disown(self, row: int, owner: int) -> None:
        """Take the queue at `row` out of the list of queues that `owner` owns."""
        words = self.words
        following = words[row + at.Q_NEXT_OWNED]
        here = words[owner + at.P_OWNED]
        if here == row:
            words[owner + at.P_OWNED] = following
            return
        for _ in range(self.queues.used):
            if not here:
                return
            if words[self.queues.checked(here) + at.Q_NEXT_OWNED] == row:
                words[here + at.Q_NEXT_OWNED] = following
                return
            here = words[here + at.Q_NEXT_OWNED]

    def find_reader(self, target: Target) -> int:
        """Return the reference of the process that owns the queue of `target`; 0 if there is none,
        or if it has detached or is known to be dead."""
        row = self.find(target)
        owner = self.owner(row) if row else 0
        if owner and (self.words[owner + at.P_LEFT] or self.doubles[owner + at.P_DEAD_SINCE]):
            return 0
        return owner

    def owner(self, row: int) -> int:
        """Return the reference of the process that owns the queue at `row`; 0 if there is none, or
        if its row has been freed since."""
        words = self.words
        owner = words[row + at.Q_OWNER]
        if not owner:
            return 0
        generation = words[self.checked_process(owner) + at.P_GENERATION]
        return owner if generation == words[row + at.Q_OWNER_GENERATION] else 0

    def _drop_messages(self, row: int, limit: int) -> int:
        """Drop up to `limit` messages of a queue whose reader is dead; return how many."""
        words = self.words
        for dropped in range(limit):
            record = words[row + at.Q_FIRST]
            if not record:
                return dropped
            self.log.checked(record)
            words[at.S_DIRTY] = at.DIRTY
            self._free(row, record)
            self.count_drop(row, at.DEAD_OWNER)
            words[at.S_DIRTY] = at.CLEAN
        return limit

    # -- processes --------------------------------------------------------------------------------

    def process_row(self, index: int) -> int:
        """Return the reference of the process whose byte lock is at offset `index`."""
        return self.layout.processes + index * at.PROCESS_WORDS

    def process_rows(self) -> range:
        """Return the references of all rows of processes, by index."""
        return range(self.process_row(0), self.process_row(at.MAX_PROCESSES), at.PROCESS_WORDS)

    def attach(self, index: int, pid: int, uid: int, now: float) -> int:
        """Enter a process that holds the byte lock at `index`; its row was buried before."""
        words, doubles = self.words, self.doubles
        row = self.process_row(index)
        words[at.S_DIRTY] = at.DIRTY
        words[row + at.P_OWNED] = 0
        words[row + at.P_PID] = pid
        words[row + at.P_UID] = uid
        words[row + at.P_LEFT] = 0
        doubles[row + at.P_ATTACHED] = now
        doubles[row + at.P_DEAD_SINCE] = 0.0
        words[row + at.P_GENERATION] = self.advance_counter()
        words[at.S_DIRTY] = at.CLEAN
        return row

    def bury(self, process: int, now: float, expiry: float) -> bool:
        """Clear up after a dead process, in a bounded number of steps for each call.

        The messages in its queues are dropped now, or after `expiry` if it detached. The queues,
        and with them its memberships, go `expiry` seconds after the death was noticed, or as soon
        as a message for them expires unread. Returns False if more can be done now.
        """
        words, doubles = self.words, self.doubles
        generation = words[process + at.P_GENERATION]
        if not generation:
            return True
        since = doubles[process + at.P_DEAD_SINCE]
        if not since or not since <= now:
            for waiter in self.waiter_rows():
                mine = words[waiter + at.W_PROCESS] == process
                if mine and words[waiter + at.W_PROCESS_GENERATION] == generation:
                    self._free_waiter(waiter)
            doubles[process + at.P_DEAD_SINCE] = since = now
        over = now - since >= expiry
        row, budget = words[process + at.P_OWNED], EXPIRED_AT_ONCE
        steps = self.queues.used
        while row:
            following = words[self.queues.checked(row) + at.Q_NEXT_OWNED]
            steps -= 1
            if words[row + at.Q_OWNER] != process or steps < 0:
                raise CorruptStore(
                    f"the list of queues that a process owns leads to word {row}, which is not a "
                    "queue of that process, or is one for the second time"
                )
            if over or not words[process + at.P_LEFT]:
                budget -= self._drop_messages(row, budget)
            if budget <= 0:
                return False
            if over:
                words[at.S_DIRTY] = at.DIRTY
                if (
                    words[row + at.Q_MEMBERS]
                    or words[row + at.Q_WAITING]
                    or words[row + at.Q_SENDING]
                ):
                    # Memberships name the queue by its generation: with another they are ghosts.
                    # This comes first: once the queue has no owner, no process does it later.
                    words[row + at.R_GENERATION] = self.advance_counter()
                    words[row + at.Q_OWNER] = 0
                else:
                    words[row + at.Q_OWNER] = 0
                    self.queues.remove(row)
                words[process + at.P_OWNED] = following
                words[at.S_DIRTY] = at.CLEAN
                budget -= 1
            row = following
        if over:
            words[process + at.P_GENERATION] = 0
        return True

    def leave(self, process: int, now: float) -> None:
        """Detach a process.

        It may attach again, so messages in queues that it owns stay until `bury` has ended.
        """
        words = self.words
        words[process + at.P_LEFT] = 1
        self.bury(process, now, float("inf") if words[process + at.P_OWNED] else 0.0)

    # -- upkeep -----------------------------------------------------------------------------------

    def note_peak(self) -> None:
        """Note the most words of live records so far, for `inspection` to read."""
        words = self.words
        live = words[at.S_LIVE] & at.COUNT
        if live > words[at.S_PEAK]:
            words[at.S_PEAK] = live

    def sweep(self, now: float) -> bool:
        """Do a bounded round of upkeep: drop expired messages, and reclaim rows of queues that
        nobody uses. Return whether the log has more to drop."""
        self.note_peak()
        self.reclaim(now, IDLE, 32)
        if self.words[at.S_LIVE] >= at.CROWDED:
            self.tend(at.S_SENDING, now, self.has_memory())
        return self.sweep_log(32, now)
