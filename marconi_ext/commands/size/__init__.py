"""`marconi size`."""
