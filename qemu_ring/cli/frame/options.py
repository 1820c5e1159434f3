"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import click

from qemu_ring.cli.frame.sizes import SECONDS
from qemu_ring.errors import FieldError
from qemu_ring.qmp import DEFAULT_TIMEOUT, set_answer_timeout

__all__ = [
    "answer_timeout_option",
    "in_options",
    "json_option",
    "json_option_that",
    "option_of",
    "qemu_option",
]

F = TypeVar("F", bound=Callable[..., Any])


def qemu_option(words: str) -> Callable[[F], F]:
    """`--qemu PATH`, with its help."""
    return click.option("--qemu", metavar="PATH", callback=_named, help=words)


def json_option_that(words: str) -> Callable[[F], F]:
    """`--json`, with its help."""
    return click.option("--json", "as_json", is_flag=True, help=words)


json_option = json_option_that("Print one JSON document.")


@contextmanager
def in_options(names: Mapping[str, str]) -> Iterator[None]:
    """Say what is wrong with a field in the words of the option for it.

    Args:
        names: options for fields; for others, an option is the field's last word.

    Raises:
        UsageError: in place of a FieldError.
    """
    try:
        yield
    except FieldError as error:
        raise error.renamed(option_of(error.field, names)) from error


def option_of(field: str, names: Mapping[str, str]) -> str:
    """The option for a field, as `in_options` has it."""
    return names.get(field, f"--{field.rpartition('.')[2].replace('_', '-')}")


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
