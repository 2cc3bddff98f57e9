"""The constructor options of both layers: read, checked one by one, and given their defaults.

A leaf: it must not know what a segment is made of. Whether the sizes fit together is checked where
a segment is asked for (`segment.wanted`).
"""

from __future__ import annotations

import fnmatch
import re
import sys
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any, Optional, TypedDict, TypeVar

from .errors import InvalidOption

if TYPE_CHECKING:
    from .segment.wanted import Provider

Layer = TypeVar("Layer")

MIN_MEMORY = 64 * 1024  # bytes
MAX_MEMORY = 8 << 30
MOST_SPIN = 0.01  # seconds; for a longer wait it is better to sleep
LONGEST_WAIT = 100 * 365 * 86400.0  # seconds; event loops cannot count to any number
MODES = (0o600, 0o660)  # for one user, or for a group
_REMEMBERED = 131_072  # channels whose capacity is known after a look-up, twice

# What to do about the options of layers over Redis that this package has no use for.
_SERVER = "leave it out: there is no server, and processes of one machine find each other by prefix"
_OTHERS = {
    "hosts": f"layers over Redis: {_SERVER}. For several machines, use LocalAndRemoteChannelLayer, "
    "whose option remote takes the CHANNEL_LAYERS entry of the layer over Redis",
    "serializer_format": "channels_redis: leave it out. Messages are always packed by msgpack; the "
    "option default converts values that it cannot pack",
    "random_prefix_length": "channels_redis: leave it out. It tells equal messages apart in a "
    "sorted set of Redis, and here each message is kept by itself",
    "on_disconnect": f"channels_redis: {_SERVER}, so no connection is lost",
    "on_reconnect": f"channels_redis: {_SERVER}, so no connection is lost",
    "channel_layer": "channels_redis, which sets it for itself: leave it out",
    "connection_kwargs": f"asgi_redis: {_SERVER}",
    "services": f"asgi_redis: {_SERVER}",
    "sentinel_refresh_interval": f"asgi_redis: {_SERVER}",
    "stats_prefix": "asgi_redis: leave it out. Statistics are kept in the segment of the prefix",
}


class UnknownCapacity(Exception):
    """Under a lock, `Capacities.known` did not know the capacities of these channels."""

    def __init__(self, channels: list[str]) -> None:
        super().__init__(channels)
        self.channels = channels


class Capacities:
    """How many messages may be pending in a channel, by its name.

    `default`, unless a pattern of `patterns` matches: a dict of glob, or compiled re, to capacity,
    of which the first match counts, in the order of the dict. False if there is no pattern. Raises
    InvalidOption.
    """

    def __init__(self, default: int, patterns: Mapping[str | re.Pattern[str], int] | None) -> None:
        check_int("capacity", default, 1, 1 << 40)
        self.default = default
        self._by_pattern = _compiled(patterns)
        self._patterns = patterns
        # Two generations, so that what the last two look-ups brought is known in any case.
        self._young: dict[str, int] = {}
        self._old: dict[str, int] = {}

    def __bool__(self) -> bool:
        return bool(self._by_pattern)

    def of(self, channel: str) -> int:
        """The capacity of `channel`, the full name that a message is sent to."""
        if self._by_pattern:
            for match, capacity in self._by_pattern:
                if match(channel):
                    return capacity
        return self.default

    def option_for(self, channel: str) -> str:
        """The option that gives `channel` its capacity, for errors."""
        for (match, _), pattern in zip(self._by_pattern, self._patterns or ()):
            if match(channel):
                shown = pattern if isinstance(pattern, str) else pattern.pattern
                return f"channel_capacity[{shown!r}]"
        return "the option capacity"

    def known(self, channel: str) -> int | None:
        """`of` for use under a lock. No pattern is matched there: a user's expression may take any
        time. None means that `look_up` has to do it."""
        if not self._by_pattern:
            return self.default
        return self._young.get(channel) or self._old.get(channel)

    def look_up(self, channels: Iterable[str]) -> None:
        """Have the capacities of `channels` known."""
        if len(self._young) > _REMEMBERED:
            self._old, self._young = self._young, {}
        for channel in channels:
            self._young[channel] = self.of(channel)


def check_int(name: str, value: object, least: int, most: int) -> None:
    """Raise InvalidOption unless `value` is an int from `least` to `most`."""
    if type(value) is not int or not least <= value <= most:
        show: Callable[[Any], str] = oct if name == "mode" else str
        shown = show(value) if type(value) is int else repr(value)
        raise InvalidOption(
            f"{name} must be an int from {show(least)} to {show(most)}, not {shown}"
        )


def check_seconds(name: str, value: object) -> None:
    """Raise InvalidOption unless `value` is a positive, finite number of seconds."""
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not 0 < value <= sys.float_info.max
    ):
        raise InvalidOption(f"{name} must be a positive number of seconds, not {value!r}")


