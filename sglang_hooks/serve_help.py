"""Our flags in `sglang serve --help`, which SGLang prints before it loads plugins.

Target: argparse.ArgumentParser.format_help, in a process that was started to print that help, and in no other.
Why: the platform's entry point is the one piece of ours that runs before; ServerArgs, which `flags.py` extends, isn't
there yet at that moment.
Remove when: `sglang serve --help` loads plugins first.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

SERVES_STATES = (
    "--max-mamba-cache-size"  # an option by which the parser of a language model's server is known
)
OURS = "--enable-marconi"


def show_flags_in_help(argv: Sequence[str]) -> None:
    """Add our group to the help that the command line `argv` asks for; nothing on any other command line."""
    if list(argv[1:2]) != ["serve"] or not {"-h", "--help"} & set(argv):
        return
    original = argparse.ArgumentParser.format_help

    def format_help(parser: argparse.ArgumentParser) -> str:
        known = parser._option_string_actions
        if SERVES_STATES in known and OURS not in known:
            from .flags import add_flags

            add_flags(parser)
        return original(parser)

    argparse.ArgumentParser.format_help = format_help  # type: ignore[method-assign, assignment]
