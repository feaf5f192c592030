"""Chat templates in miniature: how models' own templates write a conversation, so that traffic looks as theirs does.

Each file of `templates/` has the published structure of one family's, without its instructions to the model. They are
Jinja, as a tokenizer's are, and take the same arguments, so that a server can be given them too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files
from typing import Any

from marconi_ext.errors import BadInputError

ENDS = ("<|im_end|>", "<|end|>")  # of an answer, as the model generates them
MARKERS = (
    *ENDS,
    "<|im_start|>",
    "<|start|>",
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<|im_system|>",
    "<|im_user|>",
    "<|im_assistant|>",
    "<|im_middle|>",
    "<|tool_calls_section_begin|>",
    "<|tool_calls_section_end|>",
    "<|tool_call_begin|>",
    "<|tool_call_argument_begin|>",
    "<|tool_call_end|>",
    "[gMASK]",
    "<sop>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|observation|>",
)
"""What is one token in the models' vocabularies."""

_PIECES = re.compile(r"(<[^<>\n]{1,30}>|\[gMASK\]|\n+)")  # whatever looks like a marker

Message = Mapping[str, Any]
"""OpenAI's: role, content, and where they are there reasoning_content and tool_calls."""


@dataclass(frozen=True)
class ChatTemplate:
    """One family's, in one of its modes.

    file: in `templates/`; options: what a request passes to it
    thinks: answers begin with thoughts
    keeps: what was generated stays in the history, as far as the client sends it back
    """

    name: str
    file: str
    options: Mapping[str, bool] = field(default_factory=dict)
    thinks: bool = True
    keeps: bool = False

    def render(self, messages: Sequence[Message], *, generation: bool = False) -> str:
        """The text of a prompt. generation: with the generation prompt"""
        return render_file(self.file, messages, generation, self.options)

    def answer(self, messages: Sequence[Message], answer: Message) -> str:
        """What a model generates to say `answer`: all after the generation prompt, with the token that ends it."""
        prompt = self.render(messages, generation=True)
        whole = self.render([*messages, answer])
        if not whole.startswith(prompt):
            raise BadInputError(f"template {self.name}: an answer doesn't begin with the generation prompt")
        generated = whole[len(prompt) :]
        ends = [place + len(end) for end in ENDS if (place := generated.rfind(end)) >= 0]
        return generated[: max(ends)] if ends else generated


def pieces(text: str) -> list[str]:
    """`text` cut at markers and line breaks, which are pieces themselves, so that what is generated and what is read
    again are the same tokens."""
    return [piece for piece in _PIECES.split(text) if piece]


def render_file(file: str, messages: Sequence[Message], generation: bool, options: Mapping[str, bool]) -> str:
    """What a file of `templates/` makes of messages."""
    return _compiled(file)(messages=messages, add_generation_prompt=generation, **options)


def source(file: str) -> str:
    """A template's own text."""
    return (files("marconi_ext.traces") / "templates" / f"{file}.jinja").read_text(encoding="utf-8")


@lru_cache
def _compiled(file: str) -> Callable[..., str]:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True
    )  # as transformers has it
    return environment.from_string(source(file)).render


TEMPLATES = {
    template.name: template
    for template in (
        ChatTemplate("qwen3", "qwen3"),
        ChatTemplate("qwen3-off", "qwen3", {"enable_thinking": False}, thinks=False),
        ChatTemplate("qwen3.5", "qwen3.5"),
        ChatTemplate("qwen3.5-off", "qwen3.5", {"enable_thinking": False}, thinks=False),
        ChatTemplate("qwen3.5-kept", "qwen3.5", {"preserve_thinking": True}, keeps=True),
        ChatTemplate("nemotron-3", "nemotron-3"),
        ChatTemplate("nemotron-3-off", "nemotron-3", {"enable_thinking": False}, thinks=False),
        ChatTemplate("kimi", "kimi"),
        ChatTemplate("glm", "glm"),
        ChatTemplate("glm-off", "glm", {"enable_thinking": False}, thinks=False),
        ChatTemplate("plain", "plain", thinks=False, keeps=True),
    )
}


def find_template(name: str) -> ChatTemplate:
    """Raises BadInputError for an unknown name."""
    if name not in TEMPLATES:
        raise BadInputError(f"--template {name}: not one of {', '.join(TEMPLATES)}")
    return TEMPLATES[name]
