"""Commands reach their handler, answers wait for their asker, and nothing that is sent can end a server."""

import pytest

from sglang_hooks.operator.desk import KEPT_ANSWERS, Desk, RefusedError
from sglang_hooks.operator.wishes import NO_WISHES, WishError, Wishes, wishes_of


def refuse(_command):
    raise RefusedError("not today")


def fail(_command):
    raise ZeroDivisionError("oops")


def test_an_answer_waits_under_its_ticket() -> None:
    desk = Desk({"echo": lambda command: {"said": command["what"]}, "refuse": refuse, "fail": fail})
    asked = {'marconi:{"do": "echo", "what": "hello"}': 7.0}
    assert desk.is_for_us(asked) and desk.section() == {}
    assert (
        desk.take(asked)
        and desk.take({'marconi:{"do": "refuse"}': 8})
        and desk.take({'marconi:{"do": "fail"}': 9})
    )
    answers = desk.section()["answers"]
    assert answers["7"] == {"said": "hello"} and answers["8"] == {"refused": "not today"}
    assert "oops" in answers["9"]["refused"]


@pytest.mark.parametrize(
    "text",
    [
        "marconi:",
        "marconi:[1]",
        "marconi:{}",
        'marconi:{"do": "fly"}',
        'marconi:{"do": ["fly"]}',
        "marconi:{",
        "marconi:" + "[" * 200_000,
    ],
    ids=lambda text: text[:24],
)
def test_what_is_no_command_of_ours_is_not_taken(text: str) -> None:
    desk = Desk({})
    assert desk.is_for_us({text: 1}) and not desk.take({text: 1}) and desk.section() == {}


@pytest.mark.parametrize("ticket", [float("inf"), float("nan")])
def test_a_ticket_that_is_no_number_is_not_taken(ticket: float) -> None:
    desk = Desk({"echo": lambda _command: {}})
    assert not desk.take({'marconi:{"do": "echo"}': ticket}) and desk.section() == {}


def test_sglangs_own_knobs_are_not_for_us() -> None:
    assert not Desk({}).is_for_us({"pp_max_micro_batch_size": 2})
    assert not Desk({}).is_for_us({'marconi:{"do": "x"}': 1, "pp_max_micro_batch_size": 2})


def test_answers_that_nobody_fetches_are_bounded() -> None:
    desk = Desk({"echo": lambda _command: {}})
    for ticket in range(100):
        desk.take({'marconi:{"do": "echo"}': ticket})
    answers = desk.section()["answers"]
    assert len(answers) == KEPT_ANSWERS and "99" in answers


def test_wishes() -> None:
    assert wishes_of(None) is NO_WISHES and wishes_of({"other": 1}) is NO_WISHES
    assert wishes_of({"marconi": {"explain": True, "store": False}}) == Wishes(explain=True, store=False)
    for wrong, named in (
        ({"marconi": 1}, "object"),
        ({"marconi": {"stor": True}}, "stor"),
        ({"marconi": {"store": 1}}, "store"),
    ):
        with pytest.raises(WishError, match=named):
            wishes_of(wrong)
