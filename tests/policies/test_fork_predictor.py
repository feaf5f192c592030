"""Where requests part, by hand: a prefix, a separator (token 9), then a question of its own."""

from dataclasses import replace

import numpy as np

from marconi_ext.policies.admission import ForkPredicting, PromptFacts
from marconi_ext.policies.currency import Currency
from marconi_ext.policies.fork_predictor import MIN_PARTINGS, ForkPredictor
from marconi_ext.policies.input_ends import GUESS_TOKENS
from marconi_ext.policies.registry import parse_policy
from marconi_ext.policies.table.checkpoints import Kind
from marconi_ext.simulator.capacity import Capacity
from marconi_ext.simulator.simulator import Simulator
from marconi_ext.traces import synthetic

PREFIX, QUESTION = 1000, 60


def prompt(number: int) -> np.ndarray:
    """1000 tokens of prefix `number` with separators inside, the last of them at its end; 20 to 620 of a question."""
    rng = np.random.default_rng(number)
    tokens = rng.integers(1000, 5000, PREFIX + 20 + 200 * (number % 4)).astype(np.int32)
    tokens[[99, 499, PREFIX - 1]] = 9
    return tokens


def test_the_last_separator_is_found() -> None:
    """The first parting makes token 9 a candidate; the next ones score it, against distances that fit less often."""
    partings = ForkPredictor()
    for number in range(8):
        tokens = prompt(number)
        partings.observe(tokens, (), len(tokens), base=0, parted=PREFIX)
    assert partings.places == (("after the last", 9),)
    assert partings.positions(prompt(6), (), len(prompt(6)), after=0) == [PREFIX]
    assert partings.positions(prompt(7), (), len(prompt(7)), after=PREFIX) == []  # it is served there already


def test_stand_ins_for_images_are_no_separators() -> None:
    """An engine may write hashes of 62 bits in place of an image's tokens, just before the parting too."""
    partings = ForkPredictor()
    for number in range(8):
        tokens = prompt(number).astype(np.int64)
        tokens[[50, PREFIX - 3, PREFIX + 10]] = 2**62 + number % 2
        partings.observe(tokens, (), len(tokens), base=0, parted=PREFIX)
    assert partings.places == (("after the last", 9),)
    assert partings.positions(tokens, (), len(tokens), after=0) == [PREFIX]


def test_without_boundaries_a_distance_is_learned() -> None:
    """All part 60 tokens before the end: of the distances tried, 64 wastes least."""
    partings = ForkPredictor()
    for _ in range(MIN_PARTINGS):
        partings.observe(None, (), PREFIX + QUESTION, base=0, parted=PREFIX)
    assert partings.places == (("before the end", 64),)
    assert partings.positions(None, (), 2000, after=0) == [1936]


def test_boundaries_are_used_only_while_they_pay() -> None:
    partings = ForkPredictor()
    for _ in range(MIN_PARTINGS):
        partings.observe(None, (400, PREFIX, 1060), 1060, base=0, parted=PREFIX)
    assert partings.places == (("last boundary", 0),)
    for _ in range(2000):  # traffic that never parts
        partings.observe(None, (400, 900), 5000, base=0, parted=0)
    assert partings.places == ()


def test_what_is_saved_anyway_counts_for_nothing() -> None:
    """A state at 990 is there by another rule: ten tokens more are less than 1 % of the prompts."""
    partings = ForkPredictor()
    for number in range(20):
        partings.observe(prompt(number), (), len(prompt(number)), base=990, parted=PREFIX)
    assert partings.places == ()


def facts(number: int, **changes) -> PromptFacts:
    tokens = prompt(number)
    known = PromptFacts(len(tokens), len(tokens) + 20, 0, PREFIX, True, tokens=tokens)
    return replace(known, **changes)


def test_fewer_partings_than_asked_for_are_taken_for_chance() -> None:
    partings = ForkPredictor()
    for _ in range(MIN_PARTINGS - 1):
        partings.observe(None, (), PREFIX + QUESTION, base=0, parted=PREFIX)
    assert partings.places == ()


def test_a_guess_is_made_where_no_boundary_lies_inside() -> None:
    assert ForkPredictor().guesses((400, 900), 1000, after=0) == [900]
    assert ForkPredictor().guesses((0, 1000), 1000, after=0) == [1000 - 181]


def test_guesses_take_free_room_only() -> None:
    placement = ForkPredicting()
    first = placement.plan(facts(3, kv_tokens=0, diverges=False))
    assert [(o.depth_tokens, o.spare) for o in first if o.kind == Kind.BOUNDARY] == [
        (PREFIX + 620 - 181, True),
        (PREFIX + 620 - GUESS_TOKENS, True),  # where the input may end
    ]
    for number in range(8):
        placement.plan(facts(number))
    new = placement.plan(facts(8, kv_tokens=0, diverges=False))
    assert [(o.depth_tokens, o.spare) for o in new if o.kind == Kind.BOUNDARY] == [(PREFIX, False)]


def test_a_fork_seen_before_is_no_gain_of_placement() -> None:
    """With `parted_tokens` at the fork, a state there is due to the branch that the second request saved."""
    placement = ForkPredicting()
    for number in range(10):
        placement.plan(facts(number, parted_tokens=PREFIX))
    assert placement.predictor.places == ()


def test_few_shot_prompts_are_reused_at_their_second_appearance() -> None:
    """Without boundaries, ample slots: branches alone lose each second visit."""
    lost = {}
    for admission in ("selective", "fork-predictor"):
        simulator = Simulator(Capacity(), *parse_policy(f"{admission}+lru").build(Currency()), Currency())
        requests = synthetic("few-shot", seed=0, sessions=80, prefixes=20)
        served = [simulator.serve(replace(request, boundaries=())) for request in requests]
        lost[admission] = sum(one.kv_tokens - one.hit_tokens for one in served)
        simulator.finish()
    assert lost["fork-predictor"] < 0.5 * lost["selective"]


def test_a_request_that_only_goes_on_places_nothing() -> None:
    placement = ForkPredicting()
    for number in range(8):
        placement.plan(facts(number))
    offers = placement.plan(facts(3, kv_tokens=900, hit_tokens=900, diverges=False))
    assert [offer.kind for offer in offers] == [Kind.PROMPT_END, Kind.LAST_TOKEN]
