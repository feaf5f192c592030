"""A prefill and a decode engine through a long, rough run: transfers that break or stall, aborts on either side.

Over Mooncake's TCP on the CPU platform. Of the transfers some are held up to 0.2 s, and some fail as Mooncake's do when
it gives up, after which SGLang sends nothing until its probe finds the other side alive. Requests are aborted on one
side or on both; the decode engine retracts; both caches are flushed now and then. Each answer is compared with the
cache off. Exit code 1 where one is wrong, or after a part a slot is missing or the policy's table and the tree differ
on either side.

    python bench/soak_pair.py [--requests 5000] [--caching] [--stock] [--json FILE]

The decode engine runs without overlap. With it (`--overlap`) SGLang 0.5.23 itself, the extension off, answers wrong:
what it keeps of a retracted request is the KV before the step in flight and the state after it.
"""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from engine_in_process import Ask, Engine, Engines, Job, Said
from engine_progress import Ticks, watched
from prefill_decode_pair import NO_MOONCAKE, Pair
from records import records_of, write
from rich.console import Console
from soak import Traffic

from marconi_ext.errors import BadInputError, CheckFailedError
from marconi_ext.models.toy_model import ToyModel, write_model
from marconi_ext.output import check_writable

VOCABULARY = 4_096
PART = 250
FLUSH_EVERY = 4  # parts
OPEN = 8
SECONDS_EACH = 2  # at most, on a busy machine
BROKEN, HELD, LONGEST_S = 0.01, 0.05, 0.2
ENVIRONMENT = {
    "SGLANG_DISAGGREGATION_WAITING_TIMEOUT": "20",
    "SGLANG_FAILED_SESSION_PROBE_INTERVAL_S": "0.2",
    "SGLANG_FAILED_SESSION_PROBE_MAX_INTERVAL_S": "0.4",
}


@dataclass(frozen=True)
class Sent:
    """A request as each side gets it; whole: neither is told to abort it."""

    prefill: Ask
    decode: Ask
    whole: bool


def hostile_requests(number: int, seed: int) -> list[Sent]:
    traffic, rng = Traffic(seed), random.Random(seed)
    made = []
    for _ in range(number):
        prompt, tokens, fate = traffic.next()
        ask = Ask(prompt.tolist(), tokens)
        if fate == "whole":
            made.append(Sent(ask, ask, whole=True))
            continue
        sides = rng.choice([(True, False), (False, True), (True, True)])
        late = replace(ask, answer_tokens=60)
        prefill, decode = (
            replace(late, abort_after=rng.randrange(1, 30)) if aborts else late for aborts in sides
        )
        made.append(Sent(prefill, decode, whole=False))
    return made


def break_transfers(seed: int, counts: Counter) -> None:
    """In the process that sends."""
    from sglang.srt.disaggregation.mooncake.conn import MooncakeKVManager

    transfer, rng = MooncakeKVManager._transfer_data, random.Random(seed)

    def rough(self: Any, session: str, blocks: Any) -> int:
        fate = rng.random()
        if fate < BROKEN:
            counts["broken_transfers"] += 1
            return -1
        if fate < BROKEN + HELD:
            counts["held_transfers"] += 1
            time.sleep(rng.uniform(0, LONGEST_S))
        return transfer(self, session, blocks)

    MooncakeKVManager._transfer_data = rough


def retract() -> None:
    """In the process that decodes: SGLang's own test mode, every 40th step."""
    from sglang.srt.managers import scheduler

    scheduler.TEST_RETRACT, scheduler.TEST_RETRACT_INTERVAL = True, 40


def missing(engine: Engine) -> int:
    """Slots that are held or unaccounted for while nothing runs, and differences of table and tree. A decode server
    keeps a failed transfer's slot for 30 s, in which somebody may still write to it."""
    facts = engine.marconi()
    if facts is None:
        return 0
    slots, queue = facts["slots"], getattr(engine.scheduler, "disagg_decode_transfer_queue", None)
    waiting = queue.num_pending_deferred_releases() if queue is not None else 0
    return abs(slots["unaccounted"] - waiting) + slots["held"] + facts["table"]["differences"]


