"""All that a segment holds, over one buffer. Sans-IO: no clock, no lock, no system call."""
