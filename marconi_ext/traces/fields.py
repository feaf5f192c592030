"""Checked access to the fields of one decoded JSON record."""

import math
from typing import Any

import numpy as np

from marconi_ext.traces.request import token_array

MAX_TOKEN_ID = 2**31 - 1


class BrokenRecordError(ValueError):
    """A record lacks a field or holds a value that can't be meant; the message names the field."""


def need(record: dict, name: str) -> Any:
    if name not in record:
        raise BrokenRecordError(f"no field {name!r}")
    return record[name]


def number(record: dict, name: str) -> float:
    """A finite number, not a bool."""
    value = need(record, name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BrokenRecordError(f"{name}: expected a number, found {short(value)}")
    try:
        value = float(value)
    except OverflowError:
        raise BrokenRecordError(f"{name}: number out of range") from None
    if not math.isfinite(value):
        raise BrokenRecordError(f"{name}: expected a finite number, found {value}")
    return value


def count(record: dict, name: str) -> int:
    """A whole number of at least 0."""
    value = need(record, name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise BrokenRecordError(f"{name}: expected a whole number of at least 0, found {short(value)}")
    return value


def text(record: dict, name: str) -> str:
    value = need(record, name)
    if not isinstance(value, str):
        raise BrokenRecordError(f"{name}: expected text, found {short(value)}")
    return value


def identifier(record: dict, name: str) -> str:
    """A text or whole number, as text."""
    value = need(record, name)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise BrokenRecordError(f"{name}: expected text or a whole number, found {short(value)}")
    return str(value)


def listing(record: dict, name: str) -> list:
    value = need(record, name)
    if not isinstance(value, list):
        raise BrokenRecordError(f"{name}: expected a list, found {short(value)}")
    return value


def tokens(record: dict, name: str, *, empty_ok: bool) -> np.ndarray:
    """int32[n] from a list of token ids."""
    value = listing(record, name)
    if not value and not empty_ok:
        raise BrokenRecordError(f"{name}: empty")
    if not all(type(item) is int for item in value):
        raise BrokenRecordError(f"{name}: expected whole numbers only")
    if value and not (min(value) >= 0 and max(value) <= MAX_TOKEN_ID):
        raise BrokenRecordError(f"{name}: token ids must lie in 0 … {MAX_TOKEN_ID}")
    return token_array(value)


def short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 40 else shown[:37] + "..."
