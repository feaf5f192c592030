"""The demo's traffic: synthetic workloads by name, or a trace cut to the model's size."""

from pathlib import Path

from marconi_ext.errors import BadInputError
from marconi_ext.output import stderr_console
from marconi_ext.servers.engine_options import ModelFacts
from marconi_ext.traces.rescript import rescript
from marconi_ext.traces.script import Script
from marconi_ext.traces.source import open_source
from marconi_ext.traces.synthetic import GENERATORS, scripts


def synthetic_workloads(
    names: str, facts: ModelFacts, sessions: int | None, seed: int
) -> dict[str, list[Script]]:
    """Workloads by comma-separated names. Raises BadInputError."""
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in GENERATORS]
    if unknown or not wanted:
        raise BadInputError(f"--workloads {names}: choose from {', '.join(GENERATORS)}")
    return {name: scripts(name, seed=seed, sessions=sessions, vocabulary=facts.vocabulary) for name in wanted}


def trace_workload(
    trace: str,
    facts: ModelFacts,
    requests: int,
    max_prompt_tokens: int,
    format: str,
    tokenizer: str,
    strict: bool,
    seed: int,
) -> dict[str, list[Script]]:
    """One workload, named after the trace. Says on stderr what was left out. Raises BadInputError."""
    console = stderr_console()
    stream = open_source(
        trace,
        format=format,
        tokenizer=tokenizer,
        strict=strict,
        seed=seed,
        on_problem=lambda problem: console.print(f"skipped: {problem}", markup=False, soft_wrap=True),
    )
    found = rescript(
        stream, vocabulary=facts.vocabulary, max_prompt_tokens=max_prompt_tokens, wanted=requests
    )
    if not found.scripts:
        raise BadInputError(f"--trace {trace}: every prompt is over --max-prompt-tokens {max_prompt_tokens}")
    if found.too_long:
        console.print(f"{found.too_long} requests left out: over --max-prompt-tokens {max_prompt_tokens}")
    return {Path(trace).name.removesuffix(".gz"): found.scripts}
