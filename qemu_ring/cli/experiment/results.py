"""`qemu-ring experiment`: looking at results, comparing and handing them on."""

from __future__ import annotations

import os
import statistics
from collections import Counter
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click

from qemu_ring.cli.experiment.compare import compare_command
from qemu_ring.cli.experiment.printing import console, number, read, statuses_words, table_of
from qemu_ring.cli.frame.options import json_option
from qemu_ring.cli.frame.output import print_json
from qemu_ring.errors import ExitStatus, UsageError
from qemu_ring.experiment import Cell, Results, RunRecord, StoreError, export
from qemu_ring.experiment.results.record import MigrationRecord

__all__ = [
    "compare_command",
    "console",
    "export_command",
    "list_command",
    "print_summary",
    "report_command",
    "show_command",
    "summary",
]

_DIRECTORY = click.Path(file_okay=False, path_type=Path)
_RESULTS = Path("results")


@click.command("list")
@click.argument("directory", metavar="[DIR]", type=_DIRECTORY, default=_RESULTS)
@json_option
def list_command(directory: Path, as_json: bool) -> int:
    """List the results below a directory, by default results/."""
    if directory != _RESULTS and not directory.is_dir():
        raise UsageError(f"{directory} is no directory", hint="name one with results below it")
    found = []
    places = [Path(place) for place, _, files in os.walk(directory) if "experiment.json" in files]
    for place in sorted(places):
        try:
            found.append(read(place))
        except StoreError as error:
            click.echo(f"qemu-ring: {error}", err=True)
    if as_json:
        print_json(
            {
                "schema": {"name": "qemu-ring.experiment-list", "version": 1},
                "results": [_line(one) for one in found],
            }
        )
        return ExitStatus.GOOD
    table = table_of("directory", "experiment", "begun", ("done", "of"), "statuses")
    for one in found:
        line = _line(one)
        begun = datetime.fromtimestamp(line["created"], timezone.utc).astimezone()
        table.add_row(
            line["directory"],
            line["name"],
            f"{begun:%Y-%m-%d %H:%M}",
            str(line["done"]),
            str(line["runs"]),
            statuses_words(line["statuses"]),
        )
    console(markup=False).print(table if found else f"no results below {directory}")
    return ExitStatus.GOOD


@click.command("show")
@click.argument("directory", metavar="DIR", type=_DIRECTORY)
@click.option("--cell", metavar="ID", help="Every run of one cell, by the beginning of its id.")
@json_option
def show_command(directory: Path, cell: str | None, as_json: bool) -> int:
    """Show what an experiment found: a line for each cell, or each run of one."""
    results = read(directory)
    if cell is None:
        if as_json:
            print_json(summary(results))
        else:
            print_summary(results)
        return ExitStatus.GOOD
    chosen = [one for one in results.cells.values() if one.id.startswith(cell)]
    if len(chosen) != 1:
        raise UsageError(
            f"{len(chosen)} cells have an id that begins with {cell}",
            hint="`qemu-ring experiment show DIR` lists them",
        )
    records = results.by_cell[chosen[0].id]
    if as_json:
        schema = {"schema": {"name": "qemu-ring.experiment-cell", "version": 1}}
        print_json(schema | chosen[0].as_dict() | {"runs": [one.as_dict() for one in records]})
    else:
        _print_cell(chosen[0], records)
    return ExitStatus.GOOD


@click.command("report")
@click.argument("a", metavar="DIR", type=_DIRECTORY)
@click.argument("b", metavar="[DIR]", type=_DIRECTORY, required=False)
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The HTML file; default: report.html in the (first) directory.",
)
@click.option(
    "--plots",
    type=_DIRECTORY,
    metavar="DIR",
    help="For each plot as PNG and SVG; default: beside the HTML file, as report_plots.",
)
def report_command(a: Path, b: Path | None, output: Path | None, plots: Path | None) -> int:
    """Write an HTML report of an experiment, or of two and how they compare."""
    from qemu_ring.report import write_report

    directories = [a] if b is None else [a, b]
    output = output or a / "report.html"
    write_report(directories, output, plots=plots, read=read, apart=True)
    click.echo(str(output))
    return ExitStatus.GOOD


