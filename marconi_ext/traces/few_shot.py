"""BIG-Bench-Hard as few-shot traffic: every question behind its task's chain-of-thought prefix."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from marconi_ext.traces import fields
from marconi_ext.traces.chat import Call
from marconi_ext.traces.files import json_document
from marconi_ext.traces.problems import Problems
from marconi_ext.traces.request import token_array
from marconi_ext.traces.text import TextTokenizer
from marconi_ext.traces.timeline import Session

CANARY_END = "-----\n"  # a warning line and this rule stand before the prefix itself


def read(paths: list[Path], problems: Problems, tokenizer: TextTokenizer, seed: int) -> Iterator[Session]:
    """Questions of all task files in a seeded order; each is a session of one request.

    The data holds no model answers, so the answer is the task's target (a few tokens).
    """
    questions = []
    for path in paths:
        prefix = _prefix(path, problems)
        document = json_document(path, problems) if prefix is not None else None
        if document is None:
            continue
        if not isinstance(document, dict) or not isinstance(document.get("examples"), list):
            problems.add(str(path), 0, "expected an object with a list of examples")
            continue
        for number, example in enumerate(document["examples"], start=1):
            try:
                if not isinstance(example, dict):
                    raise fields.BrokenRecordError(f"expected an object, found {fields.short(example)}")
                asked, target = fields.text(example, "input"), fields.text(example, "target")
            except fields.BrokenRecordError as error:
                problems.add(str(path), number, f"example {number}: {error}")
                continue
            questions.append((f"{path.stem}/{number}", prefix, asked, target))
    for index in np.random.default_rng([seed, 3]).permutation(len(questions)):
        name, prefix, asked, target = questions[index]
        yield Session(name, 1, partial(_calls, tokenizer, prefix, asked, target))


def _calls(tokenizer: TextTokenizer, prefix: str, asked: str, target: str) -> list[Call]:
    shots = tokenizer.start + tokenizer.encode(prefix)
    question = tokenizer.encode(f"\n\nQ: {asked}\nA: Let's think step by step.\n")
    answer = tokenizer.encode(f"So the answer is {target}.") + tokenizer.frames["assistant"][1]
    return [
        Call(token_array(shots + question), token_array(answer), (len(shots), len(shots) + len(question)))
    ]


def _prefix(path: Path, problems: Problems) -> str | None:
    """The few-shot prefix of a task, from cot-prompts/ beside the task's folder."""
    file = path.parent.parent / "cot-prompts" / f"{path.name.split('.')[0]}.txt"
    try:
        return file.read_text(encoding="utf-8").split(CANARY_END, 1)[-1].rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        problems.add(str(path), 0, f"no few-shot prefix for this task: {error}")
        return None
