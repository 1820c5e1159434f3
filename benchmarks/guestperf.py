"""QEMU's own guestperf and `qemu-ring experiment`, side by side: the same guest, the same QEMU.

usage: python benchmarks/guestperf.py [--source DIR] [--qemu PATH] [--repeats N] [--only SCENARIO]
           [--sleep SECONDS]

DIR is QEMU's source tree, or its archive; default: the one that `qemu-ring build` fetched. From it
guestperf is run unchanged, one process a cell; so is `qemu-ring experiment run`, the two in turn.
guestperf knows KVM and Linux only, which not every host can combine, so its --binary is a script
that starts the same QEMU with some of guestperf's arguments replaced:

linux     guestperf's own guest, its stress.c under Debian's kernel: `-accel tcg -cpu max` in place
          of `-accel kvm -cpu host`
firmware  qemu-ring's firmware in place of kernel and initrd, under KVM, which may not take
          `-cpu host` either, in 256 MiB

guestperf sleeps before the migration, and as long after it: 14 s by default, one second less than
--sleep says. qemu-ring lets the guest write for as long before it, and does not sleep after it.

An iteration is missed if the tool does not tell of it. It is timed only if the tool tells when it
began and how long it took, but QEMU had gone on before it could answer how much there was to send.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from qemu_ring.build import DEFAULT_VERSION
from qemu_ring.build.cache import Cache
from qemu_ring.guest import Pattern, Region, Stream, Workload, image_bytes
from qemu_ring.guest.linux import debian_kernel
from qemu_ring.guest.linux.initramfs import cpio
from qemu_ring.machine import find_qemu, probe_host, probe_kvm, probe_qemu

MIB = 1 << 20
GUESTPERF = Path("tests/migration-stress/guestperf.py")
CELL_SECONDS = 300

# What stress.c needs of QEMU's own header, which needs a configured QEMU.
OSDEP = """\
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <unistd.h>
#include <glib.h>
"""
# What guestperf tells the kernel, but for what its own command line adds.
APPEND = (
    "noapic edd=off printk.time=1 noreplace-smp cgroup_disable=memory pci=noearly "
    "console=ttyS0 quiet ramsize=1"
)
WRAPPER = """\
#!/bin/bash
# {qemu}, with other arguments for: {replaced}
arguments=()
while [ $# -gt 0 ]; do
    case $1 in
        {replaced}) shift ;;
        *) arguments+=("$1") ;;
    esac
    shift
