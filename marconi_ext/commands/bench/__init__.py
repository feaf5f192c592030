"""`marconi bench`."""
