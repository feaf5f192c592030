"""The report itself: one HTML file that needs no network, PNGs beside it, Markdown for a pull request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from marconi_ext import __version__
from marconi_ext.errors import BadInputError
from marconi_ext.report.charts import Chart, draw_charts
from marconi_ext.report.series import read_arms
from marconi_ext.results.comparison import ArmFigures, Comparison, Difference, compare
from marconi_ext.results.folder import ResultsFolder, RunInfo, find_results
from marconi_ext.results.joined import join_replays

HTML_FILE, MARKDOWN_FILE = "report.html", "report.md"


@dataclass(frozen=True)
class Section:
    """One results folder: what ran, its figures and its charts. slug: prefix of its PNGs."""

    slug: str
    run: RunInfo
    comparison: Comparison
    charts: list[Chart]


def build_section(folder: ResultsFolder, slug: str) -> Section:
    """Raises BadInputError where nothing was answered."""
    run, arms = folder.run(), read_arms(folder)
    if not arms:
        raise BadInputError(f"{folder.path}: no request was answered there, so there is nothing to report")
    comparison = compare(folder)
    return Section(slug, run, comparison, draw_charts(arms, comparison.arms))


def write_report(results: Sequence[Path], out: Path, title: str) -> list[Section]:
    """Write the report of all results folders (or folders of such) into `out`. Raises BadInputError.

    Replays of the same trace are compared with the first of them.
    """
    folders = join_replays([folder for path in results for folder in find_results(path)])
    slugs = _slugs([folder.path.resolve().name for folder in folders])
    sections = [build_section(folder, slug) for folder, slug in zip(folders, slugs, strict=True)]
    try:
        out.mkdir(parents=True, exist_ok=True)
        for section in sections:
            for chart in section.charts:
                (out / f"{section.slug}-{chart.name}.png").write_bytes(chart.png)
        for file in (HTML_FILE, MARKDOWN_FILE):
            template = _environment().get_template(f"{file}.j2")
            text = template.render(title=title, sections=sections, version=__version__)
            (out / file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise BadInputError(f"--out {out}: {error.strerror}") from None
    return sections


def _slugs(names: Sequence[str]) -> list[str]:
    """Distinct file name prefixes."""
    found: list[str] = []
    for name in names:
        slug = "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip("-.") or "results"
        found.append(slug if slug not in found else f"{slug}-{len(found) + 1}")
    return found


def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("marconi_ext", "report"),
        autoescape=select_autoescape(["html", "html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "number": number,
        "milliseconds": lambda seconds: number(1e3 * seconds, 1),
        "signed": signed,
        "cell": lambda text: str(text).replace("|", "\\|").replace("\n", " "),
    }
    made.globals |= {"ROWS": ROWS, "difference": difference, "spread": spread, "tiles": tiles}
    return made


def number(value: float | None, digits: int = 0) -> str:
    """`–` where a server didn't say."""
    return "–" if value is None else f"{value:,.{digits}f}"


# name, unit, value of an arm, figure that is compared with the first arm (None: isn't)
ROWS: tuple[tuple[str, str, Any, str | None], ...] = (
    ("hit rate", "%", lambda arm: number(arm.hit_rate, 2), "hit_rate"),
    ("ideal", "%", lambda arm: number(arm.ideal_hit_rate, 2), None),
    ("loss", "%", lambda arm: number(arm.state_limited_loss, 2), "state_limited_loss"),
    ("first divergence", "%", lambda arm: number(arm.first_divergence, 2), None),
    ("avoidable", "%", lambda arm: number(arm.avoidable, 2), None),
    ("TTFT P5", "ms", lambda arm: number(1e3 * arm.ttft_p5_s, 1), None),
    ("TTFT P50", "ms", lambda arm: number(1e3 * arm.ttft_p50_s, 1), "ttft_p50_s"),
    ("TTFT P95", "ms", lambda arm: number(1e3 * arm.ttft_p95_s, 1), "ttft_p95_s"),
    ("TTFT P99", "ms", lambda arm: number(1e3 * arm.ttft_p99_s, 1), None),
    ("requests", "a second", lambda arm: number(arm.requests_per_s, 2), None),
    ("prompt tokens", "a second", lambda arm: number(arm.prompt_tokens_per_s), None),
    ("prefilled tokens", "", lambda arm: number(arm.prefilled_tokens), "prefilled_tokens"),
    ("states held", "", lambda arm: number(arm.states_held), None),
    ("evictions", "", lambda arm: number(arm.evictions), None),
    ("failed requests", "", lambda arm: number(arm.failed), None),
)


def difference(comparison: Comparison, arm: ArmFigures, figure: str | None) -> Difference | None:
    """An arm's difference to the first one, if that figure is compared."""
    for found in comparison.differences:
        if (found.arm, found.figure) == (arm.name, figure):
            return found
    return None


def signed(found: Difference) -> str:
    """`+3.21 [2.90, 3.55]` or `×0.81 [0.78, 0.85]`."""

    def one(value: float) -> str:
        return f"×{value:.2f}" if found.kind == "ratio" else f"{value:+.2f}"

    interval = "" if found.low is None or found.high is None else f" [{one(found.low)}, {one(found.high)}]"
    doubt = {
        "noisy": "; no verdict: the baseline's repeats differ by more",
        "one-repeat": "; one repeat: no verdict",
    }
    return one(found.value) + interval + doubt.get(found.verdict, "")


def spread(arm: ArmFigures, figure: str | None) -> str:
    """`2.1 – 2.9`, the lowest and the highest repeat of a figure; nothing where there is one, or they agree."""
    if figure not in arm.spread or arm.repeats < 2:
        return ""
    factor, digits = (1e3, 1) if figure.endswith("_s") and not figure.endswith("per_s") else (1, 2)
    low, high = (number(factor * value, digits) for value in arm.spread[figure])
    return "" if low == high else f"{low} – {high}"


def tiles(comparison: Comparison) -> list[tuple[str, str, str]]:
    """What a reader sees first, of the last arm against the first: (name, value, detail)."""
    if len(comparison.arms) < 2:
        arm = comparison.arms[0]
        return [
            ("hit rate", f"{number(arm.hit_rate, 1)} %", f"ideal {arm.ideal_hit_rate:.1f} %"),
            ("state-limited loss", f"{number(arm.state_limited_loss, 2)} %", "of prompt tokens"),
            ("TTFT P50", f"{1e3 * arm.ttft_p50_s:.1f} ms", f"P95 {1e3 * arm.ttft_p95_s:.1f} ms"),
        ]
    first, last = comparison.arms[0], comparison.arms[-1]
    found = [
        ("hit rate", f"{number(last.hit_rate, 1)} %", f"{first.name}: {number(first.hit_rate, 1)} %"),
        (
            "state-limited loss",
            f"{number(last.state_limited_loss, 2)} %",
            f"{first.name}: {number(first.state_limited_loss, 2)} %",
        ),
    ]
    for figure, name in (("ttft_p50_s", "TTFT P50"), ("ttft_p95_s", "TTFT P95")):
        ratio = difference(comparison, last, figure)
        if ratio is not None:
            found.append(
                (
                    name,
                    "no verdict" if ratio.verdict in ("noisy", "one-repeat") else f"×{ratio.value:.2f}",
                    f"of {first.name}'s, {signed(ratio).partition(';')[0]}",
                )
            )
    return found
