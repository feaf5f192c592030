"""`marconi simulate` from the command line: the JSON, resuming, and bad input."""

import json
from pathlib import Path

import numpy as np
import pytest
from command import marconi

from marconi_ext.errors import BadInputError
from marconi_ext.simulator.capacity import Capacity, parse_capacities


@pytest.fixture(scope="module")
def trace(tmp_path_factory) -> Path:
    """Three sessions of four turns over one prefix, as Marconi's JSONL."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("trace") / "t.jsonl"
    lines, history = [], {s: list(range(50)) for s in range(3)}
    for turn in range(4):
        for session in range(3):
            prompt = [*history[session], *map(int, rng.integers(100, 200, 20))]
            output = list(map(int, rng.integers(100, 200, 10)))
            history[session] = prompt + output
            record = {"session_id": session, "turn_id": turn, "ts": turn * 3 + session}
            lines.append(json.dumps({**record, "input_tokens": prompt, "output_tokens": output}))
    path.write_text("\n".join(lines) + "\n")
    return path


def test_json_has_what_it_promises(trace, tmp_path) -> None:
    out = tmp_path / "o.json"
    names = "artifact-lru,artifact-static:1.0,artifact-marconi,artifact-vllm,lru,gittins"
    base = ("simulate", "--trace", str(trace), "--model", "paper-7b", "--policy", names, "--processes", "1")
    done = marconi(*base, "--capacity", "1GB,2GB", "--per-request", "--json", str(out))
    assert done.returncode == 0, done.stderr
    cells = json.loads(out.read_text())["cells"]
    assert len(cells) == 12
    for cell in cells:
        assert {"trace", "policy", "capacity_bytes", "token_hit_rate", "flops_saved", "parameters"} <= set(
            cell
        )
        assert {"state_limited_loss", "ideal_hit_rate", "causes", "evictions", "held_bytes"} <= set(cell)
        assert len(cell["hits"]) == 12 and sum(cell["hits"]) == cell["hit_tokens"]
        assert cell["capacity_bytes"] in (10**9, 2 * 10**9)
    # ample: turn t's prompt is turn t - 1's whole sequence and 20 new tokens
    lru = next(c for c in cells if c["policy"] == "artifact-lru" and c["capacity_bytes"] == 2 * 10**9)
    assert lru["hits"][3:] == [80 + 30 * t for t in range(3) for _ in range(3)]


def test_resume_runs_only_what_is_missing(trace, tmp_path) -> None:
    out = tmp_path / "o.json"
    base = (
        "simulate",
        "--trace",
        str(trace),
        "--capacity",
        "slots=4",
        "--json",
        str(out),
        "--processes",
        "1",
    )
    assert marconi(*base, "--policy", "lru").returncode == 0
    first = json.loads(out.read_text())["cells"]
    assert marconi(*base, "--policy", "lru,seglen", "--resume").returncode == 0
    cells = json.loads(out.read_text())["cells"]
    assert cells[0] == first[0] and [c["policy"] for c in cells] == ["lru", "seglen"]
    refused = marconi(*base, "--policy", "lru", "--resume", "--objective", "tokens")
    assert refused.returncode == 2 and "other options" in refused.stderr


@pytest.mark.parametrize(
    "content",
    ["", "[]", "7", "{}", '{"cells": 3}', '{"cells": [3]}', '{"cells": [{"trace": "t"}]}', "[" * 99_999],
)
def test_resume_refuses_what_is_no_sweep(trace, tmp_path, content: str) -> None:
    out = tmp_path / "o.json"
    out.write_text(content)
    done = marconi("simulate", "--trace", str(trace), "--json", str(out), "--resume")
    assert done.returncode == 2 and "is not a sweep's result" in done.stderr
    assert "Traceback" not in done.stderr and out.read_text() == content


def test_json_to_stdout_comes_alone(trace) -> None:
    base = ("simulate", "--trace", str(trace), "--capacity", "slots=4", "--policy", "lru", "--json", "-")
    done = marconi(*base, "--processes", "1")
    assert done.returncode == 0 and len(json.loads(done.stdout)["cells"]) == 1, done.stderr
    assert marconi(*base, "--resume").returncode == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--policy", "fifo"), "--policy: unknown 'fifo'"),
        (("--policy", "flop-aware"), "give an α"),
        (("--policy", "fifo+lru"), "unknown admission"),
        (("--policy", "artifact-lru", "--capacity", "1GB"), "--model paper-7b"),
        (("--capacity", "lots"), "--capacity"),
        (("--model", "gpt"), "--model"),
        (("--gpu", "tpu"), "--gpu"),
        (("--objective", "joy"), "--objective"),
        (("--resume",), "--resume"),
        (("--json", "/nowhere/x.json"), "--json /nowhere/x.json"),
    ],
)
def test_bad_input_names_the_flag(trace, arguments, message) -> None:
    done = marconi("simulate", "--trace", str(trace), *arguments)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


def test_capacities() -> None:
    assert parse_capacities("40GB, 512MiB") == [Capacity(bytes=40 * 10**9), Capacity(bytes=2**29)]
    assert parse_capacities("slots=16,tokens=2M") == [Capacity(slots=16, tokens=2_000_000)]
    assert parse_capacities("slots=16,slots=32") == [Capacity(slots=16), Capacity(slots=32)]
    assert parse_capacities("slots=1;slots=2,tokens=9") == [Capacity(slots=1), Capacity(slots=2, tokens=9)]
    assert parse_capacities("slots=inf")[0].label == "unlimited"
    for bad in ("", "0GB", "slots", "pages=3", "-1GB", "1e400GB", "slots=" + "9" * 400):
        with pytest.raises(BadInputError, match="--capacity"):
            parse_capacities(bad)


def test_a_capacity_of_a_few_bytes_is_warned_about(trace) -> None:
    few = marconi(
        "simulate", "--trace", str(trace), "--policy", "lru", "--capacity", "40", "--processes", "1"
    )
    assert few.returncode == 0 and "40 bytes hold no state; did you mean GB" in few.stderr
    assert "40 bytes" in few.stdout


def test_figures_take_a_capacity_with_a_trace_only(tmp_path) -> None:
    found = marconi("figures", "--out", str(tmp_path / "f"), "--capacity", "5GB")
    assert found.returncode == 2 and "--capacity" in found.stderr and "--trace" in found.stderr
    assert not (tmp_path / "f").exists()


def test_csv_and_plot(trace, tmp_path) -> None:
    """A row a cell, and a figure; what can't be written is told before anything runs."""
    csv, plot = tmp_path / "o.csv", tmp_path / "o.svg"
    base = ("simulate", "--trace", str(trace), "--policy", "lru,gittins", "--capacity", "slots=2;slots=4")
    done = marconi(*base, "--processes", "1", "--csv", str(csv), "--plot", str(plot))
    assert done.returncode == 0, done.stderr
    header, *rows = csv.read_text().splitlines()
    assert len(rows) == 4 and {"policy", "slots", "token_hit_rate", "ttft_p95_ms"} <= set(header.split(","))
    assert plot.read_text().startswith("<?xml")
    unwritable = [("--csv", tmp_path / "none" / "o.csv"), ("--plot", tmp_path / "none" / "o.svg")]
    for flag, file in [*unwritable, ("--plot", tmp_path / "o.bmp")]:
        refused = marconi(*base, flag, str(file))
        assert refused.returncode == 2 and flag in refused.stderr
        assert not refused.stdout and not file.exists()


def test_against_says_what_was_dropped_and_asked_for(tmp_path: Path) -> None:
    flags = ["--trace", "synthetic:tree-search", "--limit", "60", "--capacity", "slots=4", "--processes", "1"]
    out = tmp_path / "against.json"
    more = ["--policy", "lru,gittins", "--against", "clairvoyant", "--json", str(out)]
    done = marconi("simulate", *flags, *more)
    assert done.returncode == 0, done.stderr
    assert "clairvoyant is served" in done.stdout
    first, second = json.loads(out.read_text())["cells"]
    assert (first["policy"], second["policy"]) == ("lru", "gittins")
    assert first["losses"][0]["requests"] > 0
    refused = marconi("simulate", *flags, "--policy", "lru", "--against", "best-static")
    assert refused.returncode != 0
    assert "--against" in refused.stderr
