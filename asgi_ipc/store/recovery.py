"""Recovery, flush, and what a segment must look like: the three that read it from end to end.

`recover` is the one answer to a dirty store, whatever made it dirty: a process killed in the
middle of a call, an exception out of a signal handler, or an earlier recovery that was itself
interrupted. It trusts only what is primary (see `layout`) and computes the rest anew, so that
doing it twice, or half and then whole, comes to the same.
"""

from __future__ import annotations

from .groups import Groups
from .layout import (
    CLEAN,
    DEAD,
    FIRST_MARK,
    FLUSHING,
    L_NEXT,
    L_PREV,
    L_QUEUE,
    L_SEQ,
    L_SIZE,
    L_STATE,
    MAX_PROCESSES,
    P_GENERATION,
    P_OWNED,
    PROCESS_WORDS,
    Q_FIRST,
    Q_LAST,
    Q_NEXT_OWNED,
    Q_OWNER,
    Q_OWNER_GENERATION,
    Q_PENDING,
    Q_WAITERS,
    Q_WAITING,
    R_GENERATION,
    S_BIGGEST,
    S_BURY_AT,
    S_COUNTER,
    S_DIRTY,
    S_DROPS,
    S_ENDS,
    S_EPOCH,
    S_LIMIT,
    S_LIVE,
    S_MARK,
    S_MOVES,
    S_RECOVERIES,
    S_REFUSED,
    S_SEQ,
    S_SEQ_BASE,
    S_SINCE,
    S_SWEEP_AT,
    WAITER_SET_WORDS,
    WORD,
)
from .store import Store


def recover(store: Store, now: float) -> None:
    """Make a dirty store whole. Every published message is in its queue afterwards, in order.

    The caller then rings every waiter: their bits are gone. Raises CorruptStore, and leaves the
    store dirty, when the primary words cannot be right; `flush` mends that.
    """
    words = store.words
    if words[S_DIRTY] == FLUSHING:
        flush(store, now)
        return
    words[S_RECOVERIES] += 1
    for table in (store.queues, store.groups, store.members):
        table.rebuild()
    for row in store.queues.rows():
        words[row + Q_FIRST] = words[row + Q_LAST] = words[row + Q_PENDING] = 0
        words[row + Q_WAITING] = 0
        for word in range(row + Q_WAITERS, row + Q_WAITERS + WAITER_SET_WORDS):
            words[word] = 0
    _relink_messages(store)
    _relink_owners(store)
    Groups(store).rebuild()
    words[S_DIRTY] = CLEAN


def flush(store: Store, now: float) -> None:
    """Forget all messages, queues and groups (A7). Interrupted, it is completed by `recover`.

    Processes and waiters stay, and so does the memory, although it has to be reserved again (which
    costs nothing then). The caller rings every waiter: they park anew. Nothing that was there is
    believed: this is also what mends a damaged store.
    """
    words = store.words
    words[S_DIRTY] = FLUSHING
    for word in (S_COUNTER, S_SEQ, S_RECOVERIES, S_MOVES):
        if words[word] >> 62:
            words[word] = 0  # it would soon be past what a word holds
    # Above every generation that was ever given out, even if the counter was set back: there is
    # less than one for each nanosecond.
    words[S_COUNTER] = max(words[S_COUNTER], int(now * 1e9))
    words[S_EPOCH] = store.advance_counter()
    words[S_ENDS] = store.log.empty
    words[S_LIVE] = words[S_BIGGEST] = words[S_LIMIT] = 0
    words[S_MARK] = store.layout.log + FIRST_MARK // WORD
    store.doubles[S_SWEEP_AT] = store.doubles[S_BURY_AT] = 0.0
    for process in _processes(store):
        words[process + P_OWNED] = 0
    for table in (store.members, store.groups, store.queues):
        table.clear()
    for word in range(S_DROPS, S_DROPS + 8):
        words[word] = 0
    words[S_REFUSED] = 0
    words[S_SEQ_BASE] = words[S_SEQ]
    store.doubles[S_SINCE] = now
    words[S_DIRTY] = CLEAN


def _relink_messages(store: Store) -> None:
    words, queues = store.words, store.queues
    records = sorted(store.log.records(), key=lambda at: words[at + L_SEQ])
    live = biggest = newest = 0
    for at in records:
        size = store.halves[2 * at + L_SIZE]
        seq = words[at + L_SEQ]
        row = queues.checked(store.halves[2 * at + L_QUEUE])
        if seq == newest or not words[row + R_GENERATION]:
            # The second half of a move that was not finished, or of a queue that is gone.
            store.halves[2 * at + L_STATE] = DEAD
            continue
        newest = seq
        last = words[row + Q_LAST]
        words[at + L_PREV] = last
        words[at + L_NEXT] = 0
        words[last + L_NEXT if last else row + Q_FIRST] = at
        words[row + Q_LAST] = at
        words[row + Q_PENDING] += 1
        live += size
        biggest = max(biggest, size)
    words[S_LIVE] = live
    words[S_BIGGEST] = biggest
    words[S_LIMIT] = 0
    words[S_SEQ] = max(words[S_SEQ], newest)
    if not live:
        words[S_ENDS] = store.log.empty


def _relink_owners(store: Store) -> None:
    words = store.words
    for process in _processes(store):
        words[process + P_OWNED] = 0
    for row in store.queues.rows():
        owner = words[row + Q_OWNER]
        if owner and words[store.process(owner) + P_GENERATION] == words[row + Q_OWNER_GENERATION]:
            words[row + Q_NEXT_OWNED] = words[owner + P_OWNED]
            words[owner + P_OWNED] = row
        else:
            words[row + Q_OWNER] = 0


def _processes(store: Store) -> range:
    start = store.layout.processes
    return range(start, start + MAX_PROCESSES * PROCESS_WORDS, PROCESS_WORDS)
