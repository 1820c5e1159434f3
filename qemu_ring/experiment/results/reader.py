"""A directory of results, read: what was planned, and what has become of it."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import ValidationError

from qemu_ring.experiment.errors import StoreError
from qemu_ring.experiment.plan.cells import Cell, Run
from qemu_ring.experiment.results.record import (
    EXPERIMENT_SCHEMA,
    RESULT_SCHEMA,
    ExperimentDocument,
    LinePlace,
    RunRecord,
    Status,
)
from qemu_ring.experiment.results.tables import Table, frame

__all__ = ["EXPERIMENT_FILE", "RESULTS_FILE", "Results", "read_results"]

EXPERIMENT_FILE: Final = "experiment.json"
RESULTS_FILE: Final = "results.jsonl"


@dataclass(frozen=True)
class Results:
    """What a directory holds.

    Args:
        directory: where.
        experiment: what was asked for.
        records: of the runs that have ended, in the order of their ends; of one that was made
            again, the last.
        damaged: lines that are no records, one sentence each. What run they were of is not
            known: it is among those that are left.
    """

    directory: Path
    experiment: ExperimentDocument
    records: tuple[RunRecord, ...]
    damaged: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The experiment's."""
        return self.experiment.name

    @cached_property
    def cells(self) -> dict[str, Cell]:
        """The cells by id, in the experiment's order."""
        return {cell.id: cell for cell in self.experiment.cells}

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """All runs that were planned, in order."""
        return tuple(Run(*one) for one in self.experiment.order)

    @cached_property
    def by_cell(self) -> Mapping[str, tuple[RunRecord, ...]]:
        """The records of each cell, in the order in which the runs ended."""
        found: dict[str, list[RunRecord]] = {cell: [] for cell in self.cells}
        for record in self.records:
            found[record.cell].append(record)
        return {cell: tuple(records) for cell, records in found.items()}

    @property
    def left(self) -> list[Run]:
        """Runs that have no record, in order."""
        done = {record.key for record in self.records}
        return [run for run in self.runs if run.key not in done]

    def name_of(self, cell: str) -> str:
        """Name a cell in words; one whose experiment varies nothing has the experiment's name."""
        return self.cells[cell].name or self.name

    def without(self, statuses: Collection[Status]) -> Results:
        """The same as if runs of these statuses had not ended: they are left to be made again."""
        kept = tuple(one for one in self.records if one.status not in statuses)
        return replace(self, records=kept)

    def frame(
        self, table: Table = "runs", *, library: Literal["pandas", "polars"] = "pandas"
    ) -> Any:
        """A data frame of one table; sizes in bytes, times in seconds.

        Args:
            table: what a row is. Every row has its run's `cell` and `repeat` to join by; those
                of "runs" have the cell's parameters, too.
            library: whose data frame.

        Raises:
            UsageError: the library is not installed.
        """
        return frame(self, table, library)

    def measured(self, cell: str) -> list[RunRecord]:
        """The records of a cell, but those of warm-up runs."""
        return [one for one in self.by_cell[cell] if not one.warm_up]


def read_results(directory: str | Path) -> Results:
    """Read a directory of results, of this or any earlier version; also while it is written.

    A last line that a crash tore is ignored. So is any other that is no record, but `damaged`
    of the results tells of it.

    Raises:
        StoreError: it is none, experiment.json is damaged, no line is a record of it, or it is of
            a later version.
    """
    directory = Path(directory)
    path, results = directory / EXPERIMENT_FILE, directory / RESULTS_FILE
    try:
        text = path.read_bytes()
        experiment = _experiment(text, path)
        known = {cell.id for cell in experiment.cells}
        records: dict[tuple[str, int], RunRecord] = {}
        damaged: list[str] = []
        for number, place, line in _lines(results):
            try:
                record = RunRecord.from_line(line, place)
                why = _schema_problem(record.schema_, RESULT_SCHEMA, f"{results}:{number}")
                if not why and record.cell not in known:
                    why = f"it is of cell {record.cell!r}, which {EXPERIMENT_FILE} does not have"
            except ValidationError as error:
                _require_no_later(line, f"{results}:{number}")
                why = _in_words(error)
            if why:
                damaged.append(f"{results}:{number} is damaged and does not count: {why}")
                continue
            records.pop(record.key, None)  # it was made again
            records[record.key] = record
    except OSError as error:
        raise StoreError(
            f"{directory} holds no results: {error.filename}: {error.strerror}",
            hint="qemu-ring experiment list shows those that there are",
        ) from error
    if damaged and not records:
        raise StoreError(
            f"{results} holds no record of this experiment: {damaged[0]}",
            hint="put the right file there; or move it away, and resume to make the runs again",
        )
    return Results(directory, experiment, tuple(records.values()), tuple(damaged))


def _experiment(text: bytes, path: Path) -> ExperimentDocument:
    try:
        document = ExperimentDocument.model_validate_json(text)
    except ValidationError as error:
        _require_no_later(text, str(path))
        why = _other_schema(text) or f"it is damaged: {_in_words(error)}"
        raise StoreError(
            f"{path}: {why}", hint="put back a copy of it, or begin anew in another directory"
        ) from error
    why = _schema_problem(document.schema_, EXPERIMENT_SCHEMA, str(path))
    if why:
        raise StoreError(f"{path}: {why}", hint="name a directory of an experiment's results")
    return document


def _lines(path: Path) -> Iterator[tuple[int, LinePlace, bytes]]:
    """The whole lines of a file, with their numbers and places; none of a file that is not there.

    Raises:
        OSError: it cannot be read.
    """
    if not path.exists():
        return
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.endswith(b"\n") and line.strip():
                yield number, LinePlace(path, offset, len(line)), line
            offset += len(line)


def _schema_problem(found: Mapping[str, Any], wanted: Mapping[str, Any], where: str) -> str:
    """What is wrong with the schema of a document; empty if nothing.

    Raises:
        StoreError: it is of a later version.
    """
    if found.get("name") != wanted["name"]:
        return f"it is no {wanted['name']}, but {found.get('name')}"
    version = found.get("version")
    if isinstance(version, int) and version > wanted["version"]:
        raise StoreError(
            f"{where} has version {version}; this qemu-ring reads up to {wanted['version']}",
            hint="use a newer qemu-ring",
        )
    return "" if isinstance(version, int) else f"its schema has the version {version!r}"


def _require_no_later(text: bytes, where: str) -> None:
    """Of what cannot be read: see that it is not because a later version wrote it.

    Raises:
        StoreError: it is.
    """
    for wanted in (EXPERIMENT_SCHEMA, RESULT_SCHEMA):
        found = _schema_of(text)
        if found.get("name") == wanted["name"]:
            _schema_problem(found, wanted, where)


def _other_schema(text: bytes) -> str:
    found = _schema_of(text)
    if found and found.get("name") != EXPERIMENT_SCHEMA["name"]:
        return f"it is no {EXPERIMENT_SCHEMA['name']}, but {found.get('name')}"
    return ""


def _schema_of(text: bytes) -> Mapping[str, Any]:
    try:
        document = json.loads(text)
    except ValueError:
        return {}
    schema = document.get("schema") if isinstance(document, dict) else None
    return schema if isinstance(schema, dict) else {}


def _in_words(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place}: {first['msg']}" if place else first["msg"]
