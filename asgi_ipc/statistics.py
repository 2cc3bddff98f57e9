"""The figures of a layer, as dataclasses. ``layer.stats()`` returns them; the command and the
exporter show them. Values only: `inspection` reads them from a segment.

Ages and times are in seconds. A *rate* is per second, over the last ``period`` seconds. *Pending*
messages wait in a queue. Counters start at the creation of the shared memory or at the last flush,
unless they say otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

ENDING = 0.1  # a membership is named when this share of group_expiry, or less, is left of it
UNREAD_AFTER = 10.0  # seconds after which a pending message without a reader causes a warning


def size(count: float) -> str:
    """Bytes as text, the same in the command and in errors."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


@dataclass(frozen=True)
class Rates:
    """Events per second, over the last `period` seconds."""

    period: float
    sent: float  # messages accepted
    left: float  # messages that left their queues: received, expired or flushed
    refused: float  # messages, because the channel or the memory was full
    dropped: float


@dataclass(frozen=True)
class Memory:
    """The memory of the messages and of the whole segment, in bytes."""

    in_use: int  # by messages that wait, with 64 bytes for each; the expired ones until dropped
    high_water: int  # the highest `in_use` since creation; sampled ten times a second
    limit: int  # message_memory: send raises ChannelFull before `in_use` exceeds it
    # Of the machine's memory, by the whole segment; kept until that is removed. It is more than
    # `in_use`: moving messages takes room, and channels and groups are in it, too.
    reserved: int
    size: int  # of the segment's address space: the most that it can reserve


@dataclass(frozen=True)
class Lock:
    """The lock of the segment: the waits for it since creation, and its holder now."""

    kind: str  # "mutex" or "file"
    waits: int  # calls that had to sleep for it
    waited: float  # seconds that they slept in total
    longest: float  # seconds of the longest wait
    holder: int  # process id at this instant; 0 if the lock is free


@dataclass(frozen=True)
class Stats:
    """A layer as a whole."""

    prefix: str
    layout_version: int
    since: float  # seconds since creation or the last flush
    pending: int  # messages
    oldest: float  # seconds that the oldest pending message has waited; 0.0 if there is none
    sent: int  # messages accepted; a group send counts once for each queue that it reaches
    refused: int  # messages, because the channel or the memory was full
    dropped: dict[str, int]  # messages, by reason
    channels: int
    groups: int
    memberships: int
    memberships_limit: int
    abandoned: int  # memberships ended, because nothing was received on their channels any more
    processes: int  # attached
    memory: Memory
    lock: Lock
    recoveries: int  # interrupted calls that were cleared up, since creation
    moves: int  # messages moved to make room for others, since creation
    implementation: str  # of send and receive, where this was asked: "compiled" or "pure" Python
    rates: Rates


@dataclass(frozen=True)
class Channel:
    """A queue. Process-specific channels are counted together, up to the ``!``."""

    name: str
    pending: int  # messages
    capacity: int  # as the last sender to look the channel up had it; 0 before the first
    oldest: float  # seconds that the oldest pending message has waited; 0.0 if there is none
    sent: int  # messages accepted since the channel was created
    refused: int  # messages, because the channel was full
    dropped: dict[str, int]  # messages, by reason
    members: int  # memberships that lead here
    owner: int  # process id of the owner of a process-specific channel; 0 if there is none
    waiting: tuple[int, ...]  # process ids of the receivers that wait here at this instant
    sent_rate: float
    left_rate: float  # messages per second that were received or expired

    @property
    def fill(self) -> float:
        """How full it is, from 0.0 to 1.0; 0.0 if the capacity is unknown."""
        return min(self.pending / self.capacity, 1.0) if self.capacity else 0.0


@dataclass(frozen=True)
class Member:
    """A channel in a group."""

    channel: str
    expires: float  # seconds until the membership ends, unless it is renewed


@dataclass(frozen=True)
class Group:
    """A group and its members, without channels whose readers are gone."""

    name: str
    members: tuple[Member, ...]


@dataclass(frozen=True)
class Ending:
    """A membership of a live channel that ends soon, unless it is renewed."""

    group: str
    channel: str
    expires: float  # seconds until it ends


@dataclass(frozen=True)
class Process:
    """A process that is attached, or that was attached and has not been cleared up after yet."""

    pid: int
    command: str  # command line; "" if it cannot be read
    uid: int
    attached: float  # seconds since it attached
    state: str  # "alive", "stopped" (SIGSTOP or a debugger), "dead", or "left" after it detached
    waiting: tuple[str, ...]  # channels on which it waits at this instant
    owns: tuple[str, ...]  # its process-specific channels
    holds_lock: bool


@dataclass(frozen=True)
class Layer:
    """One layer in the list of layers. If its segment cannot be read, only its size and owner are
    known. None stands for a figure that is unknown, or that this user may not see."""

    prefix: str
    layout_version: int | None
    owner: str  # the user's name, or the uid if that has no name
    mode: str  # permission bits, in octal: "0o600"
    size: int  # bytes of address space
    in_use: int | None  # bytes, by messages
    reserved: int  # bytes of the machine's memory
    pending: int | None  # messages
    processes: int | None  # attached
    problem: str  # why it cannot be read; "" if it can
    foreign: bool  # whether that is because it belongs to another user
