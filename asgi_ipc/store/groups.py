"""Groups: the memberships in a store.

Like the store, this must not use a clock, a lock or a system call. A membership is a row that is
found by its group and channel, through the list of its group, and through the list of the queue
that its channel is kept in. It names that queue by row and generation. When the reader of a queue
is gone, the queue's row gets another generation, and the memberships that lead there become
*ghosts*: nobody sees them any more, and a sweep frees them.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable

from ..errors import CorruptStore, LimitReached
from . import layout as at
from .queues import Target
from .store import Store

_AT_ONCE = 256  # ghosts freed in one call that needs room


class Groups:
    """The memberships in `store`."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def add(
        self,
        group: bytes,
        channel: bytes,
        now: float,
        expires: float,
        claim: Callable[[int, float], object] | None = None,
    ) -> bool:
        """Make `channel` a member of `group` until `expires`, or renew its membership. Returns
        whether it is a new member.

        `claim(row, now)` makes this process the owner of the channel's queue before it is a member.

        Raises LimitReached, with nothing changed, if the group memory is used up.
        """
        store, words = self.store, self.store.words
        queue = Target(channel[: channel.find(b"!") + 1] or channel)
        row = store.groups.find(group)
        member = store.members.find(channel, row) if row else 0
        if member and not self.alive(member, now):
            self._remove(member)  # what comes back is a new membership
            member = 0
        room = bool(member) or self._ensure_room(now)
        row = store.groups.find(group)  # making room may have freed it
        if not room:
            full = store.members.is_full or store.groups.is_full
            raise LimitReached(
                f"no room for channel {channel.decode('ascii')!r} in group "
                f"{group.decode('ascii')!r}: "
                + (
                    f"group_memory is used up by {store.members.used} memberships in "
                    f"{store.groups.used} groups. Raise it in all processes of this prefix, or "
                    "lower group_expiry"
                    if full
                    else store.shortage()
                )
            )
        store.require(queue, now)
        if claim is not None:
            claim(queue.row, now)
            if words[queue.row + at.R_GENERATION] != queue.generation:
                # An earlier owner died: the membership that was found is a ghost.
                return self.add(group, channel, now, expires)
        words[at.S_DIRTY] = at.DIRTY
        renewed = bool(member)
        if member:
            sooner = expires < store.doubles[member + at.M_EXPIRES]
            store.doubles[member + at.M_EXPIRES] = expires
            if sooner:  # senders must learn of that
                self._note_change(row, member, joined=True)
        else:
            if not row:
                row = store.groups.insert(group, store.advance_counter(), {})
            fields = {
                at.M_GROUP: row,
                at.M_QUEUE: queue.row,
                at.M_QUEUE_GENERATION: queue.generation,
                at.M_EXPIRES: int.from_bytes(struct.pack("=d", expires), sys.byteorder),
            }
            member = store.members.insert(channel, store.advance_counter(), fields, row)
            self.link(member)
            self._note_change(row, member, joined=True)
        words[at.S_DIRTY] = at.CLEAN
        return not renewed

    def discard(self, group: bytes, channel: bytes) -> None:
        """End the membership, if there is one."""
        store = self.store
        row = store.groups.find(group)
        member = store.members.find(channel, row) if row else 0
        if member:
            self._remove(member)

    def abandon(
        self, queue: int, generation: int, counter_of: Callable[[bytes], int], member: int
    ) -> int:
        """End and count the memberships of abandoned channels of one queue, a bounded number for
        each call.

        ``counter_of(local part)`` is what the counter was when the channel became suspect, and 0 if
        it is not abandoned. Memberships that were made later stay.

        `member` is 0 in the first call, and then what the last call returned, until that is 0.
        """
        words = self.store.words
        if words[queue + at.R_GENERATION] != generation:
            return 0
        if member:
            self.store.members.checked(member)
            if not words[member + at.R_GENERATION] or words[member + at.M_QUEUE] != queue:
                member = 0  # it has left meanwhile: start again
        member = member or words[queue + at.Q_FIRST_MEMBER]
        for _ in range(_AT_ONCE):
            if not member:
                return 0
            following = words[self.store.members.checked(member) + at.M_QUEUE_NEXT]
            local = self.store.members.name(member).partition(b"!")[2]
            if words[member + at.R_GENERATION] <= counter_of(local):
                self._remove(member)
                words[at.S_ABANDONED] += 1
            member = following
        return member

    def ending(
        self, queue: int, generation: int, now: float, before: float, member: int
    ) -> tuple[list[tuple[str, str]], int]:
        """Find memberships of the channels of one queue that end between `now` and `before`, among
        a bounded number for each call.

        Returns them as (group, channel), and what `member` is in the next call, 0 if there is none.
        In the first call it is 0.
        """
        store, words = self.store, self.store.words
        found: list[tuple[str, str]] = []
        if words[queue + at.R_GENERATION] != generation:
            return found, 0
        if member:
            store.members.checked(member)
            if not words[member + at.R_GENERATION] or words[member + at.M_QUEUE] != queue:
                return found, 0  # it has left meanwhile: the next look finds the others
        member = member or words[queue + at.Q_FIRST_MEMBER]
        for _ in range(_AT_ONCE):
            if not member:
                break
            if now < store.doubles[store.members.checked(member) + at.M_EXPIRES] < before:
                group = store.groups.checked(words[member + at.M_GROUP])
                names = store.groups.name(group), store.members.name(member)
                found.append((names[0].decode("ascii", "replace"), names[1].decode("ascii")))
            member = words[member + at.M_QUEUE_NEXT]
        return found, member

    def channels(self, group: bytes, now: float) -> list[str]:
        """Return the full names of the living members, oldest first."""
        row = self.store.groups.find(group)
        found = [
            self.store.members.name(member).decode("ascii", "replace")
            for member in (self.members(row) if row else ())
            if self.alive(member, now)
        ]
        found.reverse()
        return found

    def find(self, group: bytes) -> int:
        """Return the group's row, or 0 if it has no members."""
        return self.store.groups.find(group)

    def state(self, row: int) -> tuple[int, int]:
        """Return (generation, version) of the group at `row`."""
        words = self.store.words
        return words[row + at.R_GENERATION], words[row + at.G_VERSION]

    def sweep(self, now: float, limit: int) -> None:
        """Free ghosts and expired memberships among the next `limit` rows."""
        for member in self.store.members.sweep(limit):
            if not self.alive(member, now):
                self._remove(member)

    def rebuild(self) -> None:
        """Compute the lists of groups and queues, after the tables have been rebuilt."""
        store, words = self.store, self.store.words
        for row in store.groups.rows():
            words[row + at.G_FIRST] = words[row + at.G_COUNT] = 0
            # Nobody knows which changes were noted: every plan has to count as too old.
            version = words[row + at.G_VERSION] + at.RECENT_CHANGES + 1
            words[row + at.G_VERSION] = version % (1 << 62)
        for row in store.queues.rows():
            words[row + at.Q_MEMBERS] = words[row + at.Q_FIRST_MEMBER] = 0
        for member in list(store.members.rows()):
            group, queue = words[member + at.M_GROUP], words[member + at.M_QUEUE]
            store.groups.checked(group)
            store.queues.checked(queue)
            if words[group + at.R_GENERATION] and words[queue + at.R_GENERATION]:
                self.link(member)
            else:
                store.members.remove(member)
        for row in list(store.groups.rows()):
            if not words[row + at.G_COUNT]:
                store.groups.remove(row)

    def link(self, member: int) -> None:
        """Enter a new member row into the lists of its group and of its queue."""
        words = self.store.words
        group, queue = words[member + at.M_GROUP], words[member + at.M_QUEUE]
        checked = self.store.members.checked
        first = words[group + at.G_FIRST]
        words[member + at.M_PREV] = 0
        words[member + at.M_NEXT] = first
        if first:
            words[checked(first) + at.M_PREV] = member
        words[group + at.G_FIRST] = member
        words[group + at.G_COUNT] += 1
        first = words[queue + at.Q_FIRST_MEMBER]
        words[member + at.M_QUEUE_PREV] = 0
        words[member + at.M_QUEUE_NEXT] = first
        if first:
            words[checked(first) + at.M_QUEUE_PREV] = member
        words[queue + at.Q_FIRST_MEMBER] = member
        words[queue + at.Q_MEMBERS] += 1

    def _remove(self, member: int) -> None:
        store, words = self.store, self.store.words
        group = store.groups.checked(words[member + at.M_GROUP])
        queue = store.queues.checked(words[member + at.M_QUEUE])
        checked = store.members.checked
        words[at.S_DIRTY] = at.DIRTY
        following, before = words[member + at.M_NEXT], words[member + at.M_PREV]
        if following:
            words[checked(following) + at.M_PREV] = before
        if before:
            words[checked(before) + at.M_NEXT] = following
        else:
            words[group + at.G_FIRST] = following
        words[group + at.G_COUNT] -= 1
        self._note_change(group, member, joined=False)
        following, before = words[member + at.M_QUEUE_NEXT], words[member + at.M_QUEUE_PREV]
        if following:
            words[checked(following) + at.M_QUEUE_PREV] = before
        if before:
            words[checked(before) + at.M_QUEUE_NEXT] = following
        else:
            words[queue + at.Q_FIRST_MEMBER] = following
        words[queue + at.Q_MEMBERS] -= 1
        store.members.remove(member)
        if not words[group + at.G_COUNT]:
            store.groups.remove(group)
        words[at.S_DIRTY] = at.CLEAN

    def _note_change(self, group: int, member: int, joined: bool) -> None:
        """Note that a member has joined or left, for the plans that senders keep (`plans`)."""
        words = self.store.words
        version = words[group + at.G_VERSION] + 1
        words[group + at.G_RECENT + version % at.RECENT_CHANGES] = member << 1 | joined
        words[group + at.G_VERSION] = version

    def alive(self, member: int, now: float) -> bool:
        """Return whether a membership has not expired, and its reader is not known to be gone."""
        words = self.store.words
        queue = self.store.queues.checked(words[member + at.M_QUEUE])
        return (
            self.store.doubles[member + at.M_EXPIRES] > now
            and words[queue + at.R_GENERATION] == words[member + at.M_QUEUE_GENERATION]
        )

    def members(self, group: int) -> list[int]:
        """Return the member rows of a group, newest first."""
        words, found = self.store.words, []
        member = words[group + at.G_FIRST]
        limit = self.store.members.used
        while member:
            found.append(self.store.members.checked(member))
            if len(found) > limit:
                raise CorruptStore("the list of members of a group forms a loop")
            member = words[member + at.M_NEXT]
        return found

    def _ensure_room(self, now: float) -> bool:
        """Free ghosts if needed; return whether there is a row for a member and for a group."""
        store = self.store
        if not (store.members.ensure_room() and store.groups.ensure_room()):
            self.sweep(now, _AT_ONCE)
        return store.members.ensure_room() and store.groups.ensure_room()
