"""What a single request may ask of the extension: `custom_params: {"marconi": {…}}` among its sampling parameters.

`/generate` takes them in `sampling_params`, the OpenAI endpoints beside `temperature`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NAME = "marconi"
_KNOWN = {"explain": bool, "store": bool, "keep": bool}


@dataclass(frozen=True)
class Wishes:
    """explain: tell in the answer's meta_info what was reused and why not more; store: keep states and KV
    keep: save the state at the prompt's end, whatever the policy thinks it is worth (`marconi warm`)"""

    explain: bool = False
    store: bool = True
    keep: bool = False


NO_WISHES = Wishes()


class WishError(ValueError):
    """The request asks for what isn't there; the message names the field."""


def wishes_of(custom_params: object) -> Wishes:
    """Of a request's `custom_params`. Raises WishError."""
    if not isinstance(custom_params, Mapping) or NAME not in custom_params:
        return NO_WISHES
    asked: Any = custom_params[NAME]
    if not isinstance(asked, Mapping):
        raise WishError(f"custom_params.{NAME}: want an object such as {{'explain': true}}, got {asked!r}")
    for name, value in asked.items():
        if name not in _KNOWN:
            raise WishError(f"custom_params.{NAME}.{name}: not known; choose from {', '.join(_KNOWN)}")
        if type(value) is not _KNOWN[name]:
            raise WishError(f"custom_params.{NAME}.{name}: want true or false, got {value!r}")
    return Wishes(**asked)
