"""A migration under way, changed from another process: on real QEMUs, by the command."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from qemu_ring.errors import QemuRingError
from qemu_ring.migration.control import ControlAnswer, ControlRequest, request_control
from tests.command import run_command, start_command
from tests.kvm.migration.qemus import Qemus

pytestmark = [pytest.mark.kvm, pytest.mark.alternating("qemus")]

MIB = 1 << 20

start = partial(start_command, "migrate")
control = partial(run_command, "control")
SECONDS = 60.0
SLOW = ("--max-bandwidth", "1MiB/s", "--downtime-limit", "50ms")
"""The guest writes 16 MiB a second."""


@pytest.fixture(params=["distribution", "patched"])
def both(request: pytest.FixtureRequest, qemu_path: Path, tmp_path: Path) -> Iterator[Qemus]:
    binary = qemu_path
    if request.param == "patched":
        binary = request.getfixturevalue("patched_qemu")
    # tmpfs, because postcopy needs memory in which the kernel can tell of missing pages.
    memory = Path("/dev/shm")
    started = Qemus(tmp_path, binary, memory_folder=memory)
    yield started
    started.stop()


def until(at: str, wanted: Callable[[ControlAnswer], bool]) -> ControlAnswer:
    """Ask until it is so; without the command, whose start takes long on a busy host."""
    deadline = time.monotonic() + SECONDS
    while not wanted(found := status(at)):
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    return found


def status(at: str) -> ControlAnswer:
    return asyncio.run(request_control(at, ControlRequest(action="status")))


@contextmanager
def migrating(qemus: Qemus, at: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """One that has begun, and takes requests."""
    process = start(qemus.source, qemus.destination, "--json", "--control", str(at), *options)
    try:
        deadline = time.monotonic() + SECONDS
        while True:
            assert process.poll() is None, process.stderr and process.stderr.read()
            assert time.monotonic() < deadline
            with suppress(QemuRingError):
                if status(str(at)).remaining:
                    break
            time.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.communicate(timeout=SECONDS)


def ended(process: subprocess.Popen[str], expect: int) -> tuple[str, str]:
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == expect, err
    return out, err


def test_bandwidth_and_downtime_limit(both: Qemus, tmp_path: Path) -> None:
    at = tmp_path / "control"
    with migrating(both, at, *SLOW) as process:
        assert at.stat().st_mode & 0o777 == 0o600
        found = json.loads(control("status", str(at), "--json")[0])
        assert found["schema"] == {"name": "qemu-ring.control", "version": 1}
        assert (found["max_bandwidth"], found["downtime_limit"]) == (MIB, 0.05)
        assert found["status"] == "active"
        assert found["remaining"] > 0
        control("set", str(at), "--postcopy-bandwidth", "5M", "--downtime-limit", "40ms")
        now = status(str(at))
        assert (now.postcopy_bandwidth, now.downtime_limit) == (5 * MIB, 0.04)
        out, _ = control("set", str(at), "--max-bandwidth", "0", "--downtime-limit", "1.5s")
        assert "downtime limit 1,500 ms" in out
        document = json.loads(ended(process, 0)[0])
    assert document["status"] == "completed"
    assert not at.exists()


def test_pause_and_resume(both: Qemus, tmp_path: Path) -> None:
    at = str(tmp_path / "control")
    rules = ("--abort-seconds", "40s")
    with migrating(both, Path(at), "--max-bandwidth", "4M", "--downtime-limit", "50ms", *rules) as (
        process
    ):
        assert "active, paused" in control("pause", at)[0]
        before = status(at)
        assert before.paused
        assert before.seconds is not None
        assert before.transferred is not None
        since = before.seconds
        later = until(at, lambda found: found.seconds is not None and found.seconds > since + 3)
        assert later.seconds is not None
        assert later.transferred is not None
        # Since QEMU 8 a buffer of 128 KiB each 0.1 s, which is the least there.
        assert later.transferred - before.transferred < 2 * MIB * (later.seconds - since)
        assert "it is paused already" in control("pause", at, expect=2)[1]
        control("set", at, "--max-bandwidth", "500M", "--downtime-limit", "1s")
        bandwidth = status(at).max_bandwidth
        assert bandwidth is not None
        assert bandwidth < 100  # until it goes on
        control("resume", at)
        assert json.loads(ended(process, 0)[0])["status"] == "completed"


@pytest.mark.busy_guest
def test_switchover(both: Qemus, tmp_path: Path) -> None:
    """In the first pass, which would take half a minute more."""
    at = str(tmp_path / "control")
    with migrating(both, Path(at), *SLOW) as process:
        control("switchover", at)
        document = json.loads(ended(process, 0)[0])
    assert document["status"] == "completed"
    last = document["timeline"]["iterations"][0]
    assert last["number"] == 1
    assert last["bytes_sent"] is None or last["bytes_sent"] < 30 * MIB
    assert document["totals"]["bytes_sent"] > 30 * MIB


def test_cancel(both: Qemus, tmp_path: Path) -> None:
    at = str(tmp_path / "control")
    with migrating(both, Path(at), *SLOW) as process:
        out, _ = control("cancel", at)
        assert out.startswith(("cancelled", "failed"))
        _, err = ended(process, 4)
    assert "the migration was cancelled; the guest runs on at the source" in err
    assert both.processes[0].poll() is None
    assert not Path(at).exists()


def test_postcopy(both: Qemus, tmp_path: Path) -> None:
    at = str(tmp_path / "control")
    options = ("--kind", "postcopy", "--postcopy-after", "1000", *SLOW)
    with migrating(both, Path(at), *options, "--postcopy-bandwidth", "300M") as process:
        assert status(at).postcopy_bandwidth == 300 * MIB
        control("postcopy", at)
        document = json.loads(ended(process, 0)[0])
    assert document["switched_to_postcopy"] is True


def test_postcopy_that_was_not_set_up(both: Qemus, tmp_path: Path) -> None:
    at = str(tmp_path / "control")
    with migrating(both, Path(at), *SLOW) as process:
        _, err = control("postcopy", at, expect=2)
        assert "it was not set up for postcopy" in err
        assert "a goal that ends by postcopy" in err
        assert process.poll() is None


def test_decisions_for_a_goal_are_told(both: Qemus, tmp_path: Path) -> None:
    at = str(tmp_path / "control")
    goal = ("--within", "15s", "--downtime", "40ms", "--then", "wait", "--max-bandwidth", "1M")
    with migrating(both, Path(at), *goal) as process:
        found = until(at, lambda found: bool(found.decisions))
        assert "it will not keep to the goal: " in found.decisions[0]
        control("set", at, "--max-bandwidth", "0", "--downtime-limit", "2s")
        out, _ = process.communicate(timeout=SECONDS)
    assert process.returncode in (0, 1)  # kept after all, or not
    outcome = json.loads(out)["goal"]
    assert outcome["goal"]["downtime"] == 2.0  # what was set has become the goal's
    assert (process.returncode == 0) == outcome["kept"]


def test_killed_controller_leaves_no_socket(qemus: Qemus, tmp_path: Path) -> None:
    at = tmp_path / "control"
    with migrating(qemus, at, *SLOW) as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=SECONDS)
        deadline = time.monotonic() + SECONDS
        while at.exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert "no migration is controlled at" in control("status", str(at), expect=2)[1]


def test_socket_that_is_in_use(qemus: Qemus, tmp_path: Path) -> None:
    at = tmp_path / "control"
    at.write_text("mine")
    process = start(qemus.source, qemus.destination, "--control", str(at))
    assert "is there already, and no socket" in ended(process, 2)[1]
    assert at.read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("set", "x"), "nothing is to be set; use --max-bandwidth"),
        (("set", "x", "--max-bandwidth", "fast"), "'fast' is no rate"),
        (("status", "/nowhere"), "no migration is controlled at /nowhere: No such file"),
        (("cancel",), "Missing argument 'SOCKET'"),
    ],
)
def test_refused(arguments: tuple[str, ...], words: str) -> None:
    assert words in control(*arguments, expect=2)[1]
