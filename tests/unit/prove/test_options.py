"""What of a proof is refused before anything starts."""

from __future__ import annotations

from typing import Any

import pytest

from qemu_ring.errors import UsageError
from qemu_ring.memslot import Shape
from qemu_ring.prove import Control, ProveOptions


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"vcpus": 0}, "vcpus 0 is out of range; use 1 to 32"),
        ({"vcpus": 33}, "vcpus 33"),
        ({"pages_per_second": 10.0}, "pages_per_second 10 is out of range; use 1000 to 1e9"),
        ({"pages_per_second": float("nan")}, "pages_per_second nan is out of range"),
        ({"seconds": 0.0}, "seconds must be greater than 0"),
        ({"seconds": float("nan")}, "seconds must be greater than 0"),
        ({"rounds": 0}, "rounds must be at least 1"),
        ({"removals": 0}, "removals must be at least 1; control no-removals"),
        ({"control": Control.IDLE, "until_loss": True}, "no loss to wait for"),
        (
            {"control": Control.NO_REMOVALS, "removals": 5},
            "removals cannot be",
        ),
        (
            {"control": Control.NO_REMOVALS, "shapes": (Shape.MOVE,)},
            "shapes cannot be",
        ),
    ],
)
def test_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ProveOptions(**wrong)


def test_time_limits() -> None:
    assert ProveOptions().time_limit == 10
    assert ProveOptions(seconds=3).time_limit == 3
    assert ProveOptions(removals=100).time_limit is None
    assert ProveOptions(rounds=8).time_limit is None
    assert ProveOptions(removals=100, seconds=5).time_limit == 5
    assert ProveOptions(until_loss=True).time_limit == 300
