"""What a storage tier holds and gives when only the states worth most are written: bytes, and hits after a restart.

    python bench/storage_share.py [--shares 1,0.5,0.25] [--json FILE]

For each share an engine serves 148 mixed requests over an empty folder, one at a time, and a second engine with a cold
cache serves them again over what the first has left. Answers are compared with those of an engine whose cache is off.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from engine_in_process import STORAGE, Engines, Job, StorageFolder
from records import records_of, write
from speculative_traffic import Case, Twice, record, wrong

from marconi_ext.models.toy_model import ToyModel, write_model
from marconi_ext.output import check_writable


@dataclass(frozen=True)
class Row:
    """What one share gives; tokens are prompt tokens served from the cache, wrong answers are counted in both runs."""

    share: float
    states_written: int
    state_bytes: int
    kv_bytes: int
    first_hit_tokens: int
    restarted_hit_tokens: int
    states_fetched: int
    wrong_answers: int


def measured(engines: Engines, model: Path, cases: list[Case], share: float) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        options = {"model_path": model, **STORAGE, "marconi_storage_share": share}
        job = Job(options, Twice(cases, (1,)), before=StorageFolder(Path(folder)))
        (first,), (second,) = engines.run(job), engines.run(job)
        states = [file.stat().st_size for file in Path(folder).iterdir() if ".mamba_" in file.name]
        kv = [file.stat().st_size for file in Path(folder).iterdir() if ".mamba_" not in file.name]
    return Row(
        share=share,
        states_written=len(states),
        state_bytes=sum(states),
        kv_bytes=sum(kv),
        first_hit_tokens=sum(answer.cached_tokens for answer in first.answers),
        restarted_hit_tokens=sum(answer.cached_tokens for answer in second.answers),
        states_fetched=second.marconi["counters"].get("storage_fetched_states", 0),
        wrong_answers=sum(len(wrong(cases, one.answers)) for one in (first, second)),
    )


def main(
    shares: Annotated[str, typer.Option(help="Shares of the states that are written.")] = "1,0.5,0.25",
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="JSON, or CSV by its name.")] = None,
) -> None:
    """Serve the same requests before and after a restart, at each share."""
    check_writable(json)
    rows = []
    with tempfile.TemporaryDirectory() as folder, Engines() as engines:
        model = Path(folder) / "model"
        write_model(model, ToyModel(chunk_size=64))
        cases = engines.run(Job({"model_path": model, "disable_radix_cache": True}, record))
        print(f"{sum(len(case.ask.prompt) for case in cases):,} prompt tokens, second engine cold")
        print(
            "| "
            + " | ".join(Row.__dataclass_fields__)
            + " |\n"
            + "|---" * len(Row.__dataclass_fields__)
            + "|"
        )
        for share in map(float, shares.split(",")):
            rows.append(measured(engines, model, cases, share))
            print("| " + " | ".join(f"{value:,}" for value in asdict(rows[-1]).values()) + " |", flush=True)
    if json:
        write(records_of(map(asdict, rows), bench="storage_share", case=("share",)), json)


if __name__ == "__main__":
    typer.run(main)
