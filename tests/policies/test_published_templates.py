"""Templates with the published structure of other families': the input's end that is found is the one that lasts."""

from __future__ import annotations

import re

import jinja2
import numpy as np
import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from marconi_ext.policies.messages import endings_of, headers_of, read_template
from marconi_ext.results.prefix_tree import common_prefix

TEMPLATES = {
    # the generation prompt opens the thoughts; the history has what follows them
    "deepseek-r1": "<s>{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}"
    "{% elif m.role == 'user' %}<|User|>{{ m.content }}"
    "{% else %}<|Assistant|>{{ m.content.split('</think>')[-1] }}<|eos|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|><think>\n{% endif %}",
    # the history closes thoughts that it doesn't have, as the generation prompt does where thinking is off
    "deepseek-v3.1": "<s>{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}"
    "{% elif m.role == 'user' %}<|User|>{{ m.content }}"
    "{% else %}<|Assistant|></think>{{ m.content.split('</think>')[-1] }}<|eos|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|Assistant|>{{ '<think>' if thinking else '</think>' }}{% endif %}",
    # channels: thoughts have their own field, and are in the last answer alone
    "gpt-oss": "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% if m.thinking and loop.last and not add_generation_prompt %}"
    "<|start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{% endif %}"
    "<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|end|>"
    "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}",
    # no generation prompt of its own
    "mistral": "<s>{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]"
    "{% elif m.role == 'assistant' %}{{ m.content }}</s>{% else %}[SYSTEM]{{ m.content }}[/SYSTEM]"
    "{% endif %}{% endfor %}",
    # the system's message may come first only, and the whole text is trimmed
    "granite": "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
    "{{ raise_exception('system first') }}{% endif %}"
    "<|start_of_role|>{{ m.role }}<|end_of_role|>{{ m.content | trim }}<|end_of_text|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start_of_role|>assistant<|end_of_role|>{% endif %}",
    # thoughts of all answers but the last one are cut out of the text
    "lfm2": "<s>{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and not loop.last %}{{ m.content.split('</think>')[-1] | trim }}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    # messages are lists of parts, as of models that see
    "parts": "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% for part in m.content %}{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}",
}
MARK = re.compile(r"(<[^<>\n]+>|\[/?[A-Z]+\]|\n)")


class Ids:
    """A marker is a token, and so is a line and each letter of the rest."""

    def __init__(self) -> None:
        self.marks: dict[str, int] = {}

    def encode(self, text: str) -> list[int]:
        found: list[int] = []
        for piece in filter(None, MARK.split(text)):
            if MARK.fullmatch(piece):
                found.append(self.marks.setdefault(piece, 1_000 + len(self.marks)))
            else:
                found += map(ord, piece)
        return found


def rendering(name: str):
    def refuse(why: str):
        raise jinja2.TemplateError(why)

    environment = ImmutableSandboxedEnvironment()
    environment.globals["raise_exception"] = refuse
    template, ids = environment.from_string(TEMPLATES[name]), Ids()

    def render(messages, generation=False, thinking=None):
        how = {} if thinking is None else {"enable_thinking": thinking, "thinking": thinking}
        return ids.encode(template.render(messages=messages, add_generation_prompt=generation, **how))

    return render


def known(name: str):
    render = rendering(name)
    render([{"role": "user", "content": "x"}], True)
    return render, read_template(render, range(1_000, 2_000))


def said(role: str, text: str | list, **more: str):
    return {"role": role, "content": text, **more}


SYSTEMS = ([], [said("system", "Be brief.")], [said("system", "Be brief."), said("system", "Be kind.")])
ANSWERS = (
    said("assistant", "Forty-two."),
    said("assistant", "Forty-two.", reasoning_content="Let me see.", thinking="Let me see."),
    said("assistant", "<think>\nLet me see.\n</think>\n\nForty-two."),
)


@pytest.mark.parametrize("thinking", [None, True, False])
@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "parts"])
def test_a_state_at_the_input_s_end_serves_the_next_turn(name: str, thinking: bool | None) -> None:
    render, headers = known(name)
    asked = 0
    for system in SYSTEMS:
        for turns in (1, 2):
            for answer in ANSWERS:
                history = list(system)
                for turn in range(turns):
                    history += [said("user", f"What is it, for the {turn + 1}. time?"), answer]
                try:
                    first = render(history[:-1], True, thinking)
                    after = render([*history, said("user", "Why?")], True, thinking)
                except jinja2.TemplateError:
                    continue
                end = headers.input_end(np.array(first))
                assert end is not None and end.known, (name, first[-8:])
                shared = common_prefix(np.array(first), np.array(after))
                assert len(first) - end.dropped <= shared, (name, thinking, answer)
                assert shared - (len(first) - end.dropped) <= 1, (name, thinking, answer)
                asked += 1
    assert asked > 6


def test_what_was_thought_is_known_to_be_dropped() -> None:
    for name in ("deepseek-r1", "deepseek-v3.1", "gpt-oss", "lfm2"):
        _, headers = known(name)
        assert any(ending.dropped or not ending.keeps_answer for ending in headers.endings), name
    for name in ("mistral", "granite"):
        _, headers = known(name)
        assert all(ending.dropped == 0 and ending.keeps_answer for ending in headers.endings), name


def test_messages_in_parts_are_tried_where_texts_tell_nothing() -> None:
    render, headers = known("parts")
    assert not headers_of(render, range(1_000, 2_000)).headers and not endings_of(render)
    talk = [
        said(role, [{"type": "image"}, {"type": "text", "text": text}])
        for role, text in (("user", "What is on it?"), ("assistant", "A lighthouse."), ("user", "Where?"))
    ]
    first, after = np.array(render(talk[:1], True)), np.array(render(talk, True))
    end = headers.input_end(first)
    assert end is not None and end.known and len(first) - end.dropped == common_prefix(first, after)


def test_an_answer_that_is_begun_for_the_model_has_no_known_end() -> None:
    """A prompt that ends inside the answer: its header is near, or nothing is said."""
    render, headers = known("granite")
    whole = render([said("user", "What is it?"), said("assistant", "It is")])
    begun = np.array(whole[:-2])  # without what closes it
    end = headers.input_end(begun)
    assert end is not None and not end.known and end.dropped == len("It is")
    assert headers.input_end(np.array([*whole[:-2], *range(50, 90)])) is None


def test_images_in_a_prompt_are_tokens_like_others() -> None:
    render, headers = known("gpt-oss")
    prompt = np.array(render([said("user", "What is on it?")], True), np.int64)
    with_image = np.concatenate([prompt[:4], np.full(60, 2**61 + 7), prompt[4:]])
    assert headers.input_end(with_image) == headers.input_end(prompt)
