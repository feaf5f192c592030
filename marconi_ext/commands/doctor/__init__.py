"""`marconi doctor`."""
