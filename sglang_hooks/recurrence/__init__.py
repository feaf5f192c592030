"""How a family's states are saved during a prefill."""
