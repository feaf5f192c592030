"""Trace-driven simulation: the published artifact's rules to the letter, and the corrected simulator."""
