"""One sub-command of `marconi` a file; nothing heavy is imported at the top of any of them."""
