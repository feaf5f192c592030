"""The table of checkpoints: one row a state that was ever offered, in a tree."""
