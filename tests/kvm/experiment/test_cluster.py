"""An experiment on several Dask workers, some of which die."""

from __future__ import annotations

import asyncio
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from qemu_ring.errors import ExitStatus, HostError, QemuRingError, UsageError
from qemu_ring.experiment import (
    Cell,
    Results,
    Run,
    RunRecord,
    Store,
    Watcher,
    cluster_identity,
    parse_experiment,
    read_results,
    run_on_cluster,
)
from tests.processes import is_running
from tests.waiting import DEADLINE, until

from .clusters import LocalCluster, kill, qemus_of
from .conftest import EXPERIMENT, SMALL, Experiment, documents, documents_of, program, qemu_that

PLENTY = "KVM=1 MEMORY=1e9"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[LocalCluster]:
    folder = tmp_path / "cluster"
    folder.mkdir()
    with LocalCluster(folder) as found:
        yield found


class Noting(Watcher):
    """How often each run began and ended."""

    def __init__(self) -> None:
        self.begun: Counter[tuple[str, int]] = Counter()
        self.over: Counter[tuple[str, int]] = Counter()

    def started(self, cell: Cell, run: Run) -> None:
        self.begun[run.key] += 1

    def ended(self, cell: Cell, run: Run, record: RunRecord) -> None:
        self.over[run.key] += 1


async def run_all(
    text: str, directory: Path, cluster: LocalCluster, qemu: Path, watcher: Watcher | None = None
) -> Results:
    plan = parse_experiment(text)
    identity = await cluster_identity(cluster.address, list(plan.cells), str(qemu))
    with Store(directory) as store:
        results = store.begin(plan, identity)
        await run_on_cluster(
            store, results, scheduler=cluster.address, qemu=identity, watcher=watcher
        )
    return read_results(directory)


def keys(results: Results) -> list[tuple[str, int]]:
    return sorted((one["cell"], one["repeat"]) for one in documents_of(results))


@pytest.mark.ring
async def test_run_of_a_killed_worker_is_run_elsewhere_and_kept_once(
    tmp_path: Path, qemu_path: Path, cluster: LocalCluster
) -> None:
    for name in ("first", "second", "third"):
        cluster.worker(name, PLENTY)
    victim = cluster.workers["second"]
    text = SMALL.replace("settle-seconds: 0.05", "settle-seconds: 1") + "repeats: 8\n"
    watcher = Noting()
    task = asyncio.create_task(run_all(text, tmp_path / "r", cluster, qemu_path, watcher))
    await until(lambda: task.done() or len(qemus_of(victim)) == 2, "it runs")
    guests = qemus_of(victim)
    kill(victim)
    assert guests, "it was killed in the middle of a run"
    await until(lambda: not any(is_running(pid) for pid in guests), "its guests are gone")
    results = await task
    assert keys(results) == sorted(run.key for run in results.runs)
    assert {one["status"] for one in documents_of(results)} == {"ok"}
    again = [key for key, count in watcher.begun.items() if count > 1]
    assert len(again) == 1, "one run was begun twice"
    assert set(watcher.over.values()) == {1}
    (record,) = [one for one in documents_of(results) if (one["cell"], one["repeat"]) == again[0]]
    assert record["worker"]["name"] in ("first", "third")
    assert {one["worker"]["name"] for one in documents_of(results)} >= {"first", "third"}


@pytest.mark.ring
async def test_killed_runner_leaves_no_guest_on_the_workers_and_resumes(
    tmp_path: Path, qemu_path: Path, cluster: LocalCluster
) -> None:
    worker = cluster.worker("only", PLENTY)
    (tmp_path / "e.yaml").write_text(
        SMALL.replace("settle-seconds: 0.05", "settle-seconds: 30") + "repeats: 1\n"
    )
    command = [*EXPERIMENT, "run", "e.yaml", "-o", "r", "--scheduler", cluster.address]
    runner = await asyncio.create_subprocess_exec(
        *command, "--qemu", qemu_path, cwd=tmp_path, stderr=subprocess.DEVNULL
    )
    try:
        await until(lambda: runner.returncode is not None or len(qemus_of(worker)) == 2, "it runs")
        guests = qemus_of(worker)
        assert guests
    finally:
        runner.kill()
        await runner.wait()
    await until(lambda: not any(is_running(pid) for pid in guests), "its guests are gone")
    assert worker.poll() is None
    results = read_results(tmp_path / "r")
    assert documents_of(results) == []
    assert len(results.left) == 1


