"""Plays scripts against a live server in a closed loop; the server's own answers become the history."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from marconi_ext.client import OK, Answer, GenerateClient
from marconi_ext.traces.script import Histories, Script, in_order

GIVE_UP_AFTER = 5  # failures in a row: the server is gone or can't serve this


@dataclass(frozen=True, eq=False)
class Record:
    """One request that was sent: who asked, its prompt int32[L], and what came of it."""

    session_id: str
    turn: int
    prompt: np.ndarray
    answer: Answer


@dataclass(frozen=True)
class Run:
    """All requests sent, in the order in which they ended, and the number never sent."""

    records: list[Record]
    unsent: int

    @property
    def failed(self) -> list[Record]:
        return [record for record in self.records if record.answer.status != OK]


async def replay(
    client: GenerateClient,
    scripts: Sequence[Script],
    concurrency: int,
    on_record: Callable[[Record], None] | None = None,
) -> Run:
    """Send every turn in its order, up to `concurrency` at once; a turn waits for those it builds on.

    A failed request ends its session, and whatever forks off it: those turns are counted as unsent. The
    run gives up after GIVE_UP_AFTER failures in a row.
    """
    histories = Histories(scripts)
    waiting = in_order(scripts)
    flying: dict[asyncio.Task, tuple[Script, int, np.ndarray]] = {}
    records: list[Record] = []
    failures = 0
    try:
        while failures < GIVE_UP_AFTER:
            while len(flying) < concurrency:
                found = next((i for i, item in enumerate(waiting) if histories.ready(*item)), None)
                if found is None:
                    break
                script, turn = waiting.pop(found)
                prompt = histories.prompt(script, turn)
                asked = client.generate(prompt, script.turns[turn].answer_tokens)
                flying[asyncio.ensure_future(asked)] = (script, turn, prompt)
            if not flying:
                break
            ended, _ = await asyncio.wait(flying, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(ended, key=lambda t: t.result().end_s):
                script, turn, prompt = flying.pop(task)
                record = Record(script.session_id, turn, prompt, task.result())
                records.append(record)
                if record.answer.status == OK:
                    histories.answered(script, prompt, record.answer.output_ids)
                    failures = 0
                else:
                    failures += 1
                if on_record:
                    on_record(record)
    finally:
        for task in flying:
            task.cancel()
        await asyncio.gather(*flying, return_exceptions=True)
    return Run(records, len(waiting) + len(flying))
