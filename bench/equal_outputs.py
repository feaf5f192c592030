"""Are answers equal to those with the prefix cache off, for a family and what servers are run with? On the CPU engine.

500 requests (agent sessions, few-shot questions, forks one token apart) once with the cache off, one at a time; then
twice through an engine with the extension a setting. Greedy tokens must be equal and logprobs agree to 1e-4; every
planned state must be saved, no slot missing. One at a time the simulator must say what each request reuses. In
`early`, the control, each state is saved one token early, and answers must differ. Prints a Markdown row a setting;
exit code 1 where anything is wrong.

    python bench/equal_outputs.py --family gdn [--settings page-16,tight] [--folder DIR] [--json FILE]

A run with a folder that another has left goes on there: the model and its answers are made once, and settings that
are through aren't run again.
"""

from __future__ import annotations

import json as json_format
import os
import pickle
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from engine_in_process import Ask, Engine, Engines, Job, Said
from engine_progress import Ticks, watched
from mixed_workload import VOCABULARY, mixed_workload
from records import Record, records_of, write

from marconi_ext.commands.server_setup import small_model
from marconi_ext.commands.verify.run import simulator_of
from marconi_ext.errors import BadInputError
from marconi_ext.models.families import FAMILIES, write_small_model
from marconi_ext.output import check_writable
from marconi_ext.traces.script import Histories, in_order
from sglang_hooks.recurrence import form

COMMON: dict[str, object] = {
    "max_total_tokens": 100_000,
    "max_mamba_cache_size": 4_000,
    "chunked_prefill_size": 8_192,
}
TIGHT: dict[str, object] = {"max_mamba_cache_size": 60, "max_total_tokens": 12_000}
TOLERANCE = 1e-4
PASSES = 2


@dataclass(frozen=True)
class Setting:
    """How an engine is run. options: beside `COMMON`; open: requests at a time; before: called ahead of the engine
    wrong: the control, whose answers must differ"""

    options: dict[str, object] = field(default_factory=dict)
    open: int = 8
    before: Callable[[], None] | None = None
    wrong: bool = False


def compare_ranks() -> None:
    """SGLang's own check ends a rank that decides differently."""
    os.environ["SGLANG_ENABLE_RANK_CONSENSUS_CHECKER"] = "1"


def retract_often() -> None:
    """SGLang's own test mode: every third step the batch is treated as if KV had run out."""
    from sglang.srt.managers import scheduler

    scheduler.TEST_RETRACT = True


def save_in_kernel() -> None:
    """Where the family can, not in pieces and forks."""
    os.environ[form.VARIABLE] = form.KERNEL


def save_early() -> None:
    """Each state one token too early."""
    from sglang_hooks.recurrence.interface import ArmedCheckpoints

    add = ArmedCheckpoints.add

    def early(self: ArmedCheckpoints, row: int, offset: int, flat_end: int, slot: Any) -> None:
        moved = int(offset > 1)
        add(self, row, offset - moved, flat_end - moved, slot)

    ArmedCheckpoints.add = early


SETTINGS = {
    "eight-at-a-time": Setting(),
    "chunked-and-mixed": Setting({"chunked_prefill_size": 256, "enable_mixed_chunk": True}),
    "page-16": Setting({"page_size": 16, "chunked_prefill_size": 256}),
    "page-64": Setting({"page_size": 64, "disable_overlap_schedule": True}),
    "two-ranks": Setting({"tp_size": 2, "max_mamba_cache_size": 60}, before=compare_ranks),
    "host-tier": Setting({"enable_hierarchical_cache": True, "max_mamba_cache_size": 96}),
    "tight": Setting({**TIGHT, "chunked_prefill_size": 256}),
    "retraction": Setting({**TIGHT, "max_total_tokens": 16_000}, before=retract_often),
    "in-kernel": Setting({"chunked_prefill_size": 256}, before=save_in_kernel),
    "early": Setting(before=save_early, wrong=True),
    "one-at-a-time": Setting(open=1),
    "one-at-a-time-tight": Setting(TIGHT, open=1),
}


@dataclass(frozen=True)
class Case:
    """A request, and its answer with the cache off."""

    ask: Ask
    alone: Said


