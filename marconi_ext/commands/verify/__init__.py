"""`marconi verify`."""
