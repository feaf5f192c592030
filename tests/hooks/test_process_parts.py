"""What runs in a process is found by its own class alone, and the latest of a class counts."""

from __future__ import annotations

from sglang_hooks.process_parts import running, start


class Part:
    pass


class Narrower(Part):
    pass


def test_parts_are_found_by_their_class() -> None:
    assert running(Part) is None, "SGLang serves as stock"
    narrower = Narrower()
    start(narrower)
    assert running(Part) is None and running(Narrower) is narrower
    first, second = Part(), Part()
    start(first)
    assert running(Part) is first and running(Narrower) is narrower
    start(second)
    assert running(Part) is second
