"""Cuts a trace down to what a model and an evening can take: whole sessions, or a session's first turns."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np

from marconi_ext.errors import BadInputError
from marconi_ext.traces.request import Request, token_array
from marconi_ext.traces.script import Script

ANSWER_TOKENS = 1_024  # that an answer may have where nothing says so


@dataclass(frozen=True)
class Selection:
    """What to keep, applied in this order; None keeps all.

    sessions: the first so many, by their first request; turns: of each session the first so many
    scale: keep this share of all tokens, the same positions everywhere (see `thin`)
    max_prompt_tokens: end a session before its first longer prompt
    limit: the first so many requests of what is left
    max_output_tokens: ask for no longer answers; where they become the history, it is shorter too
    Raises BadInputError for a scale that is no share.
    """

    sessions: int | None = None
    turns: int | None = None
    scale: float | None = None
    max_prompt_tokens: int | None = None
    limit: int | None = None
    max_output_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.scale is not None and not 0 < self.scale <= 1:
            raise BadInputError(f"--scale {self.scale}: must be over 0 and at most 1")

    def within(self, context_tokens: int | None) -> "Selection":
        """With prompts that leave room for an answer in a model's context, unless their length is given."""
        if self.max_prompt_tokens or not context_tokens:
            return self
        longest = context_tokens - (self.max_output_tokens or ANSWER_TOKENS)
        return replace(self, max_prompt_tokens=max(1, longest))

    def as_json(self) -> dict:
        return {name: value for name, value in asdict(self).items() if value is not None}


def select(requests: Iterable[Request], selection: Selection) -> list[Request]:
    """The requests that are kept, in their order, arrival times from 0 on. Raises BadInputError for none."""
    chosen: dict[str, int] = {}  # session -> its turns kept so far
    ended: set[str] = set()
    kept: list[Request] = []
    longest = 0
    for request in requests:
        name = request.session_id
        if name not in chosen:
            if selection.sessions is not None and len(chosen) == selection.sessions:
                continue
            chosen[name] = 0
        if name in ended or (selection.turns is not None and chosen[name] == selection.turns):
            continue
        if selection.scale is not None:
            request = thin(request, selection.scale)
        longest = max(longest, len(request.input_ids))
        if selection.max_prompt_tokens is not None and len(request.input_ids) > selection.max_prompt_tokens:
            ended.add(name)
            continue
        chosen[name] += 1
        kept.append(request)
        if selection.limit is not None and len(kept) == selection.limit:
            break
    if not kept:
        raise BadInputError(
            f"nothing is left of the trace: its prompts have up to {longest:,} tokens, "
            f"--max-prompt-tokens is {selection.max_prompt_tokens}; --scale shortens them"
        )
    zero_s = kept[0].arrival_s
    return [replace(request, arrival_s=max(0.0, request.arrival_s - zero_s)) for request in kept]


def thin(request: Request, scale: float) -> Request:
    """A request with about `scale` of its tokens: position i stays if floor((i + 1) · scale) > floor(i · scale).

    The answer's positions follow the prompt's. Which positions stay depends on nothing but their place, so
    prompts that share n tokens share floor(n · scale) afterwards (or a few more, where the first tokens in
    which they differ are left out): all messages shrink in proportion, and sharing with them.
    """
    prompt, answer = request.input_ids, request.output_ids
    places = np.floor(np.arange(len(prompt) + len(answer) + 1) * scale).astype(np.int64)
    stays = places[1:] > places[:-1]
    short = prompt[stays[: len(prompt)]]
    return Request(
        request.session_id,
        request.turn,
        request.arrival_s,
        token_array(short if len(short) else prompt[:1]),
        token_array(answer[stays[len(prompt) :]]),
        tuple(int(places[end]) for end in request.boundaries),
    )


def select_scripts(scripts: Sequence[Script], kept: Sequence[Request]) -> list[Script]:
    """Scripts with just the turns of their requests that were kept."""
    turns = {(request.session_id, request.turn) for request in kept}
    found: dict[str, Script] = {}
    for script in scripts:  # a fork comes after what it leaves
        count = 0
        while (script.session_id, count) in turns:
            count += 1
        parent = found.get(script.fork.parent) if script.fork else None
        cut_off = (
            script.fork is not None
            and script.fork.turn
            and (parent is None or len(parent.turns) < script.fork.turn)
        )
        if count and not cut_off:
            found[script.session_id] = Script(script.session_id, script.turns[:count], script.fork)
    return list(found.values())
