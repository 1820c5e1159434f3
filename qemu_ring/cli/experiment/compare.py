"""`qemu-ring experiment compare`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from qemu_ring.cli.experiment.printing import console, read, statuses_words, table_of
from qemu_ring.cli.frame.options import json_option
from qemu_ring.cli.frame.output import print_json
from qemu_ring.errors import ExitStatus, UsageError
from qemu_ring.experiment import Criteria, ResultsComparison, compare_results
from qemu_ring.experiment.compare.verdicts import (
    METRICS,
    CellComparison,
    MetricDifference,
    Verdict,
)

__all__ = ["compare_command"]

_DIRECTORY = click.Path(file_okay=False, path_type=Path)
_COLOURS = {
    Verdict.WORSE: "bold red",
    Verdict.BETTER: "green",
    Verdict.TOO_FEW: "yellow",
    Verdict.INCOMPARABLE: "yellow",
}
_LONGEST = 60  # characters of a value that are told


@click.command("compare")
@click.argument("a", metavar="A", type=_DIRECTORY)
@click.argument("b", metavar="[B]", type=_DIRECTORY, required=False)
@click.option("--a", "where_a", metavar="KEY=VALUE", multiple=True, help="Only these cells of A.")
@click.option("--b", "where_b", metavar="KEY=VALUE", multiple=True, help="Only these cells of B.")
@click.option(
    "--only-common", is_flag=True, help="Cells that only one of them has leave nothing undecided."
)
@click.option(
    "--metric",
    "metrics",
    type=click.Choice(list(METRICS)),
    multiple=True,
    help="What to compare; default: seconds, downtime_seconds, bytes.",
)
@click.option(
    "--alpha",
    type=float,
    default=0.05,
    show_default=True,
    help="False discovery rate, of each metric.",
)
@click.option(
    "--threshold",
    type=float,
    default=0.05,
    show_default=True,
    help="Relative change of a median that matters.",
)
@click.option("--confidence", type=float, default=0.95, show_default=True, help="Of intervals.")
@json_option
def compare_command(
    a: Path,
    b: Path | None,
    where_a: tuple[str, ...],
    where_b: tuple[str, ...],
    only_common: bool,
    metrics: tuple[str, ...],
    alpha: float,
    threshold: float,
    confidence: float,
    as_json: bool,
) -> int:
    """Compare the results B with A, or two kinds of cells of A.

    Exits with 1 if B is worse in anything. Exits with 4 if it is not, but something was not
    compared, or by too few runs to tell.
    """
    if b is None and not (where_a and where_b):
        raise UsageError("name B, or choose cells of A with --a and --b", hint="see --help")
    criteria = Criteria(
        metrics=tuple(dict.fromkeys(metrics)) or Criteria().metrics,
        alpha=alpha,
        threshold=threshold,
        confidence=confidence,
    )
    here = read(a)
    found = compare_results(
        here,
        here if b is None else read(b),
        criteria,
        where_a=_where(where_a),
        where_b=_where(where_b),
        only_common=only_common,
    )
    if as_json:
        schema = {"schema": {"name": "qemu-ring.experiment-comparison", "version": 1}}
        print_json(schema | found.as_dict())
    else:
        _print(found, confidence)
    if found.worse:
        return ExitStatus.BAD
    found.require_decided()
    return ExitStatus.GOOD


def _where(assignments: Iterable[str]) -> dict[str, str]:
    found = {}
    for one in assignments:
        key, equals, value = one.partition("=")
        if not equals:
            raise UsageError(f"{one} is not KEY=VALUE", hint="such as tracking=ring:4096")
        found[key] = value
    return found


def _print(found: ResultsComparison, confidence: float) -> None:
    out = console(markup=False)
    interval = f"{confidence * 100:g} % interval"
    table = table_of("", ("runs", "A", "B", "change", interval, "q"), "")
    for cell in found.cells:
        table.add_row(Text(cell.name, style="bold"))
        table.add_row(*_completion(cell))
        for one in cell.differences:
            table.add_row(*_difference(one))
    out.print(table)

    def say(words: str, style: str = "") -> None:
        out.print(Text(words, style=style), soft_wrap=True)

    for cell in found.cells:
        for regression in cell.regressions:
            say(f"{cell.name}: {regression}", "bold red")
    for regression in found.regressions:
        say(regression, "bold red")
    for key, values in (*found.unlike.items(), *found.provenance.items()):
        say(f"A and B differ in {key}: {_apart(*values)}")
    for side, names in (("A", found.only_a), ("B", found.only_b)):
        for name in names:
            say(f"only in {side}: {name}")
    if found.worse:  # otherwise it is the error that the command ends with
        for reason in found.undecided:
            say(f"undecided: {reason}", "yellow")


def _completion(cell: CellComparison) -> tuple[str | Text, ...]:
    one = cell.completion
    sides = zip(cell.statuses, cell.warm_up_statuses, strict=True)
    shown = one.verdict is not Verdict.SAME or one.completed != one.runs
    return (
        "  became",
        f"{one.runs[0]}, {one.runs[1]}",
        *(statuses_words(statuses, warm_up) for statuses, warm_up in sides),
        "",
        "",
        f"{one.q:.3g}" if shown else "",
        _word(one.verdict) if shown else "",
    )


def _difference(one: MetricDifference) -> tuple[str | Text, ...]:
    interval = "" if one.interval is None else "{:+.1%} to {:+.1%}".format(*one.interval)
    if one.interval_kind == "range":
        interval = f"range {interval}"
    return (
        f"  {METRICS[one.metric]}",
        f"{one.runs[0]}, {one.runs[1]}",
        *(_value(one.metric, median) for median in one.medians),
        "" if one.change is None else f"{one.change:+.1%}",
        interval,
        f"{one.q:.3g}",
        _word(one.verdict),
    )


def _word(verdict: Verdict) -> Text:
    return Text(str(verdict).replace("-", " "), style=_COLOURS.get(verdict, ""))


def _value(metric: str, value: float) -> str:
    if metric == "bytes":
        return f"{value / (1 << 20):,.1f} MiB"
    if metric == "resent_per_write":
        return f"{value:.3f}"
    return f"{value:.3f} s" if value >= 1 else f"{value * 1e3:.1f} ms"


def _apart(a: Any, b: Any) -> str:
    """Two values; of long lists what only one of them has."""
    shown = []
    for one, other in ((a, b), (b, a)):
        words = "; ".join(map(str, one)) if isinstance(one, list) else str(one)
        if len(words) > _LONGEST and isinstance(one, str) and isinstance(other, str):
            rest = set(other.split(", "))
            words = ", ".join(word for word in one.split(", ") if word not in rest) or "nothing"
            words = f"among others {words}"
        shown.append(words if len(words) <= 4 * _LONGEST else f"{words[: 4 * _LONGEST]} ...")
    return ", ".join(shown)
