"""Sizes, rates and durations as people write them: one grammar for options, YAML and programs.

::

    64MiB   64 MiB   64m   1.5G   0x4000000   67108864      bytes; all units are powers of 1024
    64MiB/s   1.5G/s   50M                                  bytes a second
    300ms   1.5s   10min   2h   0.3                         seconds
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Final

from qemu_ring.errors import UsageError

__all__ = [
    "DURATION_PATTERN",
    "MOST_BYTES",
    "RATE_PATTERN",
    "SIZE_PATTERN",
    "parse_duration",
    "parse_rate",
    "parse_size",
]

MOST_BYTES: Final = (1 << 63) - 1
"""That QEMU takes of any size."""

_NUMBER: Final = r"[0-9]+(?:\.[0-9]*)?|\.[0-9]+"
_UNIT: Final = r"[KkMmGgTtPpEe](?:[Ii]?[Bb])?|[Bb]"
_BYTES: Final = rf"0[xX][0-9A-Fa-f]+|(?:{_NUMBER})\s*(?:{_UNIT})?"
_SECONDS: Final = {
    "ns": Fraction(1, 1_000_000_000),
    "us": Fraction(1, 1_000_000),
    "\N{MICRO SIGN}s": Fraction(1, 1_000_000),
    "ms": Fraction(1, 1000),
    "s": Fraction(1),
    "min": Fraction(60),
    "m": Fraction(60),
    "h": Fraction(3600),
    "d": Fraction(86400),
}

SIZE_PATTERN: Final = rf"^\s*(?:{_BYTES})\s*$"
"""Of what `parse_size` takes, for JSON Schema."""
RATE_PATTERN: Final = rf"^\s*(?:{_BYTES})\s*(?:/[Ss])?\s*$"
"""Of what `parse_rate` takes, for JSON Schema."""
DURATION_PATTERN: Final = rf"^\s*-?(?:{_NUMBER})\s*(?:{'|'.join(_SECONDS)})?\s*$"
"""Of what `parse_duration` takes, for JSON Schema; numbers such as 1e-3 as well."""

_POWERS: Final = "bkmgtpe"
_MOST_DIGITS: Final = 100
"""Python itself refuses to read numbers of thousands."""
_SHOWN: Final = 40


def parse_size(text: str) -> int:
    """Read a size in bytes, the nearest if it is none exactly.

    Raises:
        UsageError: it is none, more than QEMU takes, or more than nothing and less than a byte.
    """
    return _bytes(text, SIZE_PATTERN, "size", "use bytes, or such as 512M, 64 MiB or 1.5G")


def parse_rate(text: str) -> int:
    """Read a rate in bytes a second, with or without a `/s`.

    Raises:
        UsageError: as in `parse_size`.
    """
    return _bytes(text, RATE_PATTERN, "rate", "use bytes a second, or such as 50M or 1.5GiB/s")


def parse_duration(text: str) -> float:
    """Read a time in seconds; a number without a unit is one.

    Raises:
        UsageError: it is none, or not finite.
    """
    found = re.fullmatch(
        rf"\s*(?P<sign>-?)(?P<number>{_NUMBER})\s*(?P<unit>{'|'.join(_SECONDS)})\s*",
        text,
        re.IGNORECASE,
    )
    try:
        if found is None:
            seconds = float(text)
        elif len(found["number"]) > _MOST_DIGITS:
            seconds = math.inf
        else:
            number = Fraction(f"{found['sign']}{_whole(found['number'])}")
            seconds = float(number * _SECONDS[found["unit"].lower()])
    except ValueError:
        raise UsageError(
            f"{_shown(text)} is no duration", hint="use seconds, or such as 300ms, 1.5s or 10min"
        ) from None
    if not math.isfinite(seconds):
        raise UsageError(f"{_shown(text)} is no finite number of seconds")
    return seconds


def _bytes(text: str, pattern: str, what: str, hint: str) -> int:
    if re.match(pattern, text) is None:
        raise UsageError(f"{_shown(text)} is no {what}", hint=hint)
    plain = text.strip().lower().removesuffix("/s").rstrip()
    if len(plain) > _MOST_DIGITS:
        raise _too_much(text)
    if plain.startswith("0x"):
        exact = Fraction(int(plain, 16))
    else:
        number = plain.rstrip("bikmgtpe ")
        unit = plain[len(number) :].strip()[:1] or "b"
        exact = Fraction(_whole(number)) * 1024 ** _POWERS.index(unit)
    size = round(exact)
    if size > MOST_BYTES:
        raise _too_much(text)
    if exact and not size:
        raise UsageError(f"{_shown(text)} is less than a byte", hint="use a byte or more, or 0")
    return size


def _too_much(text: str) -> UsageError:
    return UsageError(f"{_shown(text)} is too much", hint="use less than 8 EiB")


def _whole(number: str) -> str:
    """A number as Fraction reads it: with digits on both sides of the point."""
    before, _, after = number.partition(".")
    return f"{before or '0'}.{after or '0'}"


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")
