"""``send``, ``receive`` and ``group-send``, for trials and scripts; and messages as JSON.

These subcommands attach like any other process, with the options of the live segment. They must not
create a layer: its options would be a guess.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import sys
from typing import Any, NoReturn, TextIO

import click

from .. import IPCChannelLayer
from ..errors import InvalidMessage, NotAChannel
from ..inspection.snapshot import Snapshot
from ..inspection.view import View
from ..names import split
from .common import complete_channel, complete_group, prefix_option, say, span, write
from .exits import NOT_WELL

# The keys that mark what JSON does not have: bytes, in base64, and floats that are no numbers.
_BYTES, _FLOAT = "$bytes", "$float"

_FLOATS = ("Infinity", "-Infinity", "NaN")

keys_option = click.option(
    "--keys",
    type=click.File(),
    metavar="FILE",
    help="The symmetric_encryption_keys of the layer, one per line.",
)


def keys_of(file: TextIO | None) -> list[str] | None:
    """The keys in the file that --keys names."""
    return None if file is None else [line for line in file.read().splitlines() if line]


def layer_of(
    prefix: str, keys: TextIO | None, channel: str = "", **options: Any
) -> IPCChannelLayer:
    """A layer with the options of the live segment, and with the capacity that other senders use
    for `channel`. Raises NoSuchLayer."""
    view = View(prefix)
    if channel:
        queue = split(channel)[0]
        for known in Snapshot(view).channels():
            if known.name == queue and known.capacity:
                options["capacity"] = known.capacity
    return IPCChannelLayer(
        prefix, **view.options(), symmetric_encryption_keys=keys_of(keys), **options
    )


def message_of(text: str) -> dict[str, object]:
    """The message in a JSON text; "-" reads the text from standard input."""
    try:
        found = json.loads(
            sys.stdin.read() if text == "-" else text,
            object_hook=_value_of,
            parse_constant=_refuse,
        )
    except ValueError as error:
        raise click.BadParameter(f"not JSON: {error}", param_hint="JSON") from None
    if not isinstance(found, dict):
        raise InvalidMessage(f"a message must be a JSON object, not {type(found).__name__}")
    return found


def _value_of(found: dict[str, Any]) -> object:
    if found.keys() == {_BYTES}:
        try:
            return base64.b64decode(found[_BYTES], validate=True)
        except (TypeError, binascii.Error) as error:
            raise ValueError(f"{_BYTES!r} needs base64: {error}") from None
    if found.keys() == {_FLOAT}:
        if found[_FLOAT] not in _FLOATS:
            raise ValueError(f"{_FLOAT!r} needs one of {', '.join(_FLOATS)}")
        return float(found[_FLOAT])
    return found


def _refuse(name: str) -> NoReturn:
    raise ValueError(f'JSON has no {name}: write {{"{_FLOAT}": "{name}"}}')


def json_of(message: object) -> str:
    """A message as one line of JSON that `message_of` can read."""
    plain = _plain(message)
    text = json.dumps(plain, ensure_ascii=False, allow_nan=False)
    # Characters that could control a terminal are written as \u....
    return text if text.isprintable() else json.dumps(plain, allow_nan=False)


def _plain(value: object) -> object:
    """A value of a message as JSON has it."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, bytes):
        return {_BYTES: base64.b64encode(value).decode("ascii")}
    if isinstance(value, float) and not math.isfinite(value):
        return {_FLOAT: next(name for name in _FLOATS if str(float(name)) == str(value))}
    return value


@click.command()
@click.argument("channel", shell_complete=complete_channel)
@click.argument("message", metavar="JSON")
@prefix_option
@keys_option
def send(channel: str, message: str, prefix: str, keys: TextIO | None) -> None:
    """Send a message, a JSON object, to CHANNEL. "-" reads it from standard input.

    Write bytes in base64, as {"$bytes": "aGk="}, and floats that JSON does not have as
    {"$float": "Infinity"}, "-Infinity" or "NaN". Exit status 4: the channel or the memory is full,
    and nothing was sent.
    """
    body = message_of(message)
    layer = layer_of(prefix, keys, channel)
    try:
        layer.send(channel, body)
    except NotAChannel:
        command = f"asgi-ipc group-send --prefix {prefix} {channel}"
        raise NotAChannel(
            f"{channel!r} is the name of a group, and no channel has that name. To send to the "
            f"members of the group: {command}. To use the name for a channel too, receive on that "
            "channel first"
        ) from None
    finally:
        layer.close()


@click.command("group-send")
@click.argument("group", shell_complete=complete_group)
@click.argument("message", metavar="JSON")
@prefix_option
@keys_option
def group_send(group: str, message: str, prefix: str, keys: TextIO | None) -> None:
    """Send a message, a JSON object, to every member of GROUP. "-" reads it from standard input.

    Full channels are skipped. A group without members is not an error, but the command says so on
    standard error.
    """
    body = message_of(message)
    layer = layer_of(prefix, keys)
    members = layer.group_channels(group)
    layer.send_group(group, body)
    layer.close()
    if not members:
        say(f"Group {group!r} has no members: the message reached no channel.", err=True)


@click.command()
@click.argument("channels", nargs=-1, required=True, shell_complete=complete_channel)
@prefix_option
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="Wait at most this long for each message; 0 takes only pending messages.",
)
@click.option(
    "--count",
    type=click.IntRange(min=1),
    metavar="N",
    default=1,
    show_default=True,
    help="Take this many messages.",
)
@keys_option
def receive(
    channels: tuple[str, ...], prefix: str, timeout: float, count: int, keys: TextIO | None
) -> None:
    """Take messages from CHANNELs, and print each as a line of JSON.

    No other process gets these messages: to watch without taking, use `asgi-ipc tail`. A line has
    the keys "channel" and "message". {"$bytes": "aGk="} stands for bytes, in base64, and
    {"$float": "Infinity"}, "-Infinity" or "NaN" for a float that JSON does not have. Name
    process-specific channels up to the "!". Exit status 1: no message came in time.
    """
    layer = layer_of(prefix, keys, receive_timeout=timeout or 5.0)
    try:
        for _ in range(count):
            channel, message = layer.receive(channels, block=timeout > 0)
            if channel is None:
                say(f"No message came{f' within {span(timeout)}' if timeout else ''}.", err=True)
                sys.exit(NOT_WELL)
            write(json_of({"channel": channel, "message": message}))
    finally:
        layer.close()
