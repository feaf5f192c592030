"""The arms of a comparison: one SGLang server each, same model and traffic, different flags.

`--arms stock,stock:max-states=3,marconi:eviction=lru:slots=48`: arms by name, options after colons.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from marconi_ext.config import ConfigError, MarconiConfig, build_config, flag_name
from marconi_ext.errors import BadInputError, CheckFailedError

# The extension's one line at startup; a server that lacks it runs as stock, whatever was asked for.
STATUS_LINE = re.compile(r"marconi-ext \S+ live\b")
REFUSAL_LINE = re.compile(r"marconi-ext \S+ not live\b.*")
ANY_FLAG = "flag."


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
        Arm("off", ("--disable-radix-cache",), False, "SGLang without a prefix cache"),
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


def engine_option(flag: str) -> Callable[[str], tuple[str, ...]]:
    """An option that is a whole number given to one flag of SGLang's."""

    def flags(value: str) -> tuple[str, ...]:
        if not value.isdecimal():
            raise ValueError(f"expected a whole number, got {value!r}")
        return flag, value

    return flags


def setting(field: str) -> Callable[[str], tuple[str, ...]]:
    """An option that is one of the extension's settings; the list of checkpoints is joined by +."""

    def flags(value: str) -> tuple[str, ...]:
        value = value.replace("+", ",") if field == "checkpoints" else value
        try:
            build_config({field: value})
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return flag_name(field), value

    return flags


ENGINE_OPTIONS = {
    "slots": engine_option("--max-mamba-cache-size"),
    "tokens": engine_option("--max-total-tokens"),
    "page": engine_option("--page-size"),
    "max-states": engine_option("--mamba-max-states-per-path"),
    "track-interval": engine_option("--mamba-track-interval"),
}
SETTINGS = {field.replace("_", "-"): setting(field) for field in MarconiConfig.model_fields}


def choose_arms(names: str, chunk_tokens: int) -> list[Arm]:
    """Arms from a comma-separated list, each `NAME[:OPTION=VALUE…]`. Raises BadInputError."""
    known = known_arms(chunk_tokens)
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in wanted if name.split(":", 1)[0] not in known]
    if unknown or not wanted or len(set(wanted)) < len(wanted):
        raise BadInputError(f"--arms {names}: name each arm once, out of {', '.join(known)}")
    return [with_options(known[name.split(":", 1)[0]], name) for name in wanted]


def with_options(arm: Arm, name: str) -> Arm:
    """An arm with the options in its name, like `stock:max-states=3`. Raises BadInputError."""
    known = ENGINE_OPTIONS | (SETTINGS if arm.extended else {})
    flags: list[str] = []
    for text in re.split(r":(?=[A-Za-z])", name)[1:]:  # `eviction=flop-aware:0.5` is one option
        option, equals, value = text.partition("=")
        if option.startswith(ANY_FLAG) and len(option) > len(ANY_FLAG):
            flag = "--" + option.removeprefix(ANY_FLAG)
            flags += [flag, value] if equals else [flag]
        elif option in known and value:
            try:
                flags += known[option](value)
            except ValueError as error:
                raise BadInputError(f"--arms {name}: {option}: {error}") from None
        else:
            what = f"{option} needs a value" if option in known else f"no option {option!r}"
            raise BadInputError(
                f"--arms {name}: {what}; arm {arm.name} knows {', '.join(known)}, "
                f"and {ANY_FLAG}NAME=VALUE for any other flag of SGLang"
            )
    meaning = f"{arm.meaning}; {' '.join(flags)}" if flags else arm.meaning
    return replace(arm, name=name, flags=(*arm.flags, *flags), meaning=meaning)


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