@click.command("export")
@click.argument("directory", metavar="DIR", type=_DIRECTORY)
@click.option(
    "--output", "-o", type=_DIRECTORY, metavar="DIR", help="Where to; default: into the results."
)
@click.option(
    "--format",
    "kind",
    type=click.Choice(["csv", "parquet"]),
    default="csv",
    show_default=True,
    help="Of the files.",
)
def export_command(directory: Path, output: Path | None, kind: str) -> int:
    """Write runs, iterations, samples and removals as tables, a file each."""
    for path in export(read(directory), output or directory, parquet=kind == "parquet"):
        click.echo(str(path))
    return ExitStatus.GOOD


def summary(results: Results) -> dict[str, Any]:
    """What has become of each cell, for JSON."""
    return {
        "schema": {"name": "qemu-ring.experiment-summary", "version": 1},
        **_line(results),
        "cells": [_cell(results, cell) for cell in results.cells.values()],
    }


def print_summary(results: Results) -> None:
    """The same in words.

    Medians are of the runs that completed, without those to warm up; stale pages of all runs.
    """
    table = table_of(
        "cell", "id", ("runs", "seconds", "downtime ms", "MiB sent", "stale"), "statuses"
    )
    for cell in results.cells.values():
        found = _cell(results, cell)
        table.add_row(
            cell.name,
            cell.id,
            str(found["runs"]),
            number(found["seconds"], 1, ".3f"),
            number(found["downtime_seconds"], 1e3, ",.1f"),
            number(found["bytes"], 1 / (1 << 20), ",.1f"),
            f"{found['stale_pages']:,}",
            statuses_words(found["statuses"], found["warm_up_statuses"]),
        )
    console(markup=False).print(table)


def _line(results: Results) -> dict[str, Any]:
    return {
        "directory": str(results.directory),
        "name": results.name,
        "created": results.experiment.created,
        "runs": len(results.runs),
        "done": len(results.records),
        "damaged": len(results.damaged),
        "statuses": _statuses(results.records),
    }


def _statuses(records: Iterable[RunRecord]) -> dict[str, int]:
    return dict(Counter(one.status.value for one in records))


def _cell(results: Results, cell: Cell) -> dict[str, Any]:
    every = results.by_cell[cell.id]
    records = [one for one in every if not one.warm_up]
    completed = [one.migration for one in records if one.is_measured]

    def median(key: str) -> float | None:
        known = [value for one in completed if (value := getattr(one, key)) is not None]
        return statistics.median(known) if known else None

    return {
        "id": cell.id,
        "name": cell.name,
        "runs": len(records),
        "statuses": _statuses(records),
        "warm_up_statuses": _statuses(one for one in every if one.warm_up),
        **{key: median(key) for key in ("seconds", "downtime_seconds", "bytes")},
        "stale_pages": sum(one.stale_pages or 0 for one in every),
    }


def _print_cell(cell: Cell, records: Iterable[RunRecord]) -> None:
    out = console(markup=False)
    out.print(f"{cell.name} ({cell.id})")
    for key, value in cell.parameters.items():
        if value is not None:
            out.print(f"  {key}: {value}", soft_wrap=True)
    table = table_of(("run", "seconds", "downtime ms", "MiB sent", "passes", "stale"), "status")
    for one in records:
        migration = one.migration or MigrationRecord()
        table.add_row(
            f"{one.repeat}{' (warm-up)' if one.warm_up else ''}",
            number(migration.seconds, 1, ".3f"),
            number(migration.downtime_seconds, 1e3, ",.1f"),
            number(migration.bytes, 1 / (1 << 20), ",.1f"),
            str(len(migration.iterations)),
            number(one.stale_pages, 1, ",.0f"),
            ": ".join(filter(None, (one.status.value, one.error))),
        )
    out.print(table)
