"""The package of docs/extending.md serves every command, and packages with faults are named."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from command import marconi
from made_package import install
from page_blocks import blocks

from marconi_ext import entry_points
from marconi_ext.errors import BadInputError
from marconi_ext.policies.registry import NewEviction, parse_policy
from marconi_ext.profiles.gpus import find_gpu


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("site-packages")
    (project,) = blocks("pyproject.toml")
    groups = tomllib.loads(project)["project"]["entry-points"]
    lines = [
        f"[{group}]\n" + "".join(f"{n} = {v}\n" for n, v in named.items()) for group, named in groups.items()
    ]
    install(folder, "my_parts", "\n".join(lines), "\n".join(blocks("my_parts.py")))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield folder


def simulate(*options: str):
    return marconi(
        *("simulate", "--trace", "synthetic:agent", "--limit", "60", "--processes", "1", "--json", "-"),
        *options,
    )


def test_policies_are_simulated(installed: Path) -> None:
    found = simulate("--policy", "lru,deepest,ends-only+lru", "--capacity", "slots=6")
    assert found.returncode == 0, found.stderr
    lru, deepest, ends_only = json.loads(found.stdout)["cells"]
    assert (deepest["policy"], ends_only["policy"]) == ("deepest", "ends-only+lru")
    assert len({cell["hit_tokens"] for cell in (lru, deepest, ends_only)}) == 3, "they decide nothing"
    refused = simulate("--policy", "fifo", "--capacity", "slots=6")
    assert refused.returncode == 2 and "deepest" in refused.stderr
    assert parse_policy("deepest").admission == "selective"


def test_a_trace_format_is_told_by_its_fields(installed: Path, tmp_path: Path) -> None:
    chats = tmp_path / "chats.jsonl"
    lines = [
        {"who": "ann", "turn": 0, "seconds": 0, "asked": [1, 2, 3], "answered": [4]},
        {"who": "ann", "turn": 1, "seconds": 2.5, "asked": [1, 2, 3, 4, 5], "answered": [6]},
        {"who": "bob", "turn": 0, "seconds": 3, "asked": [], "answered": []},
    ]
    chats.write_text("\n".join(map(json.dumps, lines)))
    for options in ((), ("--format", "chatlog")):
        found = marconi("trace", "info", chats, "--json", "-", *options)
        assert found.returncode == 0 and "chats.jsonl:3: asked: empty" in found.stderr, found.stderr
        assert json.loads(found.stdout)["requests"] == 2
    refused = marconi("trace", "info", chats, "--template", "plain")
    assert refused.returncode == 2 and "chatlog, which has no messages" in refused.stderr
    refused = marconi("trace", "info", chats, "--format", "chatblog")
    assert refused.returncode == 2 and "chatlog" in refused.stderr


def test_a_gpu_is_found(installed: Path) -> None:
    assert find_gpu("gb10").bytes_per_s == 0.273e12
    found = simulate("--policy", "lru", "--capacity", "slots=6", "--gpu", "gb10")
    assert json.loads(found.stdout)["cells"][0]["ttft_estimate"]["gpu"] == "gb10"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "import no_such_module",
            r"'odd' of faulty can't be imported: ModuleNotFoundError: .*no_such_module",
        ),
        ("ODD = 7", "'odd' of faulty is a int, not a NewEviction"),
        ("", "'odd' of faulty can't be imported: AttributeError"),
    ],
)
def test_faults_name_the_package(tmp_path: Path, monkeypatch, code: str, message: str) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "faulty", raising=False)
    install(tmp_path, "faulty", "[marconi.policies]\nodd = faulty:ODD\n", code)
    with pytest.raises(BadInputError, match=message):
        entry_points.load(entry_points.POLICIES, "odd", NewEviction)
    assert parse_policy("lru").eviction == "lru", "a faulty package harms what doesn't ask for it"


def test_a_name_that_two_packages_offer_is_nobodys(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("one", "two"):
        install(tmp_path, name, f"[marconi.gpus]\nchip = {name}:CHIP\n", "")
    with pytest.raises(BadInputError, match=r"'chip' is offered by .* and by "):
        find_gpu("chip")
