"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from qemu_ring.cli.frame.sizes import SECONDS
from qemu_ring.qmp import DEFAULT_TIMEOUT, set_answer_timeout

__all__ = ["answer_timeout_option", "qemu_option"]

F = TypeVar("F", bound=Callable[..., Any])


def qemu_option(words: str) -> Callable[[F], F]:
    """`--qemu PATH`, with its help."""
    return click.option("--qemu", metavar="PATH", callback=_named, help=words)


def _set_answer_timeout(_: click.Context, __: click.Parameter, seconds: float) -> None:
    set_answer_timeout(seconds)


answer_timeout_option = click.option(
    "--answer-timeout",
    type=SECONDS,
    default=DEFAULT_TIMEOUT,
    show_default=True,
    envvar="QEMU_RING_ANSWER_TIMEOUT",
    show_envvar=True,
    expose_value=False,
    callback=_set_answer_timeout,
    help="That QEMU may take to answer one command.",
)


def _named(_: click.Context, option: click.Parameter, path: str | None) -> str | None:
    if path == "":
        raise click.BadParameter("it is empty; name a qemu-system-x86_64 binary", param=option)
    return path
