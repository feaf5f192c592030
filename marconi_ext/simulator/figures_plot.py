"""Draws the figures: hatches and markers tell policies apart without colour; axes are labelled with units.

note: says in a title that the figure is only a look at few sessions; the paper's numbers aren't shown beside it then
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from marconi_ext.simulator.figures_data import PAPER

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Style = tuple[str, str, str, str]
"""Grey level, hatch, marker, line."""

PAPERS: dict[str, Style] = {
    "vLLM+": ("0.95", "", "s", ":"),
    "SGLang+": ("0.75", "//", "^", "--"),
    "Marconi": ("0.5", "..", "o", "-."),
}
OWN: tuple[Style, ...] = (
    ("0.2", "", "D", "-"),
    ("0.35", "xx", "v", "-"),
    ("0.6", "\\\\", "P", "-"),
    ("0.1", "oo", "*", "-"),
)


def styles(rows: list[dict]) -> dict[str, Style]:
    """A style for each policy of the rows: the paper's three, then our own."""
    names = _unique(rows, "policy")
    own = [name for name in names if name not in PAPERS]
    given = {name: OWN[number % len(OWN)] for number, name in enumerate(own)}
    return {name: style for name, style in PAPERS.items() if name in names} | given


def write_csv(path: Path, rows: list[dict]) -> None:
    """The numbers of one figure."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def figure_7(cells: list[dict], out: Path, note: str = "") -> None:
    """Token hit rate by traffic and policy: mean, and range over cache sizes and seeds."""
    traces = _unique(cells, "trace")
    figure, axes = _canvas(
        "token hit rate (% of prompt tokens)", "Figure 7: token hit rate by traffic" + note
    )
    style = styles(cells)
    for i, policy in enumerate(style):
        values = [
            [100 * c["token_hit_rate"] for c in cells if (c["trace"], c["policy"]) == (t, policy)]
            for t in traces
        ]
        means = np.array([np.mean(v) for v in values])
        # A mean of equal values may lie a rounding error beside them, and no whisker is shorter than 0.
        spread = [
            np.maximum(0, means - [min(v) for v in values]),
            np.maximum(0, [max(v) for v in values] - means),
        ]
        places, width = _places(len(traces), i, len(style))
        shade, hatch, _, _ = style[policy]
        axes.bar(
            places,
            means,
            width,
            yerr=spread,
            capsize=2,
            color=shade,
            hatch=hatch,
            edgecolor="black",
            label=policy,
        )
    labels = []
    for trace in traces:
        rates = {
            p: np.mean([c["token_hit_rate"] for c in cells if (c["trace"], c["policy"]) == (trace, p)])
            for p in style
        }
        factor = rates["Marconi"] / max(rates["vLLM+"], 1e-9)
        told = f", paper {PAPER['7'][trace]:g}×" if trace in PAPER["7"] and not note else ""
        labels.append(f"{trace}\nMarconi / vLLM+:\n{factor:.1f}×{told}")
    axes.set_xticks(range(len(traces)), labels)
    axes.set_xlabel("traffic (bars: mean; whiskers: range over cache sizes and seeds)")
    _save(figure, axes, out, "figure_7")


def figure_8(rows: list[dict], out: Path, note: str = "") -> None:
    """Distribution of the gain over SGLang+ across traffic, cache sizes and seeds."""
    figure, axes = _canvas("share of cells (%)", "Figure 8: gain over SGLang+" + note)
    for policy in (name for name in styles(rows) if name not in ("vLLM+", "SGLang+")):
        for trace, marker in zip(_unique(rows, "trace"), "osD^v<>p", strict=False):
            gains = np.sort([r["gain_percent"] for r in rows if (r["trace"], r["policy"]) == (trace, policy)])
            share = 100 * (np.arange(len(gains)) + 1) / len(gains)
            dark = policy not in PAPERS
            axes.plot(gains, share, "-" if dark else "--", marker=marker, color="0.1" if dark else "0.5",
                      markersize=4, label=f"{policy}, {trace}")  # fmt: skip
    for trace, value in PAPER["8"].items():
        if trace in _unique(rows, "trace") and not note:
            axes.axvline(value, color="0.6", linewidth=0.8, linestyle=":")
            axes.text(value, 30, f"paper P95, {trace}", rotation=90, fontsize=6, ha="right", va="bottom")
    axes.set_xlabel("gain in token hit rate over SGLang+ (%)")
    axes.set_xscale("symlog", linthresh=10)
    _save(figure, axes, out, "figure_8")


def figure_10(rows: list[dict], out: Path, note: str = "") -> None:
    """Who gains and who pays: difference to SGLang+ by prompt length, on the last traffic."""
    trace = _unique(rows, "trace")[-1]
    figure, axes = _canvas(
        "difference in token hit rate to SGLang+ (points)",
        "Figure 10: who gains and who pays, by prompt length" + note,
    )
    bins = sorted({(r["from_tokens"], r["to_tokens"]) for r in rows if r["trace"] == trace})
    shown = {name: style for name, style in styles(rows).items() if name not in ("vLLM+", "SGLang+")}
    for i, policy in enumerate(shown):
        heights = [100 * (_mean(rows, trace, policy, b) - _mean(rows, trace, "SGLang+", b)) for b in bins]
        shade, hatch, _, _ = shown[policy]
        places, width = _places(len(bins), i, len(shown))
        axes.bar(places, heights, width, color=shade, hatch=hatch, edgecolor="black", label=policy)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(bins)), [f"{low // 1000}k–{high // 1000}k" if high < 10**9 else f"≥ {low // 1000}k"
                                       for low, high in bins])  # fmt: skip
    told = PAPER["10"]
    paper = f"paper: down to {told['below_7k']:g} % below 7k tokens, up to +{told['above_7k']:g} % above"
    label = f"prompt length (tokens), {trace}; mean over cache sizes and seeds"
    axes.set_xlabel(label if note else f"{label}\n{paper}", fontsize=8)
    _save(figure, axes, out, "figure_10")


def figure_11(rows: list[dict], out: Path, note: str = "") -> None:
    """Token hit rate against cache size, with Marconi's gain over SGLang+ written in."""
    figure, axes = _canvas(
        "token hit rate (% of prompt tokens)", "Figure 11: from starved to ample caches" + note
    )
    _lines(axes, rows, "capacity_gb")
    sizes = sorted(_unique(rows, "capacity_gb"))
    for size in sizes:
        rate = {r["policy"]: r["token_hit_rate"] for r in rows if r["capacity_gb"] == size}
        if rate["SGLang+"] > 0:
            gain = 100 * (rate["Marconi"] / rate["SGLang+"] - 1)
            axes.annotate(f"{gain:+.0f}%", (size, 100 * rate["Marconi"]), fontsize=6, xytext=(0, 5),
                          textcoords="offset points", ha="center")  # fmt: skip
    told = ", ".join(f"{gb} GB {gain:+.1f}%" for gb, gain in PAPER["11"].items())
    label = "cache size (GB); numbers: Marconi over SGLang+"
    axes.set_xlabel(label if note else f"{label}\npaper, larger traffic: {told}", fontsize=8)
    _save(figure, axes, out, "figure_11")


