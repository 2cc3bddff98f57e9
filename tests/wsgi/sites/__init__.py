"""The modules that the servers and workers of the tests run: a front, and one site twice."""
