"""How much a cache can hold: one byte budget for states and KV (the paper), or separate pools (SGLang)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from marconi_ext.errors import BadInputError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_SIZE = re.compile(r"([0-9]*\.?[0-9]+(?:e[0-9]+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)
LEAST_BYTES = 10**6  # no state of a real model is as small


@dataclass(frozen=True, slots=True)
class Capacity:
    """Either `bytes`, or `slots` (states) and `tokens` (KV); None: without limit."""

    bytes: int | None = None
    slots: int | None = None
    tokens: int | None = None

    @property
    def label(self) -> str:
        if self.bytes is not None:
            return f"{self.bytes / 1e9:g}GB" if self.bytes >= LEAST_BYTES else f"{self.bytes:,} bytes"
        parts = [
            f"{name}={value}" for name, value in (("slots", self.slots), ("tokens", self.tokens)) if value
        ]
        return ",".join(parts) or "unlimited"


def parse_capacities(text: str) -> list[Capacity]:
    """`40GB,60GB`, `slots=16,tokens=2M`, `slots=16`, several pools as `slots=16;slots=32,tokens=1M`.

    Raises BadInputError, naming the flag, on anything else.
    """
    found: list[Capacity] = []
    for group in filter(None, (part.strip() for part in text.split(";"))):
        if "=" not in group:
            found += [Capacity(bytes=_size(item)) for item in group.split(",")]
            continue
        pools: dict[str, int | None] = {}
        for item in group.split(","):
            name, _, value = item.partition("=")
            name = name.strip()
            if name in pools and name == "slots":  # slots=16,slots=32: a sweep
                found.append(Capacity(**pools))
                pools = {}
            if name not in ("slots", "tokens"):
                raise BadInputError(f"--capacity: {item!r}: want slots=N or tokens=N")
            pools[name] = None if value.strip() in ("inf", "unlimited") else _size(value)
        found.append(Capacity(**pools))
    if not found:
        raise BadInputError("--capacity: empty; want e.g. 40GB,60GB or slots=16,tokens=2M")
    return found


def _size(text: str) -> int:
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise BadInputError(
            f"--capacity: {text!r} is not a size; want e.g. 40GB, 512MiB, slots=16, tokens=2M"
        )
    number, unit, binary = match.groups()
    scale = _UNITS[unit.lower()]
    if binary:
        scale = 1024 ** {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}[unit.lower()]
    size = float(number) * scale
    if not size < 1e18:
        raise BadInputError(f"--capacity: {text!r} is more than any machine has")
    value = int(size)
    if value <= 0:
        raise BadInputError(f"--capacity: {text!r} is not above 0")
    return value
