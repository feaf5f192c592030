"""`marconi kernels`."""
