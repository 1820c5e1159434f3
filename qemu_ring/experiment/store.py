"""A directory of results: what was planned, and one line for each run that has ended.

::

    DIR/experiment.json   the plan, whole or not there: written aside, then renamed
    DIR/results.jsonl     appended to, a line with one write and an fsync

Whatever ends the writer, power included, leaves whole lines and at most one torn last line,
which readers ignore and the next writer cuts off. A lock keeps a second writer out. A run that
was made again has a line for each time; the last one counts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from qemu_ring.experiment.errors import StoreError
from qemu_ring.experiment.inputs import changed_file, input_digests
from qemu_ring.experiment.journal import Journal, write_whole
from qemu_ring.experiment.plan import Cell, ExperimentPlan, Run
from qemu_ring.experiment.record import RESULT_SCHEMA, Status

__all__ = ["EXPERIMENT_SCHEMA", "Results", "Store", "read_results"]

EXPERIMENT_SCHEMA: Final = {"name": "qemu-ring.experiment", "version": 1}
_EXPERIMENT = "experiment.json"
_RESULTS = "results.jsonl"


@dataclass(frozen=True, slots=True)
class Results:
    """What a directory holds.

    Args:
        directory: where.
        experiment: the document experiment.json.
        cells: by id.
        runs: all that were planned, in order.
        records: of the runs that have ended, in the order of their ends; of one that was made
            again, the last.
    """

    directory: Path
    experiment: dict[str, Any]
    cells: dict[str, Cell]
    runs: tuple[Run, ...]
    records: tuple[dict[str, Any], ...]

    @property
    def name(self) -> str:
        """The experiment's."""
        return str(self.experiment["name"])

    @property
    def left(self) -> list[Run]:
        """Runs that have no record, in order."""
        done = {(record["cell"], record["repeat"]) for record in self.records}
        return [run for run in self.runs if run.key not in done]

    def without(self, statuses: Collection[Status]) -> Results:
        """The same as if runs of these statuses had not ended: they are left to be made again."""
        kept = tuple(one for one in self.records if one["status"] not in statuses)
        return replace(self, records=kept)

    def measured(self, cell: str) -> list[dict[str, Any]]:
        """The records of a cell, but those of warm-up runs."""
        return [one for one in self.records if one["cell"] == cell and not one["warm_up"]]


def read_results(directory: str | Path) -> Results:
    """Read a directory of results, of this or any earlier version; also while it is written.

    Raises:
        StoreError: it is none, it is damaged, or of a later version.
    """
    directory = Path(directory)
    try:
        text = (directory / _EXPERIMENT).read_text(encoding="utf-8")
        lines = (directory / _RESULTS).read_bytes()
    except OSError as error:
        raise StoreError(
            f"{directory} holds no results: {error.filename}: {error.strerror}",
            hint="qemu-ring experiment list shows those that there are",
        ) from error
    experiment = _document(text, EXPERIMENT_SCHEMA, str(directory / _EXPERIMENT))
    try:
        cells = {one["id"]: Cell.from_dict(one) for one in experiment["cells"]}
        runs = tuple(Run(cell, repeat, seed) for cell, repeat, seed in experiment["order"])
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{directory / _EXPERIMENT} is damaged: no {error}") from error
    whole = lines[: lines.rfind(b"\n") + 1]
    records: dict[tuple[str, int], dict[str, Any]] = {}
    for number, line in enumerate(whole.splitlines(), 1):
        where = f"{directory / _RESULTS}:{number}"
        record = _document(line, RESULT_SCHEMA, where)
        try:
            key = record["cell"], record["repeat"]
        except KeyError as error:
            raise StoreError(f"{where} is damaged: no {error}") from error
        records.pop(key, None)  # it was made again
        records[key] = record
    return Results(directory, experiment, cells, runs, tuple(records.values()))


