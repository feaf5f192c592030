"""Generated traffic for `policy_cells.py`: kinds of sources for which the shared traces have no example.

Each kind is drawn from a seed; tokens are random numbers, so that only the lengths and what is shared are lifelike.
A session is a list of prompts with their answers; sessions are put on one time line by drawn gaps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from marconi_ext.traces import Request

VOCABULARY = 100_000
Turn = tuple[np.ndarray, np.ndarray]  # prompt, answer
Session = list[Turn]


@dataclass(frozen=True)
class Pace:
    """gap_s: mean time between a session's turns (exponential, or regular); start_s: between two sessions."""

    start_s: float
    gap_s: float
    regular: bool = False


class Draw:
    """Random tokens and lengths."""

    def __init__(self, seed: int, kind: int) -> None:
        self.rng = np.random.default_rng([seed, 40, kind])

    def tokens(self, count: int) -> np.ndarray:
        return self.rng.integers(10, VOCABULARY, max(count, 1), dtype=np.int32)

    def length(self, mean: float, sigma: float = 0.6) -> int:
        """Log-normal."""
        return max(int(self.rng.lognormal(np.log(mean) - sigma**2 / 2, sigma)), 2)

    def often(self, count: int, power: float = 1.0) -> int:
        """One of `count`, the first ones most often (Zipf)."""
        weights = 1 / np.arange(1, count + 1) ** power
        return int(self.rng.choice(count, p=weights / weights.sum()))


def linear(draw: Draw, head: np.ndarray, turns: int, question: float, answer: float) -> Session:
    """A conversation that repeats everything."""
    session, history = [], head
    for _ in range(turns):
        prompt = np.concatenate([history, draw.tokens(draw.length(question))])
        reply = draw.tokens(draw.length(answer))
        session.append((prompt, reply))
        history = np.concatenate([prompt, reply])
    return session


def agents(draw: Draw, sessions: int) -> Iterator[Session]:
    """Long tool loops over one system prompt."""
    system = draw.tokens(1200)
    for _ in range(sessions):
        head = np.concatenate([system, draw.tokens(draw.length(300))])
        yield linear(draw, head, draw.length(18, 0.7), 350, 90)


def window_agents(draw: Draw, sessions: int) -> Iterator[Session]:
    """Tool loops whose prompts keep the system prompt, the task and the last five turns."""
    system = draw.tokens(1200)
    for _ in range(sessions):
        head = np.concatenate([system, draw.tokens(draw.length(300))])
        session, turns = [], []
        for _ in range(draw.length(18, 0.7)):
            turns = turns[-5:]
            prompt = np.concatenate([head, *turns, draw.tokens(draw.length(200))])
            reply = draw.tokens(draw.length(80))
            turns.append(np.concatenate([prompt[len(head) + sum(map(len, turns)) :], reply]))
            session.append((prompt, reply))
        yield session


def nested_agents(draw: Draw, sessions: int) -> Iterator[Session]:
    """Coding agents with a long system prompt, short-lived helpers with another one, and compacted histories."""
    systems = [draw.tokens(2500) for _ in range(3)]
    helper = draw.tokens(900)
    for _ in range(sessions):
        head = np.concatenate([systems[draw.often(3)], draw.tokens(draw.length(200))])
        session: Session = []
        for _ in range(draw.length(2, 0.6)):
            for turn in linear(draw, head, draw.length(10, 0.6), 400, 120):
                session.append(turn)
                if draw.rng.random() < 0.12:
                    task = np.concatenate([helper, draw.tokens(draw.length(150))])
                    session += linear(draw, task, draw.length(5, 0.5), 300, 80)
            head = np.concatenate([head[:2600], draw.tokens(draw.length(600))])  # compacted
        yield session


def documents(draw: Draw, sessions: int) -> Iterator[Session]:
    """Dialogues over retrieved texts, some of which come again in other dialogues."""
    system, texts = draw.tokens(150), [draw.tokens(draw.length(1500)) for _ in range(60)]
    for _ in range(sessions):
        head = np.concatenate([system, texts[draw.often(60, 0.7)]])
        yield linear(draw, head, draw.length(5, 0.4), 40, 120)


