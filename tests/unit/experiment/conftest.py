"""Experiments to read, and results as the runner writes them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from qemu_ring.experiment import ExperimentPlan, Results, Store, parse_experiment, read_results
from qemu_ring.experiment.results.record import Status
from qemu_ring.experiment.run.draft import empty_record
from qemu_ring.experiment.schedule.process import run_labels

EXPERIMENT = """\
name: small
guest:
  memory: 64 MiB
  tracking: bitmap
  workload:
    regions:
      - {name: heap, address: 16 MiB, size: 32 MiB}
    streams:
      - {pattern: random, pages-per-second: 1000}
migration:
  max-bandwidth: 500 MiB
matrix:
  guest.tracking: [bitmap, ring:4096]
repeats: 3
"""


@pytest.fixture
def plan() -> ExperimentPlan:
    return parse_experiment(EXPERIMENT)


Outcome = tuple[str, float | None]
Write = Callable[[Path, ExperimentPlan, dict[str, Iterable[Outcome]]], None]


def outcomes(
    mean: float, count: int, *, status: str = "ok", seed: int = 1
) -> list[tuple[str, float | None]]:
    """Times that scatter around a mean."""
    dice = random.Random(seed)
    return [(status, mean * dice.uniform(0.97, 1.03)) for _ in range(count)]


@pytest.fixture
def write() -> Write:
    """Write results: status and time of each run, by the name of its cell."""

    def write_results(
        directory: Path, plan: ExperimentPlan, found: dict[str, Iterable[Outcome]]
    ) -> None:
        waiting = {cell.id: iter(found.get(cell.name, ())) for cell in plan.cells}
        with Store(directory) as store:
            store.begin(plan, None)
            for run in plan.runs:
                outcome = next(waiting[run.cell], None)
                if outcome is not None:
                    status, seconds = outcome
                    record = empty_record(Status(status), "" if status == "ok" else status)
                    record["warm_up"] = run.repeat < plan.warm_up
                    record["migration"] = None if seconds is None else migration(seconds)
                    store.append(record | run_labels(run, 1.0, 2.0))

    return write_results


TEN_REPEATS = parse_experiment(EXPERIMENT.replace("repeats: 3", "repeats: 10"))


class Maker:
    """Makes results of 10 repeats: of `bitmap`, and of a `ring`."""

    def __init__(self, folder: Path, write: Write) -> None:
        self._folder, self._write, self._count = folder, write, 0

    def __call__(self, **found: Iterable[Outcome]) -> Results:
        self._count += 1
        path = self._folder / str(self._count)
        runs = {
            "tracking=bitmap": found.get("bitmap", ()),
            "tracking=ring:4096": found.get("ring", ()),
        }
        self._write(path, TEN_REPEATS, runs)
        return read_results(path)


@pytest.fixture
def make(tmp_path: Path, write: Write) -> Maker:
    return Maker(tmp_path, write)


def migration(seconds: float) -> dict[str, Any]:
    return {
        "seconds": seconds,
        "downtime_seconds": seconds / 10,
        "qemu_downtime_seconds": seconds / 11,
        "guest_downtime_seconds": None,
        "setup_seconds": 0.001,
        "bytes": round(seconds * 1e8),
        "iterations": [{"number": 1, "at_seconds": 0.0, "seconds": seconds, "bytes": 1}],
        "samples": [{"at_seconds": 0.1, "remaining": 2, "bandwidth": 3.0, "ring_fill": None}],
    }
