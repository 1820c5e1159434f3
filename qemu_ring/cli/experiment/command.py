"""`qemu-ring experiment`: planning and running."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.markup import escape
from rich.table import Table

from qemu_ring.cli.experiment.live import Live
from qemu_ring.cli.experiment.printing import read
from qemu_ring.cli.experiment.results import (
    compare_command,
    console,
    export_command,
    list_command,
    print_summary,
    report_command,
    show_command,
    summary,
)
from qemu_ring.cli.frame.options import answer_timeout_option, json_option, qemu_option
from qemu_ring.cli.frame.output import notes, print_json
from qemu_ring.cli.frame.running import run
from qemu_ring.cli.frame.sizes import SIZE
from qemu_ring.errors import ExitStatus, QemuRingError, UsageError
from qemu_ring.experiment import (
    Budget,
    Cell,
    ExperimentFileError,
    ExperimentPlan,
    Results,
    Status,
    Store,
    ThisHost,
    Watcher,
    cluster_identity,
    examine_qemu,
    json_schema,
    load_experiment,
    require_suitable,
    run_left,
    run_on_cluster,
    unsuitable_words,
)
from qemu_ring.machine import probe_host

__all__ = ["experiment"]

_FILE = click.argument("file", metavar="EXPERIMENT.yaml", type=click.Path(path_type=Path))


def _print_schema(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        print_json(json_schema())
        context.exit()


_qemu_option = qemu_option(
    "QEMU for cells that name none; default: the one `build` made, else the first on PATH."
)
_cpus_option = click.option(
    "--cpus", type=int, metavar="N", help="Several runs at a time, on N CPUs; each has its own."
)
_memory_option = click.option(
    "--memory",
    type=SIZE,
    metavar="SIZE",
    help="For --cpus: memory of all guests together.",
)
_scheduler_option = click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Run on the workers of this Dask scheduler; each declares KVM and MEMORY.",
)
_SHOWN_CELLS = 500
"""Of a plan; who needs all of more takes them as JSON."""
_AGAIN = (Status.REFUSED, Status.CRASHED, Status.TIMEOUT, Status.NOT_CONVERGED)
"""What can be tried again: not a run that told something of the guest's memory."""


def _statuses(_: click.Context, option: click.Parameter, text: str | None) -> list[Status]:
    """Words with commas between them, as statuses; an option's callback."""
    words = [] if text is None else [word.strip() for word in text.split(",")]
    if not {*words} <= {*_AGAIN}:
        known = ", ".join(_AGAIN)
        raise click.BadParameter(f"{text!r} is not of {known}, with commas between", param=option)
    return [Status(word) for word in words]


@click.group("experiment")
def experiment() -> None:
    """Scripted migration experiments, from a YAML file."""


@experiment.command("plan")
@_FILE
@_qemu_option
@json_option
@click.option(
    "--schema",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_schema,
    help="Print the JSON Schema of an experiment, and end.",
)
def plan_command(file: Path, qemu: str | None, as_json: bool) -> int:
    """Print what would be run, and about how long it takes; start nothing.

    With --qemu also say which cells this host cannot run with that QEMU. Exits with 3 if it
    can run none.
    """
    plan = _load(file)
    if plan is None:
        return ExitStatus.USAGE
    return _print_plan(plan, qemu, as_json=as_json)


