"""Scripts are played in order with the server's answers as history, and a run always ends."""

import asyncio
import time

import numpy as np
import pytest

from marconi_ext.replay.client import Answer
from marconi_ext.replay.schedule import RecordedPlan, with_own_history
from marconi_ext.replay.sender import GIVE_UP_AFTER, Pacing, Replay, Run, replay
from marconi_ext.traces.request import Request
from marconi_ext.traces.script import Fork, Script, Turn
from marconi_ext.traces.synthetic import scripts


class FakeClient:
    """Answers with consecutive numbers; fails, refuses or dawdles at chosen calls; counts what is in flight."""

    def __init__(
        self,
        failing: set[int] = frozenset(),
        refusing: set[int] = frozenset(),
        slow: dict[int, float] | None = None,
    ) -> None:
        self.failing, self.refusing, self.slow = failing, refusing, slow or {}
        self.calls = self.flying = self.most = 0

    def body(self, input_ids: np.ndarray, answer_tokens: int) -> bytes:
        return input_ids.tobytes()

    async def send(self, body: bytes, answer_tokens: int) -> Answer:
        number, self.calls = self.calls, self.calls + 1
        sent_s = time.perf_counter()
        self.flying += 1
        self.most = max(self.most, self.flying)
        await asyncio.sleep(self.slow.get(number, 0.001))
        self.flying -= 1
        answer = np.arange(answer_tokens, dtype=np.int32) + 10_000 * (number + 1)
        now_s = time.perf_counter()
        status = "http" if number in self.failing | self.refusing else "ok"
        code = 503 if number in self.refusing else 200
        return Answer(
            status, "", sent_s, now_s, now_s, len(body) // 4, 0, answer, answer_tokens, http_status=code
        )


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


def recorded(session: str, turn: int, at_s: float, tokens: int = 3) -> Request:
    return Request(session, turn, at_s, ids(*range(tokens)), ids(7, 8))


def run(plan, client: FakeClient, **pacing) -> Run:
    return asyncio.run(Replay(plan, client, Pacing(**{"concurrency": 100, **pacing})).run())


def test_times_are_kept_and_turns_wait_for_the_one_before() -> None:
    client = FakeClient(slow={0: 0.2})
    plan = RecordedPlan([recorded("a", 0, 0.0), recorded("b", 0, 0.2), recorded("a", 1, 0.21)])
    found = run(plan, client, timed=True, speed=2.0)
    sent = {(r.session_id, r.turn): r.answer.sent_s - found.began_s for r in found.records}
    assert 0.1 <= sent["b", 0] < 0.18 and sent["a", 1] >= 0.2
    late = next(r for r in found.records if (r.session_id, r.turn) == ("a", 1))
    assert late.due_s - found.began_s == pytest.approx(0.105)
    assert late.ready_s - found.began_s >= 0.2 and late.answer.sent_s - late.ready_s < 0.05


def test_a_rate_limit_holds_requests_back_where_one_can_see_it() -> None:
    plan = RecordedPlan([recorded(str(i), 0, 0.0) for i in range(6)])
    found = run(plan, FakeClient(), timed=True, max_rate=50.0)
    sent = sorted(r.answer.sent_s for r in found.records)
    assert sent[-1] - sent[0] >= 0.09
    assert max(r.answer.sent_s - r.ready_s for r in found.records) >= 0.09


def test_recorded_turns_go_on_after_a_failure() -> None:
    plan = RecordedPlan([recorded("a", 0, 0.0), recorded("a", 1, 0.0)])
    found = run(plan, FakeClient(failing={0}))
    assert [r.answer.status for r in found.records] == ["http", "ok"] and not found.left


def test_own_history_replaces_recorded_answers() -> None:
    first = Request("a", 0, 0.0, ids(1, 2), ids(3, 4))
    second = Request("a", 1, 1.0, ids(1, 2, 3, 4, 5), ids(6))
    apart = Request("a", 2, 2.0, ids(9, 9), ids(6))
    found = run(with_own_history([first, second, apart], 4_096), FakeClient())
    assert [r.prompt.tolist() for r in found.records] == [[1, 2], [1, 2, 10_000, 10_001, 5], [9, 9]]
    assert [(r.session_id, r.turn) for r in found.records] == [("a", 0), ("a", 1), ("a", 2)]


def test_refusals_are_tried_again_and_counted() -> None:
    client = FakeClient(refusing={0, 1})
    (record,) = run(RecordedPlan([recorded("a", 0, 0.0)]), client, retries=3, backoff_s=0.01).records
    assert (record.answer.status, record.answer.retries, client.calls) == ("ok", 2, 3)
    assert 0.03 <= record.answer.retry_s < record.answer.ttft_s
    client = FakeClient(refusing=set(range(9)))
    (record,) = run(RecordedPlan([recorded("a", 0, 0.0)]), client, retries=2, backoff_s=0.01).records
    assert (record.answer.status, record.answer.retries, client.calls) == ("http", 2, 3)


def test_a_stopped_run_says_what_was_left() -> None:
    async def go() -> Run:
        plan = RecordedPlan([recorded(str(i), 0, float(i)) for i in range(4)])
        replay = Replay(
            plan, FakeClient(slow=dict.fromkeys(range(4), 30.0)), Pacing(concurrency=9, timed=True)
        )
        asyncio.get_running_loop().call_later(0.1, replay.stop, "enough")
        return await replay.run()

    found = asyncio.run(go())
    assert [r.answer.status for r in found.records] == ["cancelled"]
    assert (found.unsent, found.stopped) == (3, "enough")


def test_thousands_may_be_open_at_once() -> None:
    plan = RecordedPlan([recorded(str(i), 0, 0.0) for i in range(3_000)])
    found = run(plan, FakeClient(slow=dict.fromkeys(range(3_000), 0.5)), concurrency=3_000)
    assert found.most_open == 3_000 and not found.failed and not found.left
