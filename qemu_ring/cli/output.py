"""What all commands share in printing: JSON to standard output, the rest to standard error."""

from __future__ import annotations

import json

import click
from rich.console import Console

__all__ = ["notes", "print_json"]

notes = Console(stderr=True, highlight=False)
"""For progress and remarks: standard error."""


def print_json(document: object) -> None:
    """Print the one JSON document of a command to standard output."""
    click.echo(json.dumps(document, indent=2))
