"""From a QEMU's start until its guest's first write, in one interleaved run.

usage: python benchmarks/start.py [--repeats N] [--qemu PATH]

Bare is the same QEMU on `-machine none`, with no guest, until its monitor answers: what the rest
is measured against, because these times follow the load of the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import time
from pathlib import Path

from qemu_ring.dirty import Tracking
from qemu_ring.machine import Accelerator, find_qemu, probe_kvm, probe_qemu
from qemu_ring.prove.rounds import start_source
from qemu_ring.prove.stage import Plan


async def bare(binary: Path) -> float:
    """Seconds until a QEMU without a machine has answered, its probing included."""
    started = time.monotonic()
    await probe_qemu(binary)
    return time.monotonic() - started


async def first_write(binary: Path, accelerator: Accelerator, vcpus: int, tsc_hz: int) -> float:
    """Seconds until all vCPUs of a guest have written."""
    plan = Plan(vcpus=vcpus, machine="pc", accelerator=accelerator, tsc_hz=tsc_hz)
    async with start_source(binary, plan, memory_directory=None, log_directory=None) as source:
        return source.first_write_seconds


async def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--qemu")
    arguments = parser.parse_args()
    binary = find_qemu(arguments.qemu)
    kvm, qemu = probe_kvm(), await probe_qemu(binary)
    ring = Tracking(4096).accelerator(qemu)
    cases = {
        "kvm, ring, 1 vCPU": (ring, 1),
        "kvm, ring, 4 vCPUs": (ring, 4),
        "kvm, bitmap, 1 vCPU": (Accelerator("kvm"), 1),
        "tcg, 1 vCPU": (Accelerator("tcg"), 1),
    }
    times: dict[str, list[float]] = {name: [] for name in ("bare", *cases)}
    for _ in range(arguments.repeats):
        times["bare"].append(await bare(binary))
        for name, (accelerator, vcpus) in cases.items():
            times[name].append(await first_write(binary, accelerator, vcpus, kvm.tsc_khz * 1000))
    base = statistics.median(times["bare"])
    print(f"{arguments.repeats} repeats, interleaved, {os.cpu_count()} CPUs, QEMU {qemu.version}")
    for name, values in times.items():
        median = statistics.median(values)
        low, high = min(values), max(values)
        print(
            f"{name:22} median {median * 1000:6.1f} ms  ({low * 1000:.1f} to {high * 1000:.1f})"
            f"  {median / base:.2f} of bare"
        )


asyncio.run(main())
