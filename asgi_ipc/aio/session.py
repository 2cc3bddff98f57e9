"""What every operation of a layer stands on: its options, and the attachment of its process."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from ..attachment.attachment import Attachment, Inherited
from ..attachment.inbox import Inbox
from ..attachment.process import attach, notice_fork, register
from ..codec import Codec
from ..names import check_channel
from ..options import Options
from ..segment.section import Section, SectionOfThree, Waits, call
from ..segment.wanted import Wanted
from ..store import native
from ..store.layout import COUNT, Q_PENDING, S_EPOCH
from ..store.plans import Planner
from ..store.queues import Target
from .fanout import Fanout
from .source import Source

if TYPE_CHECKING:
    from typing_extensions import Self

    from .loop import AsyncioHub

Known = TypeVar("Known")

_STRETCH = 0.02  # seconds that a call may block an event loop for the lock
# Names that a layer remembers: groups, and names that were made up (with a "?" or "!"),
CACHED = 20_000
# and normal ones, which come again. Each costs a process about a kilobyte.
NAMES = 131_072


class Session:
    """What a layer knows while it is attached. Detaching drops all of it by one assignment, so that
    nothing of one attachment is ever used with another. A call in progress keeps the session that
    it began with. Two threads that attach at once each make a session, for the same attachment. The
    layer keeps that of the second, and the first call ends with its own."""

    __slots__ = (
        "attachment",
        "due",
        "exact_sources",
        "fanouts",
        "groups",
        "loop_waiter",
        "own",
        "passing",
        "planner",
        "put",
        "ring",
        "ring_senders",
        "rings",
        "section",
        "section_of_three",
        "sources",
        "store",
        "take",
        "targets",
        "told",
        "usual",
    )

    def __init__(
        self,
        attachment: Attachment,
        section_of_three: SectionOfThree,
        capacity: Callable[[str], int | None],
    ) -> None:
        self.attachment = attachment
        self.due = attachment.due_word
        self.section_of_three = section_of_three
        self.section = _section(section_of_three, attachment)
        self.store = attachment.store
        self.groups = attachment.groups
        self.ring = attachment.ring
        # A caller of `section_of_three` rings these itself.
        self.rings, self.ring_senders = attachment.due_rings, attachment.ring_senders
        self.put = attachment.store.put
        self.take = attachment.store.take
        self.targets: dict[str, Target] = {}  # where to send, by channel
        # The inboxes of queues that this process receives on, and that its sends have found full.
        self.own: dict[bytes, Inbox] = {}
        # Where to receive from, as lists of one: by channel up to the "!", and by full name.
        self.sources: dict[str, list[Source]] = {}
        self.exact_sources: dict[str, list[Source]] = {}
        # The made-up names in each of these dicts (by its id), oldest first.
        known: tuple[dict[str, Any], ...] = self.targets, self.sources, self.exact_sources
        self.passing: dict[int, deque[str]] = {id(each): deque() for each in known}
        self.planner = Planner(attachment.groups, capacity)
        self.fanouts: dict[bytes, Fanout] = {}  # of broadcasts, by group
        self.loop_waiter: AsyncioHub | None = None  # that of the loop that last received
        self.told = -1  # the number of the last flush that subscriptions logged
        self.usual: Any = NEVER  # the compiled path

    @property
    def epoch(self) -> int:
        """The number of the last flush, without the lock."""
        return self.store.words[S_EPOCH]

    def pending(self, place: int) -> bool:
        """Whether waiters at `place` may have something to do, without the lock: a message is
        pending in the queue, or it is a set of senders, which have to look."""
        return self.store.is_room(place) or self.store.words[place + Q_PENDING] & COUNT > 0

    def remember(self, known: dict[str, Known], name: str, what: Known) -> None:
        """Keep what was looked up for a name in `known`. The number of names is bounded."""
        if "?" in name or "!" in name:
            passing = self.passing[id(known)]
            passing.append(name)
            if len(passing) > CACHED:
                known.pop(passing.popleft(), None)
        elif len(known) >= NAMES:
            known.clear()
        known[name] = what


class Never:
    """Stands for the compiled path where it is not in use: no call is usual."""

    def _none(self, *_: object) -> None:
        return None

    send = receive = receive_exact = take = _none


NEVER = Never()


def usual(session: Session, limit: int) -> Any:
    """The compiled path for a session. `limit`: bytes of the largest message."""
    attachment = session.attachment
    if attachment.compiled is None:
        return NEVER
    return native.Usual(
        attachment.compiled,
        session.targets,
        session.sources,
        session.exact_sources,
        limit,
    )


class Base:
    """One layer's view of the attachment that its process has to a prefix."""

    def __init__(self, options: Options, patience: float | None = None) -> None:
        """`patience`: seconds that one call may wait for the lock; by default ``lock_timeout``."""
        self.options = options
        self.prefix = options.prefix
        # Plain numbers: the methods of a subclass of float would run under the lock.
        self.expiry = float(options.expiry)
        self.group_expiry = float(options.group_expiry)
        self.max_message_size = options.max_message_size
        self.codec = Codec(options.symmetric_encryption_keys, options.converter())
        self.encode, self.unpack = self.codec.encode, self.codec.unpack
        self.capacities = options.capacities()
        self.capacity_of = self.capacities.of
        self.spin = options.spin if (os.cpu_count() or 1) > 1 else 0.0
        timeout = options.lock_timeout
        self._waits = Waits(timeout if patience is None else patience, timeout)
        self._wanted = Wanted.of(options)  # refuses an impossible prefix or sizes
        self.session: Session | None = None
        self.client_prefix = ""
        self.own = ""
        self.forked()
        self._turn = 0
        self._samples: dict[str, tuple[float, int, int]] = {}
        register(self)

    @classmethod
    def for_loops(cls, options: Options) -> Self:
        """A core whose calls block an event loop for at most 20 ms."""
        return cls(options, min(_STRETCH, options.lock_timeout / 2))

    # -- attaching --------------------------------------------------------------------------------

    def attach(self, flush: bool = False) -> Session:
        """Return the session; the first call attaches. `flush`: see `Attachment`."""
        notice_fork()
        found = self.session
        if found is None:
            attachment = attach(self._wanted, self._waits, flush)
            attachment.upkeep.group_expiries[self.group_expiry] = None
            section = attachment.make_section_of_three(self._waits)
            found = Session(attachment, section, self.capacities.known)
            limit = attachment.segment.layout.max_message_size
            self.max_message_size = min(self.options.max_message_size, limit)
            if self.codec.is_plain:
                found.usual = usual(found, self.max_message_size)
            self.session = found
            if attachment.detached:  # meanwhile, by another thread: the next call attaches again
                self.session = None
        return found

    def detach(self, attachment: Attachment | None = None) -> None:
        """Forget the attachment (only if it is this one); the next call attaches again."""
        session = self.session
        if attachment is None or (session is not None and session.attachment is attachment):
            self.session = None

    def forked(self) -> None:
        """Take a new name for process-specific channels: at first, and in a forked child."""
        self.client_prefix = os.urandom(8).hex()
        self.own = f".{self.client_prefix}!"

    def new_channel(self, prefix: str) -> str:
        """A new name of this layer for a process-specific channel. Raises InvalidName."""
        notice_fork()
        return check_channel(f"{prefix}{self.own}" + os.urandom(8).hex())

    def upkeep(self, session: Session, now: float) -> None:
        """Do what is due. Raises Inherited if this is a child that was forked since."""
        notice_fork()
        session.attachment.do_upkeep(now, self.expiry, session.section)

    def after_upkeep(self, session: Session, now: float) -> Session:
        """Do what is due, and return the session to use now: another one in a forked child."""
        try:
            self.upkeep(session, now)
        except Inherited:
            return self.attach()
        return session


def _section(of_three: SectionOfThree, attachment: Attachment) -> Section:
    """`spread`, which then rings the senders for which the operation made room."""
    rings, ring_senders = attachment.due_rings, attachment.ring_senders

    def section(operation: Callable[..., Any], /, *args: Any, **named: Any) -> Any:
        result = of_three(call, operation, args, named)
        if rings:
            ring_senders()
        return result

    return section
