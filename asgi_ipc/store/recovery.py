"""Recovery and flush: what makes a dirty or damaged store usable again.

`recover` is the only answer to a dirty store, whether a process was killed in the middle of a call,
a signal handler raised an exception, or an earlier recovery was itself interrupted. It must trust
only primary words (see `layout`). It computes the derived ones from them, so it can be interrupted
and repeated.
"""

from __future__ import annotations

from . import layout as at
from .groups import Groups
from .store import Store


def recover(store: Store, now: float) -> None:
    """Repair a dirty store. Every published message is then in its queue, in order.

    The waiter sets are empty afterwards, so the caller rings every waiter. If the primary words
    cannot be right, it raises CorruptStore and leaves the store dirty; `flush` repairs that.
    """
    words = store.words
    if words[at.S_DIRTY] == at.FLUSHING:
        flush(store, now)
        return
    words[at.S_RECOVERIES] += 1
    for table in (store.queues, store.groups, store.members):
        table.rebuild()
    for row in store.queues.rows():
        words[row + at.Q_FIRST] = words[row + at.Q_LAST] = words[row + at.Q_PENDING] = 0
        _empty(store, row + at.Q_WAITING)
        _empty(store, row + at.Q_SENDING)
        words[row + at.Q_OFFERED] = 0
        words[row + at.Q_RUNG] = words[row + at.Q_QUICK] = words[row + at.Q_OWED] = 0
    _empty(store, at.S_SENDING)
    words[at.S_OFFERED] = 0
    _relink_messages(store)
    _relink_owners(store)
    Groups(store).rebuild()
    words[at.S_DIRTY] = at.CLEAN


def flush(store: Store, now: float) -> None:
    """Forget all messages, queues and groups. If this is interrupted, `recover` completes it.

    Processes and waiters stay. The memory stays reserved, but the store asks for it again. The
    caller rings every waiter, so that it parks again. Nothing that was there is trusted, so this
    also repairs a damaged store.
    """
    words = store.words
    words[at.S_DIRTY] = at.FLUSHING
    for word in (at.S_COUNTER, at.S_SEQ, at.S_RECOVERIES, at.S_MOVES):
        if words[word] >> 62:
            words[word] = 0  # it was damaged, and would soon overflow
    # Fewer generations are given out than nanoseconds pass. So the time exceeds all of them, even
    # if the counter was damaged.
    words[at.S_COUNTER] = max(words[at.S_COUNTER], int(now * 1e9))
    epoch = store.advance_counter()
    if epoch == words[at.S_EPOCH]:  # damaged: an inbox would not see that anything was flushed
        epoch = store.advance_counter()
    words[at.S_EPOCH] = epoch
    words[at.S_ENDS] = store.log.empty
    words[at.S_LIVE] = words[at.S_BIGGEST] = words[at.S_LIMIT] = 0
    _empty(store, at.S_SENDING)
    words[at.S_OFFERED] = 0
    words[at.S_MARK] = store.layout.log + at.FIRST_MARK // at.WORD
    store.doubles[at.S_SWEEP_AT] = store.doubles[at.S_BURY_AT] = 0.0
    for process in store.process_rows():
        words[process + at.P_OWNED] = 0
    for table in (store.members, store.groups, store.queues):
        table.clear()
    for word in range(at.S_DROPS, at.S_DROPS + 8):
        words[word] = 0
    words[at.S_REFUSED] = words[at.S_ABANDONED] = 0
    words[at.S_SEQ_BASE] = words[at.S_SEQ]
    store.doubles[at.S_SINCE] = now
    words[at.S_DIRTY] = at.CLEAN


def _empty(store: Store, place: int) -> None:
    """Empty a waiter set, whose summary is at `place`."""
    for word in range(place, place + 1 + at.WAITER_SET_WORDS):
        store.words[word] = 0


def _relink_messages(store: Store) -> None:
    words, queues = store.words, store.queues
    records = sorted(store.log.live_records(), key=lambda record: words[record + at.L_SEQ])
    live = biggest = newest = 0
    for record in records:
        size = store.halves[2 * record + at.L_SIZE]
        seq = words[record + at.L_SEQ]
        row = queues.checked(store.halves[2 * record + at.L_QUEUE])
        if seq == newest or not words[row + at.R_GENERATION]:
            # The other copy of a move that was not finished, or a message of a queue that is gone.
            store.halves[2 * record + at.L_STATE] = at.DEAD
            continue
        newest = seq
        last = words[row + at.Q_LAST]
        words[record + at.L_PREV] = last
        words[record + at.L_NEXT] = 0
        words[last + at.L_NEXT if last else row + at.Q_FIRST] = record
        words[row + at.Q_LAST] = record
        words[row + at.Q_PENDING] += 1
        live += size
        biggest = max(biggest, size)
    words[at.S_LIVE] = live
    words[at.S_BIGGEST] = biggest
    words[at.S_LIMIT] = 0
    words[at.S_SEQ] = max(words[at.S_SEQ], newest)
    if not live:
        words[at.S_ENDS] = store.log.empty


def _relink_owners(store: Store) -> None:
    words = store.words
    for process in store.process_rows():
        words[process + at.P_OWNED] = 0
    for row in store.queues.rows():
        owner = store.owner(row)
        if owner:
            words[row + at.Q_NEXT_OWNED] = words[owner + at.P_OWNED]
            words[owner + at.P_OWNED] = row
        else:
            words[row + at.Q_OWNER] = 0
