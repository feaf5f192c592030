"""The table of `marconi trace info`."""

from rich.console import Console
from rich.table import Table

from marconi_ext.output import print_table
from marconi_ext.results.patterns import PATTERNS


def print_description(console: Console, figures: dict) -> None:
    """Print what traces.describe found."""
    table = Table(title=figures["trace"], show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_row("requests", f"{figures['requests']:,} in {figures['sessions']:,} sessions")
    table.add_row("duration", f"{figures['duration_s']:,.0f} s")
    table.add_row("turns a session", _spread(figures["turns_per_session"]))
    table.add_row("prompt tokens", f"{figures['prompt_tokens']:,}")
    table.add_row("prompt length", _spread(figures["prompt_length"]))
    table.add_row("answer tokens", f"{figures['answer_tokens']:,}")
    table.add_row("answer length", _spread(figures["answer_length"]))
    table.add_row("requests with reuse", f"{figures['requests_with_reuse']:,}")
    table.add_row("ideal hit rate", f"{figures['ideal_hit_rate']:.2f} % of prompt tokens")
    table.add_row(
        "  across sessions", f"{figures['ideal_across_sessions']:.2f} % (first requests of sessions)"
    )
    table.add_row("  lost to first divergence", f"{figures['first_divergence']:.2f} % with exact states")
    for name, found in figures["patterns"].items():
        if found["requests"]:
            cost = f", {found['again']:.2f} % of prompt tokens again" if found["again"] else ""
            table.add_row(f"  {PATTERNS[name]}", f"{found['requests']:,}{cost}")
    if figures["broken_records"]:
        table.add_row("broken records skipped", f"{figures['broken_records']:,}")
    print_table(console, table)


def _spread(values: dict[str, float]) -> str:
    low, high = f"P50 {values['p50']:,.0f}, P90 {values['p90']:,.0f}", f"max {values['max']:,}"
    return f"{low}, {high}, mean {values['mean']:,.1f}"
