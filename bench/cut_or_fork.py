"""What a state inside an extend costs: a cut (one more run of the layer's operators) or a fork (more tokens in one).

One recurrent layer on the CPU, on the operators that the CPU engine serves with, through the saver that the engine
uses: an extend of n tokens with a state at n − 1, where a prompt's end lies. Prints time and operator calls of the
plain extend, the cut and the fork, and the tokens that a fork may repeat before it costs more than a cut. On a GPU
a call is a kernel launch or two: a cut costs its launches, whatever the length, and a fork costs its tokens.

    python bench/cut_or_fork.py [--lengths 64,256,1024] [--repeats 5] [--json FILE]
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import torch
import typer
from records import records_of, write
from small_hybrid import CHANNELS, HEADS, KEY, WIDTH, Backend, Hybrid, Pool, batch_of
from torch.utils._python_dispatch import TorchDispatchMode

from marconi_ext.output import check_writable
from sglang_hooks.recurrence import pieces
from sglang_hooks.recurrence.interface import ArmedCheckpoints, SaverContext
from sglang_hooks.recurrence.piece_plan import plan_pieces

FORMS = {"plain": None, "cut": 0, "fork": 1 << 30}  # tokens that forks may repeat


class Calls(TorchDispatchMode):
    """Counts operator calls."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return function(*args, **(kwargs or {}))


@dataclass(frozen=True)
class Row:
    """One length: milliseconds and operator calls of each form."""

    family: str
    tokens: int
    ms: dict[str, float]
    calls: dict[str, int]


def extend(per_key: bool, tokens: int, form: str) -> Callable[[], None]:
    """One layer's prefill of `tokens` tokens in that form."""
    generator = torch.Generator().manual_seed(0)
    backend = Backend(Pool(1, 4), torch.arange(1), per_key)
    saver = pieces.PieceSaver(SaverContext(1, lambda name, n: None))
    backend.saver = saver
    layer = SimpleNamespace(layer_id=0, weight=torch.randn(CHANNELS, WIDTH, generator=generator))
    gates = -torch.rand(tokens, HEADS * KEY if per_key else HEADS, generator=generator) * 0.1
    arguments = {
        "mixed_qkv": torch.randn(tokens, CHANNELS, generator=generator),
        "a": gates.unsqueeze(0) if per_key else gates,
    }
    armed = ArmedCheckpoints()
    if form != "plain":
        armed.add(0, tokens - 1, tokens - 1, torch.tensor([1]))

    def run() -> None:
        batch = batch_of([0], [tokens])
        pieces.plan_pieces = lambda *args: plan_pieces(*args, fork_tokens=FORMS[form])
        saver.reset()
        saver.begin(armed)
        backend.init_forward_metadata(batch)
        saver.run_layer(Hybrid.forward_extend, Hybrid(backend), layer, batch, True, arguments)

    return run


def measured(family: str, tokens: int, repeats: int) -> Row:
    ms, calls = {}, {}
    for form in FORMS:
        run = extend(family == "kda", tokens, form)
        run()
        times = []
        for _ in range(repeats):
            started = time.thread_time()
            run()
            times.append(time.thread_time() - started)
        ms[form] = 1e3 * min(times)
        with Calls() as counted:
            run()
        calls[form] = counted.count
    return Row(family, tokens, ms, calls)


def main(
    lengths: Annotated[str, typer.Option(help="Tokens of the extend.")] = "16,64,256,512,1024,2048",
    repeats: Annotated[int, typer.Option(min=1, help="The least time counts.")] = 5,
    json: Annotated[Path | None, typer.Option(metavar="FILE")] = None,
) -> None:
    """Measure both families."""
    check_writable(json)
    torch.set_num_threads(1)
    rows = []
    print("| family | tokens | plain ms | cut ms | fork ms | calls plain | cut | fork |\n" + "|---" * 8 + "|")
    for family in ("gdn", "kda"):
        for tokens in map(int, lengths.split(",")):
            one = measured(family, tokens, repeats)
            rows.append(one)
            times = " | ".join(f"{one.ms[form]:.2f}" for form in FORMS)
            print(
                f"| {family} | {tokens} | {times} | {' | '.join(str(one.calls[f]) for f in FORMS)} |",
                flush=True,
            )
    for family in ("gdn", "kda"):
        found = [row for row in rows if row.family == family]
        cut = sorted(row.ms["cut"] - row.ms["plain"] for row in found)[len(found) // 2]
        longest = max(found, key=lambda row: row.tokens)
        token = (longest.ms["fork"] - longest.ms["plain"]) / longest.tokens
        print(
            f"{family}: a cut costs {cut:.2f} ms, a forked token {1e3 * token:.1f} us: as {cut / token:.0f} tokens"
        )
    if json:
        write(records_of(map(asdict, rows), bench="cut_or_fork", case=("tokens",), provider="family"), json)


if __name__ == "__main__":
    typer.run(main)
