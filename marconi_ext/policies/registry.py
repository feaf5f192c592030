"""Policies by name: an eviction name, `ADMISSION+EVICTION`, or a named pair; parameters after a colon."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from marconi_ext import entry_points
from marconi_ext.errors import BadInputError
from marconi_ext.policies.admission import ADMISSIONS
from marconi_ext.policies.currency import Currency
from marconi_ext.policies.fixed_rules import FlopAware, Lru, LruLeaf, SegLen
from marconi_ext.policies.interfaces import Admission, Eviction
from marconi_ext.policies.learned.gittins import Gittins, GittinsBasic
from marconi_ext.policies.paper.tuner import Marconi
from marconi_ext.policies.simple_rules import FortyLines, Gdsf, Hyperbolic, SupersededSegLen


@dataclass(frozen=True)
class NewEviction:
    """An eviction policy of another package: what its entry point in `marconi.policies` names.

    make: the system's `Currency` → an `Eviction`; admission: the name of the one that it is used with by default
    """

    make: Callable[[Currency], Eviction]
    admission: str = "fork-predictor"


@dataclass(frozen=True)
class NewAdmission:
    """An admission of another package, for simulation: what its entry point in `marconi.policies` names."""

    make: Callable[[], Admission]


# eviction name -> (admission used by default, needs a number after the colon, factory)
EVICTIONS: dict[str, tuple[str, bool, Callable]] = {
    "lru-leaf": ("judicious", False, LruLeaf),
    "lru": ("selective", False, Lru),
    "seglen": ("selective", False, SegLen),
    "flop-aware": ("selective", True, lambda currency, alpha: FlopAware(currency, alpha, max_fanout=1)),
    "superseded-seglen": ("fork-predictor", False, SupersededSegLen),
    "superseded-gdsf": ("fork-predictor", False, Gdsf),
    "superseded-hyperbolic": ("fork-predictor", False, Hyperbolic),
    "forty-lines": ("fork-predictor", False, FortyLines),
    "marconi": ("judicious", False, Marconi),
    "gittins-basic": ("selective", False, GittinsBasic),
    "gittins": ("fork-predictor", False, Gittins),
}
ALIASES = {"ours": "gittins", "git": "gittins-basic", "learned": "fork-predictor"}  # earlier names
PAIRS = {"vllm+": "every-block+lru", "sglang+": "judicious+lru-leaf", "sglang": "grid+lru"}
ARTIFACTS = ("artifact-lru", "artifact-static", "artifact-marconi", "artifact-vllm")
HINDSIGHT = ("best-static", "clairvoyant", "law")  # offline bounds: they see the whole trace


@dataclass(frozen=True)
class PolicyName:
    """A parsed name. `family`: online, artifact or hindsight."""

    text: str
    family: str
    admission: str = ""
    admission_parameter: float | None = None
    eviction: str = ""
    eviction_parameter: float | None = None

    def build(self, currency: Currency) -> tuple[Admission, Eviction]:
        """A fresh (admission, eviction) for one run of an online policy."""
        admission = _admission(self.admission)
        assert admission is not None, "the name was parsed"
        amount = self.admission_parameter
        made = admission() if amount is None else admission(int(amount))
        known = _eviction(self.eviction)
        assert known is not None, "the name was parsed"
        _, wants_number, factory = known
        evict = factory(currency, self.eviction_parameter) if wants_number else factory(currency)
        return made, evict


def parse_policy(text: str) -> PolicyName:
    """Parse one name. Raises BadInputError that lists what is known."""
    name = canonical_name(text)
    if name.startswith(ARTIFACTS):
        base, number = _parameter(name)
        if base not in ARTIFACTS:
            raise BadInputError(f"--policy: unknown {text!r}; known: {', '.join(policy_names())}")
        if (number is None) == (base == "artifact-static"):
            raise BadInputError(
                f"--policy: {text!r}: artifact-static takes an α (artifact-static:1.0), others none"
            )
        return PolicyName(text, "artifact", eviction=base, eviction_parameter=number)
    admission, plus, eviction = name.rpartition("+")
    eviction, number = _parameter(eviction)
    if eviction in HINDSIGHT:
        default = "judicious" if eviction == "best-static" else "selective"
        family = "hindsight"
    elif known := _eviction(eviction):
        default, wants_number, _ = known
        if wants_number != (number is not None):
            raise BadInputError(
                f"--policy: {text!r}: {'give' if wants_number else 'takes'} {_ALPHA[wants_number]}"
            )
        family = "online"
    else:
        raise BadInputError(
            f"--policy: unknown {text!r}; known: {', '.join(policy_names())}, or ADMISSION+EVICTION"
        )
    admission, amount = _parameter(admission) if plus else (default, None)
    if _admission(admission) is None:
        raise BadInputError(
            f"--policy: {text!r}: unknown admission {admission!r}; known: {', '.join(ADMISSIONS)}"
        )
    if amount is not None and (admission not in ("every-block", "grid") or amount < 1):
        raise BadInputError(f"--policy: {text!r}: only every-block and grid take a number of tokens")
    return PolicyName(text, family, admission, amount, eviction, number)


def _eviction(name: str) -> tuple[str, bool, Callable] | None:
    """As in EVICTIONS; None for an unknown name."""
    if name in EVICTIONS:
        return EVICTIONS[name]
    found = entry_points.load(entry_points.POLICIES, name, NewEviction, NewAdmission)
    return (found.admission, False, found.make) if isinstance(found, NewEviction) else None


def _admission(name: str) -> Callable[..., Admission] | None:
    """As in ADMISSIONS; None for an unknown name."""
    if name in ADMISSIONS:
        return ADMISSIONS[name]
    found = entry_points.load(entry_points.POLICIES, name, NewEviction, NewAdmission)
    return found.make if isinstance(found, NewAdmission) else None


def canonical_name(text: str) -> str:
    """The name with pairs written out and earlier names replaced, as far as it is known."""
    name = PAIRS.get(text.strip(), text.strip())
    return "+".join(ALIASES.get(part, part) for part in name.split("+"))


def eviction_names() -> list[str]:
    """Evictions that run online, as `--policy` takes them."""
    return [f"{name}:ALPHA" if wants else name for name, (_, wants, _) in EVICTIONS.items()]


def policy_names() -> list[str]:
    """What `--policy` takes besides ADMISSION+EVICTION."""
    artifacts = [f"{name}:ALPHA" if name == "artifact-static" else name for name in ARTIFACTS]
    others = entry_points.names(entry_points.POLICIES)
    return [*PAIRS, *eviction_names(), *others, *HINDSIGHT, *artifacts]


_ALPHA = {True: "an α, e.g. flop-aware:1.0", False: "no number"}


def _parameter(text: str) -> tuple[str, float | None]:
    name, colon, number = text.partition(":")
    if not colon:
        return name, None
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1e9:
        raise BadInputError(f"--policy: {text!r}: {number!r} is not a number of at least 0")
    return name, value
