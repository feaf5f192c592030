"""Figures: rows from a tiny sweep, drawn and written."""

import csv

import matplotlib
import numpy as np
import pytest

from marconi_ext.profiles import paper_7b
from marconi_ext.simulator import figures_data as data
from marconi_ext.simulator import figures_plot as plot


@pytest.fixture(scope="module")
def scope() -> data.Scope:
    base = data.synthetic_scope(1, 1, 5)
    return data.Scope(base.traces, {name: (1.0,) for name in base.traces}, 1, 1)


def test_caches_shrink_with_the_traffic_but_hold_a_sequence() -> None:
    full, few = data.synthetic_scope(1, 1, None), data.synthetic_scope(1, 1, 5)
    assert dict(full.sizes_gb) == {name: tuple(map(float, sizes)) for name, sizes in data.TRAFFIC.items()}
    for name, sizes in few.sizes_gb.items():
        longest = int(few.traces[name](0).prompt_tokens.max()) * paper_7b().kv_bytes_per_token
        assert longest / 1e9 < sizes[0] < data.TRAFFIC[name][0]


def test_figures_where_nothing_was_evicted_are_told(scope) -> None:
    name = next(iter(scope.traces))
    rows = {
        size: list(
            data.sweep(scope, scope.traces[name](0), scope.policies(data.ARTIFACT), (size,), paper_7b())
        )
        for size in (0.2, 1_000.0)
    }
    assert not data.idle(rows[0.2]) and data.idle(rows[1_000.0])
    assert not data.idle([{"gain_percent": 1.0}])  # rows of no cache


def test_own_policies_are_drawn_beside_the_papers(tmp_path) -> None:
    names = [*plot.PAPERS, "gittins", "lru"]
    cells = [{"trace": "a", "policy": name, "token_hit_rate": 0.1 * n} for n, name in enumerate(names)]
    assert list(plot.styles(cells)) == names and len(set(plot.styles(cells).values())) == len(names)
    plot.figure_7(cells, tmp_path)
    assert (tmp_path / "figure_7.svg").exists()


@pytest.mark.parametrize(("note", "beside_the_papers"), [("", True), (" (a look: 5 sessions)", False)])
def test_a_look_is_called_so_and_not_held_against_the_paper(scope, tmp_path, note, beside_the_papers) -> None:
    cells, lengths = data.base_rows(scope)
    by_size = [{"capacity_gb": gb, "policy": p, "token_hit_rate": 0.5} for gb in (1, 2) for p in plot.PAPERS]
    by_ratio = [{"ratio": "1:7", "policy": p, "token_hit_rate": 0.5} for p in plot.PAPERS]
    rates = [
        {"response_s": s, "sessions_per_s": rate, "policy": p, "token_hit_rate": 0.5}
        for s in (1.0, 2.0)
        for rate in (0.5, 1.0)
        for p in plot.PAPERS
    ]
    with matplotlib.rc_context({"svg.fonttype": "none"}):  # text stays text
        plot.figure_7(cells, tmp_path, note)
        plot.figure_8(data.gains(cells, "SGLang+"), tmp_path, note)
        plot.figure_10(lengths, tmp_path, note)
        plot.figure_11(by_size, tmp_path, note)
        plot.figure_12(by_ratio, "ratio", "attention : SSM layers", "figure_12a", tmp_path, note)
        plot.figure_13(rates, tmp_path, note)
    for name in ("figure_7", "figure_8", "figure_10", "figure_11", "figure_12a", "figure_13"):
        drawn = (tmp_path / f"{name}.svg").read_text()
        assert ("paper" in drawn) is beside_the_papers and ("a look" in drawn) is bool(note), name


def test_figures_7_8_and_10_are_drawn_from_one_sweep(scope, tmp_path) -> None:
    cells, lengths = data.base_rows(scope)
    assert {c["policy"] for c in cells} == {*plot.PAPERS, *data.OWN} and all("hits" not in c for c in cells)
    gains = data.gains(cells, "SGLang+")
    plot.figure_7(cells, tmp_path)
    plot.figure_8(gains, tmp_path)
    plot.figure_10(lengths, tmp_path)
    plot.write_csv(tmp_path / "figure_7.csv", cells)
    for name in ("figure_7", "figure_8", "figure_10"):
        assert (tmp_path / f"{name}.png").stat().st_size > 5_000 and (tmp_path / f"{name}.svg").exists()
    with (tmp_path / "figure_7.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(cells)


def test_rates_that_hardly_differ_have_whiskers_of_no_length(tmp_path) -> None:
    """The mean of three equal rates may be a rounding error more than the largest of them."""
    rate = next(r for r in np.arange(1, 100) / 1_000 if np.mean([100 * r] * 3) > 100 * r)
    names = [(trace, policy) for trace in ("a", "b") for policy in (*plot.PAPERS, *data.OWN)]
    cells = [{"trace": trace, "policy": policy, "token_hit_rate": rate} for trace, policy in names] * 3
    plot.figure_7(cells, tmp_path)
    assert (tmp_path / "figure_7.png").exists()


def test_other_figures_are_drawn(tmp_path) -> None:
    def rows(label, values):
        return [{label: v, "policy": p, "token_hit_rate": 0.1 * i, "response_s": 5.0 + (i % 2)}
                for v in values for i, p in enumerate((*plot.PAPERS, *data.OWN), start=1)]  # fmt: skip

    plot.figure_11(rows("capacity_gb", (1.0, 2.0)), tmp_path)
    plot.figure_12(rows("ratio", ("1:2", "1:4")), "ratio", "attention : SSM layers", "figure_12a", tmp_path)
    both = [{**r, "response_s": s} for s in (5.0, 10.0) for r in rows("sessions_per_s", (0.5, 1.0))]
    plot.figure_13(both, tmp_path)
    assert len(list(tmp_path.glob("*.svg"))) == 3


def test_hit_rate_by_length() -> None:
    """Prompts of 500, 800 and 5,000 tokens with hits 100, 300, 2,500."""
    rows = data.by_length({"policy": "x"}, np.array([500, 800, 5000]), np.array([100, 300, 2500]))
    assert [(r["from_tokens"], r["token_hit_rate"]) for r in rows] == [(0, 400 / 1300), (4000, 0.5)]


def test_profiles_of_other_shapes() -> None:
    assert data.paper_profile(4, 24) == data.ModelProfile(
        "paper", paper_7b().linear_flops, paper_7b().quadratic_flops, paper_7b().state_bytes, 65_536
    )
    assert data.paper_profile(4, 24, 16).state_bytes < paper_7b().state_bytes / 4