def waiting_time(timeout: object) -> float:
    """Seconds that a call may wait, from its `timeout`. Raises TypeError for what is no number."""
    if (
        isinstance(timeout, bool)
        or not isinstance(timeout, (int, float))
        or timeout != timeout  # NaN, which no clock reaches
    ):
        raise TypeError(f"timeout must be a number of seconds or None, not {timeout!r}")
    return min(timeout, LONGEST_WAIT)


_Match = Callable[[str], Optional[re.Match[str]]]


def _compiled(patterns: object) -> list[tuple[_Match, int]]:
    if patterns is None:
        return []
    if not isinstance(patterns, Mapping):
        raise InvalidOption(
            "channel_capacity must be a dict of glob, or compiled re, to capacity, not "
            f"{patterns!r}"
        )
    found: list[tuple[_Match, int]] = []
    for pattern, capacity in patterns.items():
        if type(capacity) is not int or capacity < 1:
            raise InvalidOption(
                f"channel_capacity[{pattern!r}] must be a positive int, not {capacity!r}"
            )
        if isinstance(pattern, str):
            found.append((re.compile(fnmatch.translate(pattern)).match, capacity))
        elif isinstance(pattern, re.Pattern):
            found.append((pattern.match, capacity))
        else:
            raise InvalidOption(
                f"channel_capacity has the key {pattern!r}; keys are globs or compiled re"
            )
    return found


class LayerOptions(TypedDict, total=False):
    """The keyword options of both constructors, for type checkers. `Options` has the same names and
    types, and says what they mean."""

    message_memory: int
    group_memory: int
    expiry: float
    group_expiry: float
    capacity: int
    channel_capacity: Mapping[str | re.Pattern[str], int] | None
    symmetric_encryption_keys: Collection[str | bytes] | None
    mode: int
    group: str | int | None
    max_message_size: int
    receive_timeout: float
    lock_timeout: float
    spin: float
    lock: str
    default: Callable[[Any], Any] | str | None
    channel_memory: int  # the old name of message_memory


class LocalOptions(LayerOptions, total=False):
    """The option ``local`` of layers for several machines, for type checkers."""

    prefix: str


