"""What needs no other process, in the folders of the package. It runs in seconds."""
