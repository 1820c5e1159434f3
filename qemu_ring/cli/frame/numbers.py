"""Numbers on the command line: finite, in range, and refused in our own words."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    _Type = click.ParamType[float]
else:
    _Type = click.ParamType  # of no arguments in older versions

__all__ = ["COUNT", "Number", "Whole"]


class Number(_Type):
    """A finite number in a range.

    Args:
        least: the smallest.
        most: the largest.
    """

    name = "number"

    def __init__(self, least: float = -math.inf, most: float = math.inf) -> None:
        self.least, self.most = least, most

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """As click wants it; a default is a number already."""
        number = self.read(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is no finite number.", param, ctx)
        if not self.least <= number <= self.most:
            self.fail(f"{value} is out of range; use {self._range()}.", param, ctx)
        return number

    def read(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number, whatever its range."""
        try:
            return float(str(value))
        except ValueError:
            self.fail(f"{value!r} is no number.", param, ctx)

    def _range(self) -> str:
        if math.isinf(self.most):
            return f"{self.least:.10g} or more"
        if math.isinf(self.least):
            return f"{self.most:.10g} or less"
        return f"{self.least:.10g} to {self.most:.10g}"


class Whole(Number):
    """A whole number in a range."""

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """As click wants it."""
        try:
            number = int(str(value))
        except ValueError:
            self.fail(f"{value!r} is not a valid integer.", param, ctx)
        if not self.least <= number <= self.most:
            self.fail(f"{value} is out of range; use {self._range()}.", param, ctx)
        return number


COUNT = Whole(1, 1_000_000_000)
"""How many of something."""
