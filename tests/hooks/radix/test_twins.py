"""Requests with one prompt at once: who waits, and for how long."""

from __future__ import annotations

from array import array
from types import SimpleNamespace

import pytest

from marconi_ext.policies.admission import Judicious, Selective
from marconi_ext.policies.table.checkpoints import Kind

pytest.importorskip("sglang")
from sglang_hooks.radix.twins import Twins

PROMPT = array("q", range(100))


def request(prompt: array = PROMPT, **fields: object) -> SimpleNamespace:
    base = {
        "origin_input_ids": prompt,
        "output_ids": [],
        "session": None,
        "beam_group": None,
        "extra_key": None,
        "cache_salt": None,
        "kv": SimpleNamespace(holds_kv=False),
        "finished": lambda: False,
    }
    return SimpleNamespace(**{**base, **fields})


def twins(held: int = 0, admission: object = None, kinds: tuple[Kind, ...] = tuple(Kind)) -> Twins:
    asked: list[int] = []

    def match(params) -> SimpleNamespace:
        asked.append(len(params.key))
        return SimpleNamespace(device_prefix_len=held)

    runtime = SimpleNamespace(admission=admission or Selective())
    mamba = SimpleNamespace(runtime=runtime, serving=SimpleNamespace(kinds=frozenset(kinds)))
    found = Twins(SimpleNamespace(mamba=mamba, page_size=1, match_prefix=match))
    found.asked = asked
    return found


def test_all_but_the_first_wait_until_its_first_token_is_known() -> None:
    one, two, other, three = request(), request(), request(array("q", range(50, 150))), request()
    found = twins()
    assert found.waiting([one, two, other, three]) == [two, three]
    assert found.asked == [99]  # the tree is asked once for all
    one.kv.holds_kv = True
    found.went([one, other], [other])  # there was no room for the other
    assert found.waiting([other, two, three]) == [two, three]
    one.output_ids.append(7)
    assert found.waiting([two]) == []
    assert found.waiting([two, three]) == [three]


@pytest.mark.parametrize("end", ["finished", "released"])
def test_one_that_never_gets_there_holds_nobody_up(end: str) -> None:
    one, two = request(), request()
    found = twins()
    one.kv.holds_kv = True
    found.went([one], [])
    assert found.waiting([two, two]) == [two, two]
    if end == "finished":
        one.finished = lambda: True
    else:
        one.kv.holds_kv = False
    assert found.waiting([two]) == []


def test_what_is_held_already_is_worth_no_wait() -> None:
    queue = [request() for _ in range(3)]
    assert twins(held=99).waiting(queue) == twins(held=68).waiting(queue) == []
    assert twins(held=67).waiting(queue) == queue[1:]


@pytest.mark.parametrize(
    "fields",
    [
        {"extra_key": "tenant"},
        {"cache_salt": "salt"},
        {"output_ids": [5]},  # retracted: it goes on
        {"session": object()},
        {"beam_group": object()},
    ],
)
def test_who_is_no_twin(fields: dict[str, object]) -> None:
    assert twins().waiting([request(), request(**fields)]) == []


def test_where_no_prompt_s_end_is_saved_nobody_waits() -> None:
    queue = [request(), request()]
    assert twins(admission=Judicious()).waiting(queue) == []
    assert twins(kinds=(Kind.BRANCH, Kind.LAST_TOKEN)).waiting(queue) == []
    short = array("q", range(32))
    assert twins().waiting([request(short), request(short)]) == []
