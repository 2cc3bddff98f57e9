"""The memory map: every offset and struct of a segment, with its version. It holds numbers and must
not read or write memory. ``docs/memory-map.rst`` is drawn from this file.

A segment is divided into regions, in this order::

    header      one page: identity, sizes, the lock, the state words
    processes   attached processes, one row each
    waiters     threads and event loops that can be rung, one row each
    queues      channels by name (a table)
    groups      groups by name (a table)
    members     memberships by group and channel (a table)
    log         the messages: a ring of records in order of arrival

Everything is counted in *words* of 8 bytes. A reference to a row or a record is the index of its
first word, so that following it is a single load. 0 refers to nothing. Some words are two *halves*
of 4 bytes, which are named by their index in halves. Times are seconds of CLOCK_MONOTONIC, stored
as doubles.

*Primary* words are the truth. A killed process leaves them whole, because each is a single store of
8 bytes (or of a half), made after everything that it stands for. *Derived* words (marked as such)
make access fast. ``recovery`` computes them from the primary ones.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

MAGIC = int.from_bytes(b"asgi_ipc", "little")
VERSION = 2  # of everything in this file; increment it with any change

WORD = 8
PAGE = 4096

# -- header: identity, written once by the creator; MAGIC last, which publishes the segment ------
H_MAGIC = 0
H_VERSION = 1
H_SIZE = 2  # bytes of the whole segment
H_NONCE = 3  # random; names the doorbells of this segment and no other
H_MACHINE = 4  # libc family, word size and processor: which processes may touch the lock
H_PID_NS = 5  # inode of the PID namespace
H_TIME_NS = 6  # inode of the time namespace
H_LOCK_KIND = 7  # LOCK_MUTEX or LOCK_FILE
H_MESSAGE_MEMORY = 8  # the three sizes that determine the rest of the map, bytes
H_GROUP_MEMORY = 9
H_MAX_MESSAGE = 10
H_MODE = 11  # permission bits
H_CREATED = 12  # time
H_MEMBERS = 13  # inode of the file of byte locks: once it is removed, nobody can tell who is alive

LOCK_MUTEX, LOCK_FILE = 1, 2

# -- header: the lock, in its own cache line ------------------------------------------------------
H_LOCK = 32  # 8 words, room for any pthread_mutex_t
LOCK_BYTES = 64

# -- header: state, changed under the lock --------------------------------------------------------
S_DIRTY = 40  # primary: CLEAN, or what a section was doing when it stopped
S_ENDS = 41  # primary: two halves, the ends of the log
HALF_TAIL = 2 * S_ENDS
HALF_HEAD = 2 * S_ENDS + 1  # storing it publishes a record
S_SEQ = 42  # sequence number of the newest record
S_LIVE = 43  # derived: words of live records; CROWDED is added while senders wait for memory
S_MARK = 44  # primary: where the log wraps; everything before it is reserved
S_BIGGEST = 45  # words of the biggest record since the log was last empty
S_COUNTER = 46  # primary: generations, versions and epochs; never reset
S_EPOCH = 47  # primary: changes with each flush
S_SEQ_BASE = 48  # SEQ at creation or the last flush
S_SINCE = 49  # time of creation or the last flush
S_LIMIT = 50  # derived: the head moves up to this word without a call of `Log.make_room`
S_REFUSED = 51  # messages refused with ChannelFull since creation or the last flush
S_RECOVERIES = 52
S_MOVES = 53  # records copied to the head to let the tail move
S_SWEEP_AT = 54  # time when the next sweep is due; the first process to notice does it
S_BURY_AT = 55  # time when the next check for dead processes is due; likewise
S_DROPS = 56  # 8 words: messages dropped, by reason
S_TABLES = 64  # 3 × TABLE_WORDS: queues, groups, members
S_PEAK = 88  # most words of live records that the upkeep has seen since creation
S_LOCK_WAITS = 89  # calls that had to sleep for the lock since creation,
S_LOCK_WAITED = 90  # the nanoseconds that they waited,
S_LOCK_LONGEST = 91  # and the longest of these waits
S_ABANDONED = 92  # memberships of abandoned channels, ended since creation or the last flush
S_ENOUGH = 93  # words of live records at which senders that wait for memory try again
S_SENDING = 96  # bit i: word i of the set of senders that wait for memory is not empty
S_SENDERS = 97  # 17 words: that set, one bit for each waiter row
S_OFFERED = 114  # time when a sender found room that waiting senders were promised; 0.0 if none did
S_NEXT_SENDER = 115  # lower 16 bits: waiter id to ring next; above: how many were rung

CLEAN, DIRTY, FLUSHING = 0, 1, 2

CROWDED = 1 << 32  # added to a count: senders wait, or were rung and have not answered yet
COUNT = CROWDED - 1  # the bits of the count itself

# Reasons for a drop, in the order of the words at S_DROPS.
EXPIRED, CAPACITY, MEMORY, UNDECODABLE, DEAD_OWNER, BUFFER = range(6)
DROP_REASONS = ("expired", "capacity", "memory", "undecodable", "dead_owner", "buffer")

# Words of a table in the header.
T_HIGH = 0  # primary: rows ever used since the last flush
T_FREE = 1  # derived: first free row
T_USED = 2  # derived: rows in use
T_RESERVED = 3  # primary: bytes of the table's region that are reserved
T_CURSOR = 4  # index of the row where the next sweep starts
TABLE_WORDS = 8

# -- processes: fixed rows ------------------------------------------------------------------------
P_GENERATION = 0  # primary: 0 is a free row; stored last
P_PID = 1
P_ATTACHED = 2  # time
P_UID = 3
P_DEAD_SINCE = 4  # time when its byte lock was found free; 0.0 while it is alive
P_OWNED = 5  # derived: first queue that it owns
P_LEFT = 6  # 1 if it detached instead of being killed
PROCESS_WORDS = 8
MAX_PROCESSES = 1024

# -- waiters: fixed rows --------------------------------------------------------------------------
W_GENERATION = 0  # primary: names the doorbell, and is stored once that is open
W_PROCESS = 1  # reference of its process's row
W_PROCESS_GENERATION = 2  # 0 is a free row; without W_GENERATION the doorbell is not open yet
W_TAKEN = 3  # the generation that was given out with the id
WAITER_WORDS = 4
MAX_WAITERS = 1088  # id 0 stands for nobody

# -- tables: what every row begins with -----------------------------------------------------------
# Row i also holds the head of hash bucket i, so that there are as many buckets as rows (linear
# hashing).
R_BUCKET = 0  # derived: first row of bucket i
R_CHAIN = 1  # derived: next row of this row's bucket; in a free row, the next free row
R_GENERATION = 2  # primary: 0 is a free row; stored last
R_KEY = 3  # primary: hash << 32 | bytes of the name

# -- queue rows -----------------------------------------------------------------------------------
Q_FIRST = 4  # derived: oldest record
Q_LAST = 5  # derived: newest record
Q_PENDING = 6  # derived: messages pending; CROWDED is added while senders wait for room here
Q_OWNER = 7  # primary: reference of the process that receives here; 0 for none
Q_OWNER_GENERATION = 8  # primary: and its generation
Q_NEXT_OWNED = 9  # derived: next queue of the same owner
Q_MEMBERS = 10  # derived: memberships that lead here
Q_SENT = 11  # messages sent since the row was made
Q_REFUSED = 12  # messages refused with ChannelFull
Q_CREATED = 13  # time
Q_SEEN = 14  # Q_SENT at the sweep's last visit, and
Q_SEEN_AT = 15  # when that was; the row of a queue that stays empty and idle is reclaimed
Q_CAPACITY = 16  # messages that may be pending, for the last sender that looked the queue up
Q_FIRST_MEMBER = 17  # derived: newest membership that leads here
Q_WAITING = 18  # bit i: word i of the waiter set is not empty
Q_WAITERS = 19  # 17 words: the waiter set, one bit for each waiter row
Q_NAME = 36  # 13 words
Q_DROPS = 49  # 6 words: messages dropped here, by reason
Q_SENDING = 55  # bit i: word i of the set of senders that wait for room is not empty
Q_SENDERS = 56  # 17 words: that set, one bit for each waiter row
Q_OFFERED = 73  # time when a sender found room that waiting senders were promised; 0.0 if none did
Q_NEXT_SENDER = 74  # lower 16 bits: waiter id to ring next; above: how many were rung
# Hints about rings, see `wakes`. Nothing relies on them.
Q_RUNG = 75  # time of the last ring that nobody has answered; 0.0 if there is none
Q_QUICK = 76  # 1 if the last receiver came back sooner than a wakeup takes
Q_OWED = 77  # 1 if a ring was left out
QUEUE_WORDS = 78
WAITER_SET_WORDS = MAX_WAITERS // 64

# -- group rows -----------------------------------------------------------------------------------
G_FIRST = 4  # derived: newest membership
G_COUNT = 5  # derived: memberships
G_VERSION = 6  # counts joins and leaves; a sender keeps its plan of a broadcast until it changes
G_NAME = 7  # 13 words
G_RECENT = 20  # 16 words: change number v, at v modulo 16: member row << 1 | whether it joined
GROUP_WORDS = 36
RECENT_CHANGES = 16

# -- member rows ----------------------------------------------------------------------------------
M_GROUP = 4  # primary: the group's row
M_QUEUE = 5  # primary: the row of the queue that the channel is kept in,
M_QUEUE_GENERATION = 6  # primary: and its generation; if that has changed, the reader is gone
M_EXPIRES = 7  # primary: time
M_NEXT = 8  # derived: list of the group
M_PREV = 9  # derived
M_QUEUE_NEXT = 10  # derived: list of the queue
M_QUEUE_PREV = 11  # derived
M_NAME = 12  # 13 words: the channel's full name
MEMBER_WORDS = 25

NAME_WORDS = 13  # 104 bytes

# Bytes of group memory for each membership: 4,000 fit in a million, as asgi_ipc 1 promised.
BYTES_A_MEMBER = 250

# -- log records ----------------------------------------------------------------------------------
L_SIZE = 0  # primary: half, words of the record
L_STATE = 1  # primary: half, LIVE or DEAD
L_SEQ = 1  # primary
L_NEXT = 2  # derived: next record of its queue
L_PREV = 3  # derived
L_QUEUE = 8  # primary: half, reference of the queue
L_LENGTH = 9  # primary: half, bytes of the body
L_EXPIRES = 5  # primary: time
L_SENT = 6  # primary: time
L_LOCALS = 14  # primary: half, bytes of the local parts
L_CHECK = 15  # primary: half, checksum
RECORD_WORDS = 8  # then the local parts, joined by LOCAL_SEPARATOR, then the body
RECORD = struct.Struct("=IIQQQIIddII")
TAKEN = struct.Struct("=IIQQ8xIId12xI")  # the fields that `Queues.take` needs

LIVE, DEAD = 1, 2
LOCAL_SEPARATOR = b","  # occurs in no name
MAX_LOCALS = 1 << 20  # bytes of local parts in one record; a larger broadcast takes several
LEAST_LOCALS = 1024  # and those that have room beside the largest message

# Bytes that the largest message may take beyond its own size: its record, its local parts, and what
# rounds both up.
OVERHEAD = RECORD_WORDS * WORD + LEAST_LOCALS + 2 * WORD

FIRST_MARK = 64 * 1024  # bytes of log that a fresh segment reserves
MAX_WORDS = (1 << 32) - 1  # of a segment: the ends of the log are halves


class TableMap(NamedTuple):
    """Where a table is: its words in the header, its first row, the words of a row, the most rows
    that it can have."""

    state: int
    base: int
    words: int
    rows: int

    @property
    def end(self) -> int:
        return self.base + self.rows * self.words


class Layout:
    """The map of one segment, computed from its three sizes in bytes."""

    def __init__(self, message_memory: int, group_memory: int, max_message_size: int) -> None:
        self.message_memory = message_memory
        self.group_memory = group_memory
        self.max_message_size = max_message_size
        self.processes = PAGE // WORD
        self.waiters = self.processes + MAX_PROCESSES * PROCESS_WORDS
        at = _page(self.waiters + MAX_WAITERS * WAITER_WORDS)
        self.fixed_bytes = at * WORD  # header, processes and waiters: reserved at creation
        members = max(64, group_memory // BYTES_A_MEMBER)
        # One queue for each KiB of messages and one for each membership, so that the queues do not
        # run out first.
        queues = max(1024, message_memory // 1024) + members
        self.queues = TableMap(S_TABLES, at, QUEUE_WORDS, queues)
        at = _page(self.queues.end)
        self.groups = TableMap(S_TABLES + TABLE_WORDS, at, GROUP_WORDS, members)
        at = _page(self.groups.end)
        self.members = TableMap(S_TABLES + 2 * TABLE_WORDS, at, MEMBER_WORDS, members)
        self.log = _page(self.members.end)
        # The limit of what may be pending: every record counts whole.
        self.max_live = message_memory // WORD
        # The local parts of a broadcast share a record with the largest message: they may take half
        # of what that leaves.
        beside = max(message_memory - max_message_size - OVERHEAD, 0)
        self.max_locals = min(MAX_LOCALS, LEAST_LOCALS + beside // 2)
        self.max_record = record_words(max_message_size, self.max_locals)
        # Live records take up at most three quarters of the log, and room for two of the biggest
        # stays free: a record that blocks the tail can then always be copied elsewhere.
        self.log_end = _page(self.log + self.max_live * 4 // 3 + 2 * self.max_record)
        self.size = self.log_end * WORD

    @property
    def largest_fits(self) -> bool:
        """Whether `message_memory` has room for a message of `max_message_size`."""
        return self.max_message_size + OVERHEAD <= self.message_memory


def record_words(body: int, local_parts: int) -> int:
    """Return the words of a record with `body` and `local_parts` bytes; the number is even."""
    return RECORD_WORDS + ((body + local_parts + 15) >> 4 << 1)


def _page(word: int) -> int:
    return (word * WORD + PAGE - 1) // PAGE * PAGE // WORD
