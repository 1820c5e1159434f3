"""How results of experiments are printed."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from qemu_ring.cli.frame.output import notes
from qemu_ring.experiment import Results, read_results

__all__ = ["console", "number", "read", "statuses_words", "table_of"]

_WIDTH = 200


def console(*, markup: bool = True) -> Console:
    """Standard output; wide where it is no terminal, so that lines stay whole.

    Args:
        markup: whether what is printed may hold rich's markup. Names of cells, labels and errors
            are anybody's words: they are no markup, and have to be escaped, or printed without.
    """
    width = None if sys.stdout.isatty() else _WIDTH
    return Console(highlight=False, markup=markup, emoji=markup, width=width)


def read(directory: Path) -> Results:
    """Read results; what of them is damaged is told on standard error.

    Raises:
        StoreError: they cannot be read.
    """
    results = read_results(directory)
    for line in results.damaged:
        notes.print(line, soft_wrap=True, markup=False)
    if results.damaged:
        notes.print(
            f"`qemu-ring experiment resume {directory}` makes the runs again that have no record",
            soft_wrap=True,
            markup=False,
        )
    return results


def table_of(*headings: str | tuple[str, ...]) -> Table:
    """A plain table; headings of numbers stand together in a tuple."""
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        if isinstance(heading, tuple):
            for one in heading:
                table.add_column(one, justify="right")
        else:
            table.add_column(heading)
    return table


def statuses_words(statuses: Mapping[str, int], warm_up: Mapping[str, int] | None = None) -> str:
    """How many runs have each status; those to warm up only if not all of them are ok."""
    said = ", ".join(f"{count} {status}" for status, count in statuses.items())
    if warm_up and set(warm_up) != {"ok"}:
        said += f"{'; ' if said else ''}to warm up: {statuses_words(warm_up)}"
    return said


def number(value: float | None, factor: float, form: str) -> str:
    """A number in other units; empty where there is none."""
    return "" if value is None else format(value * factor, form)
