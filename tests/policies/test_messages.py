"""Message headers of chat templates, and where they lie in a prompt: by hand, and with transformers' own rendering."""

from __future__ import annotations

import numpy as np
import pytest

from marconi_ext.policies.messages import TAIL_TOKENS, MessageHeaders, from_tokenizer, headers_of

START, END, NEWLINE = 1, 2, 3
ROLES = {"system": 10, "user": 11, "assistant": 12, "tool": 13}


def words(text: str) -> list[int]:
    return [100 + sum(map(ord, word)) for word in text.split()]


def chatml(messages: list[dict[str, str]]) -> list[int]:
    """<start> role \\n text <end> \\n"""
    return [
        token
        for m in messages
        for token in (START, ROLES[m["role"]], NEWLINE, *words(m["content"]), END, NEWLINE)
    ]


def test_headers_reach_from_the_last_mark_to_the_text() -> None:
    assert headers_of(chatml, {START, END}).headers == tuple(
        (START, ROLES[r], NEWLINE) for r in sorted(ROLES, key=ROLES.get)
    )


def test_a_role_that_the_template_refuses_is_left_out() -> None:
    def strict(messages: list[dict[str, str]]) -> list[int]:
        if any(m["role"] in ("system", "tool") for m in messages):
            raise ValueError("no such role")
        return chatml(messages)

    assert headers_of(strict, {START, END}).headers == ((START, 11, NEWLINE), (START, 12, NEWLINE))


def test_a_template_of_plain_text_has_none() -> None:
    assert headers_of(chatml, set()).headers == ()
    assert MessageHeaders().boundaries(np.arange(100)) == ()


def test_texts_begin_behind_their_headers() -> None:
    """A system prompt of 20 words, a question of 30, an answer of 10 and the next question of 15."""
    talk = [("system", 20), ("user", 30), ("assistant", 10), ("user", 15)]
    said = chatml([{"role": role, "content": "word " * n} for role, n in talk])
    found = headers_of(chatml, {START, END}).boundaries(np.array([*said, START, 12, NEWLINE]))
    # 3 + 20 + 2 and a header; then 30 + 2 and a header; then 10 + 2 and one. Neither the first text's nor the answer's.
    assert found == (28, 63, 78)


def test_an_unknown_header_ends_at_its_mark() -> None:
    headers = MessageHeaders(((START, 11, NEWLINE), (START, 11)))
    tokens = np.array(
        [START, 11, NEWLINE, 50, START, 99, 51, START, 11, 52, START, 11, NEWLINE, *range(200, 220)]
    )
    assert headers.boundaries(tokens) == (5, 9, 13)


def test_cut_headers_and_ids_of_62_bits_do_no_harm() -> None:
    headers = MessageHeaders(((START, 11, NEWLINE),))
    tokens = np.array([START, 11, NEWLINE, *range(200, 230), START, 11], np.int64)
    assert headers.boundaries(tokens) == ()
    tokens[5:20] = 2**62
    assert headers.boundaries(tokens) == ()
    assert headers.boundaries(tokens[:0]) == ()


@pytest.mark.parametrize("left", [2 * TAIL_TOKENS - 1, 2 * TAIL_TOKENS])
def test_the_answer_s_header_is_the_prompt_s_end(left: int) -> None:
    """What follows it may be longer than a header: a block that forbids thinking."""
    tokens = np.array([START, *range(200, 230), START, *range(300, 300 + left)])
    assert MessageHeaders(((START,),)).boundaries(tokens) == ((32,) if left >= 2 * TAIL_TOKENS else ())


@pytest.mark.parametrize("left", [TAIL_TOKENS - 1, TAIL_TOKENS])
def test_a_short_question_before_it_begins_a_message(left: int) -> None:
    tokens = np.array([START, *range(200, 230), START, *range(300, 300 + left - 3), START, 11, NEWLINE])
    assert MessageHeaders(((START,),)).boundaries(tokens) == ((32,) if left >= TAIL_TOKENS else ())


TEMPLATES = {
    "chatml": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}",
    "llama": "{% for m in messages %}<|start|>{{ m.role }}<|stop|>\n\n{{ m.content | trim }}<|eot|>{% endfor %}",
    "strict": "{% for m in messages %}"
    "{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]"
    "{% elif m.role == 'assistant' %}{{ m.content }}</s>"
    "{% else %}{{ raise_exception('no such role') }}{% endif %}{% endfor %}",
    "plain": "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
}
MARKS = ["<|im_start|>", "<|im_end|>", "<|start|>", "<|stop|>", "<|eot|>", "[INST]", "[/INST]", "</s>"]


def tokenizer_with(template: str):
    """Byte-level BPE without merges: each character a token, marks tokens of their own."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner)
    tokenizer.add_special_tokens({"additional_special_tokens": MARKS})
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.sglang
@pytest.mark.parametrize(("name", "expected"), [("chatml", 4), ("llama", 1), ("strict", 2), ("plain", 0)])
def test_real_templates(name: str, expected: int) -> None:
    tokenizer = tokenizer_with(TEMPLATES[name])
    headers = from_tokenizer(tokenizer)
    assert len(headers.headers) == expected
    system = [] if name == "strict" else [{"role": "system", "content": "You are a lighthouse. " * 3}]
    talk = [
        *system,
        {"role": "user", "content": "How far?"},
        {"role": "assistant", "content": "Twenty miles."},
    ]
    talk.append({"role": "user", "content": "And in fog, with the horn on?"})
    ids = tokenizer.apply_chat_template(talk, tokenize=True, return_dict=False)
    texts = [tokenizer.decode(ids[begin:]) for begin in headers.boundaries(np.array(ids))]
    if expected:
        assert len(texts) == len(talk) - 1
        assert all(text.startswith(m["content"]) for text, m in zip(texts, talk[1:], strict=True)), texts
    else:
        assert texts == []


THINKING = (
    "{% set ns = namespace(asked=0) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.asked = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}"
    "{% if m.reasoning_content and (keep or loop.index0 > ns.asked) %}<think>\n{{ m.reasoning_content }}\n</think>\n\n"
    "{% endif %}{{ m.content.split('</think>')[-1].lstrip('\n') }}{% else %}{{ m.content }}{% endif %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"
    "{% else %}<think>\n{% endif %}{% endif %}"
)


@pytest.mark.sglang
@pytest.mark.parametrize("keep", [False, True])
def test_a_thinking_template_says_where_its_input_ends(keep: bool) -> None:
    """`<think>`, then a line; or an empty block, in which each line is a token: both are left out a turn later."""
    tokenizer = tokenizer_with("{% set keep = " + str(keep).lower() + " %}" + THINKING)
    found = {
        tokenizer.decode(e.tokens): (e.dropped, e.keeps_answer) for e in from_tokenizer(tokenizer).endings
    }
    opened = "<|im_end|>\n<|im_start|>assistant\n<think>\n"
    opened_drops = (0, True) if keep else (len("<think>\n"), False)
    assert found == {opened: opened_drops, opened + "\n</think>\n\n": (len("<think>\n\n</think>\n\n"), True)}
