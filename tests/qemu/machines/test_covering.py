"""All that can occur together does."""

from __future__ import annotations

from itertools import product

import pytest

from tests.qemu.machines.cells import AXES, allowed, cells
from tests.qemu.machines.covering import Partial, covering, parts, tuples

SMALL = {"a": (1, 2, 3), "b": (1, 2, 3), "c": (1, 2), "d": (1, 2)}


def odd(chosen: Partial[int]) -> bool:
    """Not all equal, and no 3 with a 3."""
    return not (chosen.get("a") == chosen.get("b") == 3 or [*chosen.values()] == [1, 1, 1, 1])


@pytest.mark.parametrize("strength", [2, 3])
def test_every_possible_tuple_occurs(strength: int) -> None:
    rows = covering(SMALL, odd, strength=strength)
    every = [dict(zip(SMALL, values, strict=True)) for values in product(*SMALL.values())]
    possible = {part for row in every if odd(row) for part in parts(row, strength)}
    assert all(map(odd, rows))
    assert {part for row in rows for part in parts(row, strength)} == possible
    assert len(rows) < len(every)
    assert covering(SMALL, odd, strength=strength) == rows


def test_what_is_impossible_is_left_out() -> None:
    assert covering(SMALL, lambda chosen: False) == []


@pytest.mark.parametrize("strength", [2, 3])
def test_machines_have_all_that_is_allowed(strength: int) -> None:
    found = cells(full=strength == 3, huge_pages=True)
    rows = [{axis: getattr(cell, axis) for axis in AXES} for cell in found]
    assert all(map(allowed, rows))
    have = {part for row in rows for part in parts(row, strength)}
    missing = [dict(part) for part in tuples(AXES, strength) if part not in have]
    assert not any(map(allowed, missing))
