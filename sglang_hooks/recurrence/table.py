"""The table of models in docs/models.md: `python -m sglang_hooks.recurrence.table FILE` writes it anew."""

from __future__ import annotations

import sys
from pathlib import Path

from .interface import Recurrence
from .registry import FAMILIES

BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


def families() -> str:
    """A row a family."""
    rows = ["| family | state of a layer | saved by | speculative decoding |", "|---|---|---|---|"]
    rows += [f"| {f.name} | {f.state} | {f.method} | {drafts(f)} |" for f in FAMILIES]
    return "\n".join(rows)


def drafts(family: Recurrence) -> str:
    """Which drafts a family verifies with exact states."""
    if not family.speculates:
        return "not tested"
    which = "chains" if family.chains_only else "chains and trees"
    if family.untried:
        which += f"; not tested with {', '.join(family.untried)}"
    none = ", ".join(f"`{name}`" for name in family.unverified)
    return f"{which}; none with {none}" if none else which


def models() -> str:
    """A row an architecture."""
    rows = ["| architecture | family | served | run on |", "|---|---|---|---|"]
    for family in FAMILIES:
        for name in family.architectures:
            rows.append(f"| `{name}` | {family.name} | live | {family.tested.get(name, '–')} |")
        for name, reason in family.refused.items():
            rows.append(f"| `{name}` | {family.name} | stock: {reason} | – |")
    return "\n".join(rows)


def renewed(text: str) -> str:
    """The page with its tables as the code has them. Raises: ValueError where it lacks the marks."""
    before, _, rest = text.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise ValueError(f"the page lacks {BEGIN} or {END}")
    return f"{before}{BEGIN}\n{families()}\n\n{models()}\n{END}{after}"


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(renewed(page.read_text(encoding="utf-8")), encoding="utf-8")
