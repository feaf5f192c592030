"""`marconi demo`."""
