"""Several requests with one prompt at once: all but the first wait until its prompt's end is in the tree.

Requests of one batch are matched before any of them is prefilled, so each would prefill the whole prompt. SGLang asks
for samples of one request (`n`) itself one after another; those that come as requests of their own it doesn't. They
wait for one prefill, which they would have been part of, and then reuse all of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams
from sglang.srt.mem_cache.radix_cache import RadixKey

from marconi_ext.policies.admission import Exact
from marconi_ext.policies.table.checkpoints import Kind

if TYPE_CHECKING:
    from collections.abc import Hashable

    from sglang.srt.managers.schedule_batch import Req

    from .cache import MarconiRadixCache

KEY_TOKENS = 256  # at a prompt's end, that are compared
LEAST_TOKENS = 32  # that a twin would compute again: as SGLang's own threshold for prefixes within a batch


class Twins:
    """Which waiting requests should wait one batch more."""

    def __init__(self, cache: MarconiRadixCache) -> None:
        self._cache = cache
        self._first: dict[Hashable, Req] = {}  # those that are being prefilled

    def waiting(self, queue: list[Req]) -> list[Req]:
        """The requests of `queue` whose twin is being prefilled, or will be first."""
        mamba = self._cache.mamba
        if len(queue) + len(self._first) < 2 or Kind.PROMPT_END not in mamba.serving.kinds:
            return []
        if not isinstance(mamba.runtime.admission, Exact):  # the paper's rule saves no prompt's end
            return []
        self._first = {key: req for key, req in self._first.items() if _is_prefilled(req)}
        late: list[Req] = []
        wait: dict[Hashable, bool | None] = {}  # of those seen, whether their twins wait; None: not known yet
        for req in queue:
            key = _key(req)
            if key is None:
                continue
            if key in self._first:
                late.append(req)
            elif key not in wait:
                wait[key] = None
            else:
                if wait[key] is None:
                    wait[key] = self._saves(req)
                if wait[key]:
                    late.append(req)
        return late

    def went(self, queue: list[Req], left: list[Req]) -> None:
        """Of `queue`, those that aren't `left` are being prefilled now."""
        rest = set(map(id, left))
        for req in queue:
            if id(req) not in rest and (key := _key(req)) is not None:
                self._first.setdefault(key, req)

    def _saves(self, req: Req) -> bool:
        """Whether a request has much to compute that a twin before it would leave in the tree."""
        end = (len(req.origin_input_ids) - 1) // self._cache.page_size * self._cache.page_size
        key = RadixKey(req.origin_input_ids[:end], req.extra_key, cache_salt=req.cache_salt)
        held = self._cache.match_prefix(MatchPrefixParams(key=key)).device_prefix_len
        return end - held >= LEAST_TOKENS


def _is_prefilled(req: Req) -> bool:
    """Whether a prefill of it is under way: its first token isn't known yet."""
    return req.kv.holds_kv and not len(req.output_ids) and not req.finished()


def _key(req: Req) -> Hashable | None:
    """Equal for requests with one prompt, or so nearly that to wait a batch does no harm; None: one goes alone."""
    if len(req.output_ids) or req.session is not None or req.beam_group is not None:
        return None
    if len(req.origin_input_ids) <= LEAST_TOKENS:
        return None
    if (key := getattr(req, "marconi_prompt", None)) is None:
        ids = req.origin_input_ids
        key = req.marconi_prompt = (len(ids), bytes(ids[-KEY_TOKENS:]), req.extra_key, req.cache_salt)
    return key
