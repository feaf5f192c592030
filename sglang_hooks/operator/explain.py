"""Why a request reused what it did: kept for the last requests, worked out anew for any prompt.

An explanation is plain JSON (docs/explain.md has its fields). It names positions, kinds and reasons; token ids are in
it only where `--marconi-expose-tokens` allows them, and sealed with a key that comes with the question: the answer
waits where others may read it.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sglang.srt.mem_cache.radix_cache import RadixKey

from marconi_ext.policies.request_plan import Match, Plan, parted_tokens
from marconi_ext.policies.table.checkpoints import Fate
from marconi_ext.policies.table.tree_rows import row_of
from marconi_ext.watch.sealed_tokens import Excerpt, Key, seal_excerpt

from ..node_states import holds_state
from ..policy import kind_name
from .desk import RefusedError

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.mem_cache.unified_cache.unified_tree_core import UnifiedTreeCore, UnifiedTreeNode

    from marconi_ext.policies.held_states import HeldStates
    from marconi_ext.policies.runtime import PolicyRuntime

KEPT_REQUESTS = 1_000
SHOWN_PLACES = 16  # places without a state, the deepest
SHOWN_TOKENS = 8
SAVED, HELD, SAVING = "saved", "held already", "being saved"  # outcomes of a state that was wanted
SHOWN_WAYS = 4

Path = list[tuple[int, "UnifiedTreeNode"]]
REASONS = {
    "no-slot": "running requests need every slot",
    "worth-less": "worth less than every state that is held",
    "pool-full": "a more valuable state took its slot",
    "kv-evicted": "its KV was evicted",
    "quota": "its tenant had more states than its ceiling",
    "ended": "its request ended first",
    "host": "it was moved to the host",
}
_FATES = {
    Fate.EVICTED: "evicted",
    Fate.REFUSED: "refused",
    Fate.DISPLACED: "displaced",
    Fate.NEVER: "never saved",
    Fate.LIVE: SAVING,
}


class Explainer:
    """The explanations of one cache. Single-threaded. expose_tokens: whether token ids may be asked for"""

    def __init__(
        self,
        runtime: PolicyRuntime,
        held: HeldStates,
        core: UnifiedTreeCore,
        *,
        page_tokens: int,
        expose_tokens: bool,
    ) -> None:
        self._runtime, self._held, self._core, self._page = runtime, held, core, page_tokens
        self.expose_tokens = expose_tokens
        self._recent: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self._excerpts: dict[str, Excerpt] = {}  # of recent ones

    # ---- requests as they come ----

    def began(self, req: Req, plan: Plan, served: UnifiedTreeNode | None) -> dict[str, Any]:
        """A request is about to be prefilled. Returns its explanation, which grows with what becomes of its states."""
        told = self._recent.get(req.rid)
        if told is not None and req.retracted_stain:
            return told  # it begins a second time; what counts is what it found first
        now = self._runtime.tick
        path, hit, kv = plan.match.path, req.prefix_len, max(plan.match.kv_tokens, req.prefix_len)
        ways = 0
        if path:
            ways = len(path[-1][1].children) - (plan.match.ahead is not None)
        told = {
            "request": req.rid,
            **self._reuse(plan.match.prompt_tokens, path, served, plan.lost, hit, kv, ways, now),
        }
        told["wanted"] = [
            {"depth_tokens": offer.depth_tokens, "kind": kind_name(offer.kind), "outcome": "not reached"}
            for offer in plan.offers
        ]
        if self.expose_tokens:
            self._excerpts[req.rid] = self._tokens(req.full_untruncated_fill_ids, told["kv_tokens"], path)
        self._recent[req.rid] = told
        if len(self._recent) > KEPT_REQUESTS:
            gone, _ = self._recent.popitem(last=False)
            self._excerpts.pop(gone, None)
        return told

    def outcome(self, req: Req, depth_tokens: int, kind: str, outcome: str) -> None:
        """What became of a state that the request wanted."""
        told = self._recent.get(req.rid)
        if told is None:
            return
        for place in told["wanted"]:
            if place["depth_tokens"] == depth_tokens:
                place["outcome"] = outcome
                return
        told["wanted"].append({"depth_tokens": depth_tokens, "kind": kind, "outcome": outcome})

    # ---- what is asked ----

    def answer(self, command: Mapping[str, Any]) -> dict[str, Any]:
        """`{"do": "explain", "request": id}`, or `"prompt": [ids]` with `extra_key` and `cache_salt`; and `key`, two
        numbers, where token ids are wanted, and allowed."""
        sent = command.get("key")
        key = Key.of(sent) if isinstance(sent, list) else None
        if "request" in command:
            rid = str(command["request"])
            told = self._recent.get(rid)
            if told is None:
                raise RefusedError(
                    f"request {command['request']!r} isn't among the last {KEPT_REQUESTS:,} of this rank; "
                    "ask for a prompt instead"
                )
            excerpt = self._excerpts.get(rid)
            return told if excerpt is None or key is None else told | {"tokens": seal_excerpt(excerpt, key)}
        prompt = command.get("prompt")
        if not isinstance(prompt, list) or not prompt or not all(isinstance(t, int) for t in prompt):
            raise RefusedError("prompt: want a list of at least one token id")
        return self.of_prompt(prompt, command.get("extra_key"), command.get("cache_salt"), key)

    def of_prompt(
        self,
        prompt: Sequence[int],
        extra_key: str | None = None,
        cache_salt: str | None = None,
        key: Key | None = None,
    ) -> dict[str, Any]:
        """What the prompt would reuse now. Changes nothing: no edge is split, nothing counts as used. key: that seals
        its token ids"""
        path, partial = walk(self._core, self._page, prompt[:-1], extra_key, cache_salt)
        known = [place for place in path if place[1] is not partial]
        rows = [row_of(node) for _, node in known if row_of(node) >= 0]
        hit, served = next((place for place in reversed(known) if holds_state(place[1])), (0, None))
        kv = path[-1][0] if path else 0
        runtime = self._runtime
        parted = parted_tokens(Match(known, served, len(prompt), hit), runtime.table)
        lost = runtime.causes(rows, hit_tokens=hit, kv_tokens=kv, parted_tokens=parted)
        ways = 1 if partial is not None else len(path[-1][1].children) if path else 0
        told = {
            "request": None,
            **self._reuse(len(prompt), known, served, lost, hit, kv, ways, runtime.tick + 1),
        }
        if key is not None and self.expose_tokens:
            told["tokens"] = seal_excerpt(self._tokens(array("q", prompt), kv, path, partial), key)
        return told

    # -----------------------------------------------------------------------------------------------------

    def _reuse(
        self,
        prompt_tokens: int,
        path: Path,
        served: UnifiedTreeNode | None,
        lost: Mapping[str, int],
        hit: int,
        kv: int,
        ways: int,
        now: int,
    ) -> dict[str, Any]:
        runtime, page = self._runtime, self._page
        whole = kv >= (prompt_tokens - 1) // page * page
        nearest = None
        if served is not None:
            row = row_of(served)
            kind = kind_name(runtime.table.kind.item(row)) if row >= 0 else "unknown"
            nearest = {"depth_tokens": hit, "kind": kind}
        in_flops = runtime.currency.linear != 1.0
        lost_tokens = sum(lost.values())
        return {
            "prompt_tokens": prompt_tokens,
            "hit_tokens": hit,
            "kv_tokens": kv,
            "divergence": None if whole else {"at_token": kv, "other_ways": ways},
            "nearest_state": nearest,
            "lost_tokens": lost_tokens,
            "lost_flops": float(runtime.currency.worth(hit + lost_tokens, hit)) if in_flops else None,
            "lost": dict(lost),
            "without_state": self._without_state(path, hit, now),
            "wanted": [],
        }

    def _without_state(self, path: Path, hit: int, now: int) -> list[dict[str, Any]]:
        """Places between the hit and the KV's end where a state was once wanted, and why none is there. now: the
        request's number"""
        table = self._runtime.table
        found: list[dict[str, Any]] = []
        for depth, node in reversed(path):
            if depth <= hit or len(found) == SHOWN_PLACES:
                break
            row = row_of(node)
            if row < 0 or holds_state(node):
                continue
            gone = self._held.why_gone(row)
            found.append(
                {
                    "depth_tokens": depth,
                    "kind": kind_name(table.kind.item(row)),
                    "what": _FATES[Fate(table.fate.item(row))],
                    "why": None if gone is None else REASONS.get(gone.reason, gone.reason),
                    "requests_ago": None if gone is None else now - gone.tick,
                }
            )
        return found[::-1]

    def _tokens(
        self, tokens: Sequence[int], kv_tokens: int, path: Path, partial: UnifiedTreeNode | None = None
    ) -> Excerpt:
        """A few tokens on either side of the divergence, and what the cache holds there instead."""
        ways = []
        if partial is not None:
            edge_begins_at = path[-2][0] if len(path) > 1 else 0
            edge = partial.key.raw_token_ids()[kv_tokens - edge_begins_at :]
            ways = [list(edge[:SHOWN_TOKENS])]
        elif path:
            children = list(path[-1][1].children.values())[:SHOWN_WAYS]
            ways = [list(child.key.raw_token_ids()[:SHOWN_TOKENS]) for child in children]
        return {
            "before": list(tokens[max(0, kv_tokens - SHOWN_TOKENS) : kv_tokens]),
            "sent": list(tokens[kv_tokens : kv_tokens + SHOWN_TOKENS]),
            "held": ways,
        }


def walk(
    core: UnifiedTreeCore,
    page: int,
    tokens: Sequence[int],
    extra_key: str | None,
    cache_salt: str | None,
) -> tuple[Path, UnifiedTreeNode | None]:
    """The nodes that hold a prompt's KV, each with the depth up to which it does; and the last of them, where only a
    part of its edge matches. The tree stays as it is. page: tokens"""
    key = RadixKey(array("q", tokens), extra_key, cache_salt=cache_salt)
    end = len(key) // page * page
    node, depth, path = core.root_node, 0, []
    while depth < end:
        child = node.children.get(key.child_key_at(depth, page))
        if child is None:
            break
        matched = child.key.match_at(key, depth, page_size=page)
        if matched <= 0:
            break
        depth += matched
        path.append((depth, child))
        if matched < len(child.key):
            return path, child
        node = child
    return path, None
