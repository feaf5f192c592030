"""Runs a sweep as it was asked for: each trace is read once a seed, and a bar shows how far its cells are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from marconi_ext.errors import BadInputError
from marconi_ext.output import stderr_console
from marconi_ext.policies.registry import PolicyName
from marconi_ext.profiles import ModelProfile
from marconi_ext.simulator.capacity import Capacity
from marconi_ext.simulator.cell import Options
from marconi_ext.simulator.sweep import CellKey, Results, run_cells
from marconi_ext.simulator.workload import Workload, load_workload
from marconi_ext.traces.source import Reading, open_source, reporting

UNITS = {
    "rates, losses and causes": "fraction of prompt tokens",
    "flops_saved": "FLOPs",
    "hits": "tokens",
}


@dataclass(frozen=True)
class Sweep:
    """traces × seeds (0 to seeds − 1) × capacities × policies, on one model.

    limit: requests taken of each trace; processes: workers. Raises BadInputError for a policy that these
    capacities or this model have no use for.
    """

    traces: list[str]
    seeds: int
    policies: list[PolicyName]
    capacities: list[Capacity]
    profile: ModelProfile
    options: Options
    reading: Reading
    limit: int | None
    processes: int

    def __post_init__(self) -> None:
        if not self.policies:
            raise BadInputError("--policy: empty")
        in_bytes = all(capacity.bytes is not None for capacity in self.capacities)
        for policy in self.policies:
            if policy.family == "artifact" and not (self.profile.name == "paper-7b" and in_bytes):
                raise BadInputError(f"--policy {policy.text}: wants --model paper-7b and --capacity in bytes")

    def header(self, **model_options: object) -> dict:
        """What the result file says besides its cells; a sweep goes on only from one with the same."""
        read = asdict(self.reading)
        kept = ("format", "tokenizer", "sessions_per_s", "response_s")
        options = asdict(self.options) | {"limit": self.limit} | {name: read[name] for name in kept}
        return {"model": self.profile.name, "units": UNITS, "options": options | model_options}


def run_sweep(sweep: Sweep, results: Results) -> list[dict]:
    """Run the cells that the results lack, and return them. Mutates results."""
    ran: list[dict] = []
    for trace in sweep.traces:
        for seed in range(sweep.seeds):
            jobs = missing(sweep, results, trace, seed)
            if not jobs:
                continue
            workload = read(sweep, trace, seed)
            with _bar(len(jobs), f"{trace} seed {seed}") as advance:

                def keep(cell: dict, advance: Callable[[], None] = advance) -> None:
                    results.add(cell)
                    ran.append(cell)
                    advance()

                run_cells(workload, jobs, sweep.profile, sweep.options, processes=sweep.processes, done=keep)
    results.finish()
    return ran


def missing(sweep: Sweep, results: Results, trace: str, seed: int) -> list[tuple[PolicyName, Capacity]]:
    """The cells of a trace and a seed that aren't there yet."""

    def known(policy: PolicyName, size: Capacity) -> bool:
        return results.has(CellKey(trace, seed, policy.text, size, sweep.profile.name))

    pairs = ((policy, size) for size in sweep.capacities for policy in sweep.policies)
    return [(policy, size) for policy, size in pairs if not known(policy, size)]


def read(sweep: Sweep, trace: str, seed: int) -> Workload:
    """A trace in memory, with progress shown."""
    reading = replace(sweep.reading, seed=seed)
    with reporting() as progress:
        stream = open_source(trace, **asdict(reading), limit=sweep.limit, on_problem=progress.problem)
        return load_workload(trace, seed, progress.count(stream))


@contextmanager
def _bar(total: int, title: str) -> Iterator[Callable[[], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=stderr_console()) as progress:
        task = progress.add_task(title, total=total)
        yield lambda: progress.advance(task)