@dataclass(frozen=True)
class Run:
    """passes: the answers to all requests, each time; simulated: prompt tokens that the simulator reuses, request by
    request, one at a time; section: what the engine says of itself at the end"""

    passes: list[list[Said]]
    simulated: list[list[int]] | None
    section: dict[str, Any]
    retractions: int


@dataclass(frozen=True)
class Reference:
    """A task: each request once, one at a time; a prompt holds the answers before it."""

    requests: int
    ticks: Ticks

    def __call__(self, engine: Engine) -> list[Case]:
        self.ticks.follow(engine)
        scripts = mixed_workload()
        histories, cases = Histories(scripts), []
        for script, turn in in_order(scripts)[: self.requests]:
            prompt = histories.prompt(script, turn)
            ask = Ask(prompt.tolist(), script.turns[turn].answer_tokens)
            answer = engine.ask([ask])[0]
            histories.answered(script, prompt, np.asarray(answer.output_ids, dtype=np.int32))
            cases.append(Case(ask, answer))
        return cases


@dataclass(frozen=True)
class Asked:
    """A task: all requests, `PASSES` times."""

    asks: Sequence[Ask]
    open: int
    ticks: Ticks

    def __call__(self, engine: Engine) -> Run:
        self.ticks.follow(engine)
        retracted = count_retractions(engine)
        rules = simulator_of(engine.marconi()) if self.open == 1 else None
        passes = [self._answers(engine) for _ in range(PASSES)]
        simulated = rules and [
            [
                rules.serve(np.array(ask.prompt, np.int32), np.array(said.output_ids, np.int32)).hit_tokens
                for ask, said in zip(self.asks, answers, strict=True)
            ]
            for answers in passes
        ]
        return Run(passes, simulated, engine.marconi(), len(retracted))

    def _answers(self, engine: Engine) -> list[Said]:
        """One at a time each finds the engine idle, as the simulator has it."""
        if self.open == 1:
            return [engine.ask([ask])[0] for ask in self.asks]
        return engine.ask(self.asks, self.open)


def count_retractions(engine: Engine) -> list[Any]:
    """A list that grows by each request that is retracted."""
    scheduler, found = engine.scheduler, []
    add = scheduler._add_request_to_queue

    def noted(req: Any, is_retracted: bool = False) -> Any:
        found.extend([req.rid] if is_retracted else [])
        return add(req, is_retracted)

    scheduler._add_request_to_queue = noted
    return found


@dataclass(frozen=True)
class Row:
    """One setting, both passes together. differing: requests with other tokens or logprobs; worst: largest difference
    of logprobs where the tokens are equal; unlike_simulated: requests that reuse another number of tokens than the
    simulator's (0 where it wasn't asked); unsaved: planned states that were dropped, and slots that are missing"""

    requests: int
    differing: int
    worst_logprob_gap: float
    unlike_simulated: int
    unsaved: int
    retracted_requests: int
    hit_rate_percent: float
    second_hit_rate_percent: float
    s: float
    counters: dict[str, int]

    def wrong(self, setting: Setting) -> bool:
        """The control must be seen, and is allowed nothing else."""
        if setting.wrong:
            return not self.differing
        return bool(self.differing or self.unlike_simulated or self.unsaved)


def row_of(cases: Sequence[Case], run: Run, seconds: float) -> Row:
    pairs = [
        (case.alone, said) for said_all in run.passes for case, said in zip(cases, said_all, strict=True)
    ]
    gaps = [
        float(np.abs(np.subtract(one.logprobs, other.logprobs)).max())
        if one.output_ids == other.output_ids
        else float("inf")
        for one, other in pairs
    ]
    tokens = sum(len(case.ask.prompt) for case in cases)
    hits = [[said.cached_tokens for said in answers] for answers in run.passes]
    section = run.section
    unsaved = abs(section["slots"]["unaccounted"]) + section["slots"]["held"]
    unsaved += section["table"]["differences"] + sum(section["stats"]["planning_failures"].values())
    return Row(
        len(pairs),
        sum(not gap <= TOLERANCE for gap in gaps),
        max((gap for gap in gaps if np.isfinite(gap)), default=0.0),
        int(np.sum(np.not_equal(hits, run.simulated))) if run.simulated else 0,
        unsaved,
        run.retractions,
        100 * sum(hits[0]) / tokens,
        100 * sum(hits[-1]) / tokens,
        seconds,
        section["counters"],
    )


