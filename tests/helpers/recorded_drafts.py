"""Drafts that are right as often as a test wants: from recorded answers, spoiled at random.

For a draft model of random weights, which is never right. What the target accepts then has all lengths.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from speculative_traffic import VOCABULARY, Case


@dataclass(frozen=True)
class RecordedDrafts:
    """A job's `before`: blocks of drafts (DFLASH, DSPARK) hold what the model is going to say.

    right: chance that a token does; the others are drawn
    then: called as well
    """

    cases: Sequence[Case]
    right: float = 0.7
    then: Callable[[], None] | None = None

    def __call__(self) -> None:
        from sglang.srt.speculative.dflash_info import DFlashVerifyInput
        from sglang.srt.speculative.dspark_components.dspark_draft import DraftBlockProposer

        said = {tuple(case.ask.prompt): (*case.alone.output_ids, *case.beyond) for case in self.cases}
        rng = random.Random(0)

        def draft(batch, blocks):
            """blocks: int64[N, depth], the tokens after each answer's last one"""
            for block, req, consumed in zip(blocks, batch.reqs, batch.seq_lens.tolist(), strict=True):
                start = consumed - len(req.origin_input_ids) + 1
                answer = said[tuple(req.origin_input_ids)][start : start + len(block)]
                for place, token in enumerate(answer):
                    block[place] = token if rng.random() < self.right else rng.randrange(VOCABULARY)

        prepare, propose = DFlashVerifyInput.prepare_for_verify, DraftBlockProposer.propose

        def prepare_for_verify(verify, batch, *positional, **named):
            if batch.spec_algorithm.is_dflash():
                draft(batch, verify.draft_token.view(len(batch.reqs), -1)[:, 1:])
            return prepare(verify, batch, *positional, **named)

        def proposed(proposer, *, batch, **named):
            proposal = propose(proposer, batch=batch, **named)
            draft(batch, proposal.draft_block.draft_tokens)
            return proposal

        DFlashVerifyInput.prepare_for_verify = prepare_for_verify
        DraftBlockProposer.propose = proposed
        if self.then is not None:
            self.then()
