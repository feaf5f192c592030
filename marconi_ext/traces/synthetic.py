"""Traffic by name that needs no file: the same name, seed and sizes always give the same requests."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

from marconi_ext.errors import BadInputError
from marconi_ext.traces import chat_traffic, thinking, workloads
from marconi_ext.traces.chat_template import find_template
from marconi_ext.traces.request import Request
from marconi_ext.traces.rescript import rescript
from marconi_ext.traces.script import VOCABULARY, Script, play


def _rescripted(write: Callable[..., list[Request]]) -> Callable[..., list[Script]]:
    """Scripts of requests that a chat template has written: what a prompt keeps of an answer is the server's own."""

    def scripts_of(sizes: object, seed: int, vocabulary: int) -> list[Script]:
        requests = write(sizes, seed, vocabulary)
        return rescript(requests, vocabulary=vocabulary, max_prompt_tokens=sys.maxsize).scripts

    return scripts_of


# name -> (default sizes, function of sizes, seed and vocabulary), of what a chat template writes
WRITTEN: dict[str, tuple[object, Callable[..., list[Request]]]] = {
    "samples": (thinking.SamplesSizes(), thinking.samples),
    "thinking": (thinking.ThinkingSizes(), thinking.thinking),
    "tool-loops": (thinking.ToolLoopSizes(), thinking.tool_loops),
}

# name -> (default sizes, function of sizes, seed and vocabulary)
GENERATORS: dict[str, tuple[object, Callable[..., list[Script]]]] = {
    "agent": (workloads.AgentSizes(), workloads.agent),
    "few-shot": (workloads.FewShotSizes(), workloads.few_shot),
    "fork": (workloads.ForkSizes(), workloads.fork),
    "lmsys": (chat_traffic.LMSYS, lambda *args: chat_traffic.chats("lmsys", *args)),
    "sharegpt": (chat_traffic.SHAREGPT, lambda *args: chat_traffic.chats("sharegpt", *args)),
    "swe-agent": (chat_traffic.SWE_AGENT, lambda *args: chat_traffic.chats("swe-agent", *args)),
    "tree-search": (chat_traffic.TreeSearchSizes(), chat_traffic.tree_search),
    **{name: (sizes, _rescripted(write)) for name, (sizes, write) in WRITTEN.items()},
}
SYNTHETIC_NAMES = tuple(GENERATORS)


def scripts(
    name: str, *, seed: int = 0, sessions: int | None = None, vocabulary: int = VOCABULARY, **sizes: Any
) -> list[Script]:
    """The conversations of a named kind of traffic, unanswered.

    sizes: fields of the kind's sizes to change, e.g. user_tokens=(50, 300) or sessions_per_s=2.0
    Raises BadInputError for an unknown name or field, or a size that makes no traffic.
    """
    chosen = _sizes(name, seed, sessions, sizes)
    return GENERATORS[name][1](chosen, seed, vocabulary)


def _sizes(name: str, seed: int, sessions: int | None, sizes: dict) -> object:
    check_name(name)
    if seed < 0:
        raise BadInputError(f"--seed {seed}: must be at least 0")
    default: Any = GENERATORS[name][0]
    known = {field.name for field in fields(default)}
    if unknown := sorted(set(sizes) - known):
        raise BadInputError(f"synthetic:{name} has no size {unknown[0]!r}, but {', '.join(sorted(known))}")
    if sessions is not None:
        sizes["sessions"] = sessions
    for key, value in sizes.items():
        check_size(name, key, value)
    return replace(default, **sizes)


def check_name(name: str) -> None:
    """Raise BadInputError for an unknown kind of traffic."""
    if name not in GENERATORS:
        raise BadInputError(f"synthetic:{name}: not one of {', '.join(SYNTHETIC_NAMES)}")


def synthetic(name: str, *, seed: int = 0, sessions: int | None = None, **sizes: Any) -> Iterator[Request]:
    """Yield the requests of a named kind of traffic, with drawn answers. Arguments as for `scripts`."""
    vocabulary = sizes.pop("vocabulary", VOCABULARY)
    if name in WRITTEN:
        return iter(WRITTEN[name][1](_sizes(name, seed, sessions, sizes), seed, vocabulary))
    return play(scripts(name, seed=seed, sessions=sessions, vocabulary=vocabulary, **sizes), seed, vocabulary)


def check_size(name: str, key: str, value: Any) -> None:
    """Raise BadInputError for a size that makes no traffic."""
    if key in ("template", "client"):
        (find_template if key == "template" else thinking.find_client)(value)
        return
    low, high = value if isinstance(value, tuple) and len(value) == 2 else (value, value)
    least: float = 0 if key in ("system_tokens", "forks", "backtrack", "response_s", "step_s") else 1
    if key.endswith("_sigma") or key == "sessions_per_s":
        least = 1e-9
    if not (isinstance(low, int | float) and isinstance(high, int | float) and least <= low <= high):
        raise BadInputError(
            f"synthetic:{name}: {key}={value} is not a number of at least {least}, or a range"
        )