done
exec {qemu} {instead} "${{arguments[@]}}"
"""


@dataclass(frozen=True)
class Scenario:
    """One cell, for both tools.

    Args:
        name: what to call it.
        memory: MiB.
        replaced: guestperf's options that the wrapper leaves out, with their arguments.
        instead: what it gives QEMU in their place.
        guest: for `qemu-ring experiment`.
        bandwidth: MiB a second.
        downtime: its limit, milliseconds.
    """

    name: str
    memory: int
    replaced: tuple[str, ...]
    instead: tuple[str, ...]
    guest: dict[str, Any]
    bandwidth: int
    downtime: int

    def experiment(self, settle: int) -> dict[str, Any]:
        """The same for `qemu-ring experiment`."""
        return {
            "name": self.name,
            "guest": {"memory": f"{self.memory} MiB", **self.guest},
            "migration": {
                "max-bandwidth": f"{self.bandwidth} MiB",
                "downtime-limit": self.downtime / 1000,
                "abort": {"iterations": 30, "seconds": CELL_SECONDS},
            },
            "settle-seconds": settle,
            "time-limit": CELL_SECONDS,
            "repeats": 1,
        }


@dataclass(frozen=True)
class Cell:
    """What one cell took, in seconds, and how many iterations there were and the tool tells of."""

    wall: float
    migration: float
    settle: float
    iterations: int
    seen: int
    timed_only: int = 0

    @property
    def overhead(self) -> float:
        """All but the migration, and but the time that the guest was to write before it."""
        return self.wall - self.migration - self.settle


class Bench:
    """Both tools, and what they need, in a directory that is removed afterwards."""

    def __init__(self, place: Path, source: Path, qemu: Path, sleep: int) -> None:
        self._sleep = sleep
        self._settle = sleep - 1
        self._place = place
        self._qemu = qemu
        self._source = source
        if not (source / GUESTPERF).exists():
            sys.exit(f"{source} has no {GUESTPERF}; name QEMU's source tree, 10.0 or later")

    async def scenarios(self) -> list[Scenario]:
        """Make the guests."""
        kernel, initrd = await debian_kernel(), self._initrd()
        linux = Scenario(
            name="linux",
            memory=1536,  # guestperf's guest of 1 GiB has half a GiB more
            replaced=("-accel", "-cpu", "-kernel"),
            instead=("-accel", "tcg", "-cpu", "max", "-kernel", str(kernel)),
            guest={
                "accelerator": "tcg",
                "cpu": "max",
                "linux": {"kernel": str(kernel), "initrd": str(initrd), "append": APPEND},
            },
            bandwidth=125_000,
            downtime=500,
        )
        size, rate = 128 * MIB, 35_000
        region = Region("heap", 16 * MIB, size)
        span = Workload((region,), (Stream(),)).span("heap")
        workload = Workload((region,), (Stream(Pattern.LOOP, span, pages_per_second=rate),))
        firmware = self._place / "firmware"
        firmware.write_bytes(image_bytes())
        instead = ["-m", "256", "-bios", str(firmware)]
        for number, (name, content) in enumerate(
            workload.fw_cfg(probe_kvm().tsc_khz * 1000).items()
        ):
            (self._place / f"fw-cfg-{number}").write_bytes(content)
            instead += ["-fw_cfg", f"name={name},file={self._place}/fw-cfg-{number}"]
        return [
            linux,
            Scenario(
                name="firmware",
                memory=256,
                replaced=("-cpu", "-m", "-kernel", "-initrd", "-append"),
                instead=tuple(instead),
                guest={
                    "workload": {
                        "regions": [{"name": "heap", "address": "16 MiB", "size": "128 MiB"}],
                        "streams": [{"pattern": "loop", "pages-per-second": rate}],
                    },
                },
                bandwidth=200,
                downtime=5,
            ),
        ]

    def _initrd(self) -> Path:
        """The initrd that QEMU's tree makes: stress.c as the first process."""
        header = self._place / "qemu" / "osdep.h"
        header.parent.mkdir()
        header.write_text(OSDEP)
        glib = subprocess.check_output(
            ["pkg-config", "--cflags", "--libs", "--static", "glib-2.0"], text=True
        )
        source = self._source / GUESTPERF.with_name("stress.c")
        options = ["-D_GNU_SOURCE", "-DCONFIG_GETTID", "-O2", "-static", "-s", "-pthread", "-w"]
        program, initrd = self._place / "stress", self._place / "initrd"
        compiler = ["gcc", *options, f"-I{self._place}", "-o", str(program), str(source)]
        run([*compiler, *shlex.split(glib)], seconds=120)
        initrd.write_bytes(cpio({"init": program.read_bytes()}))
        return initrd

    def guestperf(self, scenario: Scenario) -> Cell:
        """Run one cell with guestperf."""
        wrapper, output = self._place / "qemu-wrapper", self._place / "guestperf.json"
        wrapper.write_text(
            WRAPPER.format(
                qemu=shlex.quote(str(self._qemu)),
                replaced="|".join(scenario.replaced),
                instead=shlex.join(scenario.instead),
            )
        )
        wrapper.chmod(0o755)
        options = {
            "binary": wrapper,
            "kernel": "/dev/null",
            "initrd": self._place / "initrd",
            "sleep": self._sleep,
            "mem": 1,
            "bandwidth": scenario.bandwidth,
            "downtime": scenario.downtime,
            "output": output,
        }
        command = [sys.executable, str(self._source / GUESTPERF)]
        for name, value in options.items():
            command += [f"--{name}", str(value)]
        wall = run(command, seconds=CELL_SECONDS)
        report = json.loads(output.read_text())
        assert report["result"]["success"], report["result"]
        history = report["progress_history"]
        seen = {one["ram"]["iterations"] for one in history} - {0}
        return Cell(
            wall=wall,
            migration=history[-1]["duration"] / 1000,
            settle=self._settle,
            iterations=history[-1]["ram"]["iterations"],
            seen=len(seen),
        )

    def experiment(self, scenario: Scenario) -> Cell:
        """Run one cell with `qemu-ring experiment`."""
        with tempfile.TemporaryDirectory(dir=self._place) as results:
            file = Path(results) / "cell.yaml"
            file.write_text(yaml.safe_dump(scenario.experiment(self._settle)))
            command = [sys.executable, "-m", "qemu_ring.cli.main", "experiment", "run", str(file)]
            command += ["--output", f"{results}/results", "--qemu", str(self._qemu)]
            wall = run(command, seconds=CELL_SECONDS)
            record = json.loads((Path(results) / "results" / "results.jsonl").read_text())
        assert record["status"] == "ok", record["error"]
        migration = record["migration"]
        told = migration["iterations"]
        return Cell(
            wall=wall,
            migration=migration["totals"]["seconds"],
            settle=self._settle,
            iterations=migration["totals"]["iterations"],
            seen=len({one["number"] for one in told}),
            timed_only=sum(one["remaining"] is None for one in told),
        )


