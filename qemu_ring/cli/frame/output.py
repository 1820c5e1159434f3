"""What all commands share in printing: JSON to standard output, the rest to standard error."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column
from rich.text import Text

__all__ = ["Reminder", "notes", "print_json", "print_stale_pages", "progress_bar"]

_REMIND_SECONDS = 15.0

notes = Console(stderr=True, highlight=False)
"""For progress and remarks: standard error."""


def print_json(document: object) -> None:
    """Print the one JSON document of a command to standard output.

    Raises:
        ValueError: it holds a number that is none or infinite, which JSON does not have.
    """
    click.echo(json.dumps(document, indent=2, allow_nan=False))


def print_stale_pages(console: Console, lines: Sequence[str]) -> None:
    """List pages that differ, a line each, below an empty one; nothing if there are none."""
    if not lines:
        return
    console.print()
    console.print("Stale pages (digests of the content):")
    for line in lines:
        console.print(Text(f"  {line}"), soft_wrap=True)


def progress_bar(*columns: ProgressColumn) -> Progress:
    """A bar among the notes, gone when done; nothing where they go to no terminal.

    Args:
        columns: between the bar and the time elapsed.
    """
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", table_column=Column(no_wrap=True, overflow="ellipsis")),
        BarColumn(bar_width=10),
        *columns,
        TimeElapsedColumn(table_column=Column(no_wrap=True, min_width=7)),
        console=notes,
        transient=True,
        disable=not notes.is_terminal,
    )


class Reminder:
    """Tells now and then how it goes, where there is no bar because notes go to no terminal."""

    def __init__(self, every: float = _REMIND_SECONDS) -> None:
        self._every = every
        self._last = time.monotonic()

    def tell(self, message: str) -> None:
        """Print a line, unless the last one is not long ago."""
        now = time.monotonic()
        if not notes.is_terminal and now - self._last >= self._every:
            self._last = now
            notes.print(Text(f"qemu-ring: {message}"), soft_wrap=True)
