"""One sub-command of `marconi` a folder (`cli`: options, `run`: what it does, `show`: what it prints) or a file.

Nothing heavy is imported at the top of any `cli`.
"""