class Comparison:
    """One family in one folder: its model, the answers with the cache off, and a file a setting that is through."""

    def __init__(self, engines: Engines, folder: Path, family: str, requests: int) -> None:
        self._engines, self._family, self._requests = engines, family, requests
        self._folder = folder / f"{family}-{requests}"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._ticks = Ticks(self._folder / "ticks")
        self._model = self._folder / "model"
        if not self._model.exists():
            write_small_model(self._model, small_model(family, vocab=VOCABULARY))

    def cases(self) -> list[Case]:
        file = self._folder / "cases.pickle"
        if not file.exists():
            options = {**COMMON, "model_path": self._model, "disable_radix_cache": True}
            job = Job(options, Reference(self._requests, self._ticks))
            found = watched(self._engines, job, f"{self._family}, cache off", self._ticks, self._requests)
            file.write_bytes(pickle.dumps(found))
        cases: list[Case] = pickle.loads(file.read_bytes())
        return cases

    def records(self, name: str, cases: Sequence[Case]) -> list[Record]:
        """Of one setting; run unless it is through."""
        file = self._folder / f"{name}.json"
        if not file.exists():
            setting = SETTINGS[name]
            options = {**COMMON, "model_path": self._model, "enable_marconi": True, **setting.options}
            task = Asked([case.ask for case in cases], setting.open, self._ticks)
            label, total = f"{self._family}, {name}", PASSES * len(cases)
            started = time.monotonic()
            run = watched(self._engines, Job(options, task, setting.before), label, self._ticks, total)
            row = row_of(cases, run, time.monotonic() - started)
            made = {"setting": name, "family": self._family, **asdict(row), "wrong": row.wrong(setting)}
            write(records_of([made], bench="equal_outputs", case=("setting",), provider="family"), file)
        return [Record(**one) for one in json_format.loads(file.read_text(encoding="utf-8"))]


COLUMNS = {
    "requests": ".0f",
    "differing": ".0f",
    "worst_logprob_gap": ".1e",
    "unlike_simulated": ".0f",
    "unsaved": ".0f",
    "retracted_requests": ".0f",
    "hit_rate_percent": ".1f",
    "second_hit_rate_percent": ".1f",
    "s": ".0f",
    "wrong": ".0f",
}


def main(
    family: Annotated[str, typer.Option(help="Comma-separated, of the small models.")] = "gdn",
    settings: Annotated[str, typer.Option(help="Comma-separated.")] = ",".join(SETTINGS),
    requests: Annotated[int, typer.Option(min=1, max=500)] = 500,
    folder: Annotated[Path | None, typer.Option(help="Where a run goes on that was broken off.")] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE")] = None,
) -> None:
    """Compare every setting with the cache off."""
    check_writable(json)
    families, names = family.split(","), settings.split(",")
    if set(families) - set(FAMILIES) or set(names) - set(SETTINGS):
        raise BadInputError(f"families: {', '.join(FAMILIES)}; settings: {', '.join(SETTINGS)}")
    records = []
    print("| family | setting | " + " | ".join(COLUMNS) + " |\n" + "|---" * (2 + len(COLUMNS)) + "|")
    with ExitStack() as stack:
        scratch = folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="marconi-model-")))
        engines = stack.enter_context(Engines())
        for one in families:
            comparison = Comparison(engines, scratch, one, requests)
            cases = comparison.cases()
            for name in names:
                found = comparison.records(name, cases)
                records += found
                values = {r.metric: r.p50 for r in found}
                cells = [format(values[column], form) for column, form in COLUMNS.items()]
                print("| " + " | ".join([one, name, *cells]) + " |", flush=True)
    if json:
        write(records, json)
    raise SystemExit(any(r.p50 for r in records if r.metric == "wrong"))


if __name__ == "__main__":
    from equal_outputs import main as main_under_its_name  # so that pickles name the module

    typer.run(main_under_its_name)
