"""Where prompts leave what their session said before, which is where a cache's states have to lie."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from marconi_ext.results.percent import percent
from marconi_ext.results.prefix_tree import common_prefix
from marconi_ext.traces.request import Request

TAIL_TOKENS = 16  # before a prompt's end: the generation prompt, and what closes the last message
OPENING_TOKENS = 4  # behind a prompt's end: an answer that opens its thoughts, where an empty block stays
KEPT_PROMPTS = 512  # of a session

PATTERNS = {
    "kept": "repeats the last prompt and its answer (c, f)",
    "answer": "leaves inside the answer (g)",
    "input-end": "leaves near the prompt's end (a, b, e)",
    "loop": "leaves near an older one's end (d)",
    "again": "the same prompt again",
    "other": "leaves elsewhere",
}
"""What is said of a prompt; letters as in docs/policies.md. Thoughts are dropped near a prompt's end, or those of a
whole tool loop at once; an answer is written anew; an edited history leaves elsewhere."""


@dataclass
class Sessions:
    """Counts of the prompts of sessions, by where each leaves its session's last one.

    requests: by pattern
    again_tokens: likewise, tokens of these prompts that the history had, as it was sent or generated, and that have to
        be computed again, for they come after the place where the prompt leaves it
    """

    requests: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PATTERNS, 0))
    again_tokens: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PATTERNS, 0))
    prompt_tokens: int = 0
    _seen: set[int] = field(default_factory=set)  # hashes of prompts
    _said: dict[str, np.ndarray] = field(default_factory=dict)  # a session's last prompt, with its answer
    _lengths: dict[str, list[int]] = field(default_factory=dict)  # of the prompts

    def add(self, request: Request) -> None:
        """The session's next request."""
        said = self._said.get(request.session_id)
        lengths = self._lengths.setdefault(request.session_id, [])
        self.prompt_tokens += len(request.input_ids)
        digest = hash(request.input_ids.tobytes())
        if digest in self._seen:
            self.requests["again"] += 1
        elif said is not None:
            pattern, shared = self._pattern(request.input_ids, said, lengths)
            self.requests[pattern] += 1
            if pattern != "kept":
                self.again_tokens[pattern] += min(len(request.input_ids), len(said)) - shared
        self._seen.add(digest)
        self._said[request.session_id] = np.concatenate([request.input_ids, request.output_ids])
        lengths.append(len(request.input_ids))
        del lengths[:-KEPT_PROMPTS]

    def _pattern(self, prompt: np.ndarray, whole: np.ndarray, lengths: list[int]) -> tuple[str, int]:
        """The pattern, and how many tokens the prompt shares with the last prompt and its answer."""
        shared, last = common_prefix(prompt, whole), lengths[-1]
        if shared == len(whole) and len(whole) > last:
            return "kept", shared
        if shared > last + OPENING_TOKENS:
            return "answer", shared
        if shared >= last - TAIL_TOKENS:
            return "input-end", shared
        older = any(-OPENING_TOKENS <= length - shared <= TAIL_TOKENS for length in lengths[:-1])
        return ("loop" if older else "other"), shared

    def figures(self) -> dict[str, dict[str, float]]:
        """By pattern: requests, and the tokens computed again in % of all prompt tokens."""
        return {
            name: {"requests": count, "again": percent(self.again_tokens[name], max(self.prompt_tokens, 1))}
            for name, count in self.requests.items()
        }
