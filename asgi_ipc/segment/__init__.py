"""The operating system: shared memory, its files, its lock, its doorbells."""

from .segment import destroy

__all__ = ["destroy"]
