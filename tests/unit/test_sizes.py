"""Sizes, rates and durations, by the one grammar that all front ends share."""

from __future__ import annotations

import re
from typing import Any

import click
import pytest
from pydantic import TypeAdapter, ValidationError

from qemu_ring.cli.frame import sizes as options
from qemu_ring.errors import UsageError
from qemu_ring.guestfile import fields
from qemu_ring.sizes import (
    DURATION_PATTERN,
    RATE_PATTERN,
    SIZE_PATTERN,
    parse_duration,
    parse_rate,
    parse_size,
)

SIZES = [
    ("0", 0),
    ("67108864", 64 << 20),
    ("64 MiB", 64 << 20),
    ("64MiB", 64 << 20),
    (" 64 M ", 64 << 20),
    ("64m", 64 << 20),
    ("64mib", 64 << 20),
    ("64MB", 64 << 20),
    ("512B", 512),
    ("512 b", 512),
    ("1.5G", 3 << 29),
    (".5k", 512),
    ("1.k", 1024),
    ("0.3K", 307),
    ("0x40000000", 1 << 30),
    ("0xB", 11),
    ("8388607T", 8388607 << 40),
    ("1P", 1 << 50),
    ("7E", 7 << 60),
]
RATES = [*SIZES, ("50MiB/s", 50 << 20), ("2KB/s", 2048), ("1.5 G /s", 3 << 29), ("9/S", 9)]
DURATIONS = [
    ("0", 0.0),
    ("0.3", 0.3),
    ("1e-3", 0.001),
    (" 5 ", 5.0),
    (".5", 0.5),
    ("-1", -1.0),
    ("300ms", 0.3),
    ("300 ms", 0.3),
    ("300MS", 0.3),
    ("0.5us", 5e-7),
    ("5\N{MICRO SIGN}s", 5e-6),
    ("7ns", 7e-9),
    ("1.5s", 1.5),
    ("-2s", -2.0),
    ("10min", 600.0),
    ("10m", 600.0),
    ("2h", 7200.0),
    ("1d", 86400.0),
]


@pytest.mark.parametrize(("text", "size"), SIZES)
def test_size(text: str, size: int) -> None:
    assert parse_size(text) == size
    assert re.search(SIZE_PATTERN, text)


@pytest.mark.parametrize(("text", "rate"), RATES)
def test_rate(text: str, rate: int) -> None:
    assert parse_rate(text) == rate
    assert re.search(RATE_PATTERN, text)


@pytest.mark.parametrize(("text", "seconds"), DURATIONS)
def test_duration(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds
    assert "e" in text or re.search(DURATION_PATTERN, text, re.IGNORECASE)


@pytest.mark.parametrize(
    "text", ["", " ", "M", "B", "fast", "64 MX", "50Q", "-1", "1e9", "1,5G", "1.5.G", "0x", "5Gbit"]
)
def test_what_is_none(text: str) -> None:
    for parse, what in ((parse_size, "size"), (parse_rate, "rate")):
        with pytest.raises(UsageError, match=f"is no {what}; use bytes"):
            parse(text)


def test_size_has_no_time() -> None:
    with pytest.raises(UsageError, match="is no size"):
        parse_size("50M/s")


@pytest.mark.parametrize("text", ["", "s", "soon", "5 parsecs", "1e3ms", "1.5.s", "1,5s"])
def test_no_duration(text: str) -> None:
    with pytest.raises(UsageError, match="is no duration; use seconds, or such as 300ms"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e400", "9" * 500, "9" * 5000 + "ms"])
def test_no_finite_duration(text: str) -> None:
    with pytest.raises(UsageError, match="no finite number of seconds") as error:
        parse_duration(text)
    assert len(str(error.value)) < 120


@pytest.mark.parametrize("text", ["8388608T", "8E", "9" * 5000, "9" * 30 + "G", "0x" + "f" * 16])
def test_more_than_qemu_takes(text: str) -> None:
    with pytest.raises(UsageError, match="is too much; use less than 8 EiB") as error:
        parse_size(text)
    assert len(str(error.value)) < 120


def test_little_is_not_nothing() -> None:
    """Where 0 has a meaning of its own, no limit say, nothing else may become it."""
    with pytest.raises(UsageError, match=r"'0\.0001K' is less than a byte"):
        parse_rate("0.0001K")


def _option(kind: click.ParamType[Any], text: str) -> object:
    try:
        return kind.convert(text, None, None)
    except click.BadParameter as error:
        return error.message


def _key(kind: Any, text: str) -> object:
    try:
        return TypeAdapter(kind).validate_python(text)
    except ValidationError as error:
        return error.errors()[0]["msg"]


@pytest.mark.parametrize(
    "text", [text for text, _ in SIZES + RATES] + ["fast", "8E", "50M/s", "0.1B", "1e3"]
)
def test_same_on_the_command_line_and_in_yaml(text: str) -> None:
    assert _option(options.SIZE, text) == _key(fields.Size, text)
    assert _option(options.RATE, text) == _key(fields.Rate, text)


@pytest.mark.parametrize("text", [text for text, _ in DURATIONS] + ["soon", "nan", "1e400"])
def test_same_durations_on_the_command_line_and_in_yaml(text: str) -> None:
    assert _option(options.Duration(), text) == _key(fields.Seconds, text)
