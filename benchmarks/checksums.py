"""What it costs to check all of a large message: ``python -m benchmarks.checksums``.

The store checks both ends of a body of more than 64 KiB. Here the whole pair, a send and a receive
of one process, is measured with that, and with Adler-32 and CRC-32 over all of the body: all three
in turn, in one process. The body is bytes, so that packing it is one more copy and nothing else.
"""

from __future__ import annotations

import argparse
import secrets
import statistics
import sys
import time
import zlib
from collections.abc import Callable

import asgi_ipc
from asgi_ipc import segment
from asgi_ipc.store import queues
from benchmarks.measure import Column, Effort, Row, Table, interleaved, paired_ratio, report

SIZES = (100_000, 1_000_000, 10_000_000)
ENDS, ADLER, CRC = "both ends", "Adler-32", "CRC-32"
_CHECKED = queues._CHECKED
# How many bytes of a body the store sums, and by what.
WAYS: dict[str, tuple[int, Callable[[bytes, int], int]]] = {
    ENDS: (_CHECKED, zlib.adler32),
    ADLER: (sys.maxsize, zlib.adler32),
    CRC: (sys.maxsize, zlib.crc32),
}


def pair(layer: asgi_ipc.IPCChannelLayer, way: str, message: dict[str, bytes], count: int) -> float:
    """Microseconds for a send and a receive."""
    queues._CHECKED, queues.adler32 = WAYS[way]  # type: ignore[assignment]
    start = time.perf_counter()
    for _ in range(count):
        layer.send("large", message)
        found = layer.receive(["large"])[1]
    taken = (time.perf_counter() - start) / count * 1e6
    assert found == message, "the message that arrived is not the one that was sent"
    return taken


def table(effort: Effort) -> Table:
    """All sizes, in all ways."""
    prefix = f"checksums-{secrets.token_hex(8)}"
    layer = asgi_ipc.IPCChannelLayer(
        prefix, message_memory=64 << 20, max_message_size=SIZES[-1] + 1000
    )
    rows: list[Row] = []
    bytes(31 << 20)  # see `benchmarks.workloads.growth.of_size`
    try:
        for size in SIZES:
            message = {"content": secrets.token_bytes(size)}
            count = max(1, effort(1, SIZES[-1], 5 * SIZES[-1]) // size)
            samples: dict[str, list[float]] = {way: [] for way in WAYS}
            for way in WAYS:
                pair(layer, way, message, count)
            for way in interleaved(effort(1, 5, 25), [*WAYS]):
                samples[way].append(pair(layer, way, message, count))
            row: Row = {"size": size}
            for way, taken in samples.items():
                row[way] = statistics.median(taken)
                row[f"{way} ratio"] = paired_ratio(taken, samples[ENDS])
            rows.append(row)
    finally:
        layer.close()
        segment.destroy(prefix)
    return Table(
        "checksums",
        "checksums: send + receive of a large message in one process, µs",
        (
            Column("size", "bytes", ",d"),
            *(Column(way, way, ",.0f") for way in WAYS),
            *(Column(f"{way} ratio", f"{way} / {ENDS}", ".2f") for way in (ADLER, CRC)),
        ),
        rows,
    )


def main() -> None:
    options = argparse.ArgumentParser("python -m benchmarks.checksums", description=__doc__)
    options.add_argument("--tiny", action="store_true", help="only to see that it works")
    effort = Effort(0 if options.parse_args().tiny else 2)
    report((table(effort) for _ in range(1)), None)


if __name__ == "__main__":
    main()
