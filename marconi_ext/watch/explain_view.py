"""An explanation in sentences that need no knowledge of the code."""

from __future__ import annotations

from typing import Any

CAUSES = {
    "never_saved": "no request had asked for a state there",
    "evicted": "the state that served there was evicted or refused",
    "displaced": "another state of the same request was saved instead",
    "first_divergence": "no request had parted there before",
}
KINDS = {
    "branch": "where prompts part",
    "boundary": "where prompts are expected to part",
    "prompt-end": "the end of a prompt",
    "input-end": "the end of a prompt's input",
    "last-token": "the end of an answer",
    "in-answer": "inside an answer that clients send back changed",
}


def sentences(told: dict[str, Any]) -> list[str]:
    """One explanation, a fact a line."""
    prompt, hit, kv = told["prompt_tokens"], told["hit_tokens"], told["kv_tokens"]
    lines = [f"{prompt:,} prompt tokens: {hit:,} reused, {prompt - hit:,} prefilled."]
    apart = told["divergence"]
    if apart is None:
        lines.append("The cache holds the whole prompt's KV (the last token is always computed).")
    elif kv == 0:
        lines.append("The cache holds nothing that begins like it.")
    else:
        ways = apart["other_ways"]
        others = f"; earlier requests go on there in {ways:,} other way{'s' * (ways != 1)}" if ways else ""
        lines.append(
            f"The cache holds the KV of the first {kv:,} tokens. Token {kv:,} is the first new one{others}."
        )
    nearest = told["nearest_state"]
    if nearest is not None:
        lines.append(f"The nearest state is at token {nearest['depth_tokens']:,}: {_kind(nearest['kind'])}.")
    elif kv:
        lines.append("No state lies on the way there.")
    if told["lost_tokens"]:
        flops = "" if told["lost_flops"] is None else f" ({told['lost_flops']:.3g} FLOPs)"
        lines.append(f"Lost: {told['lost_tokens']:,} tokens{flops} had KV and were prefilled again, because")
        lines += [f"  {tokens:,}: {CAUSES.get(cause, cause)}" for cause, tokens in told["lost"].items()]
    else:
        lines.append("Nothing was lost for want of a state.")
    for place in told["without_state"]:
        ago = place["requests_ago"]
        when = "" if ago is None else f", {ago:,} requests ago"
        why = f": {place['why']}" if place["why"] else ""
        lines.append(
            f"At token {place['depth_tokens']:,} ({_kind(place['kind'])}): {place['what']}{when}{why}."
        )
    for place in told["wanted"]:
        lines.append(
            f"Wanted at token {place['depth_tokens']:,} ({_kind(place['kind'])}): {place['outcome']}."
        )
    if "tokens" in told:
        tokens = told["tokens"]
        lines.append(
            f"Before it: {tokens['before']}. Sent: {tokens['sent']}. Held instead: {tokens['held']}."
        )
    return lines


def _kind(kind: str) -> str:
    return KINDS.get(kind, kind)
