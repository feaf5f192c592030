"""Trace readers and seeded generators: everything yields `Request` objects."""
