"""The paper's utility: α, and its tuner."""