@dataclass(frozen=True, repr=False)
class Options:
    """The options of a layer. All processes of a prefix should give the same.

    ========================= ============ ========= ==============================================
    option                    default      unit
    ========================= ============ ========= ==============================================
    message_memory            100 MiB      bytes     of messages that may wait; see below
    group_memory              20 MiB       bytes     for groups, 250 for each membership
    expiry                    60           seconds   after which an unread message is dropped
    group_expiry              86400        seconds   from the last add to the end of a membership
    capacity                  100          messages  that may be pending in a channel
    channel_capacity          None                   dict of glob or compiled re to capacity
    symmetric_encryption_keys None                   list of str or bytes; the first encrypts
    mode                      0o600        bits      who may open the segment; 0o660 for a group
    group                     None                   name or gid of that group; see below
    max_message_size          4 MiB        bytes     of one message, packed
    receive_timeout           5            seconds   that a blocking receive waits, at most
    lock_timeout              10           seconds   to wait for the lock, and for others that
                                                     attach; then LockTimeout
    spin                      0.0001       seconds   that a receive may spin before it sleeps
    lock                      "mutex"                or "file", the same in all processes
    default                   None                   what converts values that cannot be sent:
                                                     a callable or its dotted name; see below
    ========================= ============ ========= ==============================================

    ``message_memory`` limits the messages that wait in all channels together: their packed (and
    encrypted) size, and 64 bytes for each. ``send`` raises ChannelFull before that is exceeded.
    ``max_message_size`` must fit into it, with a kilobyte to spare. The segment takes more of the
    machine's memory, because it needs room to move messages, and also holds channels and groups:
    see :doc:`/howto/docker`. While processes are attached, the sizes with which the segment was
    created apply to all.

    With ``mode=0o660`` alone, the segment belongs to the effective group of the process that
    creates it, so the first process decides which other users have access. ``group`` sets the
    group. All users of a layer must be members of it.

    ``spin`` is used only in channels whose messages arrive faster than that. There it saves the
    wakeup, the slowest part of passing a message, but keeps a processor busy in between
    (`asgi_ipc.aio.spin`). 0 turns it off.

    ``default`` is called with each value in a message that cannot be sent (a Decimal, a datetime, a
    UUID, a lazy string, an int of more than 64 bits), and its result is sent instead:
    ``default=str``, for example, or ``DjangoJSONEncoder().default``. If it returns a list or dict,
    it is called again for values in it that cannot be sent. Any other result must be a value that a
    message can hold. A TypeError that it raises becomes InvalidMessage; the send raises its other
    errors. It is not called for keys. Only the processes that send need it.
    """

    prefix: str = "asgi"
    message_memory: int = 100 << 20
    group_memory: int = 20 << 20
    expiry: float = 60
    group_expiry: float = 86400
    capacity: int = 100
    channel_capacity: Mapping[str | re.Pattern[str], int] | None = None
    symmetric_encryption_keys: Collection[str | bytes] | None = None
    mode: int = 0o600
    group: str | int | None = None
    max_message_size: int = 4 << 20
    receive_timeout: float = 5
    lock_timeout: float = 10
    spin: float = 0.0001
    lock: str = "mutex"
    default: Callable[[Any], Any] | str | None = None

    def __repr__(self) -> str:
        """With the mode in octal, and without the keys."""
        given = {field.name: repr(getattr(self, field.name)) for field in fields(self)}
        given["mode"] = oct(self.mode) if type(self.mode) is int else repr(self.mode)
        if self.symmetric_encryption_keys is not None:
            given["symmetric_encryption_keys"] = "<hidden>"
        named = ", ".join(f"{name}={value}" for name, value in given.items())
        return f"{type(self).__name__}({named})"

    def again(self, layer: Callable[..., Layer]) -> tuple[Callable[[str], Layer], tuple[str]]:
        """For ``__reduce__``: how to make a `layer` with these options, here or elsewhere."""
        given = {
            field.name: value
            for field in fields(self)
            if (value := getattr(self, field.name)) != field.default and field.name != "prefix"
        }
        return partial(layer, **given), (self.prefix,)

    @property
    def provider(self) -> Provider | None:
        """The provider of the segment; None for shared memory."""
        return None

    @classmethod
    def read(cls, prefix: str, given: Mapping[str, Any]) -> Options:
        """The options of a layer; raises InvalidOption for one that is unknown or cannot work."""
        given = dict(given)
        if "channel_memory" in given:
            warnings.warn(
                "channel_memory is the old name of message_memory",
                DeprecationWarning,
                stacklevel=3,
            )
            if "message_memory" in given:
                raise InvalidOption("give message_memory, or its old name channel_memory, not both")
            given["message_memory"] = given.pop("channel_memory")
        known = {field.name for field in fields(cls)} - {"prefix"}
        for name in given:
            if name in _OTHERS:
                raise InvalidOption(f"{name!r} is an option of {_OTHERS[name]}")
            if name not in known:
                from difflib import get_close_matches

                near = get_close_matches(str(name), known, 1)
                hint = f"did you mean {near[0]!r}? The" if near else "the"
                raise InvalidOption(
                    f"unknown option {name!r}; {hint} options are {', '.join(sorted(known))}"
                )
        # No subclass of str: the prefix is in messages that are made under locks.
        plain = str.__str__(prefix) if issubclass(type(prefix), str) else prefix
        options = cls(plain, **given)
        options._check()
        return options

    def _check(self) -> None:
        for name, least, most in (
            ("message_memory", MIN_MEMORY, MAX_MEMORY),
            ("group_memory", MIN_MEMORY, MAX_MEMORY),
            ("max_message_size", 1024, MAX_MEMORY // 8),
            ("mode", 0o600, 0o660),
        ):
            check_int(name, getattr(self, name), least, most)
        if self.mode not in MODES:
            raise InvalidOption(f"mode must be 0o600, or 0o660 for a group, not {self.mode:#o}")
        if self.group is not None:
            if type(self.group) not in (str, int):
                raise InvalidOption(
                    f"group must be the name of a group, or its gid as an int, not {self.group!r}"
                )
            if self.mode == 0o600:
                raise InvalidOption(
                    f"group={self.group!r} has no effect with mode=0o600: also give mode=0o660"
                )
        for name in ("expiry", "group_expiry", "receive_timeout", "lock_timeout"):
            check_seconds(name, getattr(self, name))
        if (
            isinstance(self.spin, bool)
            or not isinstance(self.spin, (int, float))
            or not 0 <= self.spin <= MOST_SPIN
        ):
            raise InvalidOption(
                f"spin must be a number of seconds from 0 to {MOST_SPIN}, not {self.spin!r}"
            )
        if self.lock not in ("mutex", "file"):
            raise InvalidOption(f'lock must be "mutex" or "file", not {self.lock!r}')
        keys = self.symmetric_encryption_keys
        # A generator gives them once: the second codec of a layer would send in the clear.
        if keys is not None and not isinstance(keys, Collection):
            raise InvalidOption(
                "symmetric_encryption_keys must be a list of str or bytes, not "
                f"{type(keys).__name__}"
            )
        self.capacities()
        self.converter()

    def converter(self) -> Callable[[Any], Any] | None:
        """``default``, imported if it is a name."""
        found = self.default
        if isinstance(found, str):
            from pkgutil import resolve_name

            try:
                found = resolve_name(found)
            except (ImportError, AttributeError, ValueError) as error:
                raise InvalidOption(
                    f"default={self.default!r} cannot be imported: {error}"
                ) from error
        if found is not None and not callable(found):
            raise InvalidOption(
                "default must be a callable that takes one value, or its dotted name, not "
                f"{self.default!r}"
            )
        return found

    def capacities(self) -> Capacities:
        """``capacity`` and ``channel_capacity``, compiled."""
        return Capacities(self.capacity, self.channel_capacity)
