"""Whole experiments: each status comes about, is recorded as what it is, and the rest goes on."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections import Counter
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from qemu_ring.errors import ExitStatus
from qemu_ring.experiment import (
    Budget,
    Cell,
    Store,
    ThisHost,
    parse_experiment,
    read_results,
    run_left,
)
from qemu_ring.guest import image_bytes
from tests.processes import find_processes
from tests.waiting import DEADLINE

from .conftest import (
    OWNER_VARIABLE,
    SMALL,
    Experiment,
    documents,
    documents_of,
    program,
)

OUTCOMES = """
matrix:
  case:
    fine: {migration.kind: precopy}
    late: {migration.max-bandwidth: 1 MiB, time-limit: 20}
    hopeless: {migration.max-bandwidth: 1 MiB, migration.abort: {seconds: 0.5}}
    too-large: {guest.memory: 64 TiB}
    dies: {qemu: DIES, settle-seconds: 3}
    fine-too: {migration.multifd: 2}
    by-address: {migration.channel: tcp, migration.listen: 127.0.0.9}
repeats: 1
"""
MEDDLED_PAGE = 9000  # of RAM, which the guest does not write
REMOVALS = """\
name: removals
guest:
  memory: 48 MiB
  tracking: ring:4096
  flush-policy: quiesce
  slots:
    - {name: slot, size: 128 MiB, address: 1 GiB}
    - {name: helper, size: 2 MiB, address: 2 GiB}
  workload:
    regions: [{name: slot, slot: slot}]
    streams: [{pattern: loop, pages-per-second: 20000}]
migration: {max-bandwidth: 100 MiB, downtime-limit: 0.05, abort: {seconds: 120}}
removals: {every-seconds: 0}
settle-seconds: 0.2
time-limit: 300
repeats: 1
"""


@pytest.mark.ring
def test_every_outcome_is_told_and_the_rest_goes_on(
    tmp_path: Path, qemu_path: Path, experiment: Experiment
) -> None:
    kill = "(sleep 1; kill -9 $$) >/dev/null 2>&1 &"
    dies = program(
        tmp_path / "dies",
        f'case "$*" in *"-incoming defer"*) {kill} esac\nexec {qemu_path} "$@"',
    )
    text = SMALL + OUTCOMES.replace("DIES", str(dies))
    (tmp_path / "e.yaml").write_text(text)
    done = experiment("run", "e.yaml", "-o", "r", "--qemu", qemu_path, "--json")
    assert done.returncode == ExitStatus.FAILED, done.stderr
    summary = json.loads(done.stdout)
    assert summary["statuses"] == {
        "ok": 3,
        "timeout": 1,
        "not-converged": 1,
        "refused": 1,
        "crashed": 1,
    }
    results = read_results(tmp_path / "r")
    assert results.left == []
    found = {results.cells[one["cell"]].axes["case"]: one for one in documents_of(results)}
    assert {case: one["status"] for case, one in found.items()} == {
        "fine": "ok",
        "late": "timeout",
        "hopeless": "not-converged",
        "too-large": "refused",
        "dies": "crashed",
        "fine-too": "ok",
        "by-address": "ok",
    }
    assert found["late"]["error"] == "not over within 20 s"
    assert 20 <= found["late"]["wall_seconds"] < 20 + DEADLINE
    assert found["late"]["migration"]["samples"], "the same of one that took too long"
    assert "it took longer than 0.5 s" in found["hopeless"]["error"]
    assert found["hopeless"]["migration"]["samples"], "what it did until then is kept"
    assert "a guest of 67108864 MiB and the one it is migrated to" in found["too-large"]["error"]
    assert "SIGKILL" in found["dies"]["error"]
    assert found["fine"]["stale_pages"] == 0
    assert found["fine"]["pages_written"] > 0
    assert found["fine"]["pages_written_by_vcpu"] == [found["fine"]["pages_written"]]
    assert found["fine"]["pages_written_by_region"] == {"heap": found["fine"]["pages_written"]}
    assert (found["fine"]["cpus"], found["fine"]["side_by_side"]) == (None, 1)
    assert [line for line in done.stderr.splitlines() if "7/7" in line]


def test_chunks_in_which_the_bitmap_is_cleared(
    tmp_path: Path, qemu_path: Path, experiment: Experiment
) -> None:
    matrix = "matrix: {migration.clear-chunk: [4 MiB, null]}\nrepeats: 1\n"
    (tmp_path / "e.yaml").write_text(SMALL + matrix)
    done = experiment("run", "e.yaml", "-o", "r", "--qemu", qemu_path)
    assert done.returncode == ExitStatus.GOOD, done.stderr
    small, default = read_results(tmp_path / "r").records
    option = "migration.x-clear-bitmap-shift=10"
    assert [option in line for line in small.provenance["command_lines"]] == [True, True]
    assert not any(option in line for line in default.provenance["command_lines"])
    for record in (small, default):
        assert record.migration is not None
        assert record.migration.resent_per_write is not None
        assert record.migration.pages_absorbed in (None, 0)  # it is KVM that absorbs


@pytest.mark.ring
def test_provenance_is_complete(tmp_path: Path, qemu_path: Path, experiment: Experiment) -> None:
    (tmp_path / "e.yaml").write_text(SMALL + "repeats: 1\n")
    done = experiment("run", "e.yaml", "-o", "r", "--qemu", qemu_path)
    assert done.returncode == ExitStatus.GOOD, done.stderr
    (record,) = documents(tmp_path / "r")
    told = record["provenance"]
    assert told["host"]["kernel"] == os.uname().release
    assert told["kvm"]["dirty_ring_max_bytes"] > 0
    assert told["qemu"]["path"] == str(qemu_path)
    assert len(told["qemu"]["sha256"]) == 64
    assert {"qemu-ring", "qemu.qmp", "python"} <= told["versions"].keys()
    firmware = hashlib.sha256(image_bytes()).hexdigest()
    assert told["images"] == {"firmware": {"path": None, "sha256": firmware}}
    source, destination = told["command_lines"]
    assert "-incoming" not in source
    assert "-incoming defer" in destination
    frame = read_results(tmp_path / "r").frame()
    assert list(frame["status"]) == ["ok"]


@pytest.mark.ring
def test_stale_memory_is_found(tmp_path: Path, qemu_path: Path, experiment: Experiment) -> None:
    """A byte that the source does not have is put into the destination's memory."""
    (tmp_path / "e.yaml").write_text(SMALL.replace("500 MiB", "60 MiB") + "repeats: 1\n")
    over = threading.Event()
    meddler = threading.Thread(target=_meddle, args=(os.environ[OWNER_VARIABLE], over))
    meddler.start()
    try:
        done = experiment("run", "e.yaml", "-o", "r", "--qemu", qemu_path, "--json")
    finally:
        over.set()
        meddler.join()
    assert done.returncode == ExitStatus.BAD, done.stderr
    (record,) = documents(tmp_path / "r")
    assert record["status"] == "stale"
    assert record["error"] == "1 stale pages at the destination"
    assert record["stale_pages"] == 1
    assert record["stale"] == [{"block": "ram", "page": MEDDLED_PAGE}]
    assert json.loads(done.stdout)["cells"][0]["stale_pages"] == 1


