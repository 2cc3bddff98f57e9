"""Whether the compiled path is in use (``native/``, built as ``asgi_ipc._native``), and what the
Python code takes from it. Must not do anything that the Python code cannot do without.

The compiled path does the usual send and receive over the same memory and leaves everything else to
the Python code, which is the whole implementation and stays the reference. It is not used

- where it was not built: there was no compiler and no wheel;
- on Python 3.9 and 3.10, on builds without a GIL and on PyPy: it relies on the GIL, and on the
  stable ABI as Python 3.11 has it;
- with the environment variable ``ASGI_IPC_PURE=1``;
- for a layer with ``lock="file"`` or ``symmetric_encryption_keys``;
- if it was built for another memory layout: then it is out of date.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any
from zlib import crc32

from . import layout

REVISION = 5  # of what the Python code and the compiled path expect of each other

PURE, COMPILED = "pure", "compiled"

_NOT_BUILT, _OUT_OF_DATE = "it was not built", "it was built for another version"


def fingerprint() -> int:
    """A number that changes with the layout, and with `REVISION`."""
    numbers = {name: value for name, value in vars(layout).items() if type(value) is int}
    return crc32(repr((REVISION, sorted(numbers.items()))).encode())


def _load() -> tuple[Any, str]:
    """The compiled module, or None and why it is not used."""
    if os.environ.get("ASGI_IPC_PURE", "0") not in ("", "0"):
        return None, "ASGI_IPC_PURE is set"
    if sys.implementation.name != "cpython" or sys.version_info < (3, 11):
        return None, "it needs CPython 3.11 or later"
    if "t" in sys.abiflags:
        return None, "this build of Python has no GIL"
    try:
        found = import_module("._native", __package__.rpartition(".")[0])
    except ModuleNotFoundError:
        return None, _NOT_BUILT
    except ImportError as error:  # it is for another processor or libc
        return None, str(error)
    if fingerprint() != found.FINGERPRINT:
        return None, _OUT_OF_DATE
    return found, ""


_native, why_not = _load()
could_be_built = why_not in (_NOT_BUILT, _OUT_OF_DATE)

if TYPE_CHECKING:

    class Target:
        """What `store.queues.Target` inherits from."""

        row: int
        generation: int
        limit: int
        expiry: float
        seed: int
        local_parts: bytes
        taken: float

    class Source:
        """What `aio.source.Source` inherits from."""

        channel: str
        inbox: Any
        target: Any

elif _native is not None:
    Target, Source = _native.Target, _native.Source
else:

    class Target:
        """Of a target, what the compiled path reads or writes where there is one."""

        __slots__ = ("expiry", "generation", "limit", "local_parts", "row", "seed", "taken")

    class Source:
        """Of a source, likewise."""

        __slots__ = ("channel", "inbox", "target")


# Whether this process has the compiled path. Not every layer can use it.
LOADED: bool = _native is not None


def implementation(has_mutex: bool) -> str:
    """What sends and receives in this process, for a segment with a mutex or without."""
    return COMPILED if LOADED and has_mutex else PURE


# If it is not loaded, nobody asks for these.
Memory: Any = getattr(_native, "Memory", None)
Usual: Any = getattr(_native, "Usual", None)
are_files: Any = getattr(_native, "are_files", None)
