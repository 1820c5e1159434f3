from __future__ import annotations

import json
from typing import Any

import pytest

from qemu_ring.experiment import read_results
from qemu_ring.experiment.results.record import Status
from qemu_ring.experiment.run.draft import empty_record
from qemu_ring.report.page import build_page


def test_reads_what_the_contract_says(make_results: Any) -> None:
    results = read_results(make_results({"policy": ["best-effort", "quiesce"]}, repeats=3))
    assert [results.name_of(cell) for cell in results.cells] == [
        "policy best-effort",
        "policy quiesce",
    ]
    assert [len(runs) for runs in results.by_cell.values()] == [3, 3]
    assert len(results.runs) == 6
    stale = [run for run in results.records if run.status is Status.STALE]
    assert [len(run.stale) for run in stale] == [40, 40]
    assert all(run.migration and run.migration.iterations for run in results.records)


@pytest.mark.parametrize("status", Status)
def test_run_that_told_nothing(make_results: Any, status: Status) -> None:
    """As the runner writes it, of a process that was killed or could not begin."""

    def lost(run: dict[str, Any], place: int) -> dict[str, Any]:
        labels = {key: run[key] for key in ("cell", "repeat", "seed", "started", "wall_seconds")}
        return empty_record(status, "killed by SIGKILL") | labels | {"warm_up": False}

    results = read_results(make_results(repeats=1, change=lost))
    assert {run.status for run in results.records} == {status}
    page = build_page([results])
    assert page.experiments[0].answers[0].headline.startswith("No memory was compared")


def test_torn_last_line_is_no_result(make_results: Any) -> None:
    directory = make_results(repeats=1)
    path = directory / "results.jsonl"
    whole = path.read_text()
    path.write_text(whole + whole.splitlines()[0][:200])
    assert len(read_results(directory).records) == len(whole.splitlines())


def test_of_a_run_that_was_made_again_the_last_record_counts(make_results: Any) -> None:
    directory = make_results(repeats=1)
    path = directory / "results.jsonl"
    whole = path.read_text()
    again = json.loads(whole.splitlines()[1]) | {"status": "crashed", "migration": None}
    path.write_text(whole + json.dumps(again) + "\n")
    runs = read_results(directory).records
    assert len(runs) == len(whole.splitlines())
    assert [run.status for run in runs if run.cell == again["cell"]] == ["crashed"]


def test_experiment_that_has_just_begun(make_results: Any) -> None:
    directory = make_results()
    (directory / "results.jsonl").unlink()
    assert read_results(directory).records == ()


def test_damaged_line_is_said(make_results: Any) -> None:
    directory = make_results(repeats=1)
    path = directory / "results.jsonl"
    lines = path.read_text().splitlines()
    lines[2] = lines[2][:-20]
    path.write_text("\n".join(lines) + "\n")
    page = build_page([read_results(directory)])
    details = page.experiments[0].answers[0].details
    assert "1 damaged line of the results left out." in details
    assert (
        f"The experiment is not finished: {len(lines) - 1} of {len(lines)} runs are done."
        in details
    )
