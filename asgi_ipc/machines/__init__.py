"""One layer over several machines, which uses an existing layer for Channels 4 between them."""