def _document(text: str | bytes, schema: Mapping[str, Any], where: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
        found = document["schema"]
        if found["name"] != schema["name"]:
            raise StoreError(f"{where} is no {schema['name']}, but {found['name']}")
        newer = found["version"] > schema["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{where} is damaged: {error}") from error
    if newer:
        raise StoreError(
            f"{where} has version {found['version']}; this qemu-ring reads up to "
            f"{schema['version']}",
            hint="use a newer qemu-ring",
        )
    return dict(document)


class Store:
    """The one writer of a directory; a context manager, the lock is held within.

    Args:
        directory: made where it is missing.

    Raises:
        StoreError: another process writes to it, or it cannot be made.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._journal = Journal(directory / _RESULTS)
        except BlockingIOError as error:
            raise StoreError(
                f"another run writes to {directory}", hint="wait for it, or stop it"
            ) from error
        except OSError as error:
            raise StoreError(f"{directory} cannot be written: {error.strerror}") from error

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._journal.close()

    def begin(self, plan: ExperimentPlan, qemu: Mapping[str, Any] | None) -> Results:
        """Note the plan, or see that it is the one that was noted; then tell what is there.

        Args:
            plan: what is to be run.
            qemu: path and sha256 of the QEMU for the cells that name none.

        Raises:
            StoreError: the directory has results of something else.
        """
        path = self.directory / _EXPERIMENT
        if not path.exists():
            if not self._journal.is_empty:
                raise StoreError(f"{self.directory} has results, but no {_EXPERIMENT}")
            document = {"created": time.time(), "qemu": None if qemu is None else dict(qemu)}
            self._note(plan, document | {"inputs": input_digests(plan.cells)})
        results = self.resume(qemu)
        if results.experiment["sha256"] != plan.sha256:
            more = _extends(plan, results)
            raise StoreError(
                f"{self.directory} has results of another experiment, or of an earlier version "
                "of this one",
                hint=(
                    f"`qemu-ring experiment resume --repeats {plan.repeats}` adds repeats"
                    if more
                    else "name another directory with --output"
                ),
            )
        results.experiment["stop"] = dict(plan.stop)  # decides nothing of what is run
        return results

    def resume(self, qemu: Mapping[str, Any] | None) -> Results:
        """Cut off what a crash tore, and tell what is there.

        Args:
            qemu: as in `begin`; the same as before, or results would not compare.

        Raises:
            StoreError: it is damaged, or QEMU or another file is not what it was.
        """
        self._journal.cut_torn_line()
        results = read_results(self.directory)
        before = results.experiment.get("qemu")
        if before and qemu and before["sha256"] != qemu["sha256"]:
            raise StoreError(
                f"{qemu['path']} is not the QEMU of the results in {self.directory}",
                hint="begin anew with another --output, or name the former one with --qemu",
            )
        why = changed_file(results.cells.values(), results.experiment.get("inputs", {}))
        if why is not None:
            raise StoreError(why, hint="put that back, or begin anew with another --output")
        return results

    def extend(self, results: Results, repeats: int) -> Results:
        """Plan further repeats of all cells; what is there stays.

        Args:
            results: of this directory.
            repeats: of each cell, in all.

        Raises:
            StoreError: they cannot be more, or the results do not tell their seed.
        """
        noted = results.experiment
        if "seed" not in noted:
            raise StoreError(
                f"{self.directory} is of a version that did not note its seed",
                hint="begin anew with another --output",
            )
        plan = ExperimentPlan(
            name=noted["name"],
            description=noted["description"],
            source=noted["source"],
            cells=tuple(results.cells.values()),
            repeats=repeats,
            warm_up=noted["warm_up"],
            seed=noted["seed"],
            order=noted["turns"],
            stop=noted["stop"],
        )
        if repeats < noted["repeats"] or not _extends(plan, results):
            raise StoreError(
                f"{self.directory} has {noted['repeats']} repeats, which cannot become {repeats}",
                hint="they can only be more",
            )
        if repeats > noted["repeats"]:
            self._note(plan, noted)
        return replace(read_results(self.directory), records=results.records)

    def append(self, record: Mapping[str, Any]) -> None:
        """Keep one run's record for good.

        Raises:
            StoreError: the disk is full, or worse; nothing of the record is left.
        """
        line = json.dumps(record, separators=(",", ":"), allow_nan=False)
        self._journal.append(line.encode() + b"\n")

    def _note(self, plan: ExperimentPlan, more: Mapping[str, Any]) -> None:
        """Write experiment.json.

        Args:
            plan: what it tells of.
            more: what else; whatever the plan has not.
        """
        document = {
            **more,
            "schema": EXPERIMENT_SCHEMA,
            "name": plan.name,
            "description": plan.description,
            "source": plan.source,
            "sha256": plan.sha256,
            "cells": [cell.as_dict() for cell in plan.cells],
            "order": [[run.cell, run.repeat, run.seed] for run in plan.runs],
            "repeats": plan.repeats,
            "warm_up": plan.warm_up,
            "seed": plan.seed,
            "turns": plan.order,
            "stop": dict(plan.stop),
        }
        write_whole(self.directory / _EXPERIMENT, json.dumps(document, indent=1).encode())


def _extends(plan: ExperimentPlan, results: Results) -> bool:
    """Whether a plan is that of the results with more repeats, or as many."""
    same = [cell.id for cell in plan.cells] == list(results.cells)
    warm_up = plan.warm_up == results.experiment["warm_up"]
    return same and warm_up and set(results.runs) <= set(plan.runs)
