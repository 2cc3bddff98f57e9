"""A fuzzer for what unpacks messages in the compiled path, guided by the code that it reaches.

It changes messages at random, and keeps each that takes a way through the code which none took
before. What is unpacked has to be what msgpack says. Run it with a variant of the compiled path
that is compiled with fuzzing.c and with AddressSanitizer (see test_native.py)::

    python -m tests.reliability.fuzzer 3600      for an hour

It prints how many messages it tried, and how many ways through the code they found.
"""

from __future__ import annotations

import ctypes
import random
import sys
import time
from typing import Any

import msgpack

from asgi_ipc.codec import Codec
from asgi_ipc.store import native

LONGEST = 600  # bytes
BATCH = 500
INTERESTING = [*range(0x80, 0x83), 0x90, 0xA1, *range(0xC0, 0xE0), 0x00, 0x7F, 0xFF]

SEEDS: list[dict[str, Any]] = [
    {},
    {"type": "chat.message", "text": "hello", "id": 12},
    {"a": [1, -1, 300, -300, 70_000, -70_000, 2**40, -(2**40)], "b": [None, True, False, 1.5]},
    {"deep": {"deeper": {"deepest": [[], {}, [[]]]}}},
    {"bytes": b"x" * 300, "text": "\u20ac" * 20, "long" * 12: "x" * 300},
    {f"key{i}": i for i in range(20)},
    {"list": list(range(20))},
]


def mutated(rng: random.Random, corpus: list[bytes]) -> bytes:
    """A message of the corpus, changed in a few places."""
    body = bytearray(rng.choice(corpus))
    for _ in range(rng.choice([1, 1, 2, 3, 8])):
        at = rng.randrange(len(body) + 1)
        kind = rng.randrange(6)
        if kind == 0:
            body[at:at] = bytes([rng.choice(INTERESTING)])
        elif kind == 1:
            del body[at : at + rng.choice([1, 1, 2, 4, 9])]
        elif kind == 2:
            other = rng.choice(corpus)
            start = rng.randrange(len(other) + 1)
            body[at : at + rng.randrange(4)] = other[start : start + rng.randrange(20)]
        elif at < len(body):
            body[at] = (
                rng.choice(INTERESTING)
                if kind == 3
                else body[at] ^ 1 << rng.randrange(8)
                if kind == 4
                else rng.randrange(256)
            )
    return bytes(body[:LONGEST])


def reference(body: bytes) -> Any:
    """What msgpack makes of it; None if that is no message."""
    try:
        message = msgpack.unpackb(body, raw=False)
    except Exception:
        return None
    return message if type(message) is dict else None


class Fuzzer:
    def __init__(self) -> None:
        assert native.LOADED, native.why_not
        # The module that is loaded, which was compiled with fuzzing.c.
        library: Any = ctypes.PyDLL(native._native.__file__ or native._native.__spec__.origin)
        self._ways = library.fresh_ways
        self._unpack = library.unpack_exactly
        self._unpack.restype = ctypes.py_object
        self._unpack.argtypes = (ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t)

    def unpack(self, body: bytes, missing: int = 0) -> Any:
        return self._unpack(body, len(body) + missing, missing)

    def run(self, seconds: float) -> tuple[int, int]:
        """How many messages were tried, and how many ways they found."""
        rng = random.Random(int(seconds))
        corpus = [Codec().encode(seed) for seed in SEEDS]
        self._ways()
        for seed in corpus:
            assert repr(self.unpack(seed)) == repr(reference(seed))
        end, tried, ways = time.monotonic() + seconds, 0, self._ways()
        while time.monotonic() < end:
            for _ in range(BATCH):
                body = mutated(rng, corpus)
                self._ways()
                found = self.unpack(body)
                fresh = self._ways()
                if fresh:
                    ways += fresh
                    corpus.append(body)
                if found is not None:
                    # As text: a NaN is equal to nothing.
                    assert repr(found) == repr(reference(body)), body
                tried += 1
        return tried, ways


if __name__ == "__main__":
    if sys.argv[1] == "overrun":
        Fuzzer().unpack(b"\x81\xa1a\xa5abcd", missing=1)
    else:
        print(*Fuzzer().run(float(sys.argv[1])))
