"""The operating system, asked: real files, locks and doorbells, and processes that die."""
