"""Puts prefixes into a server's cache, each with the state at its exact end.

A server saves a state one token before a prompt's end, as the last token is always computed. So a prefix is sent with
one token more, and its state lies at its own end. Any SGLang server may be warmed so; only one with the extension
keeps that exact state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from marconi_ext.errors import BadInputError, CheckFailedError
from marconi_ext.watch.prompts import Prompt
from marconi_ext.watch.server import WatchedServer


def warm_prefixes(server: WatchedServer, prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
    """Send all, shallow first. Returns: of each its name, `tokens`, what was reused and prefilled, and what was sent.

    Raises BadInputError for a prefix that is empty, CheckFailedError where the server refuses one.
    """
    prefixes = [(prompt.tokens(server, as_prefix=True), prompt) for prompt in prompts]
    done = []
    for tokens, prompt in sorted(prefixes, key=lambda found: len(found[0])):
        if not tokens:
            raise BadInputError(f"{prompt.where}: the chat template puts nothing before a user's message")
        reused = server.prefill([*tokens, tokens[-1]], prompt.where, **prompt.namespace)
        done.append(
            {
                "name": prompt.name,
                "tokens": len(tokens),
                "reused_tokens": reused,
                "prefilled_tokens": len(tokens) + 1 - reused,
                "prompt": tokens,
                "namespace": prompt.namespace,
            }
        )
    if not done:
        raise CheckFailedError("nothing to warm")
    return done
