"""A directory of results, written: what was planned, and one line for each run that has ended.

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
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from qemu_ring.experiment.errors import StoreError
from qemu_ring.experiment.plan.cells import ExperimentPlan
from qemu_ring.experiment.plan.inputs import changed_file, input_digests
from qemu_ring.experiment.results.journal import Journal, write_whole
from qemu_ring.experiment.results.reader import (
    EXPERIMENT_FILE,
    RESULTS_FILE,
    Results,
    read_results,
)
from qemu_ring.experiment.results.record import EXPERIMENT_SCHEMA, RunRecord

__all__ = ["Store"]


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
            self._journal = Journal(directory / RESULTS_FILE)
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
        path = self.directory / EXPERIMENT_FILE
        if not path.exists():
            if not self._journal.is_empty:
                raise StoreError(f"{self.directory} has results, but no {EXPERIMENT_FILE}")
            document = {"created": time.time(), "qemu": None if qemu is None else dict(qemu)}
            self._note(plan, document | {"inputs": input_digests(plan.cells)})
        results = self.resume(qemu)
        if results.experiment.sha256 != plan.sha256:
            more = _extends(plan, results)
            raise StoreError(
                f"{self.directory} has results of another experiment, or of an earlier version "
                "of this one",
                hint=(
                    f"`qemu-ring experiment resume --repeats {plan.repeats}` adds repeats"
                    if more
                    else "name another directory for the output"
                ),
            )
        # It decides nothing of what is run.
        noted = results.experiment.model_copy(update={"stop": dict(plan.stop)})
        return replace(results, experiment=noted)

    def resume(self, qemu: Mapping[str, Any] | None) -> Results:
        """Cut off what a crash tore, and tell what is there.

        Args:
            qemu: as in `begin`; the same as before, or results would not compare.

        Raises:
            StoreError: it is damaged, or QEMU or another file is not what it was.
        """
        self._journal.cut_torn_line()
        results = read_results(self.directory)
        before = results.experiment.qemu
        if before and qemu and before.sha256 != qemu["sha256"]:
            raise StoreError(
                f"{qemu['path']} is not the QEMU of the results in {self.directory}",
                hint="begin anew in another directory, or name the former QEMU",
            )
        why = changed_file(results.cells.values(), results.experiment.inputs)
        if why is not None:
            raise StoreError(why, hint="put that back, or begin anew in another directory")
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
        if noted.seed is None or noted.turns is None:
            raise StoreError(
                f"{self.directory} is of a version that did not note its seed",
                hint="begin anew in another directory",
            )
        plan = ExperimentPlan(
            name=noted.name,
            description=noted.description or "",
            source=noted.source,
            cells=noted.cells,
            repeats=repeats,
            warm_up=noted.warm_up,
            seed=noted.seed,
            order=noted.turns,
            stop=noted.stop,
        )
        if repeats < noted.repeats or not _extends(plan, results):
            raise StoreError(
                f"{self.directory} has {noted.repeats} repeats, which cannot become {repeats}",
                hint="they can only be more",
            )
        if repeats > noted.repeats:
            self._note(plan, noted.model_dump(by_alias=True))
        return replace(read_results(self.directory), records=results.records)

    def append(self, record: Mapping[str, Any]) -> RunRecord:
        """Keep one run's record for good.

        Returns:
            the same, typed.

        Raises:
            StoreError: the disk is full, or worse; nothing of the record is left.
        """
        line = json.dumps(record, separators=(",", ":"), allow_nan=False).encode() + b"\n"
        typed = RunRecord.from_line(line)
        self._journal.append(line)
        return typed

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
        write_whole(self.directory / EXPERIMENT_FILE, json.dumps(document, indent=1).encode())


def _extends(plan: ExperimentPlan, results: Results) -> bool:
    """Whether a plan is that of the results with more repeats, or as many."""
    same = [cell.id for cell in plan.cells] == list(results.cells)
    warm_up = plan.warm_up == results.experiment.warm_up
    return same and warm_up and set(results.runs) <= set(plan.runs)
