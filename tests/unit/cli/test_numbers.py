"""Numbers and sizes on the command line."""

from __future__ import annotations

import click
import pytest

from qemu_ring.cli.frame.numbers import Number, Whole
from qemu_ring.cli.frame.sizes import RATE, SECONDS, SIZE


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e400", "-1e400", "NaN", "infinity"])
def test_not_finite(text: str) -> None:
    with pytest.raises(click.BadParameter, match="no finite number"):
        Number().convert(text, None, None)


def test_number_in_a_range() -> None:
    kind = Number(0.1, 3600)
    assert kind.convert("0.1", None, None) == 0.1
    assert kind.convert(3600.0, None, None) == 3600
    for text in ("0.09", "3601", "-1"):
        with pytest.raises(click.BadParameter, match=r"out of range; use 0\.1 to 3600"):
            kind.convert(text, None, None)
    with pytest.raises(click.BadParameter, match="use 5 or more"):
        Number(least=5).convert("4", None, None)
    with pytest.raises(click.BadParameter, match="'soon' is no number"):
        kind.convert("soon", None, None)


def test_whole_number_in_a_range() -> None:
    kind = Whole(1, 255)
    assert kind.convert("255", None, None) == 255
    for text in ("0", "256"):
        with pytest.raises(click.BadParameter, match="use 1 to 255"):
            kind.convert(text, None, None)
    for text in ("1.5", "nan", "two"):
        with pytest.raises(click.BadParameter, match="not a valid integer"):
            kind.convert(text, None, None)


def test_sizes_rates_and_durations() -> None:
    assert SIZE.convert("1.5 GiB", None, None) == 3 << 29
    assert RATE.convert("50MiB/s", None, None) == 50 << 20
    assert SECONDS.convert("300ms", None, None) == 0.3
    assert SECONDS.convert(2.0, None, None) == 2
    for kind, what in ((SIZE, "size"), (RATE, "rate"), (SECONDS, "duration")):
        with pytest.raises(click.BadParameter, match=f"'fast' is no {what}; use"):
            kind.convert("fast", None, None)
    with pytest.raises(click.BadParameter, match=r"0us is out of range; use 0\.001"):
        SECONDS.convert("0us", None, None)
