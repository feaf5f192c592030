"""Where states are offered, on facts of a prompt worked by hand."""

from marconi_ext.policies.admission import (
    EveryBlock,
    Exact,
    Grid,
    Judicious,
    PromptFacts,
    Selective,
)


def facts(**changes) -> PromptFacts:
    base = {
        "prompt_tokens": 1000,
        "sequence_tokens": 1100,
        "hit_tokens": 300,
        "kv_tokens": 700,
        "diverges": True,
    }
    return PromptFacts(**{**base, **changes})


def positions(offers) -> list[int]:
    return [offer.depth_tokens for offer in offers]


def test_judicious_and_exact() -> None:
    assert positions(Judicious().plan(facts())) == [700, 1100]
    assert positions(Judicious().plan(facts(diverges=False))) == [1100]  # extends a leaf: no fork
    assert positions(Exact().plan(facts())) == [700, 999, 1100]
    assert positions(Exact().plan(facts(kv_tokens=300, sequence_tokens=1000))) == [999]  # no answer


def test_every_block() -> None:
    assert positions(EveryBlock(32).plan(facts(hit_tokens=960, sequence_tokens=1030))) == [992, 1024]


def test_grid_branch_displaces_the_tail_of_its_extend() -> None:
    """From 300 in chunks of 400 on a grid of 64: extends end at 700 and 1000. The branch 700 floors to 640, in
    the first extend, whose tail 300 + 384 = 684 it displaces; the second's tail is 700 + 256 = 956. The answer
    passes 1024 = 4·256."""
    offers = Grid(64, 256, 400).plan(facts(sequence_tokens=1100))
    assert [(o.depth_tokens, o.displaced) for o in offers] == [
        (640, False),
        (684, True),
        (956, False),
        (1024, False),
    ]


def test_selective_wants_a_gain_and_saves_proven_forks_again() -> None:
    """A match of 700 asks for a gain of min(64, 87) = 64 tokens; a smaller one takes room only if it is free. So does
    the guess of a first prompt, at 968."""

    def planned(**changes: object) -> list[tuple[int, bool]]:
        return [(offer.depth_tokens, offer.spare) for offer in Selective().plan(facts(**changes))]

    ends = [(968, True), (999, False), (1100, False)]
    assert planned(hit_tokens=637) == [(700, True), *ends]
    assert planned(hit_tokens=636) == [(700, False), *ends]
    assert planned(proven_forks=(650,)) == [(650, False), (700, True), *ends]
