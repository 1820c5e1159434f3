"""The runner without a QEMU: failures are recorded, the rest goes on, a budget is kept."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from qemu_ring.errors import ExitStatus, QemuRingError, UsageError
from qemu_ring.experiment import (
    Budget,
    Cell,
    Run,
    RunRecord,
    Store,
    ThisHost,
    Watcher,
    examine_qemu,
    parse_experiment,
    read_results,
    run_left,
)
from qemu_ring.experiment.schedule.concurrency import Concurrency
from tests.waiting import DEADLINE, until

from .conftest import EXPERIMENT

MATRIX = EXPERIMENT[EXPERIMENT.index("matrix:") :]


class Counting(Watcher):
    """How many runs there are at a time."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self.statuses: list[str] = []

    def started(self, cell: Cell, run: Run) -> None:
        self.now += 1
        self.most = max(self.most, self.now)

    def ended(self, cell: Cell, run: Run, record: RunRecord) -> None:
        self.now -= 1
        self.statuses.append(record.status.value)


def program(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


async def run_all(text: str, directory: Path, **options: Any) -> Counting:
    plan, watcher = parse_experiment(text), Counting()
    with Store(directory) as store:
        results = store.begin(plan, None)
        await run_left(store, results, ThisHost(results, **options), watcher)
    return watcher


async def test_each_failure_is_recorded_and_the_rest_goes_on(tmp_path: Path) -> None:
    fails = program(tmp_path / "fails", "echo broken to bits >&2; exit 3")
    hangs = program(tmp_path / "hangs", "exec sleep 600")
    kills = program(tmp_path / "kills", 'kill -9 "$PPID"')
    matrix = f"matrix: {{qemu: [{fails}, {hangs}, {kills}]}}\ntime-limit: 12\nrepeats: 1\n"
    await run_all(EXPERIMENT.replace(MATRIX, matrix), tmp_path / "r")
    results = read_results(tmp_path / "r")
    first, second, third = results.records
    assert first.status == "refused"
    assert "broken to bits" in str(first.error)
    assert second.status == "timeout"
    assert second.error == "not over within 12 s"
    assert third.status == "crashed"
    assert str(third.error).startswith("its process ended: killed by SIGKILL")
    assert not results.left


async def test_a_signal_of_someone_else_is_no_timeout(tmp_path: Path) -> None:
    ends = program(tmp_path / "ends", 'kill -TERM "$PPID"; exec sleep 600')
    text = EXPERIMENT.replace("repeats: 3", "repeats: 1").replace("[bitmap, ring:4096]", "[bitmap]")
    await run_all(f"{text}qemu: {ends}\n", tmp_path / "r")
    (record,) = read_results(tmp_path / "r").records
    assert record.status == "crashed"
    assert record.error == "ended by SIGTERM, and not by us"
    assert record.wall_seconds < 2 * DEADLINE


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU only")
async def test_a_cell_that_needs_more_cpus_than_there_are_is_refused(tmp_path: Path) -> None:
    fails = program(tmp_path / "qemu", "exit 3")
    matrix = "matrix: {guest.vcpus: [1, 2]}\nrepeats: 1\n"
    text = EXPERIMENT.replace(MATRIX, matrix) + f"qemu: {fails}\n"
    await run_all(text, tmp_path / "r", budget=Budget(2, 1 << 40))
    results = read_results(tmp_path / "r")
    found = {results.cells[one.cell].name: one for one in results.records}
    fits, too_large = found["vcpus=1"], found["vcpus=2"]
    assert "it needs 3 CPUs, one more than its vCPUs, and the budget is 2" in str(too_large.error)
    assert (too_large.cpus, too_large.side_by_side) == (None, None)
    assert fits.cpus == tuple(sorted(os.sched_getaffinity(0))[:2])
    assert fits.side_by_side == 1


async def test_stopped_after_failures_in_a_row(tmp_path: Path) -> None:
    fails = program(tmp_path / "qemu", "exit 3")
    text = f"{EXPERIMENT}qemu: {fails}\nstop: {{failures-in-a-row: 2}}\n"
    with pytest.raises(QemuRingError, match="stopped: 2 runs failed one after the other") as caught:
        await run_all(text, tmp_path / "r")
    assert caught.value.exit_status is ExitStatus.FAILED
    results = read_results(tmp_path / "r")
    assert len(results.records) == 2
    await run_all(text.replace("row: 2", "row: 9"), tmp_path / "r")
    assert not read_results(tmp_path / "r").left


async def test_stopped_after_some_time(tmp_path: Path) -> None:
    fails = program(tmp_path / "qemu", "exit 3")
    text = f"{EXPERIMENT}qemu: {fails}\nstop: {{seconds: 0.001}}\n"
    with pytest.raises(QemuRingError, match=r"stopped: it has run for 0\.001 s"):
        await run_all(text, tmp_path / "r")
    assert len(read_results(tmp_path / "r").left) == 5


def test_side_by_side() -> None:
    counting = Concurrency()
    with counting.one() as first:
        with counting.one() as second:
            assert (first(), second()) == (2, 2)
        with counting.one() as third:
            assert (first(), third()) == (2, 2)
    with counting.one() as fourth:
        assert fourth() == 1
    assert [told() for told in (first, second, third, fourth)] == [2, 2, 2, 1]


async def test_a_refusal_is_recorded(tmp_path: Path) -> None:
    text = EXPERIMENT.replace("64 MiB", "200 TiB").replace("repeats: 3", "repeats: 1")
    qemu = program(tmp_path / "qemu", "exit 1")
    watcher = await run_all(f"{text}qemu: {qemu}\n", tmp_path / "r", budget=Budget(1, 1 << 30))
    assert watcher.statuses == ["refused", "refused"]
    records = read_results(tmp_path / "r").records
    assert all("and the budget is 1024 MiB" in str(record.error) for record in records)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU only")
async def test_runs_side_by_side_keep_to_the_budget(tmp_path: Path) -> None:
    slow = program(tmp_path / "slow", "sleep 0.3; exit 3")
    text = f"{EXPERIMENT}qemu: {slow}\n"
    cell_bytes = 2 * (128 << 20)
    alone = await run_all(text, tmp_path / "1")
    assert alone.most == 1
    watcher = await run_all(text, tmp_path / "2", budget=Budget(2, 4 * cell_bytes))
    assert watcher.most == 1, "each takes two CPUs"
    assert len(watcher.statuses) == 6


def test_budget_of_cpus_that_are_not_there() -> None:
    with pytest.raises(UsageError, match="CPUs cannot be"):
        Budget(10_000, 1)


async def test_cancelled_runs_leave_no_record(tmp_path: Path) -> None:
    hangs = program(tmp_path / "hangs", "exec sleep 600")
    task = asyncio.create_task(run_all(f"{EXPERIMENT}qemu: {hangs}\n", tmp_path / "r"))
    await until((tmp_path / "r" / "experiment.json").exists, "it has begun")
    task.cancel()
    _, running = await asyncio.wait({task}, timeout=DEADLINE)
    assert not running
    assert task.cancelled()
    assert read_results(tmp_path / "r").records == ()


async def test_identity_of_a_program_that_is_no_qemu(tmp_path: Path) -> None:
    cells = list(parse_experiment(EXPERIMENT).cells)
    with pytest.raises(QemuRingError):
        await examine_qemu(cells, program(tmp_path / "qemu", "exit 1"))
