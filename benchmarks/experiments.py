"""Large experiments: time and memory to plan 99,200 cells, and to report on 2,400 runs.

usage: python benchmarks/experiments.py [--cells N] [--runs N] [--samples N] [plan | report]

Each is a process of its own. Seconds are of the clock and of the CPU (user and system), for the
former follow the load of the machine; memory is the largest resident set of the process, and of
any child that it had: no two at a time, so both together are more than it took. The results
that are reported on are made up; they are as large as those of migrations of ten seconds: a sample
every 0.1 s, twelve iterations, some removals, and the provenance of each run.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

GUEST = """\
name: large
guest:
  memory: 256 MiB
  workload:
    regions:
      - {name: heap, address: 16 MiB, size: 128 MiB}
    streams:
      - {pattern: random, pages-per-second: 1000}
migration:
  max-bandwidth: 500 MiB
"""
MEASURED = """
import resource, sys, time
sys.argv = ["qemu-ring", *sys.argv[1:]]
from qemu_ring.cli.main import main
started = time.monotonic()
try:
    main()
finally:
    used = resource.getrusage(resource.RUSAGE_SELF)
    theirs = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Not ru_maxrss, which begins with that of the process that started this one.
    told = open("/proc/self/status").read().split("VmHWM:")[1].split()[0]
    print(
        f"{time.monotonic() - started:.1f} s, "
        f"{sum(one.ru_utime + one.ru_stime for one in (used, theirs)):.1f} s of CPU, "
        f"{int(told) >> 10} MiB, the largest child {theirs.ru_maxrss >> 10} MiB",
        file=sys.stderr,
    )
"""


def measured(*arguments: str | Path) -> str:
    """Run a command; its time and memory in words."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, "experiment", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stderr.splitlines()[-1]


def plan_of(cells: int) -> str:
    """An experiment of so many cells: 4 by 4 by 20, the rest of a fourth axis."""
    limits = ", ".join(f"{0.001 * (n + 1):.3f}" for n in range(cells // 320))
    return f"""{GUEST}matrix:
  guest.tracking: [bitmap, ring:1024, ring:4096, ring:65536]
  guest.vcpus: [1, 2, 3, 4]
  migration.max-bandwidth: [{", ".join(f"{n} MiB" for n in range(100, 2100, 100))}]
  migration.downtime-limit: [{limits}]
repeats: 2
"""


def write_results(directory: Path, runs: int, samples: int) -> None:
    """Results of so many runs of 120 cells."""
    from qemu_ring.experiment import Store, parse_experiment
    from qemu_ring.experiment.results.record import Status
    from qemu_ring.experiment.run.draft import empty_record
    from qemu_ring.experiment.schedule.process import run_labels

    rates = ", ".join(str(n) for n in range(1000, 11000, 1000))
    plan = parse_experiment(
        f"""{GUEST}matrix:
  guest.tracking: [bitmap, ring:1024, ring:4096, ring:65536]
  guest.vcpus: [1, 2, 4]
  guest.workload.streams[0].pages-per-second: [{rates}]
repeats: {runs // 120}
"""
    )
    dice = random.Random(1)
    with Store(directory) as store:
        store.begin(plan, None)
    lines: list[str] = []
    for run in plan.runs:
        lost = dice.random() < 0.02
        record = empty_record(Status.STALE if lost else Status.OK, "")
        record |= run_labels(run, 1.7e9 + len(lines), 12.0)
        record |= {
            "warm_up": False,
            "migration": migration(dice, samples),
            "removals": [
                {"at_seconds": n / 10, "shape": "pci", "count": 2} for n in range(samples)
            ],
            "pages_written": 300_000,
            "stale_pages": 3 if lost else 0,
            "stale": [{"block": "ram", "page": dice.randrange(60_000)} for _ in range(3 * lost)],
            "stale_places": {"ram": [0] * 127 + [3]} if lost else {},
            "block_pages": {"ram": 65536},
            "provenance": PROVENANCE,
        }
        lines.append(json.dumps(record, separators=(",", ":")))
    (directory / "results.jsonl").write_text("".join(f"{line}\n" for line in lines))


def migration(dice: random.Random, samples: int) -> dict[str, Any]:
    """A migration that might have been."""
    seconds = samples / 10 * dice.uniform(0.9, 1.1)
    return {
        "seconds": seconds,
        "downtime_seconds": dice.uniform(0.02, 0.06),
        "qemu_downtime_seconds": dice.uniform(0.02, 0.06),
        "guest_downtime_seconds": None,
        "setup_seconds": 0.003,
        "bytes": int(seconds * 1e8),
        "totals": {"bytes_sent": int(seconds * 1e8), "pages_sent": 20_000, "setup_seconds": 0.003},
        "iterations": [
            {
                "number": n + 1,
                "at_seconds": n * seconds / 12,
                "seconds": seconds / 12,
                "bytes": 100_000_000,
                "dirty_rate": 40_000_000,
                "bandwidth": 1e8 * dice.uniform(0.9, 1.1),
                "remaining": 100_000_000 >> n,
                "expected_downtime_seconds": 0.3,
                "ring_full_seconds": None,
                "throttle": None,
            }
            for n in range(12)
        ],
        "samples": [
            {
                "at_seconds": n / 10 + dice.uniform(0, 0.01),
                "iteration": n * 12 // samples + 1,
                "transferred": n * 10_000_000,
                "remaining": dice.randrange(100_000_000),
                "bandwidth": 1e8 * dice.uniform(0.9, 1.1),
                "dirty_rate": 40_000_000,
                "throttle": None,
                "ring_fill": dice.randrange(4096),
            }
            for n in range(samples)
        ],
    }


PROVENANCE = {
    "host": {"kernel": "6.1.0", "cpu_model": "a CPU", "cpus": 8, "memory_available_bytes": 1 << 34},
    "kvm": {"dirty_ring_max_entries": 65536, "manual_protect": True, "tsc_khz": 2_000_000},
    "qemu": {
        "path": "qemu-system-x86_64",
        "version": "10.0.2",
        "sha256": "0" * 64,
        "patched": True,
    },
    "command_lines": ["qemu-system-x86_64 " + "-device x " * 60] * 2,
    "images": {"firmware": {"path": None, "sha256": "1" * 64}},
    "versions": {"qemu-ring": "0.1", "python": "3.11"},
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=["plan", "report"])
    parser.add_argument("--cells", type=int, default=99_200)
    parser.add_argument("--runs", type=int, default=2400)
    parser.add_argument("--samples", type=int, default=100, help="of each run")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if asked.what in (None, "plan"):
            file = Path(folder, "large.yaml")
            file.write_text(plan_of(asked.cells))
            print(f"plan of {asked.cells:,} cells: {measured('plan', file)}")
        if asked.what in (None, "report"):
            directory = Path(folder, "results")
            write_results(directory, asked.runs, asked.samples)
            size = (directory / "results.jsonl").stat().st_size >> 20
            for command in ("show", "report"):
                told = measured(command, directory)
                print(f"{command} of {asked.runs:,} runs, {size} MiB: {told}")


if __name__ == "__main__":
    main()
