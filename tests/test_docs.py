"""What the pages say of the code is there: files, functions, flags of the picture; and every page is in the site."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from marconi_ext import __version__

REPO = Path(__file__).parents[1]
DOCS = REPO / "docs"
ARCHITECTURE = (DOCS / "architecture.md").read_text(encoding="utf-8")
PICTURE = (DOCS / "images" / "request.svg").read_text(encoding="utf-8")
FOLDERS = ("marconi_ext", "kernels", "sglang_hooks", "tests")
TREES = (*FOLDERS, "bench")


def functions(file: Path) -> set[str]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_the_pictures_names_are_the_codes() -> None:
    steps = re.findall(r">([\w/]+\.py) (\w+)\(\)<", PICTURE)
    assert len(steps) == 11
    missing = [f"{file} {name}" for file, name in steps if name not in functions(REPO / file)]
    assert not missing


def test_the_architectures_files_exist() -> None:
    known = [
        file.relative_to(REPO).as_posix() for folder in FOLDERS for file in (REPO / folder).rglob("*.py")
    ]
    named = set(re.findall(r"`([\w/]+\.py)`", ARCHITECTURE))
    missing = [name for name in named if not any(f"/{file}".endswith(f"/{name}") for file in known)]
    assert len(named) > 12 and not missing


@pytest.mark.parametrize(("file", "name"), re.findall(r"\(`(\w+\.py)`, `(\w+)`\)", ARCHITECTURE))
def test_the_architectures_functions_exist(file: str, name: str) -> None:
    found = [path for folder in FOLDERS for path in (REPO / folder).rglob(file)]
    assert any(name in functions(path) for path in found), f"{file} has no {name}"


@pytest.mark.parametrize(
    "page", [REPO / "README.md", REPO / "CONTRIBUTING.md", *sorted(DOCS.glob("**/*.md"))]
)
def test_files_that_a_page_names_exist(page: Path) -> None:
    """In backticks: a path from the root, or its end."""
    files = [file.relative_to(REPO).as_posix() for folder in TREES for file in (REPO / folder).rglob("*.py")]
    named = re.findall(r"`((?:[\w-]+/)*[\w-]+\.py)`", page.read_text(encoding="utf-8"))
    theirs = {"my_parts.py", "setup.py", "marconi_ext/commands/NAME.py"}
    missing = {
        name
        for name in named
        if not any(f"/{file}".endswith(f"/{name}") for file in files) and name not in theirs
    }
    assert not missing


def test_one_version() -> None:
    said = {
        "CITATION.cff": re.findall(
            r"^version: (\S+)", (REPO / "CITATION.cff").read_text(encoding="utf-8"), re.M
        ),
        "README.md": re.findall(r"marconi-ext (\S+) live", (REPO / "README.md").read_text(encoding="utf-8")),
    }
    assert said == {"CITATION.cff": [__version__], "README.md": [__version__]}


def test_every_table_of_numbers_is_listed() -> None:
    index = (DOCS / "results" / "index.md").read_text(encoding="utf-8")
    assert {file.name for file in (DOCS / "results").glob("*.csv")} == set(
        re.findall(r"\]\(([\w-]+\.csv)\)", index)
    )


def test_every_benchmark_is_cited_or_used() -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in DOCS.glob("**/*.md"))
    texts = {file.stem: file.read_text(encoding="utf-8") for file in (REPO / "bench").glob("*.py")}
    unused = [
        name
        for name in texts
        if f"bench/{name}.py" not in pages
        and not any(re.search(rf"\b{name}\b", text) for other, text in texts.items() if other != name)
    ]
    assert not unused


@pytest.mark.parametrize("script", sorted((REPO / "bench").glob("*.py")), ids=lambda file: file.stem)
def test_every_benchmark_says_on_top_what_it_answers(script: Path) -> None:
    told = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""
    assert told and len(told.splitlines()[0]) > 30


def test_every_page_is_in_the_site() -> None:
    site = (REPO / "mkdocs.yml").read_text(encoding="utf-8")
    assert not [page.name for page in DOCS.glob("**/*.md") if page.name not in site], (
        "add it to nav in mkdocs.yml"
    )


def test_links_between_pages_hold() -> None:
    broken = []
    for page in (REPO / "README.md", REPO / "CONTRIBUTING.md", *DOCS.glob("**/*.md")):
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
            if "://" not in target and not (page.parent / target).exists():
                broken.append(f"{page.name}: {target}")
    assert not broken
