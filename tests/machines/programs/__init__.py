"""Programs that the tests run as processes of a machine."""
