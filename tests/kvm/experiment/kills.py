"""kill -9 of an experiment's runner at random moments, resumed each time.

    python -m tests.kvm.experiment.kills QEMU [--kills 30] [--each 3] [--cells 20] [--seed 1]

A kill has to leave no process and no file, the lines of results.jsonl that were whole, and
experiment.json whole or not there. The resumed experiment has to come to the same set of
results as one that was left alone: every run once, and none of those that had finished again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from qemu_ring.experiment import parse_experiment
from tests.command import COMMAND
from tests.processes import find_processes

EXPERIMENT = [*COMMAND, "experiment"]
MARK = "QEMU_RING_KILLS"
GONE_SECONDS = 60.0
"""That processes have to go away after their parent was killed."""
RUN_SECONDS = 600.0


def experiment_text(cells: int) -> str:
    """An experiment of so many cells, each a second or so."""
    rates = [1000 * (1 + index) for index in range(cells)]
    return f"""\
name: kills
guest:
  memory: 24 MiB
  tracking: ring:4096
  workload:
    regions: [{{name: heap, address: 16 MiB, size: 4 MiB}}]
    streams: [{{pattern: random, pages-per-second: 1000}}]
migration: {{max-bandwidth: 500 MiB}}
settle-seconds: 0.02
time-limit: 300
matrix:
  guest.workload.streams[0].pages-per-second: {rates}
repeats: 1
"""


@dataclass
class Trial:
    """What became of one experiment that was killed and resumed."""

    done_before: list[int] = field(default_factory=list)
    torn_bytes: int = 0
    wrong: list[str] = field(default_factory=list)


class Killer:
    """Runs the same experiment again and again, in directories of their own.

    Args:
        folder: an empty one.
        qemu: to run it on.
        cells: of the experiment.
    """

    def __init__(self, folder: Path, qemu: Path, cells: int) -> None:
        self._folder, self._qemu = folder, qemu
        self._mark = f"{MARK}={uuid.uuid4()}"
        self._file = folder / "kills.yaml"
        self._file.write_text(experiment_text(cells))
        plan = parse_experiment(self._file.read_text(), name="kills.yaml")
        self._expected = sorted((run.cell, run.repeat, run.seed) for run in plan.runs)
        self._count = 0

    def undisturbed(self) -> float:
        """Run it to the end; how long that takes, and check that all is well."""
        output, started = self._new(), time.monotonic()
        process = self._start(output)
        assert process.wait(timeout=RUN_SECONDS) == 0
        assert self._problems(output, b"") == []
        return time.monotonic() - started

    def trial(self, moments: list[float]) -> Trial:
        """Begin one, kill it after each of these seconds, then let it come to its end."""
        output, trial = self._new(), Trial()
        results, before = output / "results.jsonl", b""
        for moment in moments:
            process = self._start(output)
            try:
                process.wait(timeout=moment)
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
                process.wait()
            trial.wrong += self._leftovers()
            text = results.read_bytes() if results.exists() else b""
            whole = text[: text.rfind(b"\n") + 1]
            if not whole.startswith(before):
                trial.wrong.append("a result that was kept has gone")
            before, trial.torn_bytes = whole, trial.torn_bytes + len(text) - len(whole)
            trial.done_before.append(before.count(b"\n"))
        status = self._start(output).wait(timeout=RUN_SECONDS)
        if status != 0:
            trial.wrong.append(f"resumed, it ended with {status}")
        trial.wrong += self._problems(output, before) + self._leftovers()
        return trial

    def _new(self) -> Path:
        self._count += 1
        return self._folder / str(self._count)

    def _start(self, output: Path) -> subprocess.Popen[bytes]:
        name, _, value = self._mark.partition("=")
        temporary = self._folder / "tmp"
        temporary.mkdir(exist_ok=True)
        return subprocess.Popen(
            [*EXPERIMENT, "run", self._file, "-o", output, "--qemu", self._qemu],
            env=os.environ | {name: value, "TMPDIR": str(temporary)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def _problems(self, output: Path, before: bytes) -> list[str]:
        """What is not as it should be in a directory of results that is complete."""
        text = (output / "results.jsonl").read_bytes()
        records = [json.loads(line) for line in text.splitlines()]
        found = sorted((one["cell"], one["repeat"], one["seed"]) for one in records)
        wrong = []
        if found != self._expected:
            wrong.append(f"{len(found)} results, not each of {len(self._expected)} runs once")
        wrong += [f"{one['status']}: {one['error']}" for one in records if one["status"] != "ok"]
        if not text.startswith(before):
            wrong.append("results from before the kill are not as they were")
        if {path.name for path in output.iterdir()} != {"experiment.json", "results.jsonl"}:
            wrong.append(f"files left: {sorted(path.name for path in output.iterdir())}")
        return wrong

    def _leftovers(self) -> list[str]:
        """Processes and files that are there though the runner has gone."""
        deadline = time.monotonic() + GONE_SECONDS
        while processes := find_processes(lambda one: one.was_told(self._mark)):
            if time.monotonic() > deadline:
                for process in processes:
                    os.kill(process.pid, signal.SIGKILL)
                break
            time.sleep(0.01)
        files = [str(path) for path in (self._folder / "tmp").iterdir()]
        return [f"orphan: {process}" for process in processes] + files


def main() -> int:
    """Print a line for each experiment; 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("qemu", type=Path)
    parser.add_argument("--kills", type=int, default=30, help="in all")
    parser.add_argument("--each", type=int, default=3, help="kills of each experiment")
    parser.add_argument("--cells", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    dice = random.Random(asked.seed)
    bad = 0
    with tempfile.TemporaryDirectory(prefix="qemu-ring-kills-") as folder:
        killer = Killer(Path(folder), asked.qemu, asked.cells)
        seconds = killer.undisturbed()
        print(f"undisturbed: {asked.cells} cells in {seconds:.1f} s", flush=True)
        for number in range(1, asked.kills // asked.each + 1):
            moments = [dice.uniform(0, seconds / asked.each) for _ in range(asked.each)]
            trial = killer.trial(moments)
            bad += bool(trial.wrong)
            outcome = "; ".join(trial.wrong) or "the same set, each run once; no orphan"
            print(
                f"experiment {number}: killed after "
                f"{', '.join(f'{one:.2f}' for one in moments)} s, with "
                f"{', '.join(map(str, trial.done_before))} runs done, "
                f"{trial.torn_bytes} bytes torn; resumed: {outcome}",
                flush=True,
            )
    print(f"{asked.kills} kills, {bad} experiments with something wrong")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
