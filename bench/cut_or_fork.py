"""What a state inside an extend costs: a cut (one more run of the layer's operators), a cut before the last token
alone, which is a decode step, or a fork (more tokens in one run).

Twelve recurrent layers on the CPU, on the operators that the CPU engine serves with, through the saver that the engine
uses: an extend of n tokens with a state at n − 1, where a prompt's end lies. Prints time and operator calls a layer of
the plain extend and of each form, and the tokens that a fork may repeat before it costs more. On a GPU a call is a
kernel launch or two: a cut costs its launches, whatever the length, and a fork costs its tokens.

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
from sglang_hooks.recurrence.gdn import GDN
from sglang_hooks.recurrence.interface import ArmedCheckpoints, SaverContext
from sglang_hooks.recurrence.kda import KDA
from sglang_hooks.recurrence.piece_plan import plan_pieces

LAYERS = 12  # so that what is planned once a forward counts as little as in a model
FORKS = 1 << 30  # tokens
FORMS: dict[str, dict[str, int | None]] = {
    "plain": {},
    "cut": {"fork_tokens": 0, "step_tokens": None},
    "step": {"fork_tokens": FORKS, "step_tokens": 0},
    "fork": {"fork_tokens": FORKS, "step_tokens": None},
}


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
    """One length: milliseconds and operator calls of each form, a layer."""

    family: str
    tokens: int
    ms: dict[str, float]
    calls: dict[str, int]


def extend(per_key: bool, tokens: int, form: str) -> Callable[[], None]:
    """A prefill of `tokens` tokens in that form, all layers."""
    generator = torch.Generator().manual_seed(0)
    backend = Backend(Pool(LAYERS, 4), torch.arange(1), per_key)
    family = KDA if per_key else GDN
    saver = family.saver(SaverContext(LAYERS, lambda name, n: None))
    backend.saver = saver
    layers = [
        SimpleNamespace(layer_id=number, weight=torch.randn(CHANNELS, WIDTH, generator=generator))
        for number in range(LAYERS)
    ]
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
        pieces.plan_pieces = lambda *args, **_: plan_pieces(*args, **FORMS[form])
        saver.reset()
        saver.begin(armed)
        backend.init_forward_metadata(batch)
        for layer in layers:
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
        ms[form] = 1e3 * min(times) / LAYERS
        with Calls() as counted:
            run()
        calls[form] = counted.count // LAYERS
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
    titles = [f"{form} ms" for form in FORMS] + [f"{form} calls" for form in FORMS]
    print(f"| family | tokens | {' | '.join(titles)} |\n" + "|---" * (2 + len(titles)) + "|")
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
        cut, step = (
            sorted(row.ms[form] - row.ms["plain"] for row in found)[len(found) // 2]
            for form in ("cut", "step")
        )
        longest = max(found, key=lambda row: row.tokens)
        token = (longest.ms["fork"] - longest.ms["plain"]) / longest.tokens
        print(
            f"{family}: a cut costs {cut:.2f} ms, a step {step:.2f}, a forked token {1e3 * token:.1f} us: "
            f"as {cut / token:.0f} and {step / token:.0f} tokens"
        )
    if json:
        write(records_of(map(asdict, rows), bench="cut_or_fork", case=("tokens",), provider="family"), json)


if __name__ == "__main__":
    typer.run(main)
