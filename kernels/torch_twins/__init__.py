"""The engine's operators of recurrent layers in vectorised torch, for machines without a GPU."""
