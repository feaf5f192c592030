"""What an unlimited cache could have given each request: the yardstick for every hit rate we report.

Two caches that never evict are kept over the same token ids:

- **ideal**: an attention-only radix cache. A request reuses the longest common prefix with anything
  whose KV exists: earlier prompts, and earlier answers less their last token, which is sampled but never
  fed back, so it has no KV. At most prompt length − 1 tokens, since one must be computed for its logits.
- **state**: the same with recurrent states, saved by the exact rule and never dropped: at each request's
  branch point (where its own KV hit ends), at its prompt's end (the last token but one, since a prompt that
  comes again can't use the last), and after its last token with KV. A
  request reuses the deepest state on its path that is no deeper than its KV hit.

For one request, `ideal − state` is its **first divergence**: a branch is only known once a second request
leaves it, so no state can be there for the one that discovers it. Whatever a server loses beyond that
was **avoidable**:

    loss = ideal − cached;  first divergence part = min(loss, ideal − state);  avoidable = the rest

A server that saves states at other places (a grid) may beat the exact rule on a first divergence; then
only what it lost in fact is counted. The extension's own counters say the same of each request: their cause
`first_divergence` is the first part, all others are the avoidable one (`PolicyRuntime.causes`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from marconi_ext.results.prefix_tree import PrefixTree, common_prefix
from marconi_ext.traces.request import Request


@dataclass(frozen=True)
class Reusable:
    """Tokens of one prompt that could be reused.

    ideal_tokens: by an unlimited attention-only cache
    state_tokens: by an unlimited cache of exact states, <= ideal_tokens
    warm_tokens: served by the server beyond all that this run can have put into its cache
    """

    ideal_tokens: int
    state_tokens: int
    warm_tokens: int = 0

    @property
    def first_divergence_tokens(self) -> int:
        return self.ideal_tokens - self.state_tokens


@dataclass(frozen=True)
class Loss:
    """Ideal tokens of one request that a server computed again, by cause."""

    first_divergence_tokens: int
    avoidable_tokens: int


def split_loss(reusable: Reusable, cached_tokens: int) -> Loss:
    """Split what a request lost. `cached_tokens` is what its server reported."""
    lost = max(0, reusable.ideal_tokens - cached_tokens)
    first = min(lost, reusable.first_divergence_tokens)
    return Loss(first, lost - first)


class IdealCache:
    """Both yardsticks; with pages, reuse and states come in whole pages.

    Per request: lookup(prompt), then add_prompt(prompt, …) when its prefill has ended, then
    add_answer(…) when it is finished. `serve` does the three for requests one after another.
    """

    def __init__(self, page_size: int = 1) -> None:
        if page_size < 1:
            raise ValueError(f"page_size: {page_size} is not positive")
        self._page = page_size
        self._tree = PrefixTree()

    def lookup(self, prompt: np.ndarray) -> Reusable:
        """What could be reused of a prompt, int32[L], now. Changes nothing."""
        deepest, _ = self._tree.lookup(prompt[: len(prompt) - 1])
        ideal = self._floor(deepest)
        _, state = self._tree.lookup(prompt[:ideal])
        return Reusable(ideal, state)

    def add_prompt(self, prompt: np.ndarray, branch_tokens: int) -> None:
        """A prefill has ended: the prompt's KV, a state at its branch point and one at its end."""
        self._tree.insert(prompt)
        self._save(prompt, branch_tokens)
        self._save(prompt, len(prompt) - 1)

    def add_answer(self, prompt: np.ndarray, answer: np.ndarray) -> None:
        """A request has finished: its answer's KV but for the last token, and the state there."""
        if len(answer) < 2:
            return
        whole = np.concatenate([prompt, answer[:-1]])
        self._tree.insert(whole)
        self._save(whole, len(whole))

    def serve(self, request: Request) -> Reusable:
        """Look up a request, then take it in whole."""
        reusable = self.lookup(request.input_ids)
        self.add_prompt(request.input_ids, reusable.ideal_tokens)
        self.add_answer(request.input_ids, request.output_ids)
        return reusable

    def _save(self, tokens: np.ndarray, end: int) -> None:
        self._tree.mark(tokens[: self._floor(end)])

    def _floor(self, tokens: int) -> int:
        return tokens // self._page * self._page


@dataclass(frozen=True)
class Served:
    """One request of a live run, with its times on one clock (s): enough to place it among the others."""

    prompt: np.ndarray
    answer: np.ndarray
    sent_s: float
    first_token_s: float
    end_s: float


def reusable_in_run(served: list[Served], page_size: int = 1) -> list[Reusable]:
    """What each request of a run, possibly concurrent, could have reused when it was sent.

    A prompt counts as seen from its request's first token on, an answer from its end on.
    """
    cache = IdealCache(page_size)
    found: dict[int, Reusable] = {}
    # At equal times endings come before first tokens, and those before new requests.
    events = [(s.end_s, 0, i) for i, s in enumerate(served)]
    events += [(s.first_token_s, 1, i) for i, s in enumerate(served)]
    events += [(s.sent_s, 2, i) for i, s in enumerate(served)]
    for _, kind, index in sorted(events):
        one = served[index]
        if kind == 2:
            found[index] = cache.lookup(one.prompt)
        elif index not in found:
            raise ValueError(f"served[{index}]: its first token came before it was sent")
        elif kind == 1:
            cache.add_prompt(one.prompt, found[index].ideal_tokens)
        else:
            cache.add_answer(one.prompt, one.answer)
    return [found[index] for index in range(len(served))]


def explained_in_run(served: list[Served]) -> list[Callable[[], int]]:
    """For each request, asked for when it is needed: the most tokens that the run's other requests can have cached.

    A bound from above, so that what a server reused beyond it was there before the run: a request counts whole, with
    its answer, from when it was sent, and up to the other's first token.
    """
    tree, before = PrefixTree(), [0] * len(served)
    order = sorted(range(len(served)), key=lambda i: served[i].sent_s)
    for index in order:
        one = served[index]
        before[index] = tree.lookup(one.prompt)[0]
        tree.insert(np.concatenate([one.prompt, one.answer]))
    place = {index: n for n, index in enumerate(order)}

    def most(index: int) -> int:
        one, found = served[index], before[index]
        for other in order[place[index] + 1 :]:
            if served[other].sent_s > one.first_token_s:
                break
            whole = np.concatenate([served[other].prompt, served[other].answer])
            found = max(found, common_prefix(whole, one.prompt))
        return found

    return [partial(most, index) for index in range(len(served))]
