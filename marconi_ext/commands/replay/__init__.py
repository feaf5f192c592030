"""`marconi replay`."""
