"""Dashboard, alerts and docs name the metrics that the extension exports, all of them and no others."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from importlib.resources import files
from pathlib import Path

import pytest
from command import marconi

from sglang_hooks.observe.metrics import METRICS

DASHBOARDS = files("marconi_ext") / "dashboards"
DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"
NAMES = {metric.name for metric in METRICS}


def named(text: str) -> set[str]:
    return set(re.findall(r"\bmarconi_[a-z_]+[a-z]\b", text)) - {"marconi_ext"}


def test_dashboard_shows_every_metric_and_no_unknown_one() -> None:
    dashboard = json.loads((DASHBOARDS / "grafana.json").read_text(encoding="utf-8"))
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert named("\n".join(queries)) == NAMES
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    assert all(panel["description"] for panel in dashboard["panels"])


def test_panels_fill_rows_without_overlap() -> None:
    dashboard = json.loads((DASHBOARDS / "grafana.json").read_text(encoding="utf-8"))
    cells: set[tuple[int, int]] = set()
    for place in (panel["gridPos"] for panel in dashboard["panels"]):
        mine = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not mine & cells and max(x for x, _ in mine) < 24
        cells |= mine


def test_docs_explain_every_metric_with_its_labels() -> None:
    rows = dict(
        re.findall(r"^\| `(marconi_[a-z_]+)` \| (.*?) \|", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    )
    assert set(rows) == NAMES
    for metric in METRICS:
        assert re.findall(r"`(\w+)`", rows[metric.name]) == list(metric.labels)


def test_alerts_and_docs_name_only_what_is_there() -> None:
    alerts = (DASHBOARDS / "alerts.yml").read_text(encoding="utf-8")
    docs = DOCS.read_text(encoding="utf-8")
    assert named(alerts) <= NAMES and named(docs) == NAMES
    assert set(re.findall(r"alert: (\w+)", alerts)) == set(
        re.findall(r"^\| `(Marconi\w+)`", docs, re.MULTILINE)
    )


def test_alerts_fire_for_whom_they_should() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool on PATH; on Debian: apt-get install prometheus")
    rules = Path(__file__).with_name("alerts_test.yml")
    found = subprocess.run(
        [promtool, "test", "rules", rules.name], cwd=rules.parent, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize(("flag", "name"), [([], "grafana.json"), (["--alerts"], "alerts.yml")])
def test_the_command_prints_what_is_packaged(flag: list[str], name: str, tmp_path: Path) -> None:
    printed = marconi("dashboard", *flag).stdout
    assert marconi("dashboard", *flag, "--out", tmp_path / name).returncode == 0
    assert printed == (DASHBOARDS / name).read_text(encoding="utf-8") == (tmp_path / name).read_text()
