"""Retractions, aborts, dropped connections and flushes: no slot leaks, and what is answered is right."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from live_server import PAGE_CHECKS, LiveServer, running
from server_pair import Answer

pytestmark = pytest.mark.engine

Case = tuple[np.ndarray, int, Answer]


def test_retractions_of_more_requests_than_stock_runs(model: Path, cases: list[Case]) -> None:
    """40 requests on 36 slots: 18 run at once, two slots each, where stock runs 7. SGLang retracts some every few
    steps; they prefill again and answer the same."""
    long_answers = [case for case in cases if case[1] >= 6][:120]
    env = {"SGLANG_TEST_RETRACT": "1", "SGLANG_TEST_RETRACT_INTERVAL": "3", **PAGE_CHECKS}
    options = {"max_total_tokens": 16_000, "max_mamba_cache_size": 36, "max_running_requests": 48}
    with running(model, env=env, log_level="info", **options) as live:
        answers = live.generate_all([(prompt, tokens) for prompt, tokens, _ in long_answers], concurrency=40)
        for (_, _, expected), answer in zip(long_answers, answers, strict=True):
            assert answer.output_ids == expected.output_ids
        live.assert_nothing_leaked()
        log = live.server.log_text()
    assert log.count("#retracted_reqs") > 8
    assert "up to 18 requests at once on 36 state slots, 2 slots each (stock: 7 requests)" in log
    assert max(map(int, re.findall(r"#running-req: (\d+)", log))) > 12


def send_and_drop(live: LiveServer, prompt: np.ndarray, number: int, how: str) -> None:
    """Start a long answer, then end it from outside while it prefills or decodes."""
    body = {
        "rid": f"dropped-{number}",
        "input_ids": prompt.tolist(),
        "sampling_params": {"temperature": 0, "max_new_tokens": 400, "ignore_eos": True},
        "stream": how == "disconnect",
    }
    if how == "abort":
        timer = threading.Timer(
            0.02 * (number % 9), lambda: live.http.post("/abort_request", json={"rid": body["rid"]})
        )
        timer.start()
        live.http.post("/generate", json=body)
        timer.join()
        return
    with live.http.stream("POST", "/generate", json=body) as response:
        for received, _ in enumerate(response.iter_lines()):
            if received > number % 7:
                return


def test_aborts_disconnects_and_flushes(model: Path, cases: list[Case]) -> None:
    options = {"max_total_tokens": 20_000, "max_mamba_cache_size": 70, "chunked_prefill_size": 128}
    with running(model, env=PAGE_CHECKS, **options) as live:
        for part in range(3):
            chosen = cases[part * 100 : part * 100 + 60]
            with ThreadPoolExecutor(10) as pool:
                dropped = [
                    pool.submit(send_and_drop, live, prompt, number, "abort" if number % 2 else "disconnect")
                    for number, (prompt, _, _) in enumerate(chosen[::3], start=part * 100)
                ]
                answered = pool.map(lambda case: live.generate(case[0], case[1]), chosen)
                for (_, _, expected), answer in zip(chosen, answered, strict=True):
                    assert answer.output_ids == expected.output_ids
                for future in dropped:
                    future.result()
            live.assert_nothing_leaked()
            live.server.flush_cache()
            assert live.assert_nothing_leaked()["cached"] == 0


@pytest.fixture(scope="module")
def small(model: Path) -> Iterator[LiveServer]:
    """Six slots, which is one running request and next to nothing for its checkpoints."""
    options = {"max_mamba_cache_size": 6, "max_running_requests": 1, "max_total_tokens": 8_000}
    with running(model, sleep_on_idle=True, **options) as live:
        yield live


def test_a_pool_too_small_for_the_plan_saves_fewer_states(small: LiveServer, cases: list[Case]) -> None:
    """Checkpoints are skipped and counted, no request fails."""
    answers = small.generate_all([(prompt, tokens) for prompt, tokens, _ in cases[:60]], concurrency=4)
    for (_, _, expected), answer in zip(cases, answers, strict=False):
        assert answer.output_ids == expected.output_ids
    small.assert_nothing_leaked()


def test_a_prompt_that_is_too_long_is_refused_and_holds_nothing(small: LiveServer) -> None:
    response = small.http.post("/generate", json={"input_ids": [1_000] * 20_000, "sampling_params": {}})
    assert response.status_code == httpx.codes.BAD_REQUEST
    small.assert_nothing_leaked()