def run(command: list[str], *, seconds: float) -> float:
    """Run a command to its end; the seconds that it took. All of its processes end with it."""
    began = time.monotonic()
    process = subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    took = time.monotonic() - began
    if process.returncode:
        sys.exit(f"{shlex.join(command)}: exit status {process.returncode}\n{output}")
    return took


@contextlib.contextmanager
def unpacked(source: Path) -> Iterator[Path]:
    """QEMU's tree: a directory as it is, an archive unpacked as far as guestperf needs it."""
    if source.is_dir():
        yield source.resolve()
        return
    with (
        tempfile.TemporaryDirectory(prefix="qemu-ring-guestperf-") as place,
        tarfile.open(source) as archive,
    ):
        wanted = ("python/", f"{GUESTPERF.parent}/")
        members = [one for one in archive if one.name.partition("/")[2].startswith(wanted)]
        archive.extractall(place, members, filter="data")
        (tree,) = Path(place).iterdir()
        yield tree


def table(found: dict[tuple[str, str], list[Cell]]) -> list[str]:
    """Medians, in Markdown."""
    heads = ["scenario", "tool", "wall, s", "migration, s", "warm-up, s", "overhead, s"]
    heads += ["of guestperf's", "iterations", "missed", "timed only"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for (scenario, tool), cells in found.items():
        overhead = statistics.median(one.overhead for one in cells)
        theirs = statistics.median(one.overhead for one in found[scenario, "guestperf"])
        began, seen = sum(one.iterations for one in cells), sum(one.seen for one in cells)
        lines.append(
            f"| {scenario} | {tool} | {statistics.median(one.wall for one in cells):.2f} "
            f"| {statistics.median(one.migration for one in cells):.2f} | {cells[0].settle:g} "
            f"| {overhead:.2f} ({min(one.overhead for one in cells):.2f} to "
            f"{max(one.overhead for one in cells):.2f}) | {overhead / theirs:.2f} "
            f"| {began} | {began - seen} | {sum(one.timed_only for one in cells)} |"
        )
    return lines


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=Path, metavar="DIR")
    parser.add_argument("--qemu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sleep", type=int, default=15, metavar="SECONDS")
    parser.add_argument("--only", choices=["linux", "firmware"])
    arguments = parser.parse_args()
    qemu = asyncio.run(probe_qemu(find_qemu(arguments.qemu).absolute()))
    kept = Cache().debian_source(DEFAULT_VERSION)
    source = arguments.source or (kept.path if kept else None)
    if source is None:
        sys.exit("no QEMU source is in the cache; name it with --source, or run: qemu-ring build")
    found: dict[tuple[str, str], list[Cell]] = {}
    with unpacked(source) as tree, tempfile.TemporaryDirectory() as place:
        bench = Bench(Path(place), tree, qemu.path, arguments.sleep)
        for scenario in asyncio.run(bench.scenarios()):
            if arguments.only not in (None, scenario.name):
                continue
            for _ in range(arguments.repeats):
                for tool, measure in (
                    ("guestperf", bench.guestperf),
                    ("qemu-ring", bench.experiment),
                ):
                    cell = measure(scenario)
                    found.setdefault((scenario.name, tool), []).append(cell)
                    print(f"{scenario.name}, {tool}: {cell}", file=sys.stderr)
    host = probe_host()
    print(
        f"{arguments.repeats} cells of each, in turn, medians; QEMU {qemu.version}, "
        f"Linux {host.kernel}, {os.cpu_count()} CPUs. Overhead: wall less migration and warm-up.\n"
    )
    print("\n".join(table(found)))


if __name__ == "__main__":
    main()
