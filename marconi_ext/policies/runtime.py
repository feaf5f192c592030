"""The policy at run time: admission, eviction and their table, kept in step with a radix tree.

The simulator's tree and the live engine's are different code, the policy is one: whoever owns a tree tells the
runtime what happened to it (a request's path, an offer, an eviction, a leaf that went), and asks it what to save
and what to evict. It knows rows of the table, no nodes and no tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from zlib import crc32

import numpy as np

from marconi_ext.policies.admission import Offer, PromptFacts
from marconi_ext.policies.currency import Currency
from marconi_ext.policies.input_ends import MIN_GAIN
from marconi_ext.policies.interfaces import Admission, Eviction, LearnsAnswers, LeavesWork
from marconi_ext.policies.messages import InputEnd
from marconi_ext.policies.table.checkpoints import CheckpointTable, Fate, Kind
from marconi_ext.policies.table.reserves import Reserves
from marconi_ext.policies.table.victims import VictimSearch

_CAUSES = {
    Fate.EVICTED: "evicted",
    Fate.REFUSED: "evicted",  # refused by the eviction policy: it would have been the next to go
    Fate.DISPLACED: "displaced",
    Fate.NEVER: "never_saved",
    Fate.LIVE: "first_divergence",  # a request that runs has just found the branch, and is about to save it
}


# an enum's attribute costs more than what is done with it
_NEVER, _BOUNDARY, _INPUT_END = int(Fate.NEVER), int(Kind.BOUNDARY), int(Kind.INPUT_END)


class PolicyRuntime:
    """`tick` counts requests; `counts` has offers, saves, refusals and state_evictions."""

    def __init__(self, admission: Admission, eviction: Eviction, currency: Currency) -> None:
        self.admission = admission
        self._answers = admission if isinstance(admission, LearnsAnswers) else None
        self.eviction = eviction
        self._leaves_work = eviction if isinstance(eviction, LeavesWork) else None
        self.currency = currency
        self.table = CheckpointTable()
        self.counts: Counter[str] = Counter()
        self.tick = 0
        self.reserves = Reserves(self.table)
        self._search = VictimSearch(eviction, self.reserves)
        self._leaf_search = VictimSearch(eviction.by_kv, self.reserves, leaves=True)
        self.max_fanout = eviction.max_fanout
        self.on_gone: Callable[[int], None] | None = None  # told of rows whose state was refused or evicted

    # --- requests ----------------------------------------------------------------------------------------

    def use(self, path: list[int], served: int) -> None:
        """A request goes through these rows, shallow first; `served` (-1: none) is the state it starts from."""
        if path:
            rows = np.array(path)
            self.table.last_path[rows] = self.tick
            self.table.passed[rows] += 1
        self.eviction.request(self.table, path, served, self.tick)
        if served >= 0:
            self.table.last_use[served] = self.tick
            self.table.uses[served] += 1

    def facts(
        self,
        path: list[int],
        *,
        prompt_tokens: int,
        sequence_tokens: int,
        hit_tokens: int,
        kv_tokens: int,
        diverges: bool,
        boundaries: tuple[int, ...] = (),
        tokens: np.ndarray | None = None,
        below: Sequence[int] = (),
        input_end: InputEnd | None = None,
        saves_input_ends: bool = True,
        page_tokens: int = 1,
    ) -> PromptFacts:
        """What admission plans from, after `use` and before the request is inserted. `path` as there.

        below: rows of the first few tokens that the request parts from
        """
        table = self.table
        rows = np.array(path, np.int64)
        forks = rows[(table.fanout[rows] > 1).nonzero()[0]].tolist()
        proven = [
            table.depth.item(row)
            for row in forks
            if table.depth.item(row) > hit_tokens
            and not table.live.item(row)
            and table.fate.item(row) != _NEVER
        ]
        unplaced = next((row for row in reversed(path) if table.kind.item(row) != _BOUNDARY), -1)
        return PromptFacts(
            prompt_tokens=prompt_tokens,
            sequence_tokens=sequence_tokens,
            hit_tokens=hit_tokens,
            kv_tokens=kv_tokens,
            diverges=diverges,
            boundaries=boundaries,
            proven_forks=tuple(proven),
            unplaced_tokens=0 if unplaced < 0 else table.depth.item(unplaced),
            parted_tokens=table.depth.item(forks[-1]) if forks else 0,
            tokens=tokens,
            input_end=input_end,
            saves_input_ends=saves_input_ends,
            page_tokens=page_tokens,
            **self._earlier_prompt(
                path, below, prompt_tokens, kv_tokens, diverges=diverges, page_tokens=page_tokens
            ),
        )

    def _earlier_prompt(
        self,
        path: list[int],
        below: Sequence[int],
        prompt_tokens: int,
        kv_tokens: int,
        *,
        diverges: bool,
        page_tokens: int,
    ) -> dict[str, tuple]:
        """Of the earlier prompt that a request goes on from: whether it repeats what was answered, or how many
        tokens before that prompt's end it parts, or that it parts inside the answer."""
        table = self.table
        again = kv_tokens == prompt_tokens - 1  # the whole prompt is held
        earlier = range(1, prompt_tokens if again else prompt_tokens + 1)
        deepest = next((row for row in reversed(path) if table.prompt_tokens.item(row) in earlier), -1)
        if deepest >= 0 and table.prompt_tokens.item(deepest) < kv_tokens:
            first = table.passed.item(deepest) == 1
            number, ended = table.prompt_class.item(deepest), table.answered_tokens.item(deepest)
            if diverges and kv_tokens < ended // page_tokens * page_tokens and not again:
                answer_tokens = ended - table.prompt_tokens.item(deepest)
                return {"parted_inside": (number, answer_tokens, ended - kv_tokens, first)}
            return {"went_through": (number, table.answer_end.item(deepest), first)}
        ends = [row for row in (deepest, *below) if row >= 0 and table.prompt_tokens.item(row) >= kv_tokens]
        if again or not diverges or not ends:
            return {}
        # a state at what was taken for the input's end doesn't hide where it is
        others = (table.depth.item(row) for row in reversed(path) if table.kind.item(row) != _INPUT_END)
        above = next((depth for depth in others if depth < kv_tokens - 1), 0)
        if kv_tokens - above < MIN_GAIN:
            return {}
        nearest = min(ends, key=table.prompt_tokens.item)
        before_end = table.prompt_tokens.item(nearest) - kv_tokens
        return {"parted_before_end": (table.prompt_class.item(nearest), before_end)}

    def causes(
        self, path: list[int], *, hit_tokens: int, kv_tokens: int, parted_tokens: int
    ) -> dict[str, int]:
        """Split the tokens between the state that served and the KV held by why no state was there.

        parted_tokens: the deepest place up to `kv_tokens` where an earlier request has parted or ended; 0: none.
        Beyond it is the first divergence: a state there, of the ends of inputs or of a guess, would have been luck. As
        `marconi_ext.results.ideal` has it, which knows of all requests and of no eviction; the rest was avoidable.
        """
        lost: dict[str, int] = {}
        if kv_tokens == hit_tokens:
            return lost
        table, reached = self.table, hit_tokens
        deepest = next((row for row in reversed(path) if row >= 0 and table.depth[row] <= parted_tokens), -1)
        if deepest >= 0 and table.depth[deepest] > hit_tokens:
            reached = int(table.depth[deepest])
            lost[_CAUSES[Fate(table.fate[deepest])]] = reached - hit_tokens
        rest = kv_tokens - reached
        grid = self.admission.grid_tokens
        if rest and grid > 1:
            rounded = min(rest, kv_tokens % grid)
            lost["rounded_to_grid"] = rounded
            rest -= rounded
        never = max(0, min(rest, parted_tokens - reached))
        for cause, tokens in (("never_saved", never), ("first_divergence", rest - never)):
            if tokens:
                lost[cause] = lost.get(cause, 0) + tokens
        return lost

    def catch_up(self) -> None:
        """Compute what is due now, while nobody waits. It changes no decision, so ranks may do it when they like."""
        if self._leaves_work is not None:
            self._leaves_work.catch_up()

    # --- records -----------------------------------------------------------------------------------------

    def record(
        self, parent: int, depth_tokens: int, kind: Kind, below: list[int] | tuple[int, ...] = ()
    ) -> int:
        """A row for a position without one; see `CheckpointTable.add`."""
        return self.table.add(parent, depth_tokens, kind, self.tick, below)

    def mark(self, row: int, offer: Offer) -> None:
        """`offer` is for `row`: note the prompt that ends there."""
        if offer.prompt_tokens:
            self.table.prompt_tokens[row] = offer.prompt_tokens
            self.table.prompt_class[row] = offer.prompt_class

    def answered(self, prompt_class: int, answer_end: int, sequence_tokens: int, row: int = -1) -> bool:
        """A prompt of a class got an answer whose last token with KV is this one. Returns: whether the state after it
        may serve. sequence_tokens: of prompt and answer with KV; row: where the prompt ends"""
        if row >= 0:
            self.table.answer_end[row] = answer_end
            self.table.answered_tokens[row] = sequence_tokens
        return self._answers is None or self._answers.answered(prompt_class, answer_end)

    def answer_grid(self, prompt_class: int) -> int:
        """Tokens: answers to prompts of a class should leave a state at a multiple, see `answer_grid.py`; 0: none."""
        return 0 if self._answers is None else self._answers.answer_grid(prompt_class)

    def touch(self, row: int) -> None:
        """The state at `row` is held already, and was wanted again."""
        self.table.last_use[row] = self.table.last_path[row] = self.tick

    def offer(self, row: int, offer: Offer) -> bool:
        """`offer` is for `row`, which holds no state. False: there is nothing to save (it is displaced)."""
        if self.table.fate.item(row) == _NEVER:
            self.table.kind[row] = offer.kind  # the record may have been made for another kind
        if offer.displaced:
            self.table.set_gone(row, Fate.DISPLACED)
            return False
        self.counts["offers"] += 1
        self.eviction.offered(self.table, row, self.tick)
        return True

    def saved(self, row: int) -> None:
        """The state offered at `row` is held."""
        self.table.set_live(row, self.tick)
        self.counts["saves"] += 1

    def refused(self, row: int) -> None:
        """The state offered at `row` isn't."""
        self.table.set_gone(row, Fate.REFUSED)
        self.eviction.gone(self.table, row, self.tick)
        self.counts["refusals"] += 1
        if self.on_gone is not None:
            self.on_gone(row)

    def evicted(self, row: int) -> None:
        """The state at `row` was evicted; its KV is still held."""
        self.table.set_gone(row, Fate.EVICTED)
        self.eviction.gone(self.table, row, self.tick)
        self.counts["state_evictions"] += 1
        if self.on_gone is not None:
            self.on_gone(row)

    def forget(self, row: int) -> None:
        """The KV of `row` is gone."""
        self.eviction.forgotten(self.table, row)
        self.reserves.set_reserved(row, False)
        self.table.forget(row)

    def forget_all(self) -> None:
        """No KV is held any more. What was learned stays."""
        for row in self.table.rows().tolist():
            self.forget(row)

    def digest(self) -> int:
        """A checksum of all records: ranks that decided alike have the same."""
        table, rows = self.table, self.table.rows()
        columns = (
            rows,
            table.live[rows],
            table.kind[rows],
            table.depth[rows],
            table.parent[rows],
            table.last_use[rows],
        )
        return crc32(b"".join(column.tobytes() for column in columns), self.tick)

    # --- victims -----------------------------------------------------------------------------------------

    def candidates(self, *, leaves: bool = False, max_fanout: int | None = None) -> np.ndarray:
        """Unpinned rows with a state, ascending; `leaves`: of leaves only; `max_fanout`: with no more children."""
        table = self.table
        rows = table.live_rows()
        wanted = table.pins[rows] == 0
        if leaves:
            wanted &= table.leaf_tokens[rows] > 0
        elif max_fanout is not None:
            wanted &= table.fanout[rows] <= max_fanout
        return rows[wanted]

    def victim(self, rows: np.ndarray, newcomer: int = -1) -> int | None:
        """The row to evict out of `rows`, or `newcomer` where the policy would rather refuse it; None: no row."""
        if self.reserves.active:
            rows = self.reserves.those_that_may(rows, newcomer)
        newcomer = newcomer if self.eviction.refuses else -1
        if len(rows) == 0:
            return newcomer if newcomer >= 0 else None
        return self._search.lowest(self.table, rows, self.tick, newcomer)

    def victim_of_all(self, newcomer: int = -1) -> int | None:
        """As `victim` of all `candidates`, without listing these in a large pool."""
        if not self._search.narrows(self.table):
            return self.victim(self.candidates(), newcomer)
        offered = newcomer if self.eviction.refuses else -1
        found = self._search.lowest_of_some(self.table, self.tick, offered)
        if found is None and self.reserves.active:
            return self.victim(self.candidates(), newcomer)
        return found

    def victim_in_bytes(self, newcomer: int = -1) -> int | None:
        """As `victim_of_all` where KV and states share bytes: the paper's rule passes over nodes with several children,
        as long as there are others."""
        if self.max_fanout is not None and len(rows := self.candidates(max_fanout=self.max_fanout)):
            return self.victim(rows, newcomer)
        return self.victim_of_all(newcomer)

    def leaf_victim(self, rows: np.ndarray | None = None) -> int | None:
        """The row to evict out of `rows`, leaves with a state, where KV is wanted and no slot; None: no row.

        Without `rows` out of all such candidates, without listing these in a large pool.
        """
        search, table = self._leaf_search, self.table
        if rows is None and search.narrows(table):
            found = search.lowest_of_some(table, self.tick)
            if found is not None or not self.reserves.active:
                return found
        rows = self.candidates(leaves=True) if rows is None else rows
        if self.reserves.active:
            rows = self.reserves.those_that_may(rows)
        return search.lowest(table, rows, self.tick) if len(rows) else None
