"""Policies, simulator, traces and the `marconi` command. Imports neither torch nor SGLang."""

__version__ = "0.1.0"
