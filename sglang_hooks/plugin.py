"""Entry point `sglang.srt.plugins`: SGLang calls `register` once in each of its processes.

Nothing here changes how SGLang serves until --enable-marconi is given: only the flags, and hooks on what reads,
resolves and hands on arguments, which look whether they were.
"""

from __future__ import annotations


def register() -> None:
    """Add the flags and the hooks. Idempotent: SGLang loads plugins once a process."""
    from .flags import LAUNCHER_HOOKS, add_engine_arguments
    from .hooks import install
    from .resolution import RESOLUTION_HOOKS
    from .seams import SCHEDULER_INIT

    install(
        [*LAUNCHER_HOOKS, *RESOLUTION_HOOKS, SCHEDULER_INIT], apply=False
    )  # SGLang applies them after the last plugin
    add_engine_arguments()