@experiment.command("run")
@_FILE
@click.option(
    "--output",
    "-o",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where the results go; default: results/NAME.",
)
@_qemu_option
@_cpus_option
@_memory_option
@_scheduler_option
@click.option("--dry-run", is_flag=True, help="Print the plan and an estimate; start nothing.")
@answer_timeout_option
@json_option
def run_command(
    file: Path,
    output: Path | None,
    qemu: str | None,
    cpus: int | None,
    memory: int | None,
    scheduler: str | None,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Run an experiment; what has finished already is not run again.

    Exits with 0 if every run completed and lost nothing, with 1 if a guest lost memory, and
    with 4 if a run failed otherwise. Killed, and started again, it goes on where it was.
    """
    plan = _load(file)
    if plan is None:
        return ExitStatus.USAGE
    if dry_run:
        return _print_plan(plan, qemu, as_json=as_json)
    where = _Where.of(cpus, memory, scheduler)
    identity = where.qemu_identity(list(plan.cells), qemu)
    with Store(output or Path("results", plan.name)) as store:
        return _go(store, store.begin(plan, identity), identity, where, as_json=as_json)


@experiment.command("resume")
@click.argument("directory", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@_qemu_option
@_cpus_option
@_memory_option
@_scheduler_option
@click.option(
    "--retry",
    metavar="STATUS,...",
    callback=_statuses,
    help=f"Make runs of these statuses again: {', '.join(_AGAIN)}.",
)
@click.option(
    "--repeats",
    type=click.IntRange(1, 10_000),
    metavar="N",
    help="Measured runs of each cell, if they are to be more than before.",
)
@answer_timeout_option
@json_option
def resume_command(
    directory: Path,
    qemu: str | None,
    cpus: int | None,
    memory: int | None,
    scheduler: str | None,
    retry: list[Status],
    repeats: int | None,
    as_json: bool,
) -> int:
    """Go on with an experiment, from its results alone.

    Of a run that is made again the last record counts; the former ones stay in the file.
    """
    before = read(directory)  # so that no directory is made by mistake
    where = _Where.of(cpus, memory, scheduler)
    noted = before.experiment.qemu
    identity = where.qemu_identity(
        list(before.cells.values()), qemu or (None if noted is None else noted.path)
    )
    with Store(directory) as store:
        results = store.resume(identity)
        if repeats is not None:
            results = store.extend(results, repeats)
        return _go(store, results.without(retry), identity, where, as_json=as_json)


for _command in (list_command, show_command, compare_command, report_command, export_command):
    experiment.add_command(_command)


def _load(file: Path) -> ExperimentPlan | None:
    """The plan; None if the file has mistakes, which were printed."""
    try:
        return load_experiment(file)
    except ExperimentFileError as error:
        for problem in error.problems:
            click.echo(problem, err=True)
        return None


@dataclass(frozen=True, slots=True)
class _Where:
    """Where runs go: one after the other, side by side on this host, or to a cluster."""

    budget: Budget | None
    scheduler: str | None

    @classmethod
    def of(cls, cpus: int | None, memory: int | None, scheduler: str | None) -> _Where:
        if scheduler is not None and (cpus, memory) != (None, None):
            raise UsageError(
                "--cpus and --memory are for this host alone",
                hint="with --scheduler its workers say what they have",
            )
        if cpus is None:
            if memory is not None:
                raise UsageError("--memory is for several runs at a time", hint="give --cpus, too")
            return cls(None, scheduler)
        if memory is None:
            memory = probe_host().memory_available_bytes
        return cls(Budget(cpus, memory), None)

    @property
    def is_parallel(self) -> bool:
        return self.budget is not None or self.scheduler is not None

    def qemu_identity(self, cells: list[Cell], qemu: str | None) -> dict[str, Any] | None:
        """Which QEMU it is.

        Raises:
            QemuRingError: there is none, or none of the cells can be run with it.
        """
        if self.scheduler is None:
            identity, unsuitable = run(examine_qemu(cells, qemu))
            require_suitable(cells, unsuitable)
            for line in unsuitable_words(cells, unsuitable):
                notes.print(line, soft_wrap=True, markup=False)
            return identity
        # Dask's own remarks are about its connections; ours say what is to be done.
        logging.getLogger("distributed").setLevel(logging.CRITICAL)
        return run(cluster_identity(self.scheduler, cells, qemu))

    def run(
        self,
        store: Store,
        results: Results,
        identity: dict[str, Any] | None,
        watcher: Watcher,
    ) -> None:
        if self.scheduler is None:
            qemu = None if identity is None else Path(identity["path"])
            run(run_left(store, results, ThisHost(results, qemu, self.budget), watcher))
        else:
            run(
                run_on_cluster(
                    store, results, scheduler=self.scheduler, qemu=identity, watcher=watcher
                )
            )


def _go(
    store: Store,
    results: Results,
    identity: dict[str, Any] | None,
    where: _Where,
    *,
    as_json: bool,
) -> int:
    """Run what is left, and tell what has become of everything."""
    done = len(results.records)
    if done:
        notes.print(f"{done} of {len(results.runs)} runs are done already")
    with Live(results, parallel=where.is_parallel) as live:
        where.run(store, results, identity, live)
    results = read(store.directory)
    if as_json:
        print_json(summary(results))
    else:
        print_summary(results)
        click.echo(f"results: {store.directory}")
    statuses = {record.status for record in results.records}
    if Status.STALE in statuses:
        return ExitStatus.BAD
    return ExitStatus.FAILED if statuses - {Status.OK} else ExitStatus.GOOD


def _print_plan(plan: ExperimentPlan, qemu: str | None, *, as_json: bool) -> int:
    """Print it; with a QEMU, check that there is a cell that can be run with it.

    Raises:
        QemuRingError: there is none.
    """
    cells = list(plan.cells)
    unsuitable = {} if qemu is None else run(examine_qemu(cells, qemu))[1]
    if as_json:
        _print_plan_document(plan, None if qemu is None else unsuitable)
    else:
        _print_plan_words(plan)
        if len(unsuitable) < len(cells):  # otherwise it is the error that the command ends with
            for line in unsuitable_words(cells, unsuitable):
                click.echo(line)
    require_suitable(cells, unsuitable)
    return ExitStatus.GOOD


def _print_plan_document(
    plan: ExperimentPlan, unsuitable: Mapping[str, QemuRingError] | None
) -> None:
    cells = []
    for cell in plan.cells:
        more: dict[str, object] = {
            "estimate_seconds": cell.estimate_seconds(),
            "bytes": cell.guests_bytes,
        }
        if unsuitable is not None:
            error = unsuitable.get(cell.id)
            more["unsuitable"] = None if error is None else str(error)
        cells.append(cell.as_dict() | more)
    print_json(
        {
            "schema": {"name": "qemu-ring.experiment-plan", "version": 1},
            "name": plan.name,
            "sha256": plan.sha256,
            "cells": cells,
            "order": [[run.cell, run.repeat, run.seed] for run in plan.runs],
            "repeats": plan.repeats,
            "warm_up": plan.warm_up,
            "estimate_seconds": sum(plan.estimate_seconds()),
            "most_seconds": _most_seconds(plan),
        }
    )


def _most_seconds(plan: ExperimentPlan) -> float:
    return sum(cell.time_limit for cell in plan.cells) * (plan.repeats + plan.warm_up)


def _print_plan_words(plan: ExperimentPlan) -> None:
    out = console()
    table = Table(box=None, pad_edge=False)
    table.add_column("cell")
    table.add_column("id")
    for heading in ("MiB", "about s", "at most s"):
        table.add_column(heading, justify="right")
    for cell in plan.cells[:_SHOWN_CELLS]:
        table.add_row(
            escape(cell.name),
            cell.id,
            f"{cell.guests_bytes >> 20:,}",
            f"{cell.estimate_seconds():.1f}",
            f"{cell.time_limit:g}",
        )
    out.print(table)
    if len(plan.cells) > _SHOWN_CELLS:
        out.print(f"and {len(plan.cells) - _SHOWN_CELLS:,} more cells, which --json lists")
    warm_up = f" and {plan.warm_up} to warm up" if plan.warm_up else ""
    runs = len(plan.cells) * (plan.repeats + plan.warm_up)
    out.print(
        f"{plan.name}: {len(plan.cells)} cells, {plan.repeats} runs each{warm_up}, "
        f"{plan.order}: {runs} runs, about {_duration(sum(plan.estimate_seconds()))}, "
        f"at most {_duration(_most_seconds(plan))}",
        soft_wrap=True,
    )
    available = probe_host().memory_available_bytes
    large = [cell for cell in plan.cells if cell.guests_bytes > available]
    if large:
        out.print(
            f"{len(large)} cells need more than the {available >> 20:,} MiB that this host has "
            "left; their runs would be refused",
            soft_wrap=True,
        )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