@pytest.mark.ring
def test_command(
    tmp_path: Path, qemu_path: Path, cluster: LocalCluster, experiment: Experiment
) -> None:
    cluster.worker("only", PLENTY)
    (tmp_path / "e.yaml").write_text(SMALL + "repeats: 2\n")
    where = ["--scheduler", cluster.address, "--qemu", str(qemu_path)]
    done = experiment("run", "e.yaml", "-o", "r", *where)
    assert done.returncode == ExitStatus.GOOD, done.stderr
    assert len(documents(tmp_path / "r")) == 2
    lines = (tmp_path / "r" / "results.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "r" / "results.jsonl").write_bytes(lines[0])
    done = experiment("resume", "r", *where)
    assert done.returncode == ExitStatus.GOOD, done.stderr
    assert "1 of 2 runs are done already" in done.stderr
    assert len(documents(tmp_path / "r")) == 2


async def test_what_no_worker_can_take_is_refused(
    tmp_path: Path, qemu_path: Path, cluster: LocalCluster
) -> None:
    cluster.worker("small", "KVM=1 MEMORY=1e8")
    qemu = qemu_that(tmp_path / "qemu", qemu_path, "exit 1")
    results = await run_all(f"{SMALL}qemu: {qemu}\nrepeats: 1\n", tmp_path / "r", cluster, qemu)
    (record,) = documents_of(results)
    assert record["status"] == "refused"
    assert "its guests need 208 MiB, and no worker declares more MEMORY than 95" in record["error"]


@pytest.mark.ring
async def test_the_only_worker_that_is_large_enough_dies(
    tmp_path: Path, qemu_path: Path, cluster: LocalCluster
) -> None:
    """What it had is refused after a while; the rest goes on, on the other."""
    large = cluster.worker("large", "KVM=1 MEMORY=1e9")
    text = SMALL.replace("settle-seconds: 0.05", "settle-seconds: 30")
    matrix = """\
matrix:
  size:
    small: {guest.memory: 40 MiB, settle-seconds: 0.05}
    large: {guest.memory: 256 MiB}
repeats: 1
order: sequential
"""
    plan, watcher = parse_experiment(text + matrix), Noting()
    identity = await cluster_identity(cluster.address, list(plan.cells), str(qemu_path))
    with Store(tmp_path / "r") as store:
        results = store.begin(plan, identity)
        task = asyncio.create_task(
            run_on_cluster(
                store,
                results,
                scheduler=cluster.address,
                qemu=identity,
                watcher=watcher,
                patience=10.0,
            )
        )
        key = results.runs[1].key
        await until(lambda: task.done() or (key in watcher.begun and qemus_of(large)), "it runs")
        assert not task.done()
        small = cluster.worker("small", "KVM=1 MEMORY=3e8")
        await until(
            lambda: "Registered to" in (tmp_path / "cluster/small.log").read_text(), "it is there"
        )
        kill(large)
        await asyncio.wait_for(task, DEADLINE)
        assert qemus_of(small) == []
    found = read_results(tmp_path / "r")
    by_size = {found.cells[one["cell"]].axes["size"]: one for one in documents_of(found)}
    assert by_size["small"]["status"] == "ok"
    assert by_size["large"]["status"] == "refused"
    assert by_size["large"]["error"] == (
        "its guests need 640 MiB, and no worker declares more MEMORY than 286 MiB any more"
    )


async def test_worker_without_kvm_does_not_count(cluster: LocalCluster) -> None:
    cluster.worker("other", "GPU=1")
    cells = list(parse_experiment(SMALL).cells)
    with pytest.raises(HostError, match="no worker that declares KVM; start some: dask worker"):
        await cluster_identity(cluster.address, cells, None, patience=1.0)


async def test_worker_with_another_qemu_refuses(
    tmp_path: Path, qemu_path: Path, cluster: LocalCluster
) -> None:
    """Its results would not compare."""
    cluster.worker("only", PLENTY)
    plan = parse_experiment(SMALL + "repeats: 1\n")
    identity = {"path": str(qemu_path), "sha256": "0" * 64, "version": "1"}
    with Store(tmp_path / "r") as store:
        results = store.begin(plan, identity)
        await run_on_cluster(store, results, scheduler=cluster.address, qemu=identity)
    (record,) = documents(tmp_path / "r")
    assert record["status"] == "refused"
    assert record["error"].endswith("is not the QEMU of the results")


async def test_qemu_that_the_worker_lacks(cluster: LocalCluster) -> None:
    cluster.worker("only", PLENTY)
    cells = list(parse_experiment(SMALL).cells)
    with pytest.raises(QemuRingError, match=r"/no/such does not exist") as caught:
        await cluster_identity(cluster.address, cells, "/no/such")
    assert caught.value.exit_status is ExitStatus.USAGE


async def test_all_workers_gone(tmp_path: Path, cluster: LocalCluster) -> None:
    worker = cluster.worker("only", PLENTY)
    qemu = program(tmp_path / "qemu", "exec sleep 60")
    plan = parse_experiment(f"{SMALL}qemu: {qemu}\nrepeats: 1\n")
    watcher = Noting()
    with Store(tmp_path / "r") as store:
        task = asyncio.create_task(
            run_on_cluster(
                store,
                store.begin(plan, None),
                scheduler=cluster.address,
                qemu=None,
                watcher=watcher,
                patience=10.0,
            )
        )
        await until(lambda: task.done() or watcher.begun, "it has begun")
        kill(worker)
        with pytest.raises(QemuRingError, match="all workers that declare KVM are gone"):
            await asyncio.wait_for(task, DEADLINE)
    assert documents_of(read_results(tmp_path / "r")) == []


async def test_scheduler_gone(tmp_path: Path, qemu_path: Path, cluster: LocalCluster) -> None:
    cluster.worker("only", PLENTY)
    qemu = qemu_that(tmp_path / "qemu", qemu_path, "exec sleep 60")
    text, watcher = f"{SMALL}qemu: {qemu}\nrepeats: 1\n", Noting()
    task = asyncio.create_task(run_all(text, tmp_path / "r", cluster, qemu, watcher))
    await until(lambda: task.done() or watcher.begun, "it has begun")
    kill(cluster.scheduler)
    with pytest.raises(QemuRingError, match=r"scheduler at tcp://.* is gone; start it, then"):
        await asyncio.wait_for(task, DEADLINE)
    assert documents_of(read_results(tmp_path / "r")) == []


async def test_no_scheduler() -> None:
    cells = list(parse_experiment(SMALL).cells)
    for address in ("tcp://127.0.0.1:9", "nonsense://x"):
        with pytest.raises(UsageError, match=f"no Dask scheduler answers at {address}"):
            await cluster_identity(address, cells, None)


def test_this_hosts_budget_and_a_cluster(tmp_path: Path, experiment: Experiment) -> None:
    (tmp_path / "e.yaml").write_text(SMALL)
    done = experiment("run", "e.yaml", "--scheduler", "tcp://127.0.0.1:9", "--cpus", "1")
    assert (done.returncode, done.stdout) == (ExitStatus.USAGE, "")
    assert done.stderr.startswith("qemu-ring: --cpus and --memory are for this host alone;")
    assert list(tmp_path.iterdir()) == [tmp_path / "e.yaml"]
