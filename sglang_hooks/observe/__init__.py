"""What an operator sees: metrics, status, dumps of the tree."""
