"""What one scheduler process counts for its operator: integers only, read by metrics, /server_info and the log.

Every call is a few additions, because they sit on the scheduler's path. Totals never go down, a cache flush
included; what is held right now is worked out when somebody reads.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

logger = logging.getLogger(__name__)

LOSS_CAUSES = ("never_saved", "evicted", "displaced", "first_divergence")
"""Why a token with cached KV was prefilled again; the simulator's, without rounding: there is no grid."""
EVICTION_REASONS = ("pool-full", "kv-evicted", "quota", "host", "flush")
"""Why a state left the device: its slot was wanted, its leaf's KV went, its tenant held too many, it stays on the host
for one of these reasons, everything went. Others may be named."""


class CacheStats:
    """Totals since the process started.

    states_by_kind: () -> {kind: states in the tree}, called by readers and `flushed` only, in the scheduler's own
        thread; None: states saved less states evicted
    """

    def __init__(self, states_by_kind: Callable[[], Mapping[str, int]] | None = None) -> None:
        self.states_by_kind = states_by_kind or self._saved_less_evicted
        self.strict = False  # whether a wrong sum ends the process; SGLang's own checks decide
        self.requests = 0
        self.prompt_tokens = 0
        self.hit_tokens = 0
        self.kv_tokens = 0
        self.new_tokens = 0
        self.wrong_sums = 0
        self.lost_tokens: Counter[str] = Counter({cause: 0 for cause in LOSS_CAUSES})
        self.saves: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self.returns: Counter[str] = Counter()
        self.evictions: Counter[tuple[str, str]] = Counter()
        self.planning_failures: Counter[str] = Counter()
        self.tuning_rounds = 0
        self.tuning_seconds = 0.0
        self.parameters: dict[str, float] = {}
        self._requests_behind = 0
        self._requests_at_tuning = 0

    def served(self, prompt_tokens: int, hit_tokens: int, kv_tokens: int, lost: Mapping[str, int]) -> None:
        """One request starts its prefill; call it at its first extend only.

        hit_tokens: int - prompt tokens that skip prefill
        kv_tokens: int - prompt tokens whose KV was cached; at least hit_tokens
        lost: cause -> tokens prefilled again for want of a state

        Reused, lost and new tokens make up the prompt. Raises AssertionError where they don't and checks are on; else
        that is counted and logged.
        """
        self.requests += 1
        self.prompt_tokens += prompt_tokens
        self.hit_tokens += hit_tokens
        self.kv_tokens += kv_tokens
        self.new_tokens += prompt_tokens - kv_tokens
        for cause, tokens in lost.items():
            self.lost_tokens[cause] += tokens
        parts = (hit_tokens, *lost.values(), prompt_tokens - kv_tokens)
        if sum(parts) != prompt_tokens or min(parts) < 0:
            self.wrong_sums += 1
            message = f"a prompt of {prompt_tokens} tokens: reused {hit_tokens}, lost {dict(lost)}, KV for {kv_tokens}"
            if self.strict:
                raise AssertionError(message)
            logger.error("marconi-ext: sums are wrong: %s", message)

    def saved(self, kind: str) -> None:
        """A state entered the tree."""
        self.saves[kind] += 1

    def returned(self, kind: str) -> None:
        """A state came back from the host."""
        self.returns[kind] += 1

    def refused(self, kind: str) -> None:
        """A state was wanted and not saved: no slot to spare, or not worth the one that it would displace."""
        self.refusals[kind] += 1

    def evicted(self, kind: str, reason: str) -> None:
        """A state left the device. reason: of `EVICTION_REASONS`"""
        self.evictions[kind, reason] += 1

    def flushed(self) -> None:
        """Every state left the tree at once; call it before the tree is emptied."""
        for kind, states in self.states_by_kind().items():
            self.evictions[kind, "flush"] += states

    def planning_failed(self, reason: str) -> None:
        """A checkpoint was planned, and its state could not be written or published."""
        self.planning_failures[reason] += 1

    def tuned(self, parameters: Mapping[str, float], seconds: float, requests_behind: int) -> None:
        """New parameters take effect now; logged.

        parameters: name -> value, all that are now in force
        seconds: float - what the round took in the background
        requests_behind: int - requests served between the last one that the round knew and now
        """
        before, self.parameters = self.parameters, {name: float(value) for name, value in parameters.items()}
        self.tuning_rounds += 1
        self.tuning_seconds += seconds
        self._requests_behind = requests_behind
        self._requests_at_tuning = self.requests
        logger.info(
            "marconi-ext tuned: round=%d %s took=%.2fs requests_behind=%d",
            self.tuning_rounds,
            " ".join(_change(name, before.get(name), value) for name, value in self.parameters.items()),
            seconds,
            requests_behind,
        )

    def snapshot(self) -> dict[str, Any]:
        """All of it as plain JSON types."""
        return {
            "requests": self.requests,
            "prompt_tokens": self.prompt_tokens,
            "hit_tokens": self.hit_tokens,
            "kv_tokens": self.kv_tokens,
            "new_tokens": self.new_tokens,
            "wrong_sums": self.wrong_sums,
            "lost_tokens": _plain(self.lost_tokens),
            "states": _plain(self.states_by_kind()),
            "saves": _plain(self.saves),
            "returns": _plain(self.returns),
            "refusals": _plain(self.refusals),
            "evictions": [
                {"kind": str(kind), "reason": str(reason), "states": states}
                for (kind, reason), states in sorted(self.evictions.items())
            ],
            "planning_failures": _plain(self.planning_failures),
            "tuning": {
                "rounds": self.tuning_rounds,
                "seconds": self.tuning_seconds,
                "requests_behind": self._requests_behind,
                "requests_since": self.requests - self._requests_at_tuning,
            },
            "parameters": dict(self.parameters),
        }

    def _saved_less_evicted(self) -> dict[str, int]:
        held = self.saves + self.returns
        for (kind, _), states in self.evictions.items():
            held[kind] -= states
        return dict(held)


def _plain(counts: Mapping[str, int]) -> dict[str, int]:
    return {str(name): int(count) for name, count in sorted(counts.items())}


def _change(name: str, before: float | None, now: float) -> str:
    return f"{name}={now:g}" if before is None or before == now else f"{name}={before:g}->{now:g}"
