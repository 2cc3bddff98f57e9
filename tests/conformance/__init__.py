"""The contract suites of `asgi_ipc.conformance`, run for our layers and for those of others."""
