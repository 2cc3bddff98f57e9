"""All that a segment holds, over one buffer. Must not use a clock, a lock or a system call."""
