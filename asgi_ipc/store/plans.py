"""The plan of a broadcast: which queues a message to a group goes into, with which local parts.

Each sender keeps the plans of its groups. To make one takes a look at every member; to bring one
up to date, after somebody joined or left, only at what changed: a group's row counts its changes
and names the last few. Whoever is further behind than that makes the plan anew.

Everything here happens inside a section.
"""

from __future__ import annotations

from collections.abc import Callable

from .groups import Groups
from .layout import (
    G_RECENT,
    M_EXPIRES,
    M_GROUP,
    M_QUEUE,
    M_QUEUE_GENERATION,
    R_GENERATION,
    RECENT_CHANGES,
)


class Plan:
    """Where the messages of one sender to one group go.

    Good while the group's row has this generation and version, until `expires`, when the first
    membership runs out. What is changed while it is brought up to date is done so that doing it
    again, after an interruption, comes to the same.
    """

    __slots__ = ("changed", "channels", "expires", "generation", "members", "row", "version")

    def __init__(self, row: int, generation: int) -> None:
        self.row = row
        self.generation = generation
        self.version = -1  # of which it is good; none yet
        self.expires = float("inf")
        # By queue: its row and generation, and the capacity of each of its local parts (of b"" in
        # a queue that has none).
        self.channels: dict[bytes, tuple[int, int, dict[bytes, int]]] = {}
        self.members: dict[int, tuple[bytes, bytes]] = {}  # queue and local part, by member row
        self.changed: set[bytes] = set()  # queues that the sender has not dealt with since


class Planner:
    """Makes plans over `groups`. `capacity(channel)` is that of a member's channel, in messages."""

    def __init__(self, groups: Groups, capacity: Callable[[str], int]) -> None:
        self._groups = groups
        self._store = groups.store
        self._capacity = capacity

    def current(self, plan: Plan, now: float) -> bool:
        """Whether a plan made earlier still holds."""
        generation, version = self._groups.state(plan.row)
        return generation == plan.generation and version == plan.version and now < plan.expires

    def plan(self, group: bytes, now: float, known: Plan | None = None) -> Plan | None:
        """Where a message to `group` has to go: `known` brought up to date if that can be done;
        None if it has no living member."""
        row = self._groups.find(group)
        if not row:
            return None
        generation, version = self._groups.state(row)
        if known is None or not self._follow(known, row, generation, version, now):
            known = Plan(row, generation)
            for member in self._groups.members(row):
                self._enter(known, member, now)
            known.version = version
        return known if known.channels else None

    def _follow(self, plan: Plan, row: int, generation: int, version: int, now: float) -> bool:
        """Make the changes that a group has seen since; False if they are not all known."""
        behind = version - plan.version
        if (plan.row, plan.generation) != (row, generation) or now >= plan.expires:
            return False
        if not 0 <= behind <= RECENT_CHANGES:
            return False
        words = self._store.words
        for change in range(plan.version + 1, version + 1):
            entry = words[row + G_RECENT + change % RECENT_CHANGES]
            member = self._store.members.checked(entry >> 1)
            self._leave(plan, member)
            # The row may be another's by now: then it has left since, which comes later.
            if entry & 1 and words[member + R_GENERATION] and words[member + M_GROUP] == row:
                self._enter(plan, member, now)
        plan.version = version
        return True

    def _enter(self, plan: Plan, member: int, now: float) -> None:
        if not self._groups.alive(member, now):
            return
        words, name = self._store.words, self._store.members.name(member)
        plan.expires = min(plan.expires, self._store.doubles[member + M_EXPIRES])
        queue, mark, local = name.partition(b"!")
        queue += mark
        place = words[member + M_QUEUE], words[member + M_QUEUE_GENERATION]
        found = plan.channels.get(queue)
        if found is None or found[:2] != place:
            # Those entered for an earlier owner of the queue are ghosts.
            found = plan.channels[queue] = (*place, {})
        plan.changed.add(queue)
        plan.members[member] = queue, local
        found[2][local] = self._capacity(name.decode("ascii"))

    def _leave(self, plan: Plan, member: int) -> None:
        entered = plan.members.pop(member, None)
        found = plan.channels.get(entered[0]) if entered is not None else None
        if entered is None or found is None:
            return
        queue, local = entered
        plan.changed.add(queue)
        found[2].pop(local, None)
        if not found[2]:
            del plan.channels[queue]
