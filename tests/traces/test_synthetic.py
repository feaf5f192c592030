"""Generated traffic: seeded, of the promised sizes, and with the promised sharing."""

import itertools

import numpy as np
import pytest

from marconi_ext.errors import BadInputError
from marconi_ext.results.ideal import IdealCache
from marconi_ext.results.prefix_tree import common_prefix
from marconi_ext.traces import SYNTHETIC_NAMES, synthetic
from marconi_ext.traces.script import Fork, Script, Turn, play
from marconi_ext.traces.synthetic import WRITTEN, scripts


def same(a, b) -> bool:
    return len(a) == len(b) and all(
        x.session_id == y.session_id
        and x.arrival_s == y.arrival_s
        and np.array_equal(x.input_ids, y.input_ids)
        and np.array_equal(x.output_ids, y.output_ids)
        for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("name", SYNTHETIC_NAMES)
def test_same_seed_same_requests_in_time_order(name: str) -> None:
    sessions = 1 if name == "tool-loops" else 6  # they are long
    one, again, other = (list(synthetic(name, seed=s, sessions=sessions)) for s in (1, 1, 2))
    assert same(one, again) and not same(one, other)
    times = [r.arrival_s for r in one]
    assert times == sorted(times) and times[0] == 0
    assert all(len(r.input_ids) and r.input_ids.dtype == np.int32 for r in one)
    assert name in WRITTEN or all(r.input_ids.min() >= 1_000 for r in one)  # templates have control tokens


@pytest.mark.parametrize("name", SYNTHETIC_NAMES)
def test_a_small_vocabulary_is_kept(name: str) -> None:
    for request in play(scripts(name, sessions=1, vocabulary=512), 0, 512):
        assert max(request.input_ids.max(), request.output_ids.max()) < 512


def test_agent_sessions_have_the_promised_sizes() -> None:
    requests = list(synthetic("agent"))
    assert len(requests) == 240 and len({r.session_id for r in requests}) == 30
    system = requests[0].input_ids[:700]
    assert all(np.array_equal(r.input_ids[:700], system) for r in requests)
    assert all(50 <= len(r.input_ids) - 700 <= 300 for r in requests if r.turn == 0)
    assert all(30 <= len(r.output_ids) <= 120 for r in requests)


def test_few_shot_has_five_prefixes() -> None:
    requests = list(synthetic("few-shot"))
    first = {tuple(r.input_ids[:20].tolist()) for r in requests}
    assert (len(requests), len(first)) == (60, 5)


def test_forks_leave_where_they_say_and_some_one_token_apart() -> None:
    found = scripts("fork", sessions=5)
    requests = {(r.session_id, r.turn): r.input_ids for r in play(found, 0)}
    offsets: dict[str, list[tuple[int, int]]] = {}
    for script in found:
        if script.fork:
            fork = script.fork
            child, parent = requests[script.session_id, 0], requests[fork.parent, fork.turn]
            new = len(next(s for s in found if s.session_id == fork.parent).turns[fork.turn].new_ids)
            assert common_prefix(child, parent) == len(parent) - new + fork.tokens
            offsets.setdefault(fork.parent, []).append((fork.turn, fork.tokens))
    apart = [a[0] == b[0] and a[1] - b[1] == 1 for o in offsets.values() for a, b in itertools.pairwise(o)]
    assert any(apart)


def test_tree_search_goes_back_to_older_nodes() -> None:
    cache = IdealCache()
    assert sum(cache.serve(request).ideal_tokens for request in synthetic("tree-search", sessions=2)) > 0


def test_sizes_can_be_changed_and_wrong_ones_are_refused() -> None:
    assert len(list(synthetic("agent", sessions=2, turns=3))) == 6
    for arguments in (
        {"name": "nonsense"},
        {"colour": 1},
        {"sessions": 0},
        {"user_tokens": (9, 1)},
        {"seed": -1},
    ):
        with pytest.raises(BadInputError):
            synthetic(arguments.pop("name", "agent"), **arguments)


def test_a_script_due_before_its_parent_is_refused() -> None:
    turn = Turn(np.array([5, 6], dtype=np.int32), 2, 1.0)
    early = Script("b", (Turn(turn.new_ids, 2, 0.0),), Fork("a", 1, 0))
    with pytest.raises(ValueError, match="due before"):
        list(play([Script("a", (turn,)), early], 0))
    with pytest.raises(ValueError, match="same session_id"):
        list(play([Script("a", (turn,)), Script("a", (turn,))], 0))
