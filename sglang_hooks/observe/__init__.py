"""What an operator sees: metrics, events about states, dumps of the tree."""
