"""The report's charts: one function a chart, each drawn on a given figure. Titles and captions are the page's."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullFormatter

from marconi_ext.report import series
from marconi_ext.report.series import ArmSeries
from marconi_ext.results.comparison import ArmFigures

# Lightness in the middle, so that they can be told on white and on black; dashes tell arms apart without colour.
COLOURS = ("#3b8bd4", "#e0822e", "#2a9d78", "#c9609b", "#8f78d0", "#a8862c", "#5f8a9e", "#c2574f")
DASHES = ("-", "--", "-.", ":")
INK = "#010203"  # no chart uses it otherwise: in SVG it becomes the page's own text colour
GRID = "#80808055"
WIDTH = 6.4

STYLE = {
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "font.size": 9.5,
    "font.family": ["DejaVu Sans"],
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "marconi",
    **{
        f"{name}": INK
        for name in ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    },
}


@dataclass(frozen=True)
class Chart:
    """name: of its PNG; alt: what a reader who can't see it should know; svg: to stand in a page; png: bytes."""

    name: str
    title: str
    caption: str
    alt: str
    svg: str
    png: bytes


@dataclass(frozen=True)
class _Plan:
    name: str
    title: str
    caption: str
    draw: Callable[[Figure], bool]


def draw_charts(arms: Sequence[ArmSeries], figures: Sequence[ArmFigures]) -> list[Chart]:
    """Every chart that has data, in the order of the page."""
    plans = (
        _Plan(
            "ttft",
            "Time to first token",
            "Share of requests whose first token came within the time; further left is better.",
            lambda figure: ttft(figure, arms),
        ),
        _Plan(
            "hit-rate-over-time",
            "Hit rate over time",
            "Prompt tokens that skipped prefill, by when the request was sent. Dotted: what an unlimited "
            "attention-only cache would have reused.",
            lambda figure: hit_over_time(figure, arms),
        ),
        _Plan(
            "hit-rate-by-length",
            "Hit rate by prompt length",
            "Bins hold about as many requests each. Lines above the bars: the ideal.",
            lambda figure: hit_by_length(figure, arms),
        ),
        _Plan(
            "loss",
            "What is prefilled again",
            "Above: tokens that the ideal cache would have reused, by whether an exact state could have lain "
            "there. Below, for servers that tell: by cause, as they counted.",
            lambda figure: loss(figure, figures),
        ),
        _Plan(
            "cache-contents",
            "States in the cache",
            "By kind, in the first repeat; the dashed line is the pool. Stock servers tell only how many states "
            "no request uses.",
            lambda figure: cache_contents(figure, arms),
        ),
        _Plan(
            "evictions",
            "States evicted",
            "A second, by kind and reason, in the first repeat.",
            lambda figure: eviction_timeline(figure, arms),
        ),
    )
    charts = []
    for plan in plans:
        svg = _render(plan.draw, "svg")
        if svg:
            png = _render(plan.draw, "png")
            text = svg.decode("utf-8").replace(INK, "currentColor")
            alt = f"{plan.title}: {', '.join(arm.name for arm in arms)}. {plan.caption}"
            charts.append(
                Chart(plan.name, plan.title, plan.caption, alt, text[text.index("<svg") :], png or b"")
            )
    return charts


def _render(draw: Callable[[Figure], bool], kind: str) -> bytes | None:
    """The file's bytes; None where there is nothing to draw. PNGs are on white, for Markdown and mail."""
    style: Any = dict(STYLE)
    if kind == "png":
        style |= {"figure.facecolor": "white", "savefig.facecolor": "white"}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(WIDTH, 3.5), layout="constrained")
        if not draw(figure):
            return None
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
        return buffer.getvalue()


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def ttft(figure: Figure, arms: Sequence[ArmSeries]) -> bool:
    """CDFs, on a logarithmic axis where times differ by much."""
    axes = figure.subplots()
    drawn, widest = 0, (np.inf, 0.0)
    for number, arm in enumerate(arms):
        ttft_ms, share = series.ttft_cdf(arm)
        if len(ttft_ms):
            dash = DASHES[number % len(DASHES)]
            axes.step(
                ttft_ms, share, dash, where="post", color=_colour(number), label=arm.name, linewidth=1.6
            )
            widest = (min(widest[0], max(ttft_ms[0], 1e-3)), max(widest[1], ttft_ms[-1]))
            drawn += 1
    if widest[1] > 8 * widest[0]:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(10, (1, 2, 5)))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="TTFT (ms)", ylabel="requests (%)", ylim=(0, 101))
    axes.legend(loc="lower right")
    return drawn > 0


def hit_over_time(figure: Figure, arms: Sequence[ArmSeries]) -> bool:
    axes = figure.subplots()
    drawn = 0
    for number, arm in enumerate(arms):
        lines = series.hit_rate_over_time(arm)
        if not len(lines.x):
            continue
        axes.plot(lines.x, lines.y["hit"], color=_colour(number), label=arm.name, linewidth=1.6)
        axes.plot(lines.x, lines.y["ideal"], ":", color=_colour(number), linewidth=1)
        drawn += 1
    axes.set(xlabel="sent, seconds after the start", ylabel="hit rate (% of prompt tokens)", ylim=(0, 101))
    if drawn:
        axes.legend(loc="lower right")
    return drawn > 0


