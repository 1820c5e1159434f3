"""Numbers of a plan as QEMU takes them: those that it would round to another meaning are refused.

QEMU reckons with milliseconds, and limits what it sends in each tenth of a second. A small
number becomes 0 there, and 0 is no limit at all.
"""

from __future__ import annotations

from typing import Final

from qemu_ring.migration.errors import PlanError

__all__ = [
    "milliseconds",
    "require_at_least",
    "require_bandwidth",
    "require_between",
    "require_downtime",
    "require_power_of_two",
    "require_switchover_bandwidth",
    "require_whole_mib",
]

_MOST: Final = (1 << 63) - 1
_LEAST_BANDWIDTH: Final = 10
"""Bytes a second, of which QEMU allows a tenth in each tenth of a second."""
_LEAST_SWITCHOVER: Final = 1000
"""Bytes a second, of which QEMU reckons with a thousandth for each millisecond."""
_MOST_DOWNTIME: Final = 2000.0
_MIB: Final = 1 << 20
_PAGE: Final = 4096


def require_at_least(field: str, value: float | None, least: int) -> None:
    """Check a number; None is not set.

    Raises:
        PlanError: it is less.
    """
    if value is not None and value < least:
        raise PlanError(field, f"{value} is less than {least}")


def require_between(field: str, value: float | None, least: float, most: float) -> None:
    """Check a number; None is not set.

    Raises:
        PlanError: it is out of range.
    """
    if value is not None and not least <= value <= most:
        raise PlanError(field, f"{value:g} is out of range", hint=f"use {least:g} to {most:g}")


def require_bandwidth(field: str, value: int | None) -> None:
    """Check a limit in bytes a second; 0 is none.

    Raises:
        PlanError: it is negative, or so little that QEMU would take it for no limit.
    """
    require_between(field, value, 0, _MOST)
    if value is not None and 0 < value < _LEAST_BANDWIDTH:
        raise PlanError(
            field,
            f"{value} would be no limit: QEMU counts by tenths of a second",
            hint=f"use {_LEAST_BANDWIDTH} bytes a second or more, or 0 for no limit",
        )


def require_switchover_bandwidth(field: str, value: int | None) -> None:
    """Check what QEMU is to reckon with, in bytes a second; 0 is what it measures itself.

    Raises:
        PlanError: it is negative, or so little that QEMU would reckon with nothing, and
            switch over however long the guest then stands still.
    """
    require_between(field, value, 0, _MOST)
    if value is not None and 0 < value < _LEAST_SWITCHOVER:
        raise PlanError(
            field,
            f"{value} would be nothing: QEMU reckons by milliseconds",
            hint=f"use {_LEAST_SWITCHOVER} bytes a second or more, or 0 for what it measures",
        )


def require_downtime(field: str, seconds: float | None) -> None:
    """Check how long the guest may stand still, in seconds.

    Raises:
        PlanError: it is out of range, or less than a millisecond. With 0 QEMU switches over
            after its first pass, however long the guest then stands still.
    """
    require_between(field, seconds, 0, _MOST_DOWNTIME)
    if seconds is not None and seconds < 0.001:
        raise PlanError(
            field,
            f"{seconds:g} s would be no limit: QEMU counts milliseconds, "
            "and with 0 it switches over after the first pass, whatever is left",
            hint="use 0.001 or more",
        )


def require_power_of_two(field: str, value: int) -> None:
    """Check a cache's size in bytes.

    Raises:
        PlanError: it is no power of two, or less than a page.
    """
    if value < _PAGE or value & (value - 1):
        raise PlanError(field, f"{value} is no power of two from 4K on", hint="use 64M, say")


def require_whole_mib(field: str, value: int) -> None:
    """Check a rate in bytes a second.

    Raises:
        PlanError: it is not in whole MiB a second, or none.
    """
    if value < _MIB or value % _MIB:
        raise PlanError(
            field, f"{value} is not in whole MiB a second", hint="use 1M or more, as 50M"
        )


def milliseconds(seconds: float) -> int:
    """As QEMU counts."""
    return round(seconds * 1000)
