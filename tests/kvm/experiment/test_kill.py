"""kill -9 of the runner, and on from there. (`kills.py` does it at length.)"""

from __future__ import annotations

import random
import signal
import subprocess
from pathlib import Path

import pytest

from qemu_ring.errors import ExitStatus
from qemu_ring.experiment import read_results
from tests.waiting import DEADLINE, wait_until

from .clusters import qemus_of
from .conftest import EXPERIMENT, SMALL
from .kills import Killer


@pytest.mark.ring
@pytest.mark.parametrize("kills", [1, pytest.param(5, marks=pytest.mark.full)])
def test_killed_runner_resumes_to_the_same_results(
    tmp_path: Path, qemu_path: Path, kills: int
) -> None:
    killer = Killer(tmp_path, qemu_path, cells=2 + kills)
    seconds = killer.undisturbed()
    dice = random.Random()
    moments = [dice.uniform(0.2, 0.6) * seconds for _ in range(kills)]
    trial = killer.trial(moments)
    assert trial.wrong == [], moments


@pytest.mark.ring
@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, ExitStatus.INTERRUPTED), (signal.SIGTERM, ExitStatus.TERMINATED)],
)
def test_ended_by_a_signal(
    tmp_path: Path, qemu_path: Path, number: signal.Signals, status: ExitStatus
) -> None:
    """Everything started is stopped; what was under way has no record, and is left to do."""
    long = SMALL.replace("settle-seconds: 0.05", "settle-seconds: 50")
    (tmp_path / "e.yaml").write_text(f"{long}repeats: 1\n")
    runner = subprocess.Popen(
        [*EXPERIMENT, "run", tmp_path / "e.yaml", "-o", tmp_path / "r", "--qemu", qemu_path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    def both_run() -> bool:
        assert runner.poll() is None
        return len(qemus_of(runner)) >= 2

    wait_until(both_run, "both QEMUs run")
    runner.send_signal(number)
    out, err = runner.communicate(timeout=DEADLINE)
    assert (runner.returncode, out) == (status, "")
    assert err == f"qemu-ring: ended by {number.name}; everything started was stopped\n"
    assert len(read_results(tmp_path / "r").left) == 1