def figure_12(rows: list[dict], label: str, title: str, name: str, out: Path, note: str = "") -> None:
    """Token hit rate by a property of the model."""
    figure, axes = _canvas(
        "token hit rate (% of prompt tokens)",
        f"Figure {name.removeprefix('figure_')}: token hit rate by {title}{note}",
    )
    values = _unique(rows, label)
    style = styles(rows)
    for i, policy in enumerate(style):
        heights = [
            100 * next(r["token_hit_rate"] for r in rows if (r[label], r["policy"]) == (v, policy))
            for v in values
        ]
        shade, hatch, _, _ = style[policy]
        places, width = _places(len(values), i, len(style))
        axes.bar(places, heights, width, color=shade, hatch=hatch, edgecolor="black", label=policy)
    axes.set_xticks(range(len(values)), [str(v) for v in values])
    told = ", ".join(f"{value}: {gain}" for value, gain in PAPER[name.removeprefix("figure_")].items())
    axes.set_xlabel(title if note else f"{title}\npaper, Marconi's gain over vLLM+: {told}", fontsize=8)
    _save(figure, axes, out, name)


def figure_13(rows: list[dict], out: Path, note: str = "") -> None:
    """Token hit rate against the rate of session starts, one panel a response time."""
    from matplotlib import pyplot

    responses = sorted(_unique(rows, "response_s"))
    figure, panels = pyplot.subplots(1, len(responses), figsize=(7.5, 3.4), sharey=True)
    for axes, response in zip(panels, responses, strict=True):
        _lines(axes, [r for r in rows if r["response_s"] == response], "sessions_per_s")
        axes.set_xlabel("sessions per second")
        axes.set_title(f"mean response time {response:g} s", fontsize=9)
    panels[0].set_ylabel("token hit rate (% of prompt tokens)")
    told = ", ".join(f"{rate:g}/s: {hits:g} %" for rate, hits in PAPER["13"].items())
    beside = note or f" (paper, Marconi, larger traffic: {told})"
    figure.suptitle(f"Figure 13: token hit rate by the rate of sessions{beside}", fontsize=9)
    _save(figure, panels[-1], out, "figure_13")


def _lines(axes: Axes, rows: list[dict], label: str) -> None:
    for policy, (_, _, marker, line) in styles(rows).items():
        mine = sorted((r[label], 100 * r["token_hit_rate"]) for r in rows if r["policy"] == policy)
        shade = "0.45" if policy in PAPERS else "0.0"
        axes.plot(*zip(*mine, strict=True), line, marker=marker, color=shade, markersize=5, label=policy)
    axes.grid(alpha=0.3)


def _places(groups: int, number: int, bars: int) -> tuple[np.ndarray, float]:
    """Where the bars of one policy stand, and how wide they are."""
    width = 0.8 / bars
    return np.arange(groups) + width * (number - (bars - 1) / 2), 0.9 * width


def _mean(rows: list[dict], trace: str, policy: str, bounds: tuple[int, int]) -> float:
    wanted = (trace, policy, *bounds)
    found = [
        r["token_hit_rate"]
        for r in rows
        if (r["trace"], r["policy"], r["from_tokens"], r["to_tokens"]) == wanted
    ]
    return float(np.mean(found))


def _unique(rows: list[dict], key: str) -> list:
    return list(dict.fromkeys(row[key] for row in rows))


def _canvas(ylabel: str, title: str) -> tuple[Figure, Axes]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.6, 3.9))
    axes.set_ylabel(ylabel)
    axes.set_title(title, fontsize=10)
    return figure, axes


def _save(figure: Figure, axes: Axes, out: Path, name: str) -> None:
    """The legend stands beside the last axes, and nothing is cut off at the edges."""
    from matplotlib import pyplot

    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.tight_layout()
    for ending in ("png", "svg"):
        figure.savefig(out / f"{name}.{ending}", dpi=150, bbox_inches="tight")
    pyplot.close(figure)
