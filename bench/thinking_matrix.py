"""Chats of thinking models through the real cache without an engine: what turns share, and what is reused of it.

A cell is a template, a kind of traffic, a page size and what is known of the template: `auto` finds it, `tokens` is
--marconi-message-tokens with the mark of a message, `none` leaves it to be learned. Of prompts after a session's first
it counts the tokens that some earlier prompt of the session and its answer begin with, in whole pages, and how many
of them were served. Stock SGLang's own cache goes through the same requests.

    python bench/thinking_matrix.py [--templates qwen3.5,glm] [--pages 1,16] [--json FILE]
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import engineless_cache
import typer
from engineless_cache import Driver
from records import records_of, write
from rich.console import Console
from rich.table import Table

from marconi_ext.output import check_writable
from marconi_ext.policies.messages import MessageHeaders, endings_of, headers_of
from marconi_ext.results.prefix_tree import common_prefix
from marconi_ext.traces.chat_template import TEMPLATES, ChatTemplate, render_file
from marconi_ext.traces.id_text import IdText
from marconi_ext.traces.request import Request
from marconi_ext.traces.synthetic import synthetic

VOCABULARY = 4_096
CHUNK_TOKENS = 64
KNOWN = ("auto", "tokens", "none")
MARKS = {
    "kimi": ("<|im_middle|>",),
    "glm": ("<|user|>", "<|assistant|>", "<|observation|>"),
    "plain": ("<|start|>",),
}
SMALL = {"user_tokens": (100, 400), "answer_tokens": (20, 60), "thought_tokens": (20, 80)}
# name -> (synthetic traffic, its sizes)
TRAFFIC: dict[str, tuple[str, dict]] = {
    "1 x 60": ("thinking", {"sessions": 1, "turns": 60, **SMALL}),
    "8 x 8": ("thinking", {"sessions": 8, "turns": 8, **SMALL}),
    "60 x 2": ("thinking", {"sessions": 60, "turns": 2, "at_once": 1, **SMALL}),
    "60 x 2, 8 at once": ("thinking", {"sessions": 60, "turns": 2, "at_once": 8, **SMALL}),
    "thoughts not sent": ("thinking", {"sessions": 8, "turns": 8, "client": "no-thoughts", **SMALL}),
    "answers rewritten": ("thinking", {"sessions": 8, "turns": 8, "client": "rewrites", **SMALL}),
    "loops": ("tool-loops", {"sessions": 4, "tasks": (3, 3), "calls": (5, 12)}),
    "loops, not sent": (
        "tool-loops",
        {"sessions": 4, "tasks": (3, 3), "calls": (5, 12), "client": "no-thoughts"},
    ),
    "loops, rewritten": (
        "tool-loops",
        {"sessions": 4, "tasks": (3, 3), "calls": (5, 12), "client": "rewrites"},
    ),
}


@dataclass(frozen=True)
class Cell:
    """shared: tokens that turns share with their session, pages floored; lost: of them, computed again; both of the
    whole run, and of its second half. states: offered a request."""

    template: str
    traffic: str
    page: int
    known: str
    shared: int
    lost: int
    shared_late: int
    lost_late: int
    states: float

    @property
    def reused(self) -> float:
        return 100 * (1 - self.lost / max(self.shared, 1))

    @property
    def reused_late(self) -> float:
        return 100 * (1 - self.lost_late / max(self.shared_late, 1))


def headers(template: ChatTemplate, known: str) -> MessageHeaders:
    """What a server knows of a template. A request's own options (thinking kept) aren't known to it."""
    ids = IdText(VOCABULARY)
    if known == "none":
        return MessageHeaders()
    if known == "tokens":
        return MessageHeaders(
            tuple((ids.markers[mark],) for mark in MARKS.get(template.file, ("<|im_start|>",)))
        )

    def render(messages: list, generation: bool = False, thinking: bool | None = None) -> list[int]:
        options = {} if thinking is None else {"enable_thinking": thinking}
        return ids.encode(render_file(template.file, messages, generation, options)).tolist()

    return MessageHeaders(headers_of(render, set(ids.markers.values())).headers, endings_of(render))


def requests_of(template: ChatTemplate, traffic: str, seed: int = 0) -> list[Request]:
    name, sizes = TRAFFIC[traffic]
    return list(synthetic(name, seed=seed, vocabulary=VOCABULARY, template=template.name, **sizes))


def shared_tokens(requests: list[Request]) -> Iterator[int | None]:
    """What each request shares with its session so far; None: it is the session's first."""
    said: dict[str, list] = {}
    for request in requests:
        earlier = said.setdefault(request.session_id, [])
        found = max((common_prefix(request.input_ids, one) for one in earlier), default=None)
        yield None if found is None else min(found, len(request.input_ids) - 1)
        earlier.append(
            [*request.input_ids.tolist(), *request.output_ids[:-1].tolist()]
        )  # KV of the last one is none


