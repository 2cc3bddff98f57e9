"""Several machines. In these tests two prefixes are two machines, which share real servers."""
