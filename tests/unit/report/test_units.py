from __future__ import annotations

import pytest

from qemu_ring.report import units
from qemu_ring.statistics import Estimate


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "\N{EN DASH}"),
        (0, "0 s"),
        (1.8349, "1.83 s"),
        (0.0421, "42.1 ms"),
        (0.00031, "310 µs"),
        (-0.25, "\N{MINUS SIGN}250 ms"),
        (125.4, "125 s"),
        (725, "12 min 5 s"),
        (0.9999, "1,000 ms"),
    ],
)
def test_seconds(value: float | None, text: str) -> None:
    assert units.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (4096, "4 KiB"),
        (48 << 20, "48 MiB"),
        (5 << 29, "2.50 GiB"),
        (1 << 50, "1,024 TiB"),
    ],
)
def test_size(value: int, text: str) -> None:
    assert units.size(value) == text
    assert units.rate(value) == f"{text}/s"


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("memory_bytes", 1 << 30, "1 GiB"),
        ("max_bandwidth", 500 << 20, "500 MiB/s"),
        ("downtime_limit", 0.3, "300 ms"),
        ("removals.every_seconds", 0.01, "10 ms"),
        ("ring_entries", 65536, "65,536"),
        ("workload.pages_per_second", 20000.0, "20,000"),
        ("patched", True, "yes"),
        ("policy", "quiesce", "quiesce"),
        ("policy", None, "\N{EN DASH}"),
    ],
)
def test_parameter(key: str, value: object, text: str) -> None:
    assert units.parameter(key, value) == text


def test_interval_has_one_unit() -> None:
    assert units.interval(Estimate(1, 0.9, 1.1)) == "0.90 to 1.10 s"
    assert units.interval(Estimate(0.001, -0.002, 0.004)) == "\N{MINUS SIGN}2 to 4 ms"
    assert units.interval(Estimate(1)) == ""
    assert units.interval(Estimate(1, 1 << 20, 3 << 19), units.size_unit) == "1 to 1.50 MiB"


def test_percent() -> None:
    assert [units.percent(x) for x in (0.034, 0.5, -0.081)] == [
        "3.4 %",
        "50 %",
        "\N{MINUS SIGN}8.1 %",
    ]