def play(
    contestant: str, requests: list[Request], page: int, known: MessageHeaders, slots: int = 4_000
) -> tuple[list[int], Driver]:
    """Tokens served of each request, and the cache."""
    longest = max(len(r.input_ids) + len(r.output_ids) for r in requests) + 64
    tokens = sum(len(r.input_ids) + len(r.output_ids) + 2 * page for r in requests) // page * page + page
    driver = Driver(contestant, slots=slots, tokens=tokens, context_tokens=longest, page_size=page)
    if contestant == "marconi":
        driver.cache.mamba.serving.headers = known
    hits = []
    for number, request in enumerate(requests):
        driver.serve(number, array("q", request.input_ids.tolist()), array("q", request.output_ids.tolist()))
        hits.append(driver.hit_tokens)
    return hits, driver


def cell(
    contestant: str,
    template: ChatTemplate,
    traffic: str,
    page: int,
    known: str,
    requests: list[Request] | None = None,
) -> Cell:
    requests = requests or requests_of(template, traffic)
    hits, driver = play(contestant, requests, page, headers(template, known))
    sums = [[0, 0], [0, 0]]
    for number, (shared, hit) in enumerate(zip(shared_tokens(requests), hits, strict=True)):
        if shared is not None:
            floored = shared // page * page
            for half in range(1 + (number >= len(requests) // 2)):
                sums[half][0] += floored
                sums[half][1] += max(floored - hit, 0)
    offers = driver.cache.mamba.runtime.counts["offers"] if contestant == "marconi" else 0
    return Cell(template.name, traffic, page, known, *sums[0], *sums[1], offers / len(requests))


def main(
    templates: Annotated[str, typer.Option(help="Names, comma-separated.")] = ",".join(TEMPLATES),
    traffic: Annotated[str, typer.Option(help="Names, separated by semicolons.")] = ";".join(TRAFFIC),
    pages: Annotated[str, typer.Option()] = "1,16",
    json: Annotated[Path | None, typer.Option(metavar="FILE|-")] = None,
) -> None:
    """Print what is reused of what turns share, in %, in the second half of each run (of the whole run)."""
    check_writable(json)
    engineless_cache.publish_settings(CHUNK_TOKENS)
    found: list[Cell] = []
    for page in map(int, pages.split(",")):
        table = Table("template", "traffic", *KNOWN, "stock", title=f"page {page}")
        for name in templates.split(","):
            for kind in traffic.split(";"):
                template = TEMPLATES[name]
                requests = requests_of(template, kind)
                row = [cell("marconi", template, kind, page, known, requests) for known in KNOWN]
                row.append(cell("stock-python", template, kind, page, "none", requests))
                found += [*row[:-1], replace(row[-1], known="stock")]
                table.add_row(name, kind, *(f"{one.reused_late:.1f} ({one.reused:.1f})" for one in row))
        Console(width=120).print(table)
    if json:
        rows = [{**asdict(one), "reused": one.reused, "reused_late": one.reused_late} for one in found]
        case = ("template", "traffic", "page")
        write(records_of(rows, bench="thinking_matrix", case=case, provider="known"), json)


if __name__ == "__main__":
    typer.run(main)
