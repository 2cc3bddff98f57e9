"""A segment seen from outside: it is looked at, and never attached to."""
