"""Benchmarks can be found, their cited commands can be typed, and all write one schema."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
BENCH = REPO / "bench"
SCRIPTS = sorted(BENCH.glob("*.py"))
PAGES = (REPO / "README.md", REPO / "CONTRIBUTING.md", BENCH / "README.md", *(REPO / "docs").glob("**/*.md"))
CITED = sorted(
    {
        command
        for file in (*PAGES, *SCRIPTS)
        for command in re.findall(r"python (bench/\w+\.py[^`\n|]*)", file.read_text(encoding="utf-8"))
    }
)
OWN_FORM = {
    "gpu_suite": "puts the records of others into one file, with what each took",
    "kernel_budget": "writes a file of the source",
    "shaped_model": "writes a model's config.json",
}


def test_the_list_has_each_benchmark_once() -> None:
    listed = re.findall(r"^\| `(\w+\.py)` \|", (BENCH / "README.md").read_text(encoding="utf-8"), re.M)
    assert sorted(listed) == [script.name for script in SCRIPTS]


@pytest.mark.parametrize("command", CITED)
def test_a_cited_command_has_its_file_and_flags(command: str) -> None:
    """A flag stands in the file as it is, or as the parameter that typer makes it of."""
    name, *words = command.split()
    text = (REPO / name).read_text(encoding="utf-8")
    flags = [word.strip('[]()",.;:').split("=")[0] for word in words if word.lstrip("[(").startswith("--")]
    if "--server-flags" in flags:  # what follows are the server's
        flags = flags[: flags.index("--server-flags") + 1]
    missing = [f for f in flags if f not in text and not re.search(rf"\b{f[2:].replace('-', '_')}: ", text)]
    assert not missing


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda file: file.stem)
def test_measurements_are_written_as_records(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    writes = re.search(r"\bwrite_json\(|write_text\(|json\.dump\(", text)
    assert not writes or script.stem in {"records", "live_comparison", *OWN_FORM}
    if re.search(r"\"--json\"|json: Annotated", text):
        assert "records_of(" in text
