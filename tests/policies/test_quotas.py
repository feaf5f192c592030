"""Tenants' shares of the slots, as text and in slots."""

from __future__ import annotations

import pytest

from marconi_ext.policies.quotas import parse_quotas, quotas_in_slots
from marconi_ext.policies.table.reserves import Quota


def test_quotas_as_they_are_given() -> None:
    shares = parse_quotas('{"chat": {"floor": 0.3}, "*": {"ceiling": 0.5}}')
    assert quotas_in_slots(shares, 100) == {"chat": Quota(30, 100), "*": Quota(0, 50)}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "JSON"),
        ("[]", "object"),
        ('{"a": {}}', "floor"),
        ('{"a": {"flor": 1}}', "floor"),
        ('{"a": {"floor": 2}}', "share"),
        ('{"a": {"floor": true}}', "share"),
        ('{"a": {"floor": 0.6, "ceiling": 0.5}}', "above"),
        ('{"a": {"floor": 0.5}, "b": {"floor": 0.5}}', "at least 0.1"),
    ],
)
def test_bad_quotas_are_named(text: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        parse_quotas(text)
