"""Sizes on the command line."""

from __future__ import annotations

from typing import Final

import click

__all__ = ["parse_size"]

_UNITS: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_MOST: Final = (1 << 63) - 1
"""That QEMU takes of any size."""


def parse_size(_: click.Context, option: click.Parameter, text: str | None) -> int | None:
    """Bytes, with a suffix K, M, G or T for powers of 1024; an option's callback."""
    if text is None:
        return None
    number, unit = (text, "") if text[-1:].isdecimal() else (text[:-1], text[-1:].lower())
    if unit not in _UNITS or not number.isdecimal():
        raise click.BadParameter(f"{text!r} is no size such as 1048576, 512M or 2G", param=option)
    if len(number) > 20 or int(number) * _UNITS[unit] > _MOST:
        raise click.BadParameter(f"{text[:40]} is too much; use less than 8388608T", param=option)
    return int(number) * _UNITS[unit]
