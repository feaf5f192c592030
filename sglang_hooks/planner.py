"""Which tokens of an extend get a checkpoint: a pure function of lengths."""

from __future__ import annotations

from typing import NamedTuple

from marconi_ext.config import CheckpointKind, MarconiConfig


class WantedCheckpoint(NamedTuple):
    """A state to save during this extend: the one after the request's first `position_tokens` tokens."""

    kind: CheckpointKind
    position_tokens: int


def plan_extend(
    config: MarconiConfig,
    *,
    prefix_tokens: int,
    extend_end_tokens: int,
    prompt_tokens: int,
    branch_tokens: int | None,
    page_tokens: int,
) -> list[WantedCheckpoint]:
    """Choose the checkpoints of one request's extend `[prefix_tokens, extend_end_tokens)`, shallow first.

    prefix_tokens: int - tokens whose state the extend starts from
    extend_end_tokens: int - tokens consumed when it ends; below prompt_tokens in a chunked prefill
    prompt_tokens: int - all that this prefill will consume (with earlier output after a retraction)
    branch_tokens: int | None - where the request's KV hit ends beyond its state hit
    page_tokens: int - KV page; a tree key, hence a checkpoint, is a multiple of it
    Returns: at most two, at distinct positions inside (prefix_tokens, extend_end_tokens].
    Source: Marconi (arXiv 2411.19379), section 4.1; the prompt's end is ours.
    """
    wanted: dict[int, CheckpointKind] = {}
    if extend_end_tokens == prompt_tokens and config.saves(CheckpointKind.PROMPT_END):
        wanted[prompt_tokens // page_tokens * page_tokens] = CheckpointKind.PROMPT_END
    if branch_tokens is not None and config.saves(CheckpointKind.BRANCH):
        wanted[branch_tokens // page_tokens * page_tokens] = CheckpointKind.BRANCH
    return [
        WantedCheckpoint(kind, position)
        for position, kind in sorted(wanted.items())
        if prefix_tokens < position <= extend_end_tokens
    ]
