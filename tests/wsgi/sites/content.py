"""The content that both sites send, and with which the tests compare it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

PIECE = bytes(range(256)) * 1024


def megabytes(number: int) -> Iterator[bytes]:
    """Yield content whose pieces all differ, in blocks that fit no chunk size."""
    for at in range(4 * number):
        yield b"%08x" % at + PIECE[8:]


def checksum(blocks: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()
