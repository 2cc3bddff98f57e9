"""Measure how much of /dev/shm a layer takes when its message_memory is used up, and write that
into docs/howto/docker.rst, between its two marks.

    python docs/measure_memory.py                    measures, and writes the table
    python docs/measure_memory.py --check            writes nothing; fails if the page is old
    python docs/measure_memory.py 50 2               prints the row for a message_memory of 50 MiB
                                                     and a max_message_size of 2 MiB

It fills layers of its own until ``send`` raises ChannelFull, and needs as much free shared memory.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "howto" / "docker.rst"
BEGIN, END = ".. begin of measured\n", ".. end of measured\n"
sys.path.insert(0, str(ROOT))

from asgi_ipc import IPCChannelLayer  # noqa: E402
from asgi_ipc.segment.opening import destroy  # noqa: E402

MIB = 1 << 20
ON_THE_PAGE = ((100, 4), (24, 1))  # MiB: the default options, and those that the page advises
ENVELOPE = 64  # bytes that the largest message leaves for its keys
HEADINGS = (
    "message_memory, max_message_size",
    "messages of 1 KiB",
    "the largest messages",
    "a channel for each KiB",
)


def taken(options: dict[str, int], body: bytes, channels: Iterator[str]) -> int:
    """The bytes of shared memory that are taken when no further message with `body` fits."""
    prefix = f"measure-memory.{os.getpid()}"
    layer = IPCChannelLayer(prefix, capacity=1 << 30, **options)
    try:
        for channel in channels:
            layer.send(channel, {"body": body})
    except layer.ChannelFull as error:
        if "message_memory" not in str(error):
            raise SystemExit(f"the machine has too little shared memory: {error}") from None
        memory = layer.stats().memory
        assert memory.in_use <= memory.limit
        return memory.reserved
    finally:
        layer.close()
        destroy(prefix)
    raise AssertionError("the layer was never full")


def row(message_memory: int, largest: int) -> tuple[str, ...]:
    """The cells for a layer, of which both sizes are in MiB."""
    options = {"message_memory": message_memory * MIB, "max_message_size": largest * MIB}
    name = f"{message_memory} MiB, {largest} MiB"
    figures = (
        taken(options, bytes(1024), repeat("a")),
        taken(options, bytes(largest * MIB - ENVELOPE), repeat("a")),
        taken(options, bytes(1024 - ENVELOPE), (f"c.{number}" for number in range(1 << 30))),
    )
    return (name, *(f"{-(-figure // MIB)} MiB" for figure in figures))


def table(rows: list[tuple[str, ...]]) -> str:
    """The rows as a table of reStructuredText."""
    widths = [max(map(len, column)) for column in zip(HEADINGS, *rows)]
    rule = "  ".join("=" * width for width in widths)
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(cells, widths)).rstrip()
        for cells in (HEADINGS, *rows)
    ]
    return "\n".join((rule, lines[0], rule, *lines[1:], rule))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("sizes", nargs="*", type=int, metavar="MIB")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if it is old")
    chosen = parser.parse_args()
    if chosen.sizes:
        if len(chosen.sizes) != 2:
            parser.error("give message_memory and max_message_size, in MiB")
        print(table([row(*chosen.sizes)]))
        return 0
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    now = f"{before}{BEGIN}\n{table([row(*sizes) for sizes in ON_THE_PAGE])}\n\n{END}{after}"
    if chosen.check:
        if now != text:
            print(f"{now}\n\nThe table is out of date: python docs/measure_memory.py")
        return int(now != text)
    PAGE.write_text(now, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
