"""`qemu-ring experiment`: looking at results, comparing and handing them on."""

from __future__ import annotations

import os
import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from qemu_ring.cli.output import print_json
from qemu_ring.errors import ExitStatus, UsageError
from qemu_ring.experiment import (
    Cell,
    Criteria,
    Results,
    ResultsComparison,
    StoreError,
    compare_results,
    export,
    read_results,
)
from qemu_ring.experiment.compare import METRICS, Verdict

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
_COLOURS = {Verdict.WORSE: "bold red", Verdict.BETTER: "green", Verdict.TOO_FEW: "yellow"}
_WIDTH = 200
_RESULTS = Path("results")
_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


@click.command("list")
@click.argument("directory", metavar="[DIR]", type=_DIRECTORY, default=_RESULTS)
@_json_option
def list_command(directory: Path, as_json: bool) -> int:
    """List the results below a directory, by default results/."""
    if directory != _RESULTS and not directory.is_dir():
        raise UsageError(f"{directory} is no directory", hint="name one with results below it")
    found = []
    places = [Path(place) for place, _, files in os.walk(directory) if "experiment.json" in files]
    for place in sorted(places):
        try:
            found.append(read_results(place))
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
    table = _table("directory", "experiment", "begun", ("done", "of"), "statuses")
    for one in found:
        line = _line(one)
        begun = datetime.fromtimestamp(line["created"], timezone.utc).astimezone()
        table.add_row(
            line["directory"],
            line["name"],
            f"{begun:%Y-%m-%d %H:%M}",
            str(line["done"]),
            str(line["runs"]),
            _words(line["statuses"]),
        )
    console().print(table if found else f"no results below {directory}")
    return ExitStatus.GOOD


@click.command("show")
@click.argument("directory", metavar="DIR", type=_DIRECTORY)
@click.option("--cell", metavar="ID", help="Every run of one cell, by the beginning of its id.")
@_json_option
def show_command(directory: Path, cell: str | None, as_json: bool) -> int:
    """Show what an experiment found: a line for each cell, or each run of one."""
    results = read_results(directory)
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
    records = [one for one in results.records if one["cell"] == chosen[0].id]
    if as_json:
        schema = {"schema": {"name": "qemu-ring.experiment-cell", "version": 1}}
        print_json(schema | chosen[0].as_dict() | {"runs": records})
    else:
        _print_cell(chosen[0], records)
    return ExitStatus.GOOD


@click.command("compare")
@click.argument("a", metavar="A", type=_DIRECTORY)
@click.argument("b", metavar="[B]", type=_DIRECTORY, required=False)
@click.option("--a", "where_a", metavar="KEY=VALUE", multiple=True, help="Only these cells of A.")
@click.option("--b", "where_b", metavar="KEY=VALUE", multiple=True, help="Only these cells of B.")
@click.option(
    "--metric",
    "metrics",
    type=click.Choice(list(METRICS)),
    multiple=True,
    help="What to compare; default: seconds, downtime_seconds, bytes.",
)
@click.option("--alpha", type=float, default=0.05, show_default=True, help="False discovery rate.")
@click.option(
    "--threshold",
    type=float,
    default=0.05,
    show_default=True,
    help="Relative change of a median that matters.",
)
@click.option("--confidence", type=float, default=0.95, show_default=True, help="Of intervals.")
@_json_option
def compare_command(
    a: Path,
    b: Path | None,
    where_a: tuple[str, ...],
    where_b: tuple[str, ...],
    metrics: tuple[str, ...],
    alpha: float,
    threshold: float,
    confidence: float,
    as_json: bool,
) -> int:
    """Compare the results B with A, or two kinds of cells of A.

    Exits with 1 if B is worse in anything, and with 4 if no difference could have been found.
    """
    if b is None and not (where_a and where_b):
        raise UsageError("name B, or choose cells of A with --a and --b", hint="see --help")
    found = compare_results(
        read_results(a),
        read_results(b or a),
        Criteria(
            metrics=metrics or Criteria().metrics,
            alpha=alpha,
            threshold=threshold,
            confidence=confidence,
        ),
        where_a=_where(where_a),
        where_b=_where(where_b),
    )
    if as_json:
        schema = {"schema": {"name": "qemu-ring.experiment-comparison", "version": 1}}
        print_json(schema | found.as_dict())
    else:
        _print_comparison(found)
    if found.worse:
        return ExitStatus.BAD
    found.require_decided()
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
    for directory in directories:
        read_results(directory)  # one error for all that are none
    output = output or a / "report.html"
    write_report(directories, output, plots=plots)
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
    for path in export(directory, output or directory, parquet=kind == "parquet"):
        click.echo(str(path))
    return ExitStatus.GOOD


