"""The terminal view of `marconi top`: numbers in, a rich renderable out."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from marconi_ext.watch.rates import Activity, Standing, activity, standing
from marconi_ext.watch.server import Poll

BLOCKS = "▁▂▃▄▅▆▇█"
BAR_CELLS = 18
SPARK_CELLS = 60
CAUSES = {
    "never_saved": "no state was saved there",
    "evicted": "its state was evicted",
    "displaced": "refused for a better one",
    "first_divergence": "first visit to a branch",
}


def sparkline(percents: Collection[float | None]) -> str:
    """One cell a value, 0 to 100; a blank where there were no prompts."""
    cells = []
    for percent in list(percents)[-SPARK_CELLS:]:
        if percent is None:
            cells.append(" ")
        else:
            cells.append(BLOCKS[min(len(BLOCKS) - 1, int(max(percent, 0) / 100 * len(BLOCKS)))])
    return "".join(cells)


def bar(share: float) -> str:
    """`BAR_CELLS` wide, in eighths of a cell."""
    eighths = round(max(0.0, min(1.0, share)) * BAR_CELLS * 8)
    full, rest = divmod(eighths, 8)
    return "█" * full + ("▏▎▍▌▋▊▉"[rest - 1] if rest else "")


def draw(
    url: str, poll: Poll, before: Poll | None, hit_history: Collection[float | None], *, short: bool = False
) -> RenderableType:
    """The whole view. before: an earlier poll, for rates; without it totals since the start are shown.

    short: a few lines in place of panels, for a small terminal
    """
    all_time, now = activity(poll), standing(poll)
    recent = all_time if before is None else activity(poll, before)
    span = "since start" if recent.seconds is None else f"last {recent.seconds:.0f} s"
    parts: list[RenderableType] = [headline(url, poll)]
    if short:
        parts += in_short(recent, now, poll, span)
    else:
        panels = [
            Panel(reuse_table(recent, all_time, span), title="reuse, % of prompt tokens"),
            Panel(state_table(now), title="recurrent states"),
            Panel(turnover_table(recent), title="states " + ("in all" if before is None else "a second")),
            Panel(traffic_table(recent, poll, now), title=f"traffic, {span}"),
        ]
        parts.append(Columns(panels, padding=(0, 1)))
    if hit_history:
        parts.append(Text.assemble(("hit rate ", "bold"), (sparkline(hit_history), "green")))
    return Group(*parts)


def fitting(
    console: Console, url: str, poll: Poll, before: Poll | None, hit_history: Collection[float | None]
) -> RenderableType:
    """The view if the terminal has the rows for it, else in short, so that nothing is cut off."""
    whole = draw(url, poll, before, hit_history)
    if len(console.render_lines(whole, pad=False)) < console.height:
        return whole
    return draw(url, poll, before, hit_history, short=True)


def in_short(recent: Activity, now: Standing, poll: Poll, span: str) -> list[RenderableType]:
    """What the panels say, a few lines in all; what is 0 is left out."""
    per = "" if recent.seconds is None else "/s"
    number = "{:,.0f}" if recent.seconds is None else "{:,.2f}"

    def counted(counts: Mapping[str, float], form: str) -> str:
        parts = ", ".join(f"{key} {form.format(count)}" for key, count in counts.items() if count)
        return f"{form.format(sum(counts.values()))}" + (f" ({parts})" if parts else "")

    causes = {CAUSES.get(cause, cause): lost for cause, lost in recent.loss_percent.items()}
    lines = {
        f"reused, {span}": f"{percent(recent.hit_percent)} %, had KV {percent(recent.kv_hit_percent)} %",
        "lost, %": counted(causes, "{:.1f}"),
        "states": f"{counted(now.states, '{:,.0f}')}; {now.slots.get('free', 0):,} of {now.slots.get('pool', 0):,} "
        f"slots free, {now.slots.get('unaccounted', 0):,} running",
        f"saved{per}": counted(recent.saves, number),
        f"refused{per}": counted(recent.refusals, number),
        f"evicted{per}": counted(recent.evictions, number),
        f"requests{per}": f"{recent.requests:,.1f}, prompt tokens{per} {recent.prompt_tokens:,.0f}, prefilled{per} "
        f"{recent.prefilled_tokens:,.0f}, decoded/s {poll.decode_tokens_per_s:,.0f}",
    }
    if now.differences or recent.planning_failures:
        lines["faults"] = (
            f"table and tree differ {now.differences:,}, planning {recent.planning_failures:,.0f}"
        )
    return [Text.assemble((f"{name}  ", "bold"), value) for name, value in lines.items()]


def headline(url: str, poll: Poll) -> Text:
    first = poll.ranks[0]
    about = f"policy {first['policy']['name']}, marconi-ext {first['version']}, SGLang {poll.sglang}"
    text = Text.assemble((url, "bold"), f"  {poll.model}  {about}")
    if len(poll.ranks) > 1:
        text.append(f", {len(poll.ranks)} data-parallel ranks")
    return text


def plain_table(*justify: str) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
    for side in justify:
        table.add_column(justify=side)  # type: ignore[arg-type]
    return table


def percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def reuse_table(recent: Activity, all_time: Activity, span: str) -> Table:
    """Hit rates, and what kept them from the KV cache's."""
    table = plain_table("left", "right", "right", "left")
    is_all = recent.seconds is None
    table.add_row("", Text(span, style="dim"), Text("" if is_all else "all", style="dim"), "")
    table.add_row(
        Text("reused", style="bold"),
        Text(percent(recent.hit_percent), style="bold green"),
        "" if is_all else percent(all_time.hit_percent),
        Text(bar((recent.hit_percent or 0) / 100), style="green"),
    )
    table.add_row(
        "had KV", percent(recent.kv_hit_percent), "" if is_all else percent(all_time.kv_hit_percent), ""
    )
    for cause in sorted({*recent.loss_percent, *all_time.loss_percent}):
        lost = recent.loss_percent.get(cause, 0.0)
        table.add_row(
            "lost: " + CAUSES.get(cause, cause),
            percent(lost),
            "" if is_all else percent(all_time.loss_percent.get(cause, 0.0)),
            Text(bar(lost / 100), style="red"),
        )
    return table


