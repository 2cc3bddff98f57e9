"""What can be known of a layer, as dataclasses: what `layer.stats()`, the command line and the
exporter show. Values only; `inspection` reads them.

Ages and times are seconds. A *rate* is per second, over the ``period`` seconds before. Counts begin
with the creation of the shared memory or with the last flush, unless they say otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rates:
    """What happened per second, over the last `period` seconds."""

    period: float
    sent: float  # messages accepted
    left: float  # messages that left their queues: received, expired or flushed
    refused: float  # ChannelFull raised
    dropped: float


@dataclass(frozen=True)
class Memory:
    """Bytes. What messages take, and what the segment as a whole has taken from the machine."""

    in_use: int  # by messages that wait, and those read but not yet cleared up
    high_water: int  # the most that messages took since creation; looked at ten times a second
    limit: int  # message_memory
    reserved: int  # of the machine's memory, by the whole segment; kept until it is removed
    size: int  # of the segment, in addresses: what it could reserve at the most


@dataclass(frozen=True)
class Lock:
    """The lock of the segment: who waited for it, since creation, and who holds it now."""

    kind: str  # "mutex" or "file"
    waits: int  # calls that had to sleep for it
    waited: float  # seconds that these waited together
    longest: float  # seconds of the longest of these waits
    holder: int  # process id at this instant; 0 if nobody holds it


@dataclass(frozen=True)
class Stats:
    """A layer as a whole."""

    prefix: str
    layout_version: int
    since: float  # seconds since creation or the last flush
    messages: int  # that wait
    oldest: float  # seconds that the oldest of them has been waiting; 0.0 if there is none
    sent: int  # messages accepted; a broadcast counts once for each queue it goes to
    refused: int  # ChannelFull raised
    dropped: dict[str, int]  # messages, by reason
    channels: int
    groups: int
    memberships: int
    memberships_limit: int
    processes: int  # attached
    memory: Memory
    lock: Lock
    recoveries: int  # times that something interrupted was put in order, since creation
    moves: int  # messages moved to make room for others, since creation
    rates: Rates


@dataclass(frozen=True)
class Channel:
    """A queue. Process-specific channels are counted together, up to the ``!``."""

    name: str
    messages: int  # that wait
    capacity: int  # as a sender had it when it last looked the channel up; 0 if nobody has sent yet
    oldest: float  # seconds that the oldest message has been waiting; 0.0 if there is none
    sent: int  # messages accepted since the channel came to be
    refused: int  # ChannelFull raised
    dropped: dict[str, int]
    members: int  # memberships of groups that lead here
    owner: int  # process id of whom it belongs to, if it is process-specific; 0 if to nobody
    waiting: tuple[int, ...]  # process ids of whoever waits here for a message at this instant
    sent_rate: float
    left_rate: float  # messages per second that were received, or expired

    @property
    def fill(self) -> float:
        """How full it is: 0.0 to 1.0, and 0.0 where the capacity is not known."""
        return min(self.messages / self.capacity, 1.0) if self.capacity else 0.0


@dataclass(frozen=True)
class Member:
    """A channel in a group."""

    channel: str
    expires: float  # seconds until the membership ends, unless it is renewed


@dataclass(frozen=True)
class Group:
    """A group and who is in it; channels whose readers are gone are not."""

    name: str
    members: tuple[Member, ...]


@dataclass(frozen=True)
class Process:
    """A process that is attached, or one that was and still has something in the store."""

    pid: int
    command: str  # "" where it cannot be told
    uid: int
    attached: float  # seconds since it attached
    state: str  # "alive", "stopped" (by SIGSTOP or a debugger), "dead", or "left" in good order
    waiting: tuple[str, ...]  # channels that it waits for at this instant
    owns: tuple[str, ...]  # process-specific channels on which it receives
    holds_lock: bool


@dataclass(frozen=True)
class Layer:
    """A line of the list of layers. Of a segment that cannot be read only the outside is known."""

    prefix: str
    layout_version: int  # 0 if it cannot be read
    owner: str  # a user's name, or a uid that has none
    mode: int  # permission bits
    size: int  # bytes of addresses
    in_use: int  # bytes, by messages
    reserved: int  # bytes of the machine's memory
    messages: int
    processes: int
    problem: str  # why it cannot be read; "" if it can
