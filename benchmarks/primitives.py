"""What one step of the store costs: locks, loads and stores, rings, and packing a message.

Each primitive is a statement for `timeit`, so that no call of a lambda is counted with it. Locks,
loads and stores work on shared memory, as the store does.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import socket
import statistics
import struct
import tempfile
import timeit
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from benchmarks.measure import Column, Table, interleaved

# 145 bytes in msgpack: what a chat room sends.
CHAT = {
    "type": "chat.message",
    "room": "lobby",
    "user": "ada",
    "text": "The engine weaves algebraic patterns, just as the loom weaves flowers and leaves. "
    "So says the lady.",
}

# Values of the pthread constants; musl agrees with glibc on all three.
PTHREAD_MUTEX_ERRORCHECK = 2
PTHREAD_PROCESS_SHARED = 1
PTHREAD_MUTEX_ROBUST = 1

Names = dict[str, Any]
Setup = Callable[[ExitStack], Names]


def memory(stack: ExitStack) -> Names:
    """2 MB of shared memory, touched, and what reads and writes it."""
    area = mmap.mmap(-1, 1 << 21)
    area.write(b"\1" * len(area))
    fields = struct.Struct("<QQIIHHI")
    return {
        "words": memoryview(area).cast("Q"),
        "area": area,
        "pack_into": fields.pack_into,
        "unpack_from": fields.unpack_from,
        "chunk": b"x" * 200,
        "megabyte": b"x" * (1 << 20),
    }


def named_semaphore(stack: ExitStack) -> Names:
    import posix_ipc

    made = posix_ipc.Semaphore(None, posix_ipc.O_CREX, initial_value=1)
    stack.callback(made.close)
    stack.callback(made.unlink)
    return {"acquire": made.acquire, "release": made.release}


def robust_mutex(stack: ExitStack) -> Names:
    """As the store locks: through `PyDLL`, which keeps the GIL, only with trylock, by `byref`."""
    libc = ctypes.PyDLL(None)
    attributes = ctypes.create_string_buffer(64)
    area = mmap.mmap(-1, mmap.PAGESIZE)
    mutex = ctypes.byref(ctypes.c_char.from_buffer(area))
    libc.pthread_mutexattr_init(attributes)
    libc.pthread_mutexattr_setpshared(attributes, PTHREAD_PROCESS_SHARED)
    libc.pthread_mutexattr_setrobust(attributes, PTHREAD_MUTEX_ROBUST)
    libc.pthread_mutexattr_settype(attributes, PTHREAD_MUTEX_ERRORCHECK)
    if libc.pthread_mutex_init(mutex, attributes) or libc.pthread_mutex_trylock(mutex):
        raise OSError("no robust, error-checking, process-shared mutex here")
    libc.pthread_mutex_unlock(mutex)
    return {
        "trylock": libc.pthread_mutex_trylock,
        "unlock": libc.pthread_mutex_unlock,
        "mutex": mutex,
        "area": area,
    }


def file_lock(stack: ExitStack) -> Names:
    file = stack.enter_context(tempfile.TemporaryFile())
    return {
        "flock": fcntl.flock,
        "fd": file.fileno(),
        "LOCK_EX": fcntl.LOCK_EX,
        "LOCK_UN": fcntl.LOCK_UN,
    }


def fifo(stack: ExitStack) -> Names:
    directory = stack.enter_context(tempfile.TemporaryDirectory())
    path = os.path.join(directory, "bell")
    os.mkfifo(path)
    fd = os.open(path, os.O_RDWR)
    stack.callback(os.close, fd)
    return {"read": os.read, "write": os.write, "fd": fd}


def eventfd(stack: ExitStack) -> Names:
    fd = os.eventfd(0)
    stack.callback(os.close, fd)
    return {"read": os.read, "write": os.write, "fd": fd, "one": (1).to_bytes(8, "little")}


def datagram(stack: ExitStack) -> Names:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    stack.enter_context(one)
    stack.enter_context(other)
    return {"send": one.send, "recv": other.recv}


def packing(stack: ExitStack) -> Names:
    import msgpack

    return {
        "pack": msgpack.Packer(use_bin_type=True).pack,
        "packb": msgpack.packb,
        "unpackb": msgpack.unpackb,
        "message": CHAT,
        "packed": msgpack.packb(CHAT, use_bin_type=True),
    }


PRIMITIVES: tuple[tuple[str, Setup, str], ...] = (
    ("lock + unlock: named semaphore", named_semaphore, "acquire(); release()"),
    ("lock + unlock: robust mutex", robust_mutex, "trylock(mutex); unlock(mutex)"),
    ("lock + unlock: flock", file_lock, "flock(fd, LOCK_EX); flock(fd, LOCK_UN)"),
    ("Struct.pack_into, 7 fields", memory, "pack_into(area, 64, 1, 2, 3, 4, 5, 6, 7)"),
    ("Struct.unpack_from, 7 fields", memory, "unpack_from(area, 64)"),
    ("memoryview 'Q' load", memory, "words[8]"),
    ("memoryview 'Q' store", memory, "words[8] = 123456789"),
    ("200-byte slice into shared memory", memory, "area[64:264] = chunk"),
    ("200-byte slice out of shared memory", memory, "area[64:264]"),
    ("1 MB into shared memory", memory, "area[64:1048640] = megabyte"),
    ("write + read: FIFO", fifo, "write(fd, b'!'); read(fd, 1)"),
    ("write + read: eventfd", eventfd, "write(fd, one); read(fd, 8)"),
    ("send + recv: unix datagram", datagram, "send(b'!'); recv(1)"),
    ("msgpack: Packer.pack, 145 bytes", packing, "pack(message)"),
    ("msgpack: packb, 145 bytes", packing, "packb(message)"),
    ("msgpack: unpackb, 145 bytes", packing, "unpackb(packed)"),
)


def table(repetitions: int, seconds: float) -> Table:
    """Nanoseconds for each primitive; `seconds` is the time for one repetition of one of them."""
    rows: list[dict[str, Any]] = []
    timers: list[tuple[timeit.Timer, int, list[float]]] = []
    with ExitStack() as stack:
        for name, setup, statement in PRIMITIVES:
            row: dict[str, Any] = {"primitive": name, "samples": []}
            rows.append(row)
            try:
                timer = timeit.Timer(statement, globals=setup(stack))
                once = timer.timeit(1000) / 1000
            except (ImportError, AttributeError, OSError) as reason:
                row["missing"] = f"not here: {reason}"
                continue
            timers.append((timer, max(1, int(seconds / once)), row["samples"]))
        for timer, number, samples in interleaved(repetitions, timers):
            samples.append(timer.timeit(number) / number * 1e9)
    for row in rows:
        if row["samples"]:
            row.update(ns=statistics.median(row["samples"]), least=min(row["samples"]))
    return Table(
        "primitives",
        "Primitives, nanoseconds",
        (
            Column("primitive", "primitive"),
            Column("ns", "median", ",.0f"),
            Column("least", "least", ",.0f"),
            Column("missing", ""),
        ),
        rows,
    )
