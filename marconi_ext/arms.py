"""The arms of a comparison: one SGLang server each, same model and traffic, different flags."""

import re
from dataclasses import dataclass

from marconi_ext.errors import BadInputError, CheckFailedError

# The extension's one line at startup; a server that lacks it runs as stock, whatever was asked for.
STATUS_LINE = re.compile(r"marconi-ext \S+ live\b")
REFUSAL_LINE = re.compile(r"marconi-ext \S+ not live\b.*")


@dataclass(frozen=True)
class Arm:
    """name: as in tables; flags: added to the server's; extended: whether the extension must be live.

    attention_only: serves a pure-attention model instead, which must lose exactly nothing
    """

    name: str
    flags: tuple[str, ...]
    extended: bool
    meaning: str
    attention_only: bool = False


def known_arms(chunk_tokens: int) -> dict[str, Arm]:
    """The arms by name; chunk_tokens: the model's chunk size."""
    arms = (
        Arm("stock", (), False, "SGLang as it is"),
        Arm(
            "stock-track",
            ("--mamba-track-interval", str(chunk_tokens)),
            False,
            f"SGLang with decode states kept every {chunk_tokens} tokens, its best flag",
        ),
        Arm("marconi", ("--enable-marconi",), True, "SGLang with the extension"),
        Arm("pure-attention", (), False, "SGLang with a model of attention only: checks the ideal", True),
    )
    return {arm.name: arm for arm in arms}


def choose_arms(names: str, chunk_tokens: int) -> list[Arm]:
    """Arms from a comma-separated list. Raises BadInputError."""
    known = known_arms(chunk_tokens)
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in known]
    if unknown or not wanted or len(set(wanted)) < len(wanted):
        raise BadInputError(f"--arms {names}: name each arm once, out of {', '.join(known)}")
    return [known[name] for name in wanted]


def require_status(arm: Arm, log: str) -> str | None:
    """The extension's status line in a server's log.

    Raises CheckFailedError where an extended arm lacks it, or where a stock arm has it: neither arm's
    figures would be what its name says.
    """
    found = next((line.strip() for line in log.splitlines() if STATUS_LINE.search(line)), None)
    if arm.extended and found is None:
        refusal = REFUSAL_LINE.search(log)
        raise CheckFailedError(
            f"arm {arm.name}: the server runs, but its log has no line saying that the extension is live, "
            "so its figures would be stock SGLang's. "
            + (f"It says: {refusal[0]}" if refusal else "`marconi doctor` says what is missing.")
        )
    if found and not arm.extended:
        raise CheckFailedError(f"arm {arm.name}: the extension is live although nobody asked for it: {found}")
    return found
