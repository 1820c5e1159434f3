"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

__all__ = ["qemu_option"]

F = TypeVar("F", bound=Callable[..., Any])


def qemu_option(words: str) -> Callable[[F], F]:
    """`--qemu PATH`, with its help."""
    return click.option("--qemu", metavar="PATH", callback=_named, help=words)


def _named(_: click.Context, option: click.Parameter, path: str | None) -> str | None:
    if path == "":
        raise click.BadParameter("it is empty; name a qemu-system-x86_64 binary", param=option)
    return path