def state_table(now: Standing) -> Table:
    """States by kind as bars of the pool; then its slots by owner."""
    table = plain_table("left", "right", "left")
    pool = max(1, now.slots.get("pool", 1))
    for kind, states in now.states.items():
        table.add_row(kind, f"{states:,}", Text(bar(states / pool), style="cyan"))
    for owner, name in (("held", "being saved"), ("unaccounted", "running"), ("free", "free")):
        slots = now.slots.get(owner, 0)
        table.add_row(Text(name, style="dim"), f"{slots:,}", Text(bar(slots / pool), style="dim"))
    if now.pins.get("pins"):
        most = now.pins["budget"]["states"]
        table.add_row(Text("pinned", style="magenta"), f"{now.pins['states']:,}", f"of {most:,} that may be")
    for tenant, states in now.tenants.items():
        name = "all other tenants" if tenant == "*" else f"tenant {tenant}"
        table.add_row(name, f"{states:,}", Text(bar(states / pool), style="magenta"))
    table.add_row(Text("pool", style="dim"), f"{now.slots.get('pool', 0):,}", "")
    if now.differences:
        table.add_row(Text("table and tree differ", style="bold red"), f"{now.differences:,}", "")
    return table


def turnover_table(recent: Activity) -> Table:
    """What was saved, refused and evicted."""
    table = plain_table("left", "right")
    number = "{:,.0f}" if recent.seconds is None else "{:,.2f}"
    for name, counts in (
        ("saved", recent.saves),
        ("refused", recent.refusals),
        ("evicted", recent.evictions),
    ):
        table.add_row(Text(name, style="bold"), number.format(sum(counts.values())))
        for key, count in counts.items():
            if count:
                table.add_row(f"  {key}", number.format(count))
    if recent.planning_failures:
        table.add_row(Text("planning failures", style="bold red"), number.format(recent.planning_failures))
    return table


def traffic_table(recent: Activity, poll: Poll, now: Standing) -> Table:
    """Throughput, the tuner and the policy's parameters."""
    table = plain_table("left", "right")
    per = "" if recent.seconds is None else "/s"
    table.add_row(f"requests{per}", f"{recent.requests:,.1f}" if per else f"{recent.requests:,.0f}")
    table.add_row(f"prompt tokens{per}", f"{recent.prompt_tokens:,.0f}")
    table.add_row(f"prefilled{per}", f"{recent.prefilled_tokens:,.0f}")
    table.add_row("decoded/s", f"{poll.decode_tokens_per_s:,.0f}")
    for name, value in poll.gauges.items():
        table.add_row(f"{name} requests", f"{value:,.0f}")
    for name, value in now.parameters.items():
        table.add_row(Text(name, style="magenta"), f"{value:g}")
    table.add_row("tuning rounds", f"{now.tuning['rounds']:,}")
    if now.tuning["rounds"]:
        table.add_row("  requests behind", f"{now.tuning['requests_behind']:,}")
        table.add_row("  requests since", f"{now.tuning['requests_since']:,}")
    return table


def line(poll: Poll, before: Poll | None) -> str:
    """One line a poll, where the output is no terminal."""
    recent, now = activity(poll, before), standing(poll)
    return (
        f"hit {percent(recent.hit_percent)} %, had KV {percent(recent.kv_hit_percent)} %, "
        f"lost {percent(sum(recent.loss_percent.values()))} %, {recent.requests:.1f} requests"
        f"{'' if before is None else '/s'}, {sum(now.states.values()):,} states, "
        f"evicted {sum(recent.evictions.values()):.2f}{'' if before is None else '/s'}"
    )
