"""One process in a segment, with real layers: others die, fork and remove the segment."""
