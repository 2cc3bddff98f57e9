"""Several machines: two prefixes are two machines here, and share real servers."""
