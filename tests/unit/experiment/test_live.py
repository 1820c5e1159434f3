"""The progress of an experiment: time left, a line for each run that ended."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qemu_ring.cli.experiment.live import Live, TimeLeft
from qemu_ring.experiment import ExperimentPlan, Results, RunRecord, Status, read_results
from qemu_ring.experiment.run.draft import empty_record
from qemu_ring.experiment.schedule.process import run_labels

from .conftest import Write, migration

BITMAP, RING = "tracking=bitmap", "tracking=ring:4096"


@pytest.fixture
def results(tmp_path: Path, plan: ExperimentPlan, write: Write) -> Results:
    """Of six runs one has ended; it took 2 s."""
    write(tmp_path / "r", plan, {BITMAP: [("ok", 1.0)]})
    return read_results(tmp_path / "r")


def test_time_left_is_by_what_runs_took(results: Results) -> None:
    left = TimeLeft(results)
    bitmap, ring = results.cells
    assert left.expected(bitmap) == 2
    assert left.expected(ring) == pytest.approx(2), "estimates of both are alike"
    assert left.seconds() == pytest.approx(5 * 2)
    left.ended(ring, 6)
    assert left.expected(ring) == 6
    assert left.seconds() == pytest.approx(2 * 2 + 2 * 6)


def test_time_left_before_anything_ended(results: Results) -> None:
    left = TimeLeft(replace(results, records=()))
    assert left.seconds() == pytest.approx(
        sum(results.cells[run.cell].estimate_seconds() for run in results.runs)
    )


def test_a_line_for_each_run(results: Results, capsys: pytest.CaptureFixture[str]) -> None:
    first, second, *_ = results.left
    labels = run_labels(first, 1.0, 2.0)
    record = empty_record(Status.OK, "") | labels | {"migration": migration(1.5)}
    with Live(results, parallel=False) as live:
        live.started(results.cells[first.cell], first)
        live.ended(results.cells[first.cell], first, RunRecord.model_validate(record))
        live.started(results.cells[second.cell], second)
        wrong = record | {"status": "crashed", "error": "it [died]", "migration": None}
        live.ended(results.cells[second.cell], second, RunRecord.model_validate(wrong))
    said = capsys.readouterr()
    assert said.out == ""
    lines = [line.strip() for line in said.err.splitlines()]
    assert lines == [
        f"ok  2/6  {RING}, run 0, migrated in 1.50 s",
        f"crashed  3/6  {BITMAP}, run 1: it [died]",
    ]
