"""``tail``: watch messages pass, without taking them."""

from __future__ import annotations

import datetime
import json
import sys
import time
from fnmatch import fnmatchcase
from typing import TextIO

import click

from .. import clock
from ..codec import Codec, DecodeError
from ..errors import SegmentVanished
from ..inspection.tap import Seen, Tap
from ..inspection.view import View
from ..statistics import size
from .common import (
    complete_channel,
    cut,
    first_few,
    json_option,
    prefix_option,
    room,
    span,
    wide_option,
    write,
)
from .messages import json_of, keys_of, keys_option

_IDLE = 0.005  # seconds between two looks at the log
_BUSY = 0.0005  # the same while messages pass
_LEAST_NAME = 12  # columns for the names of channels
_CHECK_EVERY = 1.0  # seconds between two checks that the segment is still there


@click.command()
@click.argument("channels", nargs=-1, shell_complete=complete_channel)
@click.option("--all", "everything", is_flag=True, help="Watch all channels.")
@click.option("--payload", is_flag=True, help="Also show the content of the messages.")
@click.option(
    "--count", type=click.IntRange(min=1), metavar="N", help="End after this many messages."
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    help="End after this time.",
)
@prefix_option
@keys_option
@wide_option
@json_option
def tail(
    channels: tuple[str, ...],
    everything: bool,
    payload: bool,
    count: int | None,
    seconds: float | None,
    prefix: str,
    keys: TextIO | None,
    wide: bool,
    as_json: bool,
) -> None:
    """Watch messages to CHANNELs (globs) as they pass, without taking them, until Ctrl-C.

    A line shows the time, the number of the message, its channel, its size, and whether it was
    pending or already taken when the command saw it. Messages that come and go between two looks
    are counted but not shown: `asgi-ipc channels` has complete figures. With --json, each message
    is a line.
    """
    if bool(channels) == everything:
        raise click.UsageError("Name the channels to watch, or give --all.")
    view = View(prefix)
    tap = Tap(view)
    codec = Codec(keys_of(keys))
    deadline = None if seconds is None else clock.monotonic() + seconds
    check_at, shown, missed, last = 0.0, 0, 0, clock.monotonic()
    # On standard error, because standard output may be a file of messages.
    write(f"Watching prefix {prefix!r}.", err=True)
    try:
        while deadline is None or clock.monotonic() < deadline:
            seen = tap.look()
            now = clock.monotonic()
            for message in seen:
                if everything or _wanted(message, channels):
                    shower = codec if payload else None
                    if as_json:
                        write(_json_line(message, shower))
                    else:
                        write(_line(message, shower, None if wide else room()))
                    shown += 1
                    if shown == count:
                        return
            if tap.missed > missed:
                write(f"({tap.missed - missed} came and went unseen)", err=True)
                missed = tap.missed
            if seen:
                last = now
                sys.stdout.flush()
            if now >= check_at:
                check_at = now + _CHECK_EVERY
                if view.vanished():
                    raise SegmentVanished(f"the shared memory of prefix {prefix!r} was removed")
            time.sleep(_BUSY if now - last < _CHECK_EVERY else _IDLE)
    except KeyboardInterrupt:
        pass


def _wanted(message: Seen, patterns: tuple[str, ...]) -> bool:
    names = (message.queue, *message.channels)
    return any(fnmatchcase(name, pattern) for pattern in patterns for name in names)


def _content(message: Seen, codec: Codec) -> dict[str, object] | None:
    try:
        return codec.decode(message.body)
    except DecodeError:
        return None


def _at(moment: float) -> datetime.datetime:
    """The date and time of a moment on CLOCK_MONOTONIC."""
    return datetime.datetime.fromtimestamp(time.time() - clock.monotonic() + moment)


def _line(message: Seen, codec: Codec | None, most: int | None) -> str:
    """A message as a line of `most` columns, for which the names of channels are cut; what it holds
    then comes on the next line."""
    before = f"{_at(message.sent):%H:%M:%S.%f} #{message.seq} "
    after = (
        f" {size(len(message.body))} {'pending' if message.pending else 'taken'}, "
        f"expires after {span(message.expires - message.sent)}"
    )
    names = first_few(message.channels)
    if most is not None:
        names = cut(names, max(most - len(before) - len(after), _LEAST_NAME))
    line = before + names + after
    if codec is not None:
        content = _content(message, codec)
        line += "  " if most is None else "\n  "
        line += "(cannot be decoded: does it need --keys?)" if content is None else json_of(content)
    return line


def _json_line(message: Seen, codec: Codec | None) -> str:
    found = {
        "time": _at(message.sent).astimezone().isoformat(),
        "seq": message.seq,
        "queue": message.queue,
        "channels": message.channels,
        "bytes": len(message.body),
        "expiry": message.expires - message.sent,
        "pending": message.pending,
    }
    if codec is not None:
        found["message"] = json.loads(json_of(_content(message, codec)))
    return json.dumps(found)
