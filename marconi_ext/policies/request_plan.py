"""How a server drives its policy: what to save is planned when a prompt has been matched, before its prefill.

`Simulator` inserts a whole sequence and then offers its states. A server can't: at planning time the answer is
unknown and the prompt's KV is not in the tree, so rows of wanted states exist before their nodes do. The live
component and the simulator that `marconi verify` compares it with both run this code, on different trees.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from math import lcm
from operator import itemgetter
from typing import Any

import numpy as np

from marconi_ext.policies.admission import Offer, PromptFacts
from marconi_ext.policies.messages import TAIL_TOKENS, MessageHeaders
from marconi_ext.policies.runtime import PolicyRuntime
from marconi_ext.policies.table.checkpoints import CheckpointTable, Kind
from marconi_ext.policies.table.tree_rows import FEW_NODES, TreeRecords, row_of

EXACT_RULE = (
    Kind.BRANCH,
    Kind.PROMPT_END,
    Kind.LAST_TOKEN,
)  # kinds that a cache of exact states saves by itself


@dataclass(frozen=True, slots=True)
class Match:
    """What the tree holds of a prompt.

    path: (depth in tokens, node) from below the root to the node where the held KV ends; matching splits edges
    served: the node of the state that the request starts from, None: none
    ahead: the child of the last node that the rest of the prompt runs into, where it does: a prompt is matched
        without its last token, so one that is held whole goes on a little
    tokens: int[prompt_tokens] - the prompt
    """

    path: list[tuple[int, Any]]
    served: Any | None
    prompt_tokens: int
    hit_tokens: int
    ahead: Any | None = None
    tokens: np.ndarray | None = None

    @property
    def kv_tokens(self) -> int:
        """Tokens whose KV is held."""
        return self.path[-1][0] if self.path else 0


@dataclass(slots=True)
class Plan:
    """What one request wants saved.

    prompt_class: as an `Offer`'s; prompt_row: where the prompt ends, -1: it has no row of this plan's
    """

    match: Match
    lost: dict[str, int]
    offers: list[Offer]
    prompt_class: int = 0
    prompt_row: int = -1
    last_token_beyond: int | None = 0  # tokens of a sequence whose last state may serve; None: it never does
    homeless: dict[int, int] = field(default_factory=dict)  # row -> depth, of rows that have no node yet
    answer_grid: int = 0  # tokens, at a multiple of which the answer leaves a state; 0: it leaves none


class Serving:
    """Plans requests on a tree. One per cache; single-threaded.

    kinds: kinds of checkpoints that may be saved
    page_tokens: positions are rounded down to multiples of it
    """

    def __init__(
        self, runtime: PolicyRuntime, records: TreeRecords, kinds: Collection[Kind], page_tokens: int = 1
    ) -> None:
        self.runtime = runtime
        self.records = records
        self.kinds = frozenset(kinds)
        self.page_tokens = page_tokens
        self.headers = MessageHeaders()  # of the server's chat template, set once that is known

    def begin(self, match: Match) -> Plan:
        """A request's prefill is about to start: learn from its match, and plan its states.

        What was evicted since the match, to make room for the request itself, is left out.
        """
        runtime, alive, path, ahead = self.runtime, self.records.alive, match.path, match.ahead
        if path and not alive(path[-1][1]):  # leaves go first: what is gone is the path's end
            path, ahead = [place for place in path if alive(place[1])], None
        if ahead is not None and not alive(ahead):
            ahead = None
        tokens = match.tokens
        match = Match(path, match.served, match.prompt_tokens, match.hit_tokens, ahead)
        runtime.tick += 1
        rows = [row for _, node in path if (row := getattr(node, "record", None)) is not None]
        served = -1 if match.served is None else row_of(match.served)
        children = len(path[-1][1].children) if path else 0
        parted = parted_tokens(match, runtime.table)
        lost = runtime.causes(
            rows, hit_tokens=match.hit_tokens, kv_tokens=match.kv_tokens, parted_tokens=parted
        )
        runtime.use(rows, served)
        facts = runtime.facts(
            rows,
            prompt_tokens=match.prompt_tokens,
            sequence_tokens=match.prompt_tokens + 1,  # the last token's state needs no plan
            hit_tokens=match.hit_tokens,
            kv_tokens=match.kv_tokens,
            diverges=children > 0,
            boundaries=() if tokens is None else self.headers.boundaries(tokens),
            tokens=tokens,
            below=self._below(match),
            input_end=None if tokens is None else self.headers.input_end(tokens),
            saves_input_ends=Kind.INPUT_END in self.kinds,
            page_tokens=self.page_tokens,
        )
        offers = runtime.admission.plan(facts)
        plan = Plan(
            match, lost, self._wanted(facts, offers), max((o.prompt_class for o in offers), default=0)
        )
        for offer in offers:  # a prompt served up to its end is one that ends there, too
            if offer.prompt_tokens and served >= 0 and self._in_pages(offer.depth_tokens) == match.hit_tokens:
                self._mark(plan, served, offer)
        plan.last_token_beyond = self._last_token_beyond(facts, offers)
        if Kind.IN_ANSWER in self.kinds:
            plan.answer_grid = lcm(runtime.answer_grid(plan.prompt_class), self.page_tokens)
        self._expect_child(plan)
        return plan

    def row_for(self, plan: Plan, offer: Offer) -> int:
        """The offer's row, made if need be. It may hold a state already."""
        depth = offer.depth_tokens
        node, edge_end = self._locate(plan.match, depth)
        if node is not None:
            row = row_of(node)
            if row < 0:
                row = self.records.record(node, depth, offer.kind)
                self._expect_child(plan)
            self._mark(plan, row, offer)
            return row
        below = [] if edge_end is None else self.records.top_rows(edge_end)
        row = self.runtime.record(self._row_above(plan, depth), depth, offer.kind, below)
        self.runtime.table.fanout[row] = 1  # the rest of the prompt, the answer, or what is held below
        plan.homeless[row] = depth
        self._mark(plan, row, offer)
        return row

    def saves_last_token(self, plan: Plan | None, sequence_tokens: int, last: int) -> bool:
        """Whether the state after a sequence's last token with KV, which is `last`, is wanted. Asked once a request."""
        beyond = 0 if plan is None else plan.last_token_beyond
        if Kind.LAST_TOKEN not in self.kinds or beyond is None or sequence_tokens <= beyond:
            return False
        if plan is None:
            return True
        wanted = self.runtime.answered(plan.prompt_class, last, sequence_tokens, plan.prompt_row)
        # with larger pages the engine's last state is the one on the answer's grid
        return wanted or (self.page_tokens > 1 and plan.answer_grid > 0)

    def row_inside_answer(self, plan: Plan, depth: int, row: int = -1) -> int:
        """The row of a state inside the answer, for as many tokens. row: what it was so far, higher up; -1: none yet"""
        if row < 0:
            row = self.runtime.record(self._row_above(plan, depth), depth, Kind.IN_ANSWER)
            self.runtime.table.fanout[row] = 1  # the rest of the answer
        self.runtime.table.deepen(row, depth)
        plan.homeless[row] = depth
        return row

    def settle(self, plan: Plan, row: int, node: Any) -> int:
        """`row` belongs at `node`, which is in the tree now; returns the node's row, which may be an older one.

        -1: `row` is gone, with the node that it was at when it was planned.
        """
        held = row_of(node)
        if held >= 0:
            if held != row:
                self.drop(plan, row)  # another request was first
                plan.prompt_row = held if plan.prompt_row == row else plan.prompt_row
            return held
        if plan.homeless.pop(row, None) is None:
            return -1
        self.records.attach(row, node)
        return row

    def drop(self, plan: Plan, row: int) -> None:
        """Forget a planned row that never found its node."""
        if plan.homeless.pop(row, None) is not None:
            self.runtime.forget(row)
            plan.prompt_row = -1 if plan.prompt_row == row else plan.prompt_row

    def end(self, plan: Plan) -> None:
        """The request is over, whatever came of it: count the continuations that its match has now.

        One that added none (its tokens end within a page, it was aborted) would leave a leaf that counts as none,
        and whose KV could never go.
        """
        if plan.match.path and self.records.alive(last := plan.match.path[-1][1]):
            self.records.tend(last)

    # -----------------------------------------------------------------------------------------------------

    def _mark(self, plan: Plan, row: int, offer: Offer) -> None:
        self.runtime.mark(row, offer)
        if offer.prompt_tokens:
            plan.prompt_row = row

    def _in_pages(self, tokens: int) -> int:
        return tokens // self.page_tokens * self.page_tokens

    def _wanted(self, facts: PromptFacts, offers: list[Offer]) -> list[Offer]:
        wanted: dict[int, Offer] = {}
        for offer in offers:
            if offer.kind not in self.kinds and offer.prompt_tokens:
                offer = replace(offer, kind=Kind.PROMPT_END)
            depth = self._in_pages(offer.depth_tokens)
            if offer.kind in self.kinds and facts.hit_tokens < depth <= facts.prompt_tokens:
                exact = depth == offer.depth_tokens
                offer = offer if exact else replace(offer, depth_tokens=depth)
                wanted[depth] = _both(wanted[depth], offer) if depth in wanted else offer
        return [wanted[depth] for depth in sorted(wanted)]

    def _last_token_beyond(self, facts: PromptFacts, offers: list[Offer]) -> int | None:
        if not any(offer.kind == Kind.LAST_TOKEN for offer in offers):
            return None
        ends = any(offer.prompt_tokens and Kind.PROMPT_END in self.kinds for offer in offers)
        return facts.prompt_tokens if ends else 0  # without an answer the prompt's end stands for it

    def _below(self, match: Match) -> list[int]:
        """Rows within a few tokens of where the match ends, on other ways on."""
        if not match.path or match.ahead is not None:
            return []
        children = match.path[-1][1].children
        if len(children) > FEW_NODES:
            return []
        ways = [(child, self.records.edge_tokens(child)) for child in children.values()]
        return self.records.near(ways, TAIL_TOKENS + self.page_tokens)

    def _expect_child(self, plan: Plan) -> None:
        """Count the continuation that this request will add to the last node of its match."""
        if plan.match.path:
            last = plan.match.path[-1][1]
            self.records.tend(last, children=len(last.children) + (plan.match.ahead is None))

    def _locate(self, match: Match, depth: int) -> tuple[Any | None, Any | None]:
        """(the node at this depth, or None; the node whose edge it lies in, or None beyond the tree)"""
        alive = self.records.alive
        if depth > match.kv_tokens:
            if match.ahead is None or not alive(match.ahead):
                return None, None
            at_end = depth == match.kv_tokens + self.records.edge_tokens(match.ahead)
            return (match.ahead, None) if at_end else (None, match.ahead)
        begin = bisect_left(match.path, depth, key=itemgetter(0))
        for end, node in match.path[begin:]:
            if alive(node):
                return (node, None) if end == depth else (None, node)
        return None, None

    def _row_above(self, plan: Plan, depth: int) -> int:
        path = plan.match.path
        above = [(end, row) for row, end in plan.homeless.items() if end < depth]
        for end, node in reversed(path):
            if end < depth and (row := row_of(node)) >= 0:
                above.append((end, row))
                break
        return max(above)[1] if above else -1


