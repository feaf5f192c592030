"""The learned policy: what a state is worth by its class and age. Read `reference.py` first."""