def _meddle(owner: str, over: threading.Event) -> None:
    """Find the waiting QEMU's memory, and write one byte into it, over and over."""
    with ExitStack() as stack:
        memory: list[int] = []
        while not over.wait(0.002):
            if not memory:
                memory = [_opened(link, stack) for link in _memory_of_waiting(owner)]
            for fd in memory:
                os.pwrite(fd, b"!", MEDDLED_PAGE * 4096)


def _opened(link: Path, stack: ExitStack) -> int:
    return stack.enter_context(link.open("r+b", buffering=0)).fileno()


def _memory_of_waiting(owner: str) -> list[Path]:
    for process in find_processes(lambda one: one.was_told(f"{OWNER_VARIABLE}={owner}")):
        with suppress(OSError):  # it is gone
            if "-incoming defer" in process.command and "-machine pc" in process.command:
                links = (process.folder / "fd").iterdir()
                return [one for one in links if "memfd:qemu-ring:ram" in str(one.readlink())]
    return []


@pytest.mark.ring
def test_memslots_are_removed_while_a_guest_is_migrated(
    tmp_path: Path, patched_qemu: Path, experiment: Experiment
) -> None:
    (tmp_path / "e.yaml").write_text(REMOVALS)
    done = experiment("run", "e.yaml", "-o", "r", "--qemu", patched_qemu)
    assert done.returncode == ExitStatus.GOOD, done.stderr
    (record,) = documents(tmp_path / "r")
    removals, migration = record["removals"], record["migration"]
    assert removals
    assert all(one["count"] == 2 and one["shape"] == "pci" for one in removals)
    first = migration["iterations"][0]
    times = [one["at_seconds"] for one in removals]
    assert times == sorted(times)
    assert times[0] >= first["at_seconds"] + first["seconds"], "not before a pass is over"
    assert times[-1] <= migration["seconds"]
    assert record["flush"]["policy"] == "quiesce"
    (counters,) = [one for one in record["flush"]["stats"] if one["policy"] == "quiesce"]
    assert counters["removals"] >= 2 * len(removals)
    assert record["rings"][0]["reaped"] > 0
    assert any(one["ring_fill"] is not None for one in migration["samples"])


