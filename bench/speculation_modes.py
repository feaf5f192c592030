"""Does speculative decoding stay exact beside what else a server switches on? On the CPU engine.

148 requests, a third of which end at a token of their own, once with cache and speculation off; then twice through an
engine with the extension a mode, eight at a time. Greedy tokens must be equal and logprobs agree to 1e-4, no slot may
be missing. Prints a Markdown row a mode; exit code 1 where anything is wrong.

    python bench/speculation_modes.py [--families gdn] [--drafts ngram] [--modes retraction,two-ranks] [--json FILE]
"""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from engine_in_process import Engines, Job
from engine_progress import Ticks, watched
from equal_outputs import PASSES, SETTINGS, TIGHT, Asked, Setting, row_of
from records import records_of, write
from speculative_traffic import CONCURRENCY, MULTI_TOKEN_PREDICTION, NGRAM, record

from marconi_ext.commands.server_setup import small_model
from marconi_ext.errors import BadInputError
from marconi_ext.models.families import write_small_model
from marconi_ext.output import check_writable

EMBEDDING_SCALE = 8  # so that a draft is right more often than not, and often wrong
DRAFTS: dict[str, dict[str, object]] = {"ngram": NGRAM, "prediction": MULTI_TOKEN_PREDICTION}


MODES = {
    "overlap": Setting(),
    "synchronous": Setting({"disable_overlap_schedule": True}),
    "chunks-of-64": Setting({"chunked_prefill_size": 64}),
    "tight": Setting(TIGHT),
    **{name: SETTINGS[name] for name in ("retraction", "two-ranks", "host-tier")},
    "pages-of-16": Setting({"page_size": 16}),
}
COLUMNS = {
    "requests": ".0f",
    "differing": ".0f",
    "worst_logprob_gap": ".1e",
    "unsaved": ".0f",
    "retracted_requests": ".0f",
    "ends_inside_a_run": ".0f",
    "ends_after_a_run": ".0f",
    "ends_unknown": ".0f",
    "hit_rate_percent": ".1f",
    "second_hit_rate_percent": ".1f",
    "s": ".0f",
}


def main(
    families: Annotated[str, typer.Option(help="Comma-separated, of the small models.")] = "mamba2,gdn",
    drafts: Annotated[str, typer.Option(help=f"Comma-separated, of {', '.join(DRAFTS)}.")] = ",".join(DRAFTS),
    modes: Annotated[str, typer.Option(help="Comma-separated.")] = ",".join(MODES),
    json: Annotated[Path | None, typer.Option(metavar="FILE")] = None,
) -> None:
    """Compare every mode with cache and speculation off."""
    check_writable(json)
    if set(drafts.split(",")) - set(DRAFTS) or set(modes.split(",")) - set(MODES):
        raise BadInputError(f"--drafts: {', '.join(DRAFTS)}; --modes: {', '.join(MODES)}")
    made = []
    print("| family | drafts | mode | " + " | ".join(COLUMNS) + " |\n" + "|---" * (3 + len(COLUMNS)) + "|")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="marconi-model-")))
        engines = stack.enter_context(Engines())
        ticks = Ticks(folder / "ticks")
        for family in families.split(","):
            model = write_small_model(folder / family, small_model(family, embedding_scale=EMBEDDING_SCALE))
            cases = engines.run(Job({"model_path": model, "disable_radix_cache": True}, record))
            asked = Asked([case.ask for case in cases], CONCURRENCY, ticks)
            for kind in drafts.split(","):
                for name in modes.split(","):
                    if kind == "ngram" and "page_size" in MODES[name].options:
                        continue  # refused
                    made.append(measured(engines, model, cases, asked, ticks, kind, name))
                    cells = [format(made[-1][column], form) for column, form in COLUMNS.items()]
                    print("| " + " | ".join([family, kind, name, *cells]) + " |", flush=True)
    if json:
        write(records_of(made, bench="speculation_modes", case=("drafts", "mode"), provider="family"), json)
    raise SystemExit(any(row["wrong"] for row in made))


def measured(
    engines: Engines, model: Path, cases: list, asked: Asked, ticks: Ticks, kind: str, name: str
) -> dict:
    """A mode's row."""
    mode = MODES[name]
    options = {"model_path": model, "enable_marconi": True, **DRAFTS[kind], **mode.options}
    started = time.monotonic()
    label = f"{model.name}, {kind}, {name}"
    run = watched(engines, Job(options, asked, mode.before), label, ticks, PASSES * len(cases))
    row = row_of(cases, run, time.monotonic() - started)
    ends = run.section["speculation"]["ends"]
    return {
        "family": model.name,
        "drafts": kind,
        "mode": name,
        **asdict(row),
        "ends_inside_a_run": ends["inside_a_run"],
        "ends_after_a_run": ends["after_a_run"],
        "ends_unknown": ends["seen_by_host"] + ends["too_late"],
        "wrong": row.wrong(mode),
    }


if __name__ == "__main__":
    from speculation_modes import main as main_under_its_name  # so that pickles name the module

    typer.run(main_under_its_name)
