"""Groups: memberships. Part of the store, and sans-IO like it.

A membership is a row that is found by (group, channel), by the list of its group, and by the list
of the queue that its channel is kept in. It names that queue by row and generation: when the
reader of the queue is gone the queue's row gets another generation, and every membership that
leads there is a *ghost*: nobody sees it any more, and the sweep frees it when it comes by.
"""

from __future__ import annotations

import struct
import sys

from ..errors import CorruptStore, LimitReached
from .layout import (
    CLEAN,
    DIRTY,
    G_COUNT,
    G_FIRST,
    G_RECENT,
    G_VERSION,
    M_EXPIRES,
    M_GROUP,
    M_NEXT,
    M_PREV,
    M_QUEUE,
    M_QUEUE_GENERATION,
    M_QUEUE_NEXT,
    M_QUEUE_PREV,
    Q_FIRST_MEMBER,
    Q_MEMBERS,
    R_GENERATION,
    RECENT_CHANGES,
    S_DIRTY,
)
from .queues import NO_ROW, Target
from .store import Store

_AT_ONCE = 256  # ghosts freed in one call that needs room


class Groups:
    """The memberships in `store`."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def add(self, group: bytes, channel: bytes, now: float, expires: float) -> None:
        """Make `channel` a member of `group` until `expires`; again: renew it (A5).

        Raises LimitReached, with nothing changed, when the group memory is used up.
        """
        store, words = self.store, self.store.words
        queue = Target(channel[: channel.find(b"!") + 1] or channel)
        row = store.groups.find(group)
        member = store.members.find(channel, row) if row else 0
        room = bool(member) or self._has_room(now)
        row = store.groups.find(group)  # making room may have freed it
        if not room:
            raise LimitReached(
                f"group memory is full: {store.members.used} memberships in "
                f"{store.groups.used} groups. Raise group_memory for all processes of this "
                "prefix, or lower group_expiry"
            )
        if not store.bind(queue, now):
            raise LimitReached(NO_ROW.format(store.queues.used))
        words[S_DIRTY] = DIRTY
        if member:
            # The row of a queue with members is never reused, so it is the same queue. A ghost, or
            # a membership that had run out, comes back to life: senders must learn of it.
            dead = not self.alive(member, now)
            store.doubles[member + M_EXPIRES] = expires
            if dead:
                words[member + M_QUEUE_GENERATION] = queue.generation
                self._changed(row, member, True)
        else:
            if not row:
                row = store.groups.insert(group, store.advance_counter(), {})
            fields = {
                M_GROUP: row,
                M_QUEUE: queue.row,
                M_QUEUE_GENERATION: queue.generation,
                M_EXPIRES: int.from_bytes(struct.pack("=d", expires), sys.byteorder),
            }
            member = store.members.insert(channel, store.advance_counter(), fields, row)
            self.link(member)
            self._changed(row, member, True)
        words[S_DIRTY] = CLEAN

    def discard(self, group: bytes, channel: bytes) -> None:
        """End the membership, if there is one (A5)."""
        store = self.store
        row = store.groups.find(group)
        member = store.members.find(channel, row) if row else 0
        if member:
            self._remove(member)

    def discard_local(self, queue: int, generation: int, local_parts: set[bytes], at: int) -> int:
        """End all memberships of some local parts of one queue, a bounded number for each call.

        `at` is 0 at first and then what the last call returned, until that is 0.
        """
        words = self.store.words
        if words[queue + R_GENERATION] != generation:
            return 0
        member = self.store.members.checked(at) if at else words[queue + Q_FIRST_MEMBER]
        if at and (not words[at + R_GENERATION] or words[at + M_QUEUE] != queue):
            member = words[queue + Q_FIRST_MEMBER]  # it left meanwhile: begin again
        for _ in range(_AT_ONCE):
            if not member:
                return 0
            following = words[self.store.members.checked(member) + M_QUEUE_NEXT]
            if self.store.members.name(member).partition(b"!")[2] in local_parts:
                self._remove(member)
            member = following
        return member

    def channels(self, group: bytes, now: float) -> list[str]:
        """The full names of the living members, oldest first."""
        row = self.store.groups.find(group)
        found = [
            self.store.members.name(member).decode("ascii", "replace")
            for member in (self.members(row) if row else ())
            if self.alive(member, now)
        ]
        found.reverse()
        return found

    def find(self, group: bytes) -> int:
        """The group's row, 0 if it has no members."""
        return self.store.groups.find(group)

    def state(self, row: int) -> tuple[int, int]:
        """(generation, version) of the group at `row`."""
        words = self.store.words
        return words[row + R_GENERATION], words[row + G_VERSION]

    def sweep(self, now: float, limit: int) -> None:
        """Free ghosts and memberships whose time is over among the next `limit` rows."""
        for member in self.store.members.sweep(limit):
            if not self.alive(member, now):
                self._remove(member)

    def rebuild(self) -> None:
        """Compute the lists of groups and queues anew, after the tables' own rebuild."""
        store, words = self.store, self.store.words
        for row in store.groups.rows():
            words[row + G_FIRST] = words[row + G_COUNT] = 0
            # Which changes were noted is not known: every plan is too old.
            words[row + G_VERSION] = (words[row + G_VERSION] + RECENT_CHANGES + 1) % (1 << 62)
        for row in store.queues.rows():
            words[row + Q_MEMBERS] = words[row + Q_FIRST_MEMBER] = 0
        for member in list(store.members.rows()):
            group, queue = words[member + M_GROUP], words[member + M_QUEUE]
            store.groups.checked(group)
            store.queues.checked(queue)
            if words[group + R_GENERATION] and words[queue + R_GENERATION]:
                self.link(member)
            else:
                store.members.remove(member)
        for row in list(store.groups.rows()):
            if not words[row + G_COUNT]:
                store.groups.remove(row)

    def link(self, member: int) -> None:
        """Enter a new member row into the lists of its group and of its queue."""
        words = self.store.words
        group, queue = words[member + M_GROUP], words[member + M_QUEUE]
        checked = self.store.members.checked
        first = words[group + G_FIRST]
        words[member + M_PREV] = 0
        words[member + M_NEXT] = first
        if first:
            words[checked(first) + M_PREV] = member
        words[group + G_FIRST] = member
        words[group + G_COUNT] += 1
        first = words[queue + Q_FIRST_MEMBER]
        words[member + M_QUEUE_PREV] = 0
        words[member + M_QUEUE_NEXT] = first
        if first:
            words[checked(first) + M_QUEUE_PREV] = member
        words[queue + Q_FIRST_MEMBER] = member
        words[queue + Q_MEMBERS] += 1

    def _remove(self, member: int) -> None:
        store, words = self.store, self.store.words
        group = store.groups.checked(words[member + M_GROUP])
        queue = store.queues.checked(words[member + M_QUEUE])
        checked = store.members.checked
        words[S_DIRTY] = DIRTY
        following, before = words[member + M_NEXT], words[member + M_PREV]
        if following:
            words[checked(following) + M_PREV] = before
        if before:
            words[checked(before) + M_NEXT] = following
        else:
            words[group + G_FIRST] = following
        words[group + G_COUNT] -= 1
        self._changed(group, member, False)
        following, before = words[member + M_QUEUE_NEXT], words[member + M_QUEUE_PREV]
        if following:
            words[checked(following) + M_QUEUE_PREV] = before
        if before:
            words[checked(before) + M_QUEUE_NEXT] = following
        else:
            words[queue + Q_FIRST_MEMBER] = following
        words[queue + Q_MEMBERS] -= 1
        store.members.remove(member)
        if not words[group + G_COUNT]:
            store.groups.remove(group)
        words[S_DIRTY] = CLEAN

    def _changed(self, group: int, member: int, joined: bool) -> None:
        """Note a join or a leave, for the plans that senders keep (`plans`)."""
        words = self.store.words
        version = words[group + G_VERSION] + 1
        words[group + G_RECENT + version % RECENT_CHANGES] = member << 1 | joined
        words[group + G_VERSION] = version

    def alive(self, member: int, now: float) -> bool:
        """Whether a membership's reader lives, as far as is known, and its time is not over."""
        words = self.store.words
        queue = self.store.queues.checked(words[member + M_QUEUE])
        return (
            self.store.doubles[member + M_EXPIRES] > now
            and words[queue + R_GENERATION] == words[member + M_QUEUE_GENERATION]
        )

    def members(self, group: int) -> list[int]:
        """The member rows of a group, newest first."""
        words, found = self.store.words, []
        member = words[group + G_FIRST]
        limit = self.store.members.used
        while member:
            found.append(self.store.members.checked(member))
            if len(found) > limit:
                raise CorruptStore("the members of a group go round in a circle")
            member = words[member + M_NEXT]
        return found

    def _has_room(self, now: float) -> bool:
        store = self.store
        if not (store.members.has_room() and store.groups.has_room()):
            self.sweep(now, _AT_ONCE)
        return store.members.has_room() and store.groups.has_room()
