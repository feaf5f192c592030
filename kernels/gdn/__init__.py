"""Checkpoints of Gated DeltaNet."""
