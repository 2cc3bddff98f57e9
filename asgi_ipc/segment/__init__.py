"""The operating system: shared memory, the files beside it, the lock and the doorbells.

Nothing outside this folder talks to the operating system about a segment.
"""

from .opening import destroy

__all__ = ["destroy"]
