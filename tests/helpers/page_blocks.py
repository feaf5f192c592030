"""Blocks of code in docs/extending.md, which tests run."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "extending.md"


def blocks(title: str) -> list[str]:
    """Those with this title, in their order."""
    found = rf'^```\w+ title="{title}"\n(.*?)^```$'
    return re.findall(found, PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
