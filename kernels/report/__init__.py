"""What the kernels cost, told without a GPU."""