class RoughPair(Pair):
    """As `Pair`, but the requests differ by side, and each part ends with a look at both."""

    def __init__(
        self,
        sent: Sequence[Sent],
        options: dict[str, object],
        ticks: Ticks,
        *,
        caching: bool,
        overlap: bool,
        seed: int,
    ) -> None:
        super().__init__([], options, caching)
        self.decode_options["disable_overlap_schedule"] = not overlap
        self.sent, self.ticks, self.seed = list(sent), ticks, seed

    def start(self) -> None:
        os.environ.update(ENVIRONMENT)
        super().start()

    def _decode(self, pipe: Any) -> None:
        retract()
        engine = Engine(self.decode_options)
        pipe.send("ready")
        while (message := pipe.recv()) is not None:
            asks, flushing = message
            answers, left = engine.ask(asks, OPEN), missing(engine)
            if flushing:
                engine.scheduler.flush_cache()
            pipe.send((answers, left))

    def __call__(self, engine: Engine) -> tuple[list[Said], Counter]:
        """The decode engine's answers, and what happened."""
        counts: Counter = Counter()
        break_transfers(self.seed, counts)
        self.ticks.follow(engine)
        assert self._here.recv() == "ready"
        answers = []
        for start in range(0, len(self.sent), PART):
            part = self.sent[start : start + PART]
            flushing = start // PART % FLUSH_EVERY == FLUSH_EVERY - 1
            asks = [
                (self._meeting(one.prefill, room), self._meeting(one.decode, room))
                for room, one in enumerate(part, start + 1)
            ]
            self._here.send(([decode for _, decode in asks], flushing))
            prefilled = engine.ask([prefill for prefill, _ in asks], OPEN)
            decoded, left = self._here.recv()
            counts["reused_tokens"] += sum(said.cached_tokens for said in prefilled)
            counts["prompt_tokens"] += sum(len(one.prefill.prompt) for one in part)
            counts["missing"] += left + missing(engine)
            if flushing:
                counts["flushes"] += int(engine.scheduler.flush_cache())
            answers += decoded
            if counts["missing"]:
                raise CheckFailedError(
                    f"slots are missing, or table and tree differ: {counts}, {engine.marconi()}"
                )
        self._here.send(None)
        return answers, counts


def first_other(mine: Sequence[int], other: Sequence[int]) -> int:
    """The first token that differs: 0 is the prefill engine's, of a pair."""
    return next(
        (n for n, (a, b) in enumerate(zip(mine, other, strict=False)) if a != b), min(len(mine), len(other))
    )


@dataclass(frozen=True)
class Plain:
    """A task: the answers of an engine without a cache."""

    asks: Sequence[Ask]
    ticks: Ticks

    def __call__(self, engine: Engine) -> list[Said]:
        self.ticks.follow(engine)
        return engine.ask(self.asks, OPEN)


def main(
    requests: Annotated[int, typer.Option(min=PART)] = 5_000,
    caching: Annotated[bool, typer.Option("--caching", help="The decode engine has a prefix cache.")] = False,
    overlap: Annotated[bool, typer.Option("--overlap", help="Of the decode engine.")] = False,
    stock: Annotated[bool, typer.Option("--stock", help="Without the extension.")] = False,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    json: Annotated[Path | None, typer.Option(metavar="FILE")] = None,
) -> None:
    """Soak a pair of engines; exit code 1 where anything is wrong."""
    check_writable(json)
    if NO_MOONCAKE is not None:
        raise BadInputError(NO_MOONCAKE)
    sent = hostile_requests(requests, seed)
    whole = [n for n, one in enumerate(sent) if one.whole]
    options: dict[str, object] = {
        "enable_marconi": not stock,
        "mamba_radix_cache_strategy": "extra_buffer",
        "max_mamba_cache_size": 60,
        "max_total_tokens": 9_000,
    }
    with tempfile.TemporaryDirectory(prefix="marconi-soak-") as folder, Engines() as engines:
        options["model_path"] = write_model(Path(folder) / "model", ToyModel(chunk_size=64, vocab=VOCABULARY))
        ticks, limit_s = Ticks(Path(folder) / "ticks"), SECONDS_EACH * requests
        plain = {"model_path": options["model_path"], "disable_radix_cache": True}
        asking = Plain([sent[n].decode for n in whole], ticks)
        alone = watched(engines, Job(plain, asking, limit_s=limit_s), "cache off", ticks, len(whole))
        pair = RoughPair(sent, options, ticks, caching=caching, overlap=overlap, seed=seed)
        job = Job(pair.prefill_options, pair, before=pair.start, limit_s=limit_s)
        answers, counts = watched(engines, job, "pair", ticks, len(sent))
    said = [(answers[n].output_ids, other.output_ids) for n, other in zip(whole, alone, strict=True)]
    counts["aborted"] = len(sent) - len(whole)
    counts["failed"] = sum(not mine for mine, _ in said)
    counts["compared"] = len(whole) - counts["failed"]
    counts["wrong"] = sum(bool(mine) and mine != other for mine, other in said)
    counts |= Counter(f"wrong_from_{first_other(*pair)}" for pair in said if pair[0] and pair[0] != pair[1])
    Console().print(dict(counts))
    if json:
        row = {"decode": "with a cache" if caching else "without", **counts}
        write(records_of([row], bench="soak_pair", case=(), provider="decode", seed=seed), json)
    raise SystemExit(bool(counts["wrong"] or counts["missing"]))


if __name__ == "__main__":
    from soak_pair import main as main_under_its_name  # so that pickles name the module

    typer.run(main_under_its_name)
