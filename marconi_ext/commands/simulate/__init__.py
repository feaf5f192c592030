"""`marconi simulate`."""
