"""What all commands share in printing: JSON to standard output, the rest to standard error."""

from __future__ import annotations

import json

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

__all__ = ["notes", "print_json", "progress_bar"]

notes = Console(stderr=True, highlight=False)
"""For progress and remarks: standard error."""


def print_json(document: object) -> None:
    """Print the one JSON document of a command to standard output."""
    click.echo(json.dumps(document, indent=2))


def progress_bar(*columns: ProgressColumn) -> Progress:
    """A bar among the notes, gone when done; nothing where they go to no terminal.

    Args:
        columns: between the bar and the time elapsed.
    """
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        *columns,
        TimeElapsedColumn(),
        console=notes,
        transient=True,
        disable=not notes.is_terminal,
    )
