"""What `marconi size` prints and draws."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from marconi_ext.commands.size.run import KEPT
from marconi_ext.errors import BadInputError
from marconi_ext.output import tables


def print_splits(found: dict, json: Path | None) -> None:
    """A row a split, the best marked, and SGLang's flag for it."""
    table = Table(title=f"{found['memory_bytes'] / 1e9:g} GB of {found['model']}; % of prompt tokens")
    for name in ("states' share", "--mamba-full-memory-ratio", "states", "KV tokens"):
        table.add_column(name, justify="right")
    for name in ("hit", "ideal", "lost: no state", "lost: no KV", "FLOPs saved"):
        table.add_column(name, justify="right")
    for split in found["splits"]:
        best = split is found["best"]
        table.add_row(
            f"{100 * split['state_share']:g} %" + (" ←" if best else ""),
            f"{split['mamba_full_memory_ratio']:.3g}",
            f"{split['slots']:,}",
            f"{split['tokens']:,}",
            *(f"{100 * split[name]:.2f}" for name in KEPT),
            style="bold" if best else None,
        )
    shared = (f"{100 * found['shared'][name]:.2f}" for name in KEPT)
    table.add_row("one buffer", "–", "–", "–", *shared)
    for tier in found["tiers"]:
        cells = (f"{100 * tier[name]:.2f}" for name in KEPT)
        table.add_row(f"and {tier['tier_bytes'] / 1e9:,g} GB behind it", "–", "–", "–", *cells)
    console, best = tables(json, 120), found["best"]
    console.print(table)
    console.print(
        f"Best: --mamba-full-memory-ratio {best['mamba_full_memory_ratio']:g} "
        f"({best['slots']:,} states, {best['tokens']:,} KV tokens). 'one buffer': --enable-unified-memory."
    )
    if best["tokens"] < found["longest_request_tokens"]:
        console.print(f"The longest request has {found['longest_request_tokens']:,} tokens: it doesn't fit.")


def plot_splits(found: dict, path: Path) -> None:
    """Hits and both losses by the states' share. Raises BadInputError where the file can't be written."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    share = [100 * split["state_share"] for split in found["splits"]]
    names = {
        "token_hit_rate": "hit",
        "state_limited_loss": "lost: no state",
        "kv_limited_loss": "lost: no KV",
    }
    for field, label in names.items():
        axes.plot(share, [100 * split[field] for split in found["splits"]], marker="o", label=label)
    axes.axhline(
        100 * found["shared"]["token_hit_rate"], linestyle=":", color="grey", label="hit, one buffer"
    )
    axes.set(xlabel="states' share of the memory (%)", ylabel="% of prompt tokens", ylim=(0, 100))
    axes.set_title(f"{found['model']}, {found['memory_bytes'] / 1e9:g} GB, {found['policy']}")
    axes.legend()
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:  # an ending that is no image's
        raise BadInputError(f"--plot {path}: {error}; want a .png, .svg or .pdf") from None
