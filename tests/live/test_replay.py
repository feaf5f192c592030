"""Scripts are played in order with the server's answers as history, and a run always ends."""

import asyncio

import numpy as np
import pytest

from marconi_ext.client import Answer
from marconi_ext.replay import GIVE_UP_AFTER, Run, replay
from marconi_ext.traces.script import Fork, Script, Turn
from marconi_ext.traces.synthetic import scripts


class FakeClient:
    """Answers with consecutive numbers; fails for chosen calls; counts requests in flight."""

    def __init__(self, failing: set[int] = frozenset()) -> None:
        self.failing, self.calls, self.flying, self.most = failing, 0, 0, 0

    async def generate(self, input_ids: np.ndarray, answer_tokens: int) -> Answer:
        number, self.calls = self.calls, self.calls + 1
        self.flying += 1
        self.most = max(self.most, self.flying)
        await asyncio.sleep(0.001)
        self.flying -= 1
        answer = np.arange(answer_tokens, dtype=np.int32) + 10_000 * (number + 1)
        status = "http" if number in self.failing else "ok"
        return Answer(status, "", number, number + 0.1, number + 0.2, len(input_ids), 0, answer)


def ids(*tokens: int) -> np.ndarray:
    return np.array(tokens, dtype=np.int32)


def play(client: FakeClient, found: list[Script], concurrency: int = 1) -> Run:
    return asyncio.run(replay(client, found, concurrency))


def test_answers_become_history_and_forks_leave_where_they_say() -> None:
    base = Script("a", (Turn(ids(1, 2), 2, 0.0), Turn(ids(3, 4), 1, 1.0)))
    inside = Script("b", (Turn(ids(9), 1, 2.0),), Fork("a", 1, 1))
    behind = Script("c", (Turn(ids(8), 1, 3.0),), Fork("a", 2, 0))
    run = play(FakeClient(), [base, inside, behind])
    prompts = [record.prompt.tolist() for record in run.records]
    assert prompts == [
        [1, 2],
        [1, 2, 10_000, 10_001, 3, 4],
        [1, 2, 10_000, 10_001, 3, 9],
        [1, 2, 10_000, 10_001, 3, 4, 20_000, 8],
    ]
    assert (run.unsent, run.failed) == (0, [])


@pytest.mark.parametrize("concurrency", [1, 3, 50])
def test_all_turns_are_sent_with_no_more_in_flight_than_allowed(concurrency: int) -> None:
    found = scripts("fork", sessions=4)
    client = FakeClient()
    run = play(client, found, concurrency)
    assert len(run.records) == sum(len(script.turns) for script in found)
    assert client.most <= concurrency and (concurrency == 1 or client.most > 1)


def test_a_failed_turn_ends_its_session_and_its_forks_only() -> None:
    lost = Script("a", (Turn(ids(1), 1, 0.0), Turn(ids(2), 1, 2.0)))
    fork = Script("b", (Turn(ids(3), 1, 3.0),), Fork("a", 1, 0))
    other = Script("c", (Turn(ids(4), 1, 1.0), Turn(ids(5), 1, 4.0)))
    run = play(FakeClient(failing={0}), [lost, fork, other])
    assert [(r.session_id, r.turn) for r in run.records] == [("a", 0), ("c", 0), ("c", 1)]
    assert (len(run.failed), run.unsent) == (1, 2)


def test_gives_up_after_failures_in_a_row() -> None:
    found = [Script(str(i), (Turn(ids(i + 1), 1, float(i)),)) for i in range(50)]
    run = play(FakeClient(failing=set(range(10, 50))), found)
    assert (len(run.records), len(run.failed)) == (10 + GIVE_UP_AFTER, GIVE_UP_AFTER)
    assert run.unsent == 50 - len(run.records)
