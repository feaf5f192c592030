"""Checkpoints of Mamba2: SSM states, conv windows, the scan that saves both."""
