"""Past one machine: one layer over several machines, by way of an existing layer for Channels 4."""
