"""The public name of `store.verify`: every invariant of a segment, checked."""

from .store.verify import verify as verify
