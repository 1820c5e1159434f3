from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qemu_ring.errors import UsageError
from qemu_ring.experiment.record import Status, empty_record
from qemu_ring.report import read_results
from qemu_ring.report.page import build_page


def edit_experiment(directory: Path, **changes: object) -> None:
    path = directory / "experiment.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_reads_what_the_contract_says(make_results: Any) -> None:
    results = read_results(make_results({"policy": ["best-effort", "quiesce"]}, repeats=3))
    assert [results.name_of(cell) for cell in results.cells] == [
        "policy best-effort",
        "policy quiesce",
    ]
    assert [len(runs) for runs in results.runs_by_cell.values()] == [3, 3]
    assert results.planned == 6
    stale = [run for run in results.runs if run.status == "stale"]
    assert [len(run.stale) for run in stale] == [40, 40]
    assert all(run.migration and run.migration.iterations for run in results.runs)


@pytest.mark.parametrize("status", Status)
def test_run_that_told_nothing(make_results: Any, status: Status) -> None:
    """As the runner writes it, of a process that was killed or could not begin."""

    def lost(run: dict[str, Any], place: int) -> dict[str, Any]:
        labels = {key: run[key] for key in ("cell", "repeat", "seed", "started", "wall_seconds")}
        return empty_record(status, "killed by SIGKILL") | labels | {"warm_up": False}

    results = read_results(make_results(repeats=1, change=lost))
    assert {run.status for run in results.runs} == {status.value}
    page = build_page([results])
    assert page.experiments[0].answers[0].headline.startswith("No memory was compared")


def test_torn_last_line_is_no_result(make_results: Any) -> None:
    directory = make_results(repeats=1)
    path = directory / "results.jsonl"
    whole = path.read_text()
    path.write_text(whole + whole.splitlines()[0][:200])
    assert len(read_results(directory).runs) == len(whole.splitlines())


def test_of_a_run_that_was_made_again_the_last_record_counts(make_results: Any) -> None:
    directory = make_results(repeats=1)
    path = directory / "results.jsonl"
    whole = path.read_text()
    again = json.loads(whole.splitlines()[1]) | {"status": "crashed", "migration": None}
    path.write_text(whole + json.dumps(again) + "\n")
    runs = read_results(directory).runs
    assert len(runs) == len(whole.splitlines())
    assert [run.status for run in runs if run.cell == again["cell"]] == ["crashed"]


def test_experiment_that_has_just_begun(make_results: Any) -> None:
    directory = make_results()
    (directory / "results.jsonl").unlink()
    assert read_results(directory).runs == ()


def test_damaged_line_is_named(make_results: Any) -> None:
    directory = make_results(repeats=1)
    path = directory / "results.jsonl"
    lines = path.read_text().splitlines()
    lines[2] = lines[2][:-20]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(UsageError, match=r"results\.jsonl:3 is not a result that this version"):
        read_results(directory)


def test_missing_field_is_named(make_results: Any) -> None:
    def without_seed(run: dict[str, Any], place: int) -> dict[str, Any]:
        return {key: value for key, value in run.items() if key != "status"}

    with pytest.raises(UsageError, match=r"results\.jsonl:1 .*: status: Field required"):
        read_results(make_results(repeats=1, change=without_seed))


@pytest.mark.parametrize(
    "schema",
    [{"name": "qemu-ring.experiment", "version": 2}, {"name": "qemu-ring.prove", "version": 1}],
)
def test_other_schema_is_refused(make_results: Any, schema: dict[str, object]) -> None:
    directory = make_results(repeats=1)
    edit_experiment(directory, schema=schema)
    with pytest.raises(UsageError, match=r"experiment\.json is not .*schema\."):
        read_results(directory)


def test_result_of_no_known_cell(make_results: Any) -> None:
    directory = make_results(repeats=1)
    edit_experiment(directory, cells=[])
    with pytest.raises(UsageError, match=r"is of cell .*, which experiment\.json does not"):
        read_results(directory)


def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file or directory; name a directory that"):
        read_results(tmp_path / "absent")