@pytest.mark.kvm
def test_refused_runs_are_made_again(
    tmp_path: Path, qemu_path: Path, experiment: Experiment
) -> None:
    """And again they are refused, for there is not so much memory; then there are more of them."""
    text = SMALL.replace("40 MiB", "64 TiB") + "matrix: {migration.multifd: [0, 2]}\nrepeats: 1\n"
    (tmp_path / "e.yaml").write_text(text)
    lines = tmp_path / "r/results.jsonl"

    def again(*arguments: str) -> tuple[object, int, int]:
        done = experiment(*arguments, "--qemu", qemu_path, "--json")
        return done.returncode, json.loads(done.stdout)["done"], lines.read_bytes().count(b"\n")

    assert again("run", "e.yaml", "-o", "r") == (ExitStatus.FAILED, 2, 2)
    assert again("resume", "r") == (ExitStatus.FAILED, 2, 2)
    assert again("resume", "r", "--retry", "crashed,timeout") == (ExitStatus.FAILED, 2, 2)
    assert again("resume", "r", "--retry", "crashed, refused") == (ExitStatus.FAILED, 2, 4)
    assert again("resume", "r", "--repeats", "2") == (ExitStatus.FAILED, 4, 6)


@pytest.mark.ring
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU only")
def test_runs_side_by_side(tmp_path: Path, qemu_path: Path, experiment: Experiment) -> None:
    """As many as the memory allows, and CPUs are not shared: here one after the other."""
    (tmp_path / "e.yaml").write_text(f"{SMALL}repeats: 3\n")
    arguments = ["run", "e.yaml", "--qemu", qemu_path, "--cpus", 2]
    done = experiment(*map(str, arguments), "-o", "enough", "--memory", "1G")
    assert done.returncode == ExitStatus.GOOD, done.stderr
    assert len(documents(tmp_path / "enough")) == 3
    done = experiment(*map(str, arguments), "-o", "little", "--memory", "100M")
    assert done.returncode == ExitStatus.FAILED
    records = documents(tmp_path / "little")
    assert Counter(one["status"] for one in records) == {"refused": 3}
    assert "and the budget is 100 MiB" in records[0]["error"]


@pytest.mark.ring
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one CPU only")
async def test_two_runs_at_the_same_time(
    tmp_path: Path, qemu_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each on a CPU of its own: here both of its guests, too, for two CPUs are all that is sure."""
    monkeypatch.setattr(Cell, "cpus", 1)
    plan = parse_experiment(f"{SMALL.replace('settle-seconds: 0.05', '')}repeats: 4\n")
    budget = Budget(2, 4 * plan.cells[0].guests_bytes)
    with Store(tmp_path) as store:
        results = store.begin(plan, None)
        await run_left(store, results, ThisHost(results, qemu_path, budget))
    results = read_results(tmp_path)
    assert [one["status"] for one in documents_of(results)] == ["ok"] * 4
    first, second, *_ = sorted(documents_of(results), key=lambda one: one["started"])
    assert (first["side_by_side"], second["side_by_side"]) == (2, 2)
    cpus = sorted(os.sched_getaffinity(0))[:2]
    assert sorted([first["cpus"], second["cpus"]]) == [[cpus[0]], [cpus[1]]]
    assert second["started"] < first["started"] + first["wall_seconds"]


def _why_no_netem() -> str | None:
    """Ask the kernel, in a process of its own, for a namespace cannot be left."""
    script = (
        "from qemu_ring.experiment.run.network import enter_network;"
        "from qemu_ring.experiment.plan.schema import NetworkPart;"
        "enter_network(NetworkPart(latency_seconds=0.001))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60)
    return None if done.returncode == 0 else "netem needs root, iproute2 and sch_netem"


@pytest.mark.kvm
def test_network_conditions(tmp_path: Path, qemu_path: Path, experiment: Experiment) -> None:
    """A narrow, slow link makes a migration as slow as it says; another is not touched."""
    (tmp_path / "e.yaml").write_text(
        SMALL + "network: {bandwidth: 8 MiB, latency-seconds: 0.02}\nrepeats: 1\n"
    )
    done = experiment("run", "e.yaml", "-o", "r", "--qemu", qemu_path)
    (record,) = documents(tmp_path / "r")
    why = _why_no_netem()
    if why is not None:  # told as what it is, then
        assert done.returncode == ExitStatus.FAILED
        assert record["status"] == "refused"
        pytest.skip(why)
    assert record["status"] == "ok", record["error"]
    assert record["migration"]["bytes"] / record["migration"]["seconds"] < 1.1 * (8 << 20)


@pytest.mark.kvm
@pytest.mark.parametrize("qemu", ["qemu_path", "patched_qemu"])
def test_guest_with_a_disk_is_migrated_without_being_verified(
    request: pytest.FixtureRequest, tmp_path: Path, experiment: Experiment, qemu: str
) -> None:
    (tmp_path / "disk.img").write_bytes(bytes(1 << 20))
    disk = "guest:\n  disks: [{path: disk.img}]"
    matrix = "matrix: {migration.kind: [precopy, postcopy]}\nrepeats: 1\nverify: false\n"
    (tmp_path / "e.yaml").write_text(SMALL.replace("guest:", disk) + matrix)
    binary = request.getfixturevalue(qemu)
    done = experiment("run", "e.yaml", "-o", "r", "--qemu", binary, "--json")
    assert done.returncode == ExitStatus.GOOD, done.stderr
    assert json.loads(done.stdout)["statuses"] == {"ok": 2}
