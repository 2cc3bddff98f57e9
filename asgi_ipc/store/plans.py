"""The plan of a broadcast: which queues a message to a group goes into, with which local parts.

A planner must be called inside a section. Each sender keeps the plans of its groups. To make a
plan, the planner looks at every member. To update it after a join or leave, it only looks at what
has changed: the row of a group counts its changes and names the last few. If a plan has missed
more changes than those, it is made again.
"""

from __future__ import annotations

from collections.abc import Callable

from ..options import UnknownCapacity
from . import layout as at
from .groups import Groups


class Plan:
    """Where the messages of one sender to one group go.

    It holds while the group's row has this generation and version, until `expires`, when the first
    membership expires. An update that was interrupted can be repeated with the same result.
    """

    __slots__ = ("changed", "channels", "expires", "generation", "members", "row", "version")

    def __init__(self, row: int, generation: int) -> None:
        self.row = row
        self.generation = generation
        self.version = -1  # the group's version that it holds for; none yet
        self.expires = float("inf")
        # By queue: its row, its generation, and the capacity of each of its local parts (b"" if it
        # has none).
        self.channels: dict[bytes, tuple[int, int, dict[bytes, int]]] = {}
        self.members: dict[int, tuple[bytes, bytes]] = {}  # queue and local part, by member row
        self.changed: set[bytes] = set()  # queues that the sender still has to update


class Planner:
    """Makes plans over `groups`. `capacity(channel)` returns the capacity of a member's channel, in
    messages; None if that has to be looked up."""

    def __init__(self, groups: Groups, capacity: Callable[[str], int | None]) -> None:
        self._groups = groups
        self._store = groups.store
        self._capacity = capacity
        self._unknown: list[str] = []  # channels whose capacity has to be looked up

    def current(self, plan: Plan, now: float) -> bool:
        """Return whether a plan still holds."""
        generation, version = self._groups.state(plan.row)
        return generation == plan.generation and version == plan.version and now < plan.expires

    def plan(self, group: bytes, now: float, known: Plan | None = None) -> Plan | None:
        """Plan a broadcast to `group`: update the plan `known` if that is possible, or make one.
        Return None if the group has no living member.

        Raises UnknownCapacity; once these are looked up, call it again.
        """
        self._unknown = []
        row = self._groups.find(group)
        if not row:
            return None
        generation, version = self._groups.state(row)
        if known is None or not self._follow(known, row, generation, version, now):
            known = Plan(row, generation)
            for member in self._groups.members(row):
                self._enter(known, member, now)
            self._check_capacities()
            known.version = version
        return known if known.channels else None

    def _follow(self, plan: Plan, row: int, generation: int, version: int, now: float) -> bool:
        """Apply to `plan` what has changed in its group; return False if not all of it is known."""
        behind = version - plan.version
        if (plan.row, plan.generation) != (row, generation) or now >= plan.expires:
            return False
        if not 0 <= behind <= at.RECENT_CHANGES:
            return False
        words = self._store.words
        for change in range(plan.version + 1, version + 1):
            entry = words[row + at.G_RECENT + change % at.RECENT_CHANGES]
            member = self._store.members.checked(entry >> 1)
            self._leave(plan, member)
            # If the row is another member's by now, this one has left: that is a later change.
            if entry & 1 and words[member + at.R_GENERATION] and words[member + at.M_GROUP] == row:
                self._enter(plan, member, now)
        self._check_capacities()
        plan.version = version
        return True

    def _check_capacities(self) -> None:
        if self._unknown:
            raise UnknownCapacity(self._unknown)

    def _enter(self, plan: Plan, member: int, now: float) -> None:
        if not self._groups.alive(member, now):
            return
        words, name = self._store.words, self._store.members.name(member)
        plan.expires = min(plan.expires, self._store.doubles[member + at.M_EXPIRES])
        queue, mark, local = name.partition(b"!")
        queue += mark
        place = words[member + at.M_QUEUE], words[member + at.M_QUEUE_GENERATION]
        found = plan.channels.get(queue)
        if found is None or found[:2] != place:
            # Entries for an earlier owner of the queue are ghosts.
            found = plan.channels[queue] = (*place, {})
        plan.changed.add(queue)
        plan.members[member] = queue, local
        channel = name.decode("ascii")
        capacity = self._capacity(channel)
        if capacity is None:
            self._unknown.append(channel)
            return
        found[2][local] = capacity

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