def parted_tokens(match: Match, table: CheckpointTable) -> int:
    """The deepest place on a match's path where an earlier request has parted or ended, down to its state; 0: none.

    A node with one way on is no such place, unless its row is of a prompt's or an answer's end or of a branch: it is
    where this match, or one of a request that came to nothing, has split an edge, or where a state was saved beyond
    the exact rule. A prompt without an answer ends at the state of its last token but one.
    """
    for number in range(len(match.path) - 1, -1, -1):
        end, node = match.path[number]
        if end <= match.hit_tokens:
            break
        row, ways = row_of(node), len(node.children)
        above = row_of(match.path[number - 1][1]) if number else -1
        if row >= 0:
            is_place = ways > 1 or table.kind[row] in EXACT_RULE or table.prompt_tokens[row] > 0
        else:
            is_place = ways > 1 or (ways == 0 and (above < 0 or table.prompt_tokens[above] != end))
        if is_place:
            return end
    return 0


def _both(one: Offer, other: Offer) -> Offer:
    """Of two offers that a page makes one: an input's end goes before others, and a prompt's end is noted."""
    first, second = (other, one) if other.kind == Kind.INPUT_END else (one, other)
    ends = other if other.prompt_tokens else one
    return replace(
        first,
        spare=first.spare and second.spare,
        prompt_tokens=ends.prompt_tokens,
        prompt_class=ends.prompt_class,
    )
