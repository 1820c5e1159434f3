"""Results on disk: whole or not there, whatever happens; and still readable later."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qemu_ring.experiment import (
    ExperimentPlan,
    Store,
    StoreError,
    parse_experiment,
    read_results,
    rows,
)
from qemu_ring.experiment.results.record import Status
from qemu_ring.experiment.run.draft import empty_record
from qemu_ring.experiment.schedule.process import run_labels
from tests.processes import killed_if_it_fails
from tests.unit.experiment.conftest import EXPERIMENT, Write, outcomes
from tests.waiting import DEADLINE

YESTERDAY = Path(__file__).parents[1] / "data" / "v1"
QEMU = {"path": "/usr/bin/qemu", "sha256": "1" * 64, "version": "1"}


def test_round_trip(tmp_path: Path, plan: ExperimentPlan, write: Write) -> None:
    write(tmp_path / "r", plan, {"tracking=bitmap": outcomes(1, 2)})
    results = read_results(tmp_path / "r")
    assert list(results.cells.values()) == list(plan.cells)
    assert list(results.runs) == plan.runs
    assert [(one.cell, one.repeat) for one in results.records] == [
        (plan.cells[0].id, 0),
        (plan.cells[0].id, 1),
    ]
    assert [run.key for run in results.left] == [
        run.key for run in plan.runs if (run.cell, run.repeat >= 2) != (plan.cells[0].id, False)
    ]


@pytest.mark.parametrize("keep", [0, 1, 40, -1])
def test_torn_last_line(tmp_path: Path, plan: ExperimentPlan, write: Write, keep: int) -> None:
    """Whatever is left of a line that a crash tore is ignored, and gone after a resume."""
    write(tmp_path, plan, {"tracking=bitmap": outcomes(1, 3)})
    path = tmp_path / "results.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    torn = lines[2][:keep]
    path.write_bytes(b"".join(lines[:2]) + torn)
    assert len(read_results(tmp_path).records) == 2
    with Store(tmp_path) as store:
        results = store.begin(plan, None)
        assert path.read_bytes() == b"".join(lines[:2])
        assert (plan.cells[0].id, 2) in {run.key for run in results.left}
        store.append(json.loads(lines[2]))
    assert path.read_bytes() == b"".join(lines)


BREAKS: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda line: line[:20] + b"\n",
    "no text": lambda line: b"\xff" * 30 + b"\n",
    "zeros": lambda line: bytes(30) + b"\n",
    "another cell": lambda line: line.replace(b'"cell":"', b'"cell":"0'),
    "no status": lambda line: line.replace(b'"status"', b'"sttus"'),
    "another schema": lambda line: line.replace(b"qemu-ring.result", b"qemu-ring.prove"),
}


@pytest.mark.parametrize("what", BREAKS)
def test_damaged_line_is_told_and_the_others_count(
    tmp_path: Path, plan: ExperimentPlan, write: Write, what: str
) -> None:
    """And its run is among those to be made yet; what is made then is read, too."""
    write(tmp_path, plan, {"tracking=bitmap": outcomes(1, 3)})
    path = tmp_path / "results.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + BREAKS[what](lines[1]) + lines[2])
    results = read_results(tmp_path)
    assert [one.repeat for one in results.records] == [0, 2]
    (said,) = results.damaged
    assert said.startswith(f"{path}:2 is damaged and does not count: ")
    assert (plan.cells[0].id, 1) in {run.key for run in results.left}
    with Store(tmp_path) as store:
        left = store.begin(plan, None).left
        assert (plan.cells[0].id, 1) in {run.key for run in left}
        store.append(json.loads(lines[1]))
    results = read_results(tmp_path)
    assert [one.repeat for one in results.records] == [0, 2, 1]
    assert len(results.damaged) == 1
    assert [one.details().samples[0].remaining for one in results.records] == [2, 2, 2]


def test_no_line_that_is_a_record(tmp_path: Path, plan: ExperimentPlan, write: Write) -> None:
    write(tmp_path, plan, {"tracking=bitmap": outcomes(1, 2)})
    path = tmp_path / "results.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(map(BREAKS["another cell"], lines)))
    with pytest.raises(StoreError, match=r"holds no record of this experiment: .*; put the right"):
        read_results(tmp_path)


def test_what_a_later_minor_version_adds_is_kept(
    tmp_path: Path, plan: ExperimentPlan, write: Write
) -> None:
    write(tmp_path, plan, {"tracking=bitmap": outcomes(1, 1)})
    for name in ("experiment.json", "results.jsonl"):
        document = json.loads((tmp_path / name).read_text()) | {"later": [1]}
        (tmp_path / name).write_text(json.dumps(document) + "\n")
    with Store(tmp_path) as store:
        results = store.extend(store.resume(None), 5)
    (record,) = results.records
    assert record.as_dict()["later"] == [1]
    assert json.loads((tmp_path / "experiment.json").read_text())["later"] == [1]


def test_one_writer_at_a_time(tmp_path: Path, plan: ExperimentPlan) -> None:
    with Store(tmp_path) as store:
        store.begin(plan, None)
        with pytest.raises(StoreError, match="another run writes"):
            Store(tmp_path)
        read_results(tmp_path)  # reading is free
    with Store(tmp_path):
        pass


def test_lock_goes_with_the_process(tmp_path: Path, plan: ExperimentPlan) -> None:
    """Also one that is killed, and though its children live on."""
    script = (
        "import subprocess, sys, os; from pathlib import Path;"
        "from qemu_ring.experiment import Store; Store(Path(sys.argv[1]));"
        "subprocess.Popen(['sleep', '5'], close_fds=False); print('up', flush=True);"
        "os.kill(os.getpid(), 9)"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with killed_if_it_fails(subprocess.Popen(command, stdout=subprocess.PIPE)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.wait(timeout=DEADLINE)
        with Store(tmp_path) as store:
            store.begin(plan, None)


def test_other_experiment_is_refused(tmp_path: Path, plan: ExperimentPlan) -> None:
    with Store(tmp_path) as store:
        store.begin(plan, None)
    other = parse_experiment(EXPERIMENT.replace("repeats: 3", "repeats: 4"))
    with Store(tmp_path) as store, pytest.raises(StoreError, match="results of another experiment"):
        store.begin(other, None)


def test_other_qemu_is_refused(tmp_path: Path, plan: ExperimentPlan) -> None:
    with Store(tmp_path) as store:
        store.begin(plan, QEMU)
        store.resume(QEMU | {"path": "/elsewhere"})
    with (
        Store(tmp_path) as store,
        pytest.raises(StoreError, match="is not the QEMU of the results"),
    ):
        store.begin(plan, QEMU | {"sha256": "2" * 64})


def test_results_without_a_plan(tmp_path: Path, plan: ExperimentPlan, write: Write) -> None:
    write(tmp_path, plan, {"tracking=bitmap": outcomes(1, 1)})
    (tmp_path / "experiment.json").unlink()
    with Store(tmp_path) as store, pytest.raises(StoreError, match=r"no experiment\.json"):
        store.begin(plan, None)


def test_killed_before_the_plan_was_noted(tmp_path: Path, plan: ExperimentPlan) -> None:
    (tmp_path / "results.jsonl").touch()
    (tmp_path / "experiment.json.new").write_text("{")
    with Store(tmp_path) as store:
        assert len(store.begin(plan, None).left) == len(plan.runs)


def test_a_run_made_again_counts_once(tmp_path: Path, plan: ExperimentPlan) -> None:
    """Its last record does; the former one stays in the file."""
    first, second, *rest = plan.runs
    refused = empty_record(Status.REFUSED, "no") | {"warm_up": False}
    with Store(tmp_path) as store:
        store.begin(plan, None)
        for run in (first, second):
            store.append(refused | run_labels(run, 1.0, 2.0))
        results = store.resume(None)
        assert results.left == rest
        assert results.without([Status.CRASHED]).left == rest
        assert results.without([Status.CRASHED, Status.REFUSED]).left == plan.runs
        store.append(refused | {"status": "ok"} | run_labels(first, 3.0, 4.0))
    results = read_results(tmp_path)
    assert [(one.status, one.repeat) for one in results.records] == [
        ("refused", second.repeat),
        ("ok", first.repeat),
    ]
    assert results.without([Status.REFUSED]).left == [second, *rest]
    assert (tmp_path / "results.jsonl").read_bytes().count(b"\n") == 3


@pytest.mark.parametrize("order", ["interleaved", "random", "sequential"])
def test_further_repeats(tmp_path: Path, order: str) -> None:
    """What the file with more repeats would have been, and what is done is not to do again."""
    text = EXPERIMENT + f"order: {order}\nseed: 7\nwarm-up: 1\n"
    plan, more = (parse_experiment(text.replace("repeats: 3", f"repeats: {n}")) for n in (3, 5))
    with Store(tmp_path) as store:
        store.begin(plan, QEMU)
        record = empty_record(Status.OK, "") | {"warm_up": True}
        store.append(record | run_labels(plan.runs[0], 1.0, 2.0))
        with pytest.raises(StoreError, match="`qemu-ring experiment resume --repeats 5` adds"):
            store.begin(more, QEMU)
        results = store.extend(store.resume(QEMU), 5)
        assert results.left == [run for run in more.runs if run != plan.runs[0]]
        assert store.begin(more, QEMU).experiment.sha256 == more.sha256
        with pytest.raises(StoreError, match="has 5 repeats, which cannot become 3"):
            store.extend(results, 3)
    noted = read_results(tmp_path).experiment
    assert noted.repeats == 5
    assert noted.qemu is not None
    assert noted.qemu.model_dump() == QEMU


def test_further_repeats_of_an_earlier_version(tmp_path: Path) -> None:
    shutil.copytree(YESTERDAY, tmp_path / "r")
    with Store(tmp_path / "r") as store, pytest.raises(StoreError, match="did not note its seed"):
        store.extend(store.resume(None), 5)


@pytest.mark.parametrize("file", ["experiment.json", "results.jsonl"])
def test_later_version_is_refused(
    tmp_path: Path, plan: ExperimentPlan, write: Write, file: str
) -> None:
    write(tmp_path, plan, {"tracking=bitmap": outcomes(1, 1)})
    path = tmp_path / file
    path.write_text(path.read_text().replace('"version": 1', '"version": 2'))
    path.write_text(path.read_text().replace('"version":1', '"version":2'))
    with pytest.raises(StoreError, match="has version 2; this qemu-ring reads up to 1"):
        read_results(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{}", "damaged"), ("[", "damaged"), ('{"schema": {"name": "x", "version": 1}}', "but x")],
)
def test_no_experiment(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "experiment.json").write_text(text)
    (tmp_path / "results.jsonl").touch()
    with pytest.raises(StoreError, match=message):
        read_results(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no results"):
        read_results(tmp_path)


def test_yesterdays_results_are_read() -> None:
    """Results of version 1, as its runner wrote them; never to be made anew."""
    results = read_results(YESTERDAY)
    assert not results.left
    assert {record.status.value for record in results.records} == {"ok", "not-converged"}
    table = list(rows(results, "runs"))
    assert len(table) == len(results.runs) == 6
    completed = [row for row in table if row["status"] == "ok"]
    assert all(row["seconds"] > 0 and row["downtime_seconds"] > 0 for row in completed)
    assert all(row["stale_pages"] == 0 and row["pages_written"] > 0 for row in completed)
    assert {row["tracking"] for row in table} == {"bitmap", "ring:4096"}
    assert all(list(rows(results, name)) for name in ("iterations", "samples", "removals"))
