"""Policies: which states to save (admission) and which to keep (eviction).

They see facts only, held in a `CheckpointTable`, and know nothing of trees, engines or clocks other than the
request counter handed in, so that the simulator and the live engine run the same code.
"""
