"""A directory of results: what was planned, and one line for each run that has ended.

::

    DIR/experiment.json   the plan, whole or not there: written aside, then renamed
    DIR/results.jsonl     appended to, a line with one write and an fsync

Whatever ends the writer, power included, leaves whole lines and at most one torn last line,
which readers ignore and the next writer cuts off. A lock keeps a second writer out.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from qemu_ring.experiment.errors import StoreError
from qemu_ring.experiment.plan import Cell, ExperimentPlan, Run
from qemu_ring.experiment.record import RESULT_SCHEMA

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
        records: of the runs that have ended, in the order of their ends.
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
    records = [
        _document(line, RESULT_SCHEMA, f"{directory / _RESULTS}:{number}")
        for number, line in enumerate(whole.splitlines(), 1)
    ]
    return Results(directory, experiment, cells, runs, tuple(records))


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
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(directory / _RESULTS, flags, 0o644)
        except OSError as error:
            raise StoreError(f"{directory} cannot be written: {error.strerror}") from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._fd)
            raise StoreError(
                f"another run writes to {directory}", hint="wait for it, or stop it"
            ) from error

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._fd)

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
            if os.fstat(self._fd).st_size:
                raise StoreError(f"{self.directory} has results, but no {_EXPERIMENT}")
            self._write_plan(path, plan, qemu)
        results = self.resume(qemu)
        if results.experiment["sha256"] != plan.sha256:
            raise StoreError(
                f"{self.directory} has results of another experiment, or of an earlier version "
                "of this one",
                hint="name another directory with --output",
            )
        return results

    def resume(self, qemu: Mapping[str, Any] | None) -> Results:
        """Cut off what a crash tore, and tell what is there.

        Args:
            qemu: as in `begin`; the same as before, or results would not compare.

        Raises:
            StoreError: it is damaged, or QEMU is another.
        """
        size = os.fstat(self._fd).st_size
        tail = os.pread(self._fd, size, 0) if size else b""
        whole = tail.rfind(b"\n") + 1
        if whole != size:
            os.ftruncate(self._fd, whole)
            os.fsync(self._fd)
        results = read_results(self.directory)
        before = results.experiment.get("qemu")
        if before and qemu and before["sha256"] != qemu["sha256"]:
            raise StoreError(
                f"{qemu['path']} is not the QEMU of the results in {self.directory}",
                hint="begin anew with another --output, or name the former one with --qemu",
            )
        return results

    def append(self, record: Mapping[str, Any]) -> None:
        """Keep one run's record for good."""
        line = json.dumps(record, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        written = os.write(self._fd, line)
        os.fsync(self._fd)
        if written != len(line):
            raise StoreError(f"{self.directory} is full", hint="make room, then resume")

    def _write_plan(self, path: Path, plan: ExperimentPlan, qemu: Mapping[str, Any] | None) -> None:
        document = {
            "schema": EXPERIMENT_SCHEMA,
            "name": plan.name,
            "description": plan.description,
            "source": plan.source,
            "sha256": plan.sha256,
            "cells": [cell.as_dict() for cell in plan.cells],
            "order": [[run.cell, run.repeat, run.seed] for run in plan.runs],
            "repeats": plan.repeats,
            "warm_up": plan.warm_up,
            "created": time.time(),
            "qemu": None if qemu is None else dict(qemu),
        }
        aside = path.with_suffix(".json.new")
        with aside.open("w", encoding="utf-8") as file:
            json.dump(document, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        folder = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
