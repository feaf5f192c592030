"""The engine's Mamba2 operators in vectorised torch, for machines without a GPU."""