def shared_chats(draw: Draw, sessions: int) -> Iterator[Session]:
    """Chats of which others go on from the middle, and whose answers are asked for again."""
    held: list[Turn] = []
    for _ in range(sessions):
        head = np.empty(0, np.int32)
        if held and draw.rng.random() < 0.5:
            prompt, answer = held[-1 - draw.often(len(held), 0.8)]
            head = np.concatenate([prompt, answer])
        session = []
        for turn in linear(draw, head, draw.length(4, 0.7), 60, 250):
            session.append(turn)
            while draw.rng.random() < 0.15:
                session.append((turn[0], draw.tokens(draw.length(250))))
        held += session
        yield session


def one_call(draw: Draw, sessions: int) -> Iterator[Session]:
    """Single function calls over many sets of schemas."""
    system, schemas = draw.tokens(100), [draw.tokens(draw.length(700)) for _ in range(80)]
    for _ in range(sessions):
        head = np.concatenate([system, schemas[draw.often(80, 0.9)]])
        yield linear(draw, head, 1, 60, 50)


def many_calls(draw: Draw, sessions: int) -> Iterator[Session]:
    """Function calls in conversations of a typical length, over a few sets of schemas."""
    sets = [draw.tokens(draw.length(1500)) for _ in range(4)]
    for _ in range(sessions):
        yield linear(draw, sets[draw.often(4)], 8 + int(draw.rng.integers(0, 3)), 60, 40)


def passages(draw: Draw, sessions: int) -> Iterator[Session]:
    """Questions about one passage each, some of them at one time; a session is a passage."""
    for _ in range(sessions):
        passage = draw.tokens(draw.length(900))
        yield [
            (np.concatenate([passage, draw.tokens(draw.length(30))]), draw.tokens(20))
            for _ in range(2 + draw.length(5))
        ]


def few_shot(draw: Draw, sessions: int) -> Iterator[Session]:
    """Questions behind forty prefixes, about equally often."""
    prefixes = [draw.tokens(draw.length(900, 0.4)) for _ in range(40)]
    for _ in range(sessions):
        yield linear(draw, prefixes[draw.often(40, 0.3)], 1, 90, 20)


Kind = tuple[Callable[[Draw, int], Iterator[Session]], int, Pace]
KINDS: dict[str, Kind] = {  # name -> what draws sessions, how many, and their pace
    "agents": (agents, 60, Pace(14.0, 5.0)),
    "crowded agents": (agents, 60, Pace(1.0, 30.0)),
    "window agents": (window_agents, 60, Pace(10.0, 5.0)),
    "nested agents": (nested_agents, 40, Pace(25.0, 5.0, regular=True)),
    "documents": (documents, 200, Pace(1.5, 6.0)),
    "shared chats": (shared_chats, 200, Pace(2.0, 5.0)),
    "one call": (one_call, 800, Pace(1.0, 1.0)),
    "many calls": (many_calls, 120, Pace(5.0, 5.0)),
    "passages": (passages, 150, Pace(4.0, 8.0)),
    "few-shot": (few_shot, 800, Pace(1.0, 1.0)),
}


def generated(name: str, seed: int) -> list[Request]:
    """The requests of one kind, in order."""
    make, sessions, pace = KINDS[name]
    draw = Draw(seed, list(KINDS).index(name))
    found, start_s = [], 0.0
    for number, session in enumerate(make(draw, sessions)):
        start_s += draw.rng.exponential(pace.start_s)
        at_s = start_s
        for turn, (prompt, answer) in enumerate(session):
            found.append(Request(f"{name}/{number}", turn, at_s, prompt, answer))
            at_s += pace.gap_s * (draw.rng.uniform(0.8, 1.2) if pace.regular else draw.rng.exponential())
    return sorted(found, key=lambda request: request.arrival_s)