def hit_by_length(figure: Figure, arms: Sequence[ArmSeries]) -> bool:
    """Grouped bars; source of the idea: Marconi, figure 10."""
    axes = figure.subplots()
    edges = series.length_edges(arms)
    bins = np.arange(len(edges) - 1)
    width = 0.8 / max(1, len(arms))
    counts = np.zeros(len(bins))
    for number, arm in enumerate(arms):
        hit, ideal, requests = series.hit_rate_by_length(arm, edges)
        counts = np.maximum(counts, requests)  # the same requests in every arm
        places = bins + width * (number - (len(arms) - 1) / 2)
        axes.bar(places, np.nan_to_num(hit), 0.92 * width, color=_colour(number), label=arm.name)
        axes.hlines(ideal, places - width / 2, places + width / 2, color=INK, linewidth=1)
    labels = [
        f"{a:,.0f}–{b - 1:,.0f}\n{n:,.0f} requests"
        for a, b, n in zip(edges[:-1], edges[1:], counts, strict=True)
    ]
    axes.set_xticks(bins, labels, fontsize=7.5)
    axes.grid(axis="x", visible=False)
    axes.set(xlabel="prompt tokens", ylabel="hit rate (% of prompt tokens)", ylim=(0, 101))
    figure.legend(loc="outside upper center", ncols=4)
    return bool(counts.sum())


def loss(figure: Figure, figures: Sequence[ArmFigures]) -> bool:
    """Stacked bars: first divergence and avoidable; then the servers' own causes."""
    known = [arm for arm in figures if arm.first_divergence is not None and arm.avoidable is not None]
    telling = [arm for arm in figures if sum(arm.loss_tokens.values())]
    if not known and not telling:
        return False
    rows = (len(known), len(telling))
    figure.set_size_inches(WIDTH, 1.4 + 0.42 * sum(rows) + (0.9 if telling else 0))
    panels = figure.subplots(2 if all(rows) else 1, 1, squeeze=False, height_ratios=[r for r in rows if r])
    position = 0
    if known:
        _stack(
            panels[0][0],
            [arm.name for arm in known],
            {
                "first divergence": [arm.first_divergence or 0 for arm in known],
                "avoidable": [arm.avoidable or 0 for arm in known],
            },
        )
        position = 1
    if telling:
        causes = sorted({cause for arm in telling for cause, n in arm.loss_tokens.items() if n})
        shares = {
            cause.replace("_", " "): [
                100 * arm.loss_tokens.get(cause, 0) / max(1, arm.prompt_tokens) for arm in telling
            ]
            for cause in causes
        }
        _stack(panels[position][0], [arm.name for arm in telling], shares, first_colour=2)
    panels[-1][0].set_xlabel("% of prompt tokens")
    return True


def _stack(axes: Any, names: list[str], parts: dict[str, list[float]], first_colour: int = 0) -> None:
    left = np.zeros(len(names))
    for number, (label, values) in enumerate(parts.items()):
        axes.barh(names, values, 0.6, left=left, color=_colour(first_colour + number), label=label)
        left = left + np.array(values)
    for place, total in enumerate(left):
        axes.annotate(f"{total:.2f}", (total, place), (4, 0), textcoords="offset points", va="center")
    axes.margins(x=0.12)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, fontsize=8)


def cache_contents(figure: Figure, arms: Sequence[ArmSeries]) -> bool:
    """Stacked areas, a panel an arm."""
    found = [(arm.name, *series.contents(arm)) for arm in arms]
    found = [entry for entry in found if len(entry[1].x)]
    if not found:
        return False
    kinds = sorted({kind for _, lines, _ in found for kind in lines.y})
    panels = _panels(figure, len(found))
    for axes, (name, lines, pool) in zip(panels, found, strict=True):
        present = [kind for kind in kinds if kind in lines.y]
        axes.stackplot(
            lines.x, [lines.y[kind] for kind in present], colors=[_colour(kinds.index(k)) for k in present]
        )
        if pool:
            axes.axhline(pool, linestyle="--", color=INK, linewidth=1)
        axes.set_title(name, fontsize=9.5, loc="left")
        axes.set_ylabel("states")
        axes.set_ylim(bottom=0)
    _finish(figure, panels, kinds)
    return True


def eviction_timeline(figure: Figure, arms: Sequence[ArmSeries]) -> bool:
    """Stacked bars over time, a panel an arm."""
    found = [(arm.name, series.evictions(arm)) for arm in arms]
    found = [(name, lines) for name, lines in found if lines.y]
    if not found:
        return False
    names = sorted({name for _, lines in found for name in lines.y})
    panels = _panels(figure, len(found))
    for axes, (arm_name, lines) in zip(panels, found, strict=True):
        width = (lines.x[1] - lines.x[0]) if len(lines.x) > 1 else 1.0
        bottom = np.zeros(len(lines.x))
        for name in names:
            if name in lines.y:
                axes.bar(lines.x, lines.y[name], width, bottom=bottom, color=_colour(names.index(name)))
                bottom = bottom + lines.y[name]
        axes.set_title(arm_name, fontsize=9.5, loc="left")
        axes.set_ylabel("states / s")
    _finish(figure, panels, names)
    return True


def _panels(figure: Figure, count: int) -> list[Any]:
    figure.set_size_inches(WIDTH, 1.1 + 1.75 * count)
    return list(figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0])


def _finish(figure: Figure, panels: list[Any], names: list[str]) -> None:
    """The shared axis' label, and one legend above all panels."""
    panels[-1].set_xlabel("seconds after the start")
    handles = [Patch(color=_colour(number), label=name) for number, name in enumerate(names)]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, fontsize=8)
