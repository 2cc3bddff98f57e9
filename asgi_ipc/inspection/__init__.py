"""A segment seen from outside: it is read, and never attached to."""
