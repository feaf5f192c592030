"""Traffic is cut by sessions, shrinks in proportion, and goes back to text as it came from text."""

import numpy as np
import pytest

from marconi_ext.errors import BadInputError
from marconi_ext.replay.prompt_text import PromptText
from marconi_ext.replay.selection import Selection, select, select_scripts, thin
from marconi_ext.replay.traffic import load_traffic
from marconi_ext.traces.chat import Message, linear_calls
from marconi_ext.traces.request import Request
from marconi_ext.traces.script import Fork, Script, Turn, play
from marconi_ext.traces.text import load_tokenizer


def ids(*tokens: int) -> np.ndarray:
    return np.array(tokens, dtype=np.int32)


def request(session: str, turn: int, tokens: int) -> Request:
    return Request(session, turn, 10.0 + turn, np.arange(tokens, dtype=np.int32), ids(5))


TRACE = [
    request("a", 0, 10),
    request("b", 0, 50),
    request("a", 1, 30),
    request("c", 0, 5),
    request("a", 2, 12),
]


@pytest.mark.parametrize(
    ("selection", "kept"),
    [
        (Selection(), ["a0", "b0", "a1", "c0", "a2"]),
        (Selection(sessions=2), ["a0", "b0", "a1", "a2"]),
        (Selection(turns=1), ["a0", "b0", "c0"]),
        (Selection(limit=3), ["a0", "b0", "a1"]),
        (Selection(max_prompt_tokens=20), ["a0", "c0"]),  # a2 would fit, but a ended at a1
        (Selection(max_prompt_tokens=20, scale=0.5), ["a0", "a1", "c0", "a2"]),
    ],
)
def test_sessions_are_cut_at_their_ends(selection: Selection, kept: list[str]) -> None:
    found = select(TRACE, selection)
    assert [f"{r.session_id}{r.turn}" for r in found] == kept
    assert found[0].arrival_s == 0


def test_nothing_left_is_refused_with_the_reason() -> None:
    with pytest.raises(BadInputError, match=r"up to 50 tokens, --max-prompt-tokens is 2"):
        select(TRACE, Selection(max_prompt_tokens=2))
    with pytest.raises(BadInputError, match="--scale"):
        select(TRACE, Selection(scale=1.5))


@pytest.mark.parametrize("scale", [0.1, 0.37, 0.9, 1.0])
def test_scaled_prompts_share_in_proportion(scale: float) -> None:
    rng = np.random.default_rng(0)
    shared = rng.integers(1_000, 4_000, 300, dtype=np.int32)
    one, two = (np.concatenate([shared, rng.integers(1_000, 4_000, 200, dtype=np.int32)]) for _ in range(2))
    first = thin(Request("a", 0, 0.0, one, ids(*range(40)), (300, 500)), scale)
    follow_up = np.concatenate([one, np.arange(40, dtype=np.int32), ids(1, 2, 3)])
    second, third = (
        thin(Request("a", 1, 0.0, follow_up, ids(1)), scale),
        thin(Request("b", 0, 0.0, two, ids(1)), scale),
    )
    assert len(first.input_ids) == int(500 * scale) and first.boundaries == (
        int(300 * scale),
        int(500 * scale),
    )
    whole = np.concatenate([first.input_ids, first.output_ids])
    assert np.array_equal(second.input_ids[: len(whole)], whole)
    same = third.input_ids == first.input_ids
    assert same[: int(300 * scale)].all() and not same[int(300 * scale) + 5 :].all()


def test_scripts_lose_the_turns_that_were_cut_and_forks_of_those() -> None:
    turns = tuple(Turn(ids(*range(10)), 2, float(i)) for i in range(3))
    late = Script("late", (Turn(ids(1), 2, 9.0),), Fork("base", 3, 0))
    early = Script("early", (Turn(ids(1), 2, 9.0),), Fork("base", 1, 0))
    scripts = [Script("base", turns), late, early]
    kept = select(play(scripts, 0), Selection(max_prompt_tokens=25))
    found = select_scripts(scripts, kept)
    assert [(s.session_id, len(s.turns)) for s in found] == [("base", 2), ("early", 1)]


def test_synthetic_traffic_by_name_and_its_description() -> None:
    traffic = load_traffic("synthetic:fork", Selection(sessions=2, max_output_tokens=4), history="own")
    one, two = traffic.plan(), traffic.plan()
    assert traffic.name == "fork" and len(one.items) == traffic.info.requests == 16 and one is not two
    assert max(item.answer_tokens for item in one.items) == 4
    again = load_traffic("synthetic:fork", Selection(sessions=2, max_output_tokens=4), history="trace")
    assert again.info.requests == 16
    assert (
        traffic.info.digest
        == load_traffic(
            "synthetic:fork", Selection(sessions=2, max_output_tokens=4), history="own"
        ).info.digest
    )


def test_prompts_of_messages_become_messages_again() -> None:
    messages = [
        Message("system", "Be brief."),
        Message("user", "Hi [INST] héy\nthere"),
        Message("assistant", "Yes?"),
        Message("tool", '{"a": 1}'),
        Message("assistant", "Done."),
    ]
    text = PromptText("tekken")
    calls = linear_calls(messages, load_tokenizer("tekken"))
    assert text.messages(calls[1].input_ids) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi [INST] héy\nthere"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": '{"a": 1}'},
    ]
    bare = ids(*text.encode("no frames at all"))
    assert text.messages(bare) == [{"role": "user", "content": "no frames at all"}]
    assert text.decode(np.append(bare, 10**6)) == "no frames at all"


@pytest.mark.sglang
def test_frames_are_found_behind_plain_newlines(tmp_path) -> None:
    import tokenizers

    characters = sorted(set("abcdefghijklmnopqrstuvwxyz<|>\n .?"))
    model = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab={c: i for i, c in enumerate(characters)}, merges=[])
    )
    model.decoder = tokenizers.decoders.Fuse()
    model.save(str(tmp_path / "tokenizer.json"))
    messages = [Message("user", "one\ntwo"), Message("assistant", "three"), Message("user", "four")]
    calls = linear_calls([*messages, Message("assistant", "five")], load_tokenizer(str(tmp_path)))
    found = PromptText(str(tmp_path)).messages(calls[1].input_ids)
    assert [(m["role"], m["content"].strip()) for m in found] == [(m.role, m.text) for m in messages]
