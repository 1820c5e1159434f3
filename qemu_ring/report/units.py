"""Numbers as people read them: three significant digits and a unit."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from qemu_ring.statistics import Estimate

__all__ = [
    "NONE",
    "Unit",
    "count",
    "interval",
    "many",
    "moment",
    "parameter",
    "percent",
    "rate",
    "rate_unit",
    "seconds",
    "size",
    "size_unit",
    "time_unit",
]


NONE: Final = "\N{EN DASH}"
_MINUS: Final = "\N{MINUS SIGN}"


@dataclass(frozen=True, slots=True)
class Unit:
    """What a plot's axis counts in.

    Args:
        symbol: such as MiB/s.
        factor: one of it, in bytes, seconds or bytes a second.
    """

    symbol: str
    factor: float

    def of(self, value: float) -> float:
        """Convert, keeping five significant digits."""
        return float(f"{value / self.factor:.5g}")


_TIMES = [Unit("s", 1.0), Unit("ms", 1e-3), Unit("µs", 1e-6)]
_SIZES = [Unit(symbol, 1024.0**n) for n, symbol in enumerate(("B", "KiB", "MiB", "GiB", "TiB"))]
_RATES = [Unit(f"{unit.symbol}/s", unit.factor) for unit in _SIZES]


def time_unit(largest: float) -> Unit:
    """Choose the unit of times up to `largest` seconds."""
    return next((unit for unit in _TIMES if abs(largest) >= unit.factor), _TIMES[-1])


def size_unit(largest: float) -> Unit:
    """Choose the unit of sizes up to `largest` bytes."""
    return next((unit for unit in reversed(_SIZES) if abs(largest) >= unit.factor), _SIZES[0])


def rate_unit(largest: float) -> Unit:
    """Choose the unit of rates up to `largest` bytes a second."""
    return next((unit for unit in reversed(_RATES) if abs(largest) >= unit.factor), _RATES[0])


def seconds(value: float | None) -> str:
    """Write a time."""
    if value is None:
        return NONE
    if abs(value) >= 600:
        minutes, rest = divmod(round(value), 60)
        return f"{minutes:,} min {rest} s"
    return _in(value, time_unit(value)) if value else "0 s"


def size(value: float | None) -> str:
    """Write a size."""
    return NONE if value is None else _in(value, size_unit(value))


def rate(value: float | None) -> str:
    """Write bytes a second."""
    return NONE if value is None else _in(value, rate_unit(value))


def count(value: float | None) -> str:
    """Write a number of things."""
    if value is None:
        return NONE
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.4g}"


def many(number: int, one: str, more: str | None = None) -> str:
    """Write a number of things with their name."""
    return f"{number:,} {one if number == 1 else more or one + 's'}"


def percent(fraction: float) -> str:
    """Write a share or a change; below 10 % with one decimal."""
    return f"{fraction * 100:.{1 if abs(fraction) < 0.1 else 0}f} %".replace("-", _MINUS)


def interval(estimate: Estimate, unit_of: Callable[[float], Unit] = time_unit) -> str:
    """Write both ends of an interval, in one unit; empty where there is none."""
    if estimate.low is None or estimate.high is None:
        return ""
    unit = unit_of(max(abs(estimate.low), abs(estimate.high)))
    kind = "range " if estimate.is_range else ""
    return f"{kind}{_digits(estimate.low / unit.factor)} to {_in(estimate.high, unit)}"


def moment(epoch: float) -> str:
    """Write a point in time, UTC."""
    when = datetime.datetime.fromtimestamp(epoch, tz=datetime.timezone.utc)
    return when.strftime("%Y-%m-%d %H:%M UTC")


def parameter(key: str, value: object) -> str:
    """Write a parameter's value by what its name says that it is."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return NONE
    if isinstance(value, int | float):
        last = key.rpartition(".")[2]
        if last.endswith("bytes"):
            return size(value)
        if last.endswith("seconds") or last == "downtime_limit":
            return seconds(value)
        if last.endswith("bandwidth"):
            return rate(value)
        return count(value)
    return str(value)


def _in(value: float, unit: Unit) -> str:
    return f"{_digits(value / unit.factor)} {unit.symbol}"


def _digits(value: float) -> str:
    """Write at least three significant digits without an exponent, whole numbers as they are."""
    if value < 0:
        return f"{_MINUS}{_digits(-value)}"
    if value == 0 or value >= 999.5:
        return f"{value:,.0f}"
    if float(value).is_integer():
        return f"{value:.0f}"
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{decimals}f}"
