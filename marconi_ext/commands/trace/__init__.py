"""`marconi trace`."""
