"""Sizes, rates and durations on the command line."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from qemu_ring.cli.frame.numbers import Number
from qemu_ring.errors import UsageError
from qemu_ring.sizes import parse_duration, parse_rate, parse_size

if TYPE_CHECKING:
    _Type = click.ParamType[int]
else:
    _Type = click.ParamType  # of no arguments in older versions

__all__ = ["RATE", "SECONDS", "SIZE", "Bytes", "Duration", "mib_per_second"]


class Bytes(_Type):
    """An amount of bytes.

    Args:
        name: what it is an amount of, in lower case; shown in upper case by `--help`.
        parse: its reader.
    """

    def __init__(self, name: str, parse: Callable[[str], int]) -> None:
        self.name = name
        self._parse = parse

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """As click wants it."""
        try:
            return self._parse(str(value))
        except UsageError as error:
            self.fail(str(error), param, ctx)


class Duration(Number):
    """A time in a range, in seconds where no unit is given.

    Args:
        least: the shortest, in seconds.
        most: the longest, in seconds.
    """

    name = "duration"

    def read(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The seconds, whatever their range; a default is a number already."""
        try:
            return parse_duration(str(value))
        except UsageError as error:
            self.fail(str(error), param, ctx)


SIZE = Bytes("size", parse_size)
RATE = Bytes("rate", parse_rate)
SECONDS = Duration(0.001, 1e8)
"""A time that is waited for: three years are for ever."""


def mib_per_second(bytes_per_second: int) -> str:
    """A rate in words."""
    return f"{bytes_per_second >> 20:,} MiB/s"
