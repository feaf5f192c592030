"""Entry point of the general plugin: SGLang calls `register` in every process, first of all."""

from sglang_hooks import cpu_platform


def register() -> None:
    """Install what is asked for; idempotent, and no effect where nothing is."""
    cpu_platform.apply()
