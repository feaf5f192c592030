"""The command's frame, and `marconi trace`, as a user calls them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command import COMMAND, marconi


def test_version_and_help_import_nothing_heavy() -> None:
    assert marconi("--version").stdout.startswith("marconi-ext 0.")
    help_text = marconi("--help")
    assert help_text.returncode == 0 and "demo" in help_text.stdout and "doctor" in help_text.stdout
    code = (
        "import sys, marconi_ext.cli as c; sys.argv = ['marconi', '--help']\n"
        "try: c.main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'sglang', 'numpy', 'httpx', 'mistral_common'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.endswith(
        "[]\n"
    )


def test_unknown_command_exits_2() -> None:
    found = marconi("juggle")
    assert found.returncode == 2 and "juggle" in found.stderr


def test_trace_info_and_convert_agree(tmp_path: Path) -> None:
    packed, one, two = tmp_path / "t.jsonl.gz", tmp_path / "1.json", tmp_path / "2.json"
    assert marconi("trace", "info", "synthetic:fork", "--json", str(one)).returncode == 0
    converted = marconi("trace", "convert", "synthetic:fork", str(packed))
    assert converted.returncode == 0 and "48 requests" in converted.stdout
    assert marconi("trace", "info", str(packed), "--json", str(two)).returncode == 0
    first, second = json.loads(one.read_text()), json.loads(two.read_text())
    assert first.pop("trace") != second.pop("trace")
    assert first == second and first["requests"] == 48 and first["ideal_hit_rate"] > 50
    again = tmp_path / "again.jsonl.gz"
    marconi("trace", "convert", "synthetic:fork", str(again))
    assert again.read_bytes() == packed.read_bytes()


def test_json_to_stdout_comes_alone(tmp_path: Path) -> None:
    found = marconi("trace", "info", "synthetic:fork", "--json", "-", cwd=tmp_path)
    assert json.loads(found.stdout)["requests"] == 48 and not list(tmp_path.iterdir())


def test_broken_lines_are_shown_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    good = {"session_id": "a", "turn_id": 0, "ts": 0, "input_tokens": [1, 2], "output_tokens": [3]}
    path.write_text(f"{json.dumps(good)}\nbroken\n")
    found = marconi("trace", "info", str(path))
    assert found.returncode == 0 and "t.jsonl:2: not JSON" in found.stderr
    assert "broken records skipped" in found.stdout
    strict = marconi("trace", "info", str(path), "--strict")
    assert strict.returncode == 2 and "t.jsonl:2: not JSON" in strict.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("info", "/nowhere"), "/nowhere: no such file"),
        (("info", "synthetic:holiday"), "synthetic:holiday"),
        (("info", "synthetic:agent", "--sessions-per-s", "0"), "--sessions-per-s"),
        (("info", "synthetic:agent", "--json", "/nowhere/x.json"), "--json /nowhere/x.json"),
        (("convert", "synthetic:agent", "/nowhere/x.jsonl"), "OUT /nowhere/x.jsonl"),
    ],
)
def test_bad_usage_exits_2(arguments: tuple[str, ...], message: str) -> None:
    found = marconi("trace", *arguments)
    assert found.returncode == 2 and message in found.stderr, found.stderr


def test_short_help_and_the_module_are_the_command() -> None:
    for arguments in (("-h",), ("trace", "-h"), ("trace", "info", "-h"), ("model", "-h")):
        found = marconi(*arguments)
        assert found.returncode == 0 and "Usage" in found.stdout, found.stderr
    for start in (COMMAND, (sys.executable, "-m", "marconi_ext")):
        found = subprocess.run([*start, "--version"], capture_output=True, text=True)
        assert (found.returncode, found.stdout) == (0, marconi("--version").stdout)
    refused = subprocess.run([*COMMAND, "trace", "info", "/nowhere"], capture_output=True, text=True)
    assert refused.returncode == 2 and "marconi: trace /nowhere: no such file" in refused.stderr


def test_a_model_that_can_not_be_written_is_told_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = marconi("model", str(tmp_path / "file" / "toy"))
    assert found.returncode == 2 and "can't be written" in found.stderr and "Traceback" not in found.stderr


def test_no_number_of_a_table_is_cut() -> None:
    from io import StringIO

    from rich.console import Console
    from rich.table import Table

    from marconi_ext.output import print_table

    for terminal in (True, False):
        out = Console(file=StringIO(), width=40, force_terminal=terminal)
        table = Table("a long name of an arm")
        for number in range(12):
            table.add_column(f"column {number}", justify="right")
        table.add_row("marconi:slots=48", *[f"{1_292_000 + n:,}" for n in range(12)])
        print_table(out, table)
        assert all(f"{1_292_000 + n:,}" in out.file.getvalue() for n in range(12))
        assert "…" not in out.file.getvalue()
