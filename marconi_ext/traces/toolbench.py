"""ToolBench's depth-first tool searches: the prompts of every query, rebuilt from the search tree."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from marconi_ext.traces import fields
from marconi_ext.traces.chat import Call, Message, compact, parse_message
from marconi_ext.traces.files import json_document
from marconi_ext.traces.problems import Problems
from marconi_ext.traces.templated import single_call
from marconi_ext.traces.text import TextTokenizer
from marconi_ext.traces.timeline import Session

INSTRUCTION = "Solve the user's task with the functions below, one call at a time; end by calling Finish."
MAX_DEPTH = 500


def read(paths: list[Path], problems: Problems, tokenizer: TextTokenizer) -> Iterator[Session]:
    """One session a file; its requests go back to older nodes of the search whenever the search did."""
    for path in paths:
        document = json_document(path, problems)
        if document is None:
            continue
        try:
            queries = queries_of(document)
            if not queries:
                raise fields.BrokenRecordError("tree: holds no query")
        except fields.BrokenRecordError as error:
            problems.add(str(path), 0, str(error))
            continue
        name = "/".join(path.parts[-2:]).split("_ChatGPT")[0]
        yield Session(name, len(queries), partial(_calls, queries, tokenizer))


def queries_of(document: dict) -> list[tuple[list[Message], str]]:
    """(prompt, answer) of each query, in the order in which the search asked them.

    A query appends a chain of nodes (thought, action, action input) to the tree; the chain's last node
    carries the query's number as `expand_num`. Where a node has been tried before, the search tells the
    model what the earlier tries were.
    """
    if not isinstance(document, dict):
        raise fields.BrokenRecordError("expected an object")
    made = fields.need(document, "answer_generation")
    tree = fields.need(document, "tree")
    if not isinstance(made, dict) or not isinstance(tree, dict) or not isinstance(tree.get("tree"), dict):
        raise fields.BrokenRecordError("answer_generation, tree: expected objects")
    opening = _opening(made)
    numbered: list[tuple[int, list[Message], str]] = []
    # (node, messages before the query under way, that query's parts so far)
    stack: list[tuple[dict, list[Message], list[str]]] = [
        (child, with_hint(opening, tree["tree"], i), []) for i, child in _children(tree["tree"])
    ]
    while stack:
        node, messages, parts = stack.pop()
        if len(messages) > 2 * MAX_DEPTH:
            raise fields.BrokenRecordError(f"tree: deeper than {MAX_DEPTH} queries")
        parts = [*parts, fields.text(node, "description")]
        number = node.get("expand_num", 0)
        if isinstance(number, int) and number > 0:  # the query ends here
            answer = "\n".join(parts)
            numbered.append((number, messages, answer))
            messages = [*messages, Message("assistant", answer)]
            if isinstance(node.get("observation"), str) and node["observation"]:
                messages.append(Message("tool", node["observation"]))
            parts = []
        for index, child in _children(node):
            stack.append((child, messages if parts else with_hint(messages, node, index), parts))
    return [(messages, answer) for _, messages, answer in sorted(numbered, key=lambda query: query[0])]


def _opening(made: dict) -> list[Message]:
    """The messages before the first query: as recorded where they are, with the functions behind them."""
    functions = Message("system", compact(fields.listing(made, "function")))
    recorded = made.get("train_messages")
    if isinstance(recorded, list) and recorded and isinstance(recorded[0], list):
        system, user = (
            [parse_message(value) for value in recorded[0][:2]] if len(recorded[0]) > 2 else (None, None)
        )
        if system and user:
            return [system, functions, user]
    return [Message("system", INSTRUCTION), functions, Message("user", fields.text(made, "query"))]


def with_hint(messages: list[Message], node: dict, index: int) -> list[Message]:
    """Add what was tried at this node before its child number `index`."""
    if index == 0:
        return messages
    tried = [_first_words(child) for _, child in _children(node)[:index]]
    hint = "You were here before and these tries failed:\n" + "\n".join(tried) + "\nTry something else."
    return [*messages, Message("user", hint)]


def _first_words(node: dict) -> str:
    return fields.text(node, "description")[:400]


def _children(node: dict) -> list[tuple[int, dict]]:
    found = fields.listing(node, "children")
    if not all(isinstance(child, dict) for child in found):
        raise fields.BrokenRecordError("children: expected objects")
    return list(enumerate(found))


def _calls(queries: list[tuple[list[Message], str]], tokenizer: TextTokenizer) -> list[Call]:
    return [single_call(messages, answer, tokenizer) for messages, answer in queries]
