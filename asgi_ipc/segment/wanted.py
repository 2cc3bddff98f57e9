"""What a layer asks of its segment. This module must not look at a segment: `header` judges one."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from ..errors import InvalidOption
from ..options import Options
from ..store.layout import LOCK_FILE, LOCK_MUTEX, MAX_WORDS, OVERHEAD, WORD, Layout
from .lock import robust_mutexes
from .paths import Paths
from .procfs import group_of_name

if TYPE_CHECKING:
    from .segment import Segment


class Provider(Protocol):
    """Who provides segments that are not shared memory. Its layers share one segment."""

    def attach(self, wanted: Wanted, timeout: float) -> tuple[Segment, int]:
        """Do what `opening.attach` does for shared memory."""


class Sizes(NamedTuple):
    """The three sizes, in bytes, that determine the layout of a segment."""

    message_memory: int
    group_memory: int
    max_message_size: int

    def __str__(self) -> str:
        return ", ".join(f"{name} {size}" for name, size in self._asdict().items())


class Wanted(NamedTuple):
    """What a layer asks of its segment."""

    prefix: str
    message_memory: int
    group_memory: int
    max_message_size: int
    mode: int
    lock: str
    provider: Provider | None = None  # None: shared memory
    group: int | None = None  # that the segment is to belong to; None: that of the process

    @classmethod
    def of(cls, options: Options) -> Wanted:
        """What a layer with these options asks for. Raises InvalidOption if it is impossible."""
        Paths(options.prefix)
        wanted = cls(
            options.prefix,
            options.message_memory,
            options.group_memory,
            options.max_message_size,
            options.mode,
            options.lock,
            options.provider,
            None if options.group is None else _group_id(options.group),
        )
        wanted.layout()
        return wanted

    @property
    def sizes(self) -> Sizes:
        return Sizes(self.message_memory, self.group_memory, self.max_message_size)

    @property
    def lock_kind(self) -> int:
        return LOCK_FILE if self.lock == "file" or not robust_mutexes() else LOCK_MUTEX

    def layout(self) -> Layout:
        """The layout of a new segment. Raises InvalidOption if that would be too large, or if the
        largest message does not fit into it."""
        layout = Layout(*self.sizes)
        if not layout.largest_fits:
            raise InvalidOption(
                f"max_message_size {self.max_message_size} does not fit into message_memory "
                f"{self.message_memory}: a message takes up to {OVERHEAD} bytes more than its own "
                "size. Raise message_memory, or lower max_message_size"
            )
        if layout.log_end > MAX_WORDS:
            raise InvalidOption(
                "message_memory, group_memory and max_message_size are too large together: a "
                f"segment must be smaller than {(MAX_WORDS + 1) * WORD >> 30} GiB"
            )
        return layout


def _group_id(group: str | int) -> int:
    """The gid of a group by its name, or that gid. Raises InvalidOption if there is none."""
    if isinstance(group, int):
        if not 0 <= group < (1 << 32) - 1:
            raise InvalidOption(f"group={group} is no gid")
        return group
    found = group_of_name(group)
    if found is None:
        raise InvalidOption(
            f"group={group!r} is no group of this machine or container: create it (groupadd), or "
            "give its gid as an int"
        )
    return found
