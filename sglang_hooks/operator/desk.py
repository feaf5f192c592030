"""Questions and orders that reach a running server, and where their answers wait.

SGLang has no endpoint of its own for them. POST /set_internal_state takes a mapping from text to number: here the text
is `marconi:` and a command as JSON, the number a ticket that the asker draws. The answer waits under that ticket in
/server_info, of every data-parallel rank, until it is fetched or too old. Both endpoints are for administrators where
the server has an admin key.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

logger = logging.getLogger(__name__)

PREFIX = "marconi:"
KEPT_S = 30.0  # for askers that never come back
KEPT_ANSWERS = 16

Handler = Callable[[Mapping[str, Any]], dict[str, Any]]


class RefusedError(ValueError):
    """A command that can't be followed; the message says why, and what to do."""


class Desk:
    """Follows commands by name. handlers: command -> what follows it; raises RefusedError"""

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        self._handlers = dict(handlers)
        self._answers: dict[int, tuple[float, dict[str, Any]]] = {}

    def is_for_us(self, arguments: Mapping[str, float]) -> bool:
        """Whether /set_internal_state was asked something of ours."""
        return len(arguments) == 1 and next(iter(arguments)).startswith(PREFIX)

    def take(self, arguments: Mapping[str, float]) -> bool:
        """Follow one command. Returns: whether an answer waits; an answer may say that the command was refused."""
        ((text, number),) = arguments.items()
        try:
            ticket = int(number)
            command = json.loads(text.removeprefix(PREFIX))
            handler = self._handlers[command["do"]]
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return False
        try:
            answer = handler(command)
        except RefusedError as error:
            answer = {"refused": str(error)}
        except Exception as error:  # a question must never end a server
            logger.exception("marconi-ext: couldn't answer %r", command.get("do"))
            answer = {"refused": f"the server couldn't answer: {error!r}"}
        now = time.monotonic()
        self._answers = {key: kept for key, kept in self._answers.items() if now - kept[0] < KEPT_S}
        while len(self._answers) >= KEPT_ANSWERS:
            del self._answers[next(iter(self._answers))]
        self._answers[ticket] = (now, answer)
        return True

    def section(self) -> dict[str, Any]:
        """{"answers": {ticket: answer}} while some wait, else {}."""
        now = time.monotonic()
        waiting = {str(key): answer for key, (at, answer) in self._answers.items() if now - at < KEPT_S}
        return {"answers": waiting} if waiting else {}
