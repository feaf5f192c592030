"""What `marconi replay` prints at its end."""

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from marconi_ext.results.folder import Percentiles, Status, Summary

WIDTH = 110


def print_summary(out: Console, title: str, summary: Summary) -> None:
    """One run's reuse, times and failures."""
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, text in rows(summary):
        table.add_row(name, text)
    out.print(table)


def rows(summary: Summary) -> list[tuple[str, str]]:
    """(what, its value) in the order in which people ask."""
    failed = {s: n for s, n in summary.by_status.items() if s != Status.OK}
    found = [("answered", f"{summary.answered:,} of {summary.requests:,} requests")]
    if failed:
        found.append(("not answered", ", ".join(f"{n:,} {status.value}" for status, n in failed.items())))
    if summary.retries:
        found.append(("retries", f"{summary.retries:,}, for {summary.retried_requests:,} requests"))
    found.append(("prompt tokens", f"{summary.prompt_tokens:,}"))
    if not summary.answered:
        found.append(("hit rate", "–"))
    elif summary.hit_rate is None:
        found.append(("hit rate", "the server doesn't report cached tokens (SGLang: --enable-cache-report)"))
    else:
        found.append(("hit rate", f"{summary.hit_rate:.2f} % of prompt tokens"))
    found.append(("ideal hit rate", f"{summary.ideal_hit_rate:.2f} %, by an unlimited attention-only cache"))
    if summary.warm_tokens:
        found.append(("cached before", warm_text(summary)))
    if summary.state_limited_loss is not None:
        parts = f"{summary.first_divergence:.2f} first divergence, {summary.avoidable:.2f} avoidable"
        found.append(("state-limited loss", f"{summary.state_limited_loss:.2f} % ({parts})"))
    if summary.token_counts_differ:
        text = f"{summary.token_counts_differ:,} prompts were counted otherwise by the server"
        found.append(("", f"{text}, so the ideal is an estimate"))
    found.append(("TTFT", milliseconds(summary.ttft_s)))
    found.append(("between tokens", milliseconds(summary.itl_s)))
    found.append(("whole answer", milliseconds(summary.request_s)))
    rates = (summary.requests_per_s, summary.prompt_tokens_per_s, summary.output_tokens_per_s)
    found.append(("a second", "{:,.1f} requests, {:,.0f} prompt and {:,.0f} output tokens".format(*rates)))
    found.append(("held back", f"{milliseconds(summary.held_s)}; most open: {summary.most_open:,}"))
    if summary.late_s:
        found.append(("later than the trace", milliseconds(summary.late_s)))
    if summary.loop_lag_s:
        found.append(("replayer's own lag", milliseconds(summary.loop_lag_s)))
    if summary.states_held is not None:
        found.append(
            ("states", f"{summary.states_held:,} held, {summary.evictions or 0:,} evicted meanwhile")
        )
    if summary.error:
        found.append(("ended early", summary.error))
    return found


def warm_text(summary: Summary) -> str:
    """What a server that wasn't empty does to the figures, and how to get better ones."""
    own = 100 * ((summary.cached_tokens or 0) - summary.warm_tokens) / max(1, summary.prompt_tokens)
    return (
        f"at least {summary.warm_tokens:,} tokens of {summary.warm_requests:,} requests were in the server's cache "
        f"before this run.\nHit rate without them: {own:.2f} %. The ideal counts this run alone, and the loss is too "
        "low: states from\nbefore served, too. For figures to compare, empty the cache first: --flush"
    )


def milliseconds(times: Percentiles | None) -> str:
    """Percentiles of seconds, in ms."""
    if times is None:
        return "–"
    shown = (("P5", times.p5), ("P50", times.p50), ("P95", times.p95), ("P99", times.p99))
    return ", ".join(f"{name} {1e3 * value:,.1f}" for name, value in shown) + " ms"