def console() -> Console:
    """Standard output; wide where it is no terminal, so that lines stay whole."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else _WIDTH)


def summary(results: Results) -> dict[str, Any]:
    """What has become of each cell, for JSON."""
    return {
        "schema": {"name": "qemu-ring.experiment-summary", "version": 1},
        **_line(results),
        "cells": [_cell(results, cell) for cell in results.cells.values()],
    }


def print_summary(results: Results) -> None:
    """The same in words; medians are of the runs that completed, without those to warm up."""
    table = _table(
        "cell", "id", ("runs", "seconds", "downtime ms", "MiB sent", "stale"), "statuses"
    )
    for cell in results.cells.values():
        found = _cell(results, cell)
        table.add_row(
            cell.name,
            cell.id,
            str(found["runs"]),
            _number(found["seconds"], 1, ".3f"),
            _number(found["downtime_seconds"], 1e3, ",.1f"),
            _number(found["bytes"], 1 / (1 << 20), ",.1f"),
            f"{found['stale_pages']:,}",
            _words(found["statuses"]),
        )
    console().print(table)


def _line(results: Results) -> dict[str, Any]:
    return {
        "directory": str(results.directory),
        "name": results.name,
        "created": results.experiment["created"],
        "runs": len(results.runs),
        "done": len(results.records),
        "statuses": dict(Counter(one["status"] for one in results.records)),
    }


def _cell(results: Results, cell: Cell) -> dict[str, Any]:
    records = results.measured(cell.id)
    completed = [one["migration"] for one in records if one["status"] in ("ok", "stale")]

    def median(key: str) -> float | None:
        known = [one[key] for one in completed if one and one[key] is not None]
        return statistics.median(known) if known else None

    return {
        "id": cell.id,
        "name": cell.name,
        "runs": len(records),
        "statuses": dict(Counter(one["status"] for one in records)),
        **{key: median(key) for key in ("seconds", "downtime_seconds", "bytes")},
        "stale_pages": sum(one["stale_pages"] or 0 for one in records),
    }


def _print_cell(cell: Cell, records: Iterable[Mapping[str, Any]]) -> None:
    out = console()
    out.print(f"{cell.name} ({cell.id})")
    for key, value in cell.parameters.items():
        if value is not None:
            out.print(f"  {key}: {value}")
    table = _table(("run", "seconds", "downtime ms", "MiB sent", "passes", "stale"), "status")
    for one in records:
        migration = one["migration"] or {}
        table.add_row(
            f"{one['repeat']}{' (warm-up)' if one['warm_up'] else ''}",
            _number(migration.get("seconds"), 1, ".3f"),
            _number(migration.get("downtime_seconds"), 1e3, ",.1f"),
            _number(migration.get("bytes"), 1 / (1 << 20), ",.1f"),
            str(len(migration.get("iterations", ()))),
            _number(one["stale_pages"], 1, ",.0f"),
            ": ".join(filter(None, (one["status"], one["error"]))),
        )
    out.print(table)


def _print_comparison(found: ResultsComparison) -> None:
    out = console()
    table = _table("", ("runs", "A", "B", "change", "interval", "q"), "")
    for cell in found.cells:
        table.add_row(f"[bold]{escape(cell.name)}[/]")
        for one in cell.differences:
            interval = "" if one.interval is None else "{:+.1%} to {:+.1%}".format(*one.interval)
            colour = _COLOURS.get(one.verdict, "")
            verdict = str(one.verdict).replace("-", " ")
            table.add_row(
                f"  {METRICS[one.metric]}",
                f"{one.runs[0]}, {one.runs[1]}",
                *(_value(one.metric, median) for median in one.medians),
                "" if one.change is None else f"{one.change:+.1%}",
                interval,
                f"{one.q:.3g}",
                f"[{colour}]{verdict}[/]" if colour else verdict,
            )
    out.print(table)
    for cell in found.cells:
        for regression in cell.regressions:
            out.print(f"[bold red]{cell.name}: {regression}[/]", soft_wrap=True)
    for key, (a, b) in found.unlike.items():
        out.print(f"A and B differ in {key}: {a}, {b}", soft_wrap=True)
    for side, names in (("A", found.only_a), ("B", found.only_b)):
        for name in names:
            out.print(f"only in {side}: {name}", soft_wrap=True)


def _value(metric: str, value: float) -> str:
    if metric == "bytes":
        return f"{value / (1 << 20):,.1f} MiB"
    return f"{value:.3f} s" if value >= 1 else f"{value * 1e3:.1f} ms"


def _where(assignments: Iterable[str]) -> dict[str, str]:
    found = {}
    for one in assignments:
        key, equals, value = one.partition("=")
        if not equals:
            raise UsageError(f"{one} is not KEY=VALUE", hint="such as tracking=ring:4096")
        found[key] = value
    return found


def _words(statuses: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {status}" for status, count in statuses.items())


def _number(value: float | None, factor: float, form: str) -> str:
    return "" if value is None else format(value * factor, form)


def _table(*headings: str | tuple[str, ...]) -> Table:
    """A plain table; headings of numbers stand together in a tuple."""
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        if isinstance(heading, tuple):
            for one in heading:
                table.add_column(one, justify="right")
        else:
            table.add_column(heading)
    return table
