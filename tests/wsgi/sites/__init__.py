"""What the servers and the workers of the tests run: one front, and the same site twice."""
