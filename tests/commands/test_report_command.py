"""`marconi report` writes a page that needs no network, and a browser shows it, in light and in dark."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from command import marconi
from made_results import write_results

from marconi_ext.results.folder import TraceInfo

CHARTS = ("ttft", "hit-rate-over-time", "hit-rate-by-length", "loss", "cache-contents", "evictions")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of two results folders, one of whose runs broke off; names try to break out of the page."""
    folder = tmp_path_factory.mktemp("results")
    write_results(folder / "ample")
    write_results(
        folder / "tight", repeats=1, title="<script>alert(1)</script> | x", finished=False, error="Ctrl-C"
    )
    made = marconi("report", folder, "--json", folder / "figures.json")
    assert made.returncode == 0, made.stderr
    assert len(json.loads((folder / "figures.json").read_text())["comparisons"]) == 2
    return folder / "report" / "report.html"


def test_two_replays_of_one_trace_are_compared(tmp_path: Path) -> None:
    """Each of one arm, in a folder of its own; one of another trace stays alone."""
    for folder, arm in (("monday", "stock"), ("tuesday", "marconi")):
        write_results(tmp_path / folder, repeats=1, names=[arm])
    other = TraceInfo(source="other", requests=1, sessions=1, prompt_tokens=1, digest="1")
    write_results(tmp_path / "other", repeats=1, names=["stock"], trace=other)
    names = [tmp_path / name for name in ("monday", "tuesday", "other")]
    made = marconi("report", *names, "--out", tmp_path / "page", "--json", tmp_path / "figures.json")
    assert made.returncode == 0, made.stderr
    compared, alone = json.loads((tmp_path / "figures.json").read_text())["comparisons"]
    assert compared["baseline"] == "monday" and [arm["name"] for arm in compared["arms"]] == [
        "monday",
        "tuesday",
    ]
    (hits,) = (d for d in compared["differences"] if d["arm"] == "tuesday" and d["figure"] == "hit_rate")
    assert hits["value"] > 0 and len(alone["arms"]) == 1
    assert "monday and tuesday on synthetic:agent" in (tmp_path / "page" / "report.html").read_text()


class Links(HTMLParser):
    """Everything that a browser would fetch or run."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "link", "iframe", "img", "object"):
            self.found.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href", "srcset") and not (value or "").startswith("#"):
                self.found.append(f"{name}={value}")


def test_the_page_fetches_and_runs_nothing(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = Links()
    links.feed(text)
    assert links.found == []
    assert not re.search(r"url\((?!#)|@import", text)
    assert text.count("<svg") == 2 * len(CHARTS)
    assert "did not finish: Ctrl-C" in text


def test_pictures_and_markdown(page: Path) -> None:
    for slug in ("ample", "tight"):
        for chart in CHARTS:
            picture = matplotlib.image.imread(page.parent / f"{slug}-{chart}.png")
            assert picture.std() > 0.02 and picture[0, 0, :3].min() == 1  # drawn, on white
    text = (page.parent / "report.md").read_text(encoding="utf-8")
    assert re.search(r"\| hit rate, % \| \d+\.\d+ \| .*\| \d+\.\d+ \(\+15\.\d+ \[", text)
    named = re.findall(r"\]\((.+?)\)", text)
    assert len(named) == 2 * len(CHARTS) and all((page.parent / name).exists() for name in named)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {row.replace("\\|", "").count("|") for row in rows} == {5}


def test_what_can_not_be_reported(tmp_path: Path) -> None:
    nothing = marconi("report", tmp_path)
    assert nothing.returncode == 2 and "not a results folder" in nothing.stderr
    unanswered = write_results(tmp_path / "r", repeats=0)
    found = marconi("report", unanswered)
    assert found.returncode == 2 and "no request was answered" in found.stderr
    assert "Traceback" not in found.stderr


@pytest.mark.parametrize(("scheme", "number"), [("dark", 0), ("light", 1)])
def test_a_browser_shows_it(page: Path, tmp_path: Path, scheme: str, number: int) -> None:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip("no Chromium or Chrome on PATH; on Debian: apt-get install chromium")
    shot = tmp_path / "page.png"
    options = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--window-size=1300,2000",
    ]
    subprocess.run(
        [
            browser,
            *options,
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--blink-settings=preferredColorScheme={number}",
            f"--screenshot={shot}",
            page.as_uri(),
        ],
        capture_output=True,
        timeout=120,
        check=True,
    )
    pixels = matplotlib.image.imread(shot)[:, :, :3]
    assert pixels.shape == (2000, 1300, 3)
    background, ink = pixels[5, 5].mean(), pixels[:200].mean(axis=2)
    assert background > 0.9 and ink.min() < 0.3 if scheme == "light" else background < 0.2 and ink.max() > 0.8
    # Charts are on screen: every band of the page's lower part holds coloured pixels, not greys alone.
    saturated = (pixels.max(axis=2) - pixels.min(axis=2)) > 0.3
    bands = [band.sum() for band in np.array_split(saturated[1_000:], 4)]
    assert min(bands) > 500, bands
