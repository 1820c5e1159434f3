"""Migrations to a goal: dirty rates from a fifth to three times of what is sent, as a table.

usage: python benchmarks/goal.py [--qemu PATH] [--within TIME] [--downtime TIME] [--bandwidth RATE]
                                 [--tracking ring:4096|bitmap] [--then ...] > goal.md

The guest writes each page of its memory once in turn, so that its dirty rate is the rate of its
writes; what it really wrote is beside what was asked for. All memory is compared after each
migration that completed. With the defaults it takes five minutes or so, and writes Markdown.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast, get_args

from qemu_ring._compat import timeout
from qemu_ring.dirty import Tracking
from qemu_ring.guest import (
    PAGE_SIZE,
    Pattern,
    Region,
    Span,
    Stream,
    Workload,
    WorkloadControl,
    image_bytes,
)
from qemu_ring.machine import (
    Machine,
    MachineDescription,
    MemoryBackend,
    QemuBinary,
    UnnamedFile,
    find_qemu,
    probe_host,
    probe_kvm,
    probe_qemu,
)
from qemu_ring.migration import (
    Goal,
    GoalOutcome,
    GoalThen,
    Migration,
    MigrationAbortedError,
    MigrationPlan,
)
from qemu_ring.sizes import parse_duration, parse_rate
from qemu_ring.verify import Block

MIB = 1 << 20
RATIOS = (0.2, 0.5, 0.8, 0.95, 1.1, 1.5, 2.0, 3.0)
RAM, REGION = 144 * MIB, Region("memory", 16 * MIB, 128 * MIB)
SETTLE_WRITES = 2000
LONGEST_SECONDS = 60.0


@dataclass(frozen=True)
class Row:
    """One migration."""

    ratio: float
    then: str
    written: float
    """Of what can be sent, by the guest's own count while it was at the source."""
    outcome: GoalOutcome
    seconds: float
    downtime: float | None
    completed: bool
    stale: int | None

    def cells(self) -> list[str]:
        """For the table."""
        outcome = self.outcome
        last = outcome.decisions[-1].downtime_limit if outcome.decisions else None
        steps = [one.what for one in outcome.decisions if one.action.value != "downtime-limit"]
        limit = outcome.goal.downtime / 8 if last is None else last
        return [
            f"{self.ratio:g}",
            f"{self.written:.2f}",
            self.then,
            "kept" if outcome.kept else "**not kept**" if self.completed else "**given up**",
            f"{self.seconds:.1f}",
            "" if self.downtime is None else f"{self.downtime * 1000:.0f}",
            f"{limit * 1000:.0f}",
            "" if outcome.known_at is None else f"{outcome.known_at:.1f}",
            "; ".join(dict.fromkeys(steps)),
            outcome.reason.replace("|", "/"),
            "" if self.stale is None else str(self.stale),
        ]


HEADINGS = (
    "dirtied / sent, asked",
    "written",
    "then",
    "goal",
    "s",
    "downtime, ms",
    "limit at the end, ms",
    "known at, s",
    "what was done beside the limit",
    "why not",
    "stale pages",
)


async def run(
    qemu: QemuBinary, tracking: Tracking, goal: Goal, bandwidth: int, ratio: float
) -> Row:
    """Migrate one guest."""
    pages = ratio * bandwidth / PAGE_SIZE
    span = Span(0, REGION.pages)
    load = Workload((REGION,), (Stream(Pattern.LOOP, span, pages_per_second=pages),))
    tsc_hz = probe_kvm().tsc_khz * 1000
    async with AsyncExitStack() as stack:
        ours, theirs = (stack.enter_context(UnnamedFile(name, RAM)) for name in ("ours", "theirs"))
        guest = MachineDescription(
            accelerator=tracking.accelerator(qemu),
            memory=MemoryBackend("ram", ours),
            firmware=image_bytes(),
            fw_cfg=load.fw_cfg(tsc_hz),
        )
        twin = replace(guest, memory=MemoryBackend("ram", theirs), incoming="defer", paused=True)
        source = await stack.enter_async_context(await Machine.start(qemu.path, guest))
        destination = await stack.enter_async_context(await Machine.start(qemu.path, twin))
        control = stack.enter_context(WorkloadControl(ours.fd, load, tsc_hz))
        await control.wait(
            lambda now: now.writes > SETTLE_WRITES, timeout=LONGEST_SECONDS, what="no writes"
        )
        migration = Migration(
            source,
            destination,
            MigrationPlan(goal=goal, max_bandwidth=bandwidth),
            verify=[Block("ram", ours.fd, theirs.fd, RAM)],
        )
        before, begun = control.statistics().writes, time.monotonic()
        try:
            async with timeout(goal.within + LONGEST_SECONDS), migration:
                result = await migration.complete(timeout=goal.within + LONGEST_SECONDS)
        except MigrationAbortedError:
            seconds = time.monotonic() - begun
            outcome, downtime, stale, completed = migration.goal_outcome, None, None, False
        else:
            seconds, downtime, outcome = (
                result.seconds,
                result.downtime.switchover_seconds,
                result.goal,
            )
            assert result.comparison is not None
            stale, completed = result.comparison.pages_stale_total, True
        written = (control.statistics().writes - before) * PAGE_SIZE / seconds / bandwidth
        assert outcome is not None
        return Row(ratio, goal.then, written, outcome, seconds, downtime, completed, stale)


async def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--qemu", type=Path)
    parser.add_argument("--within", type=parse_duration, default=15.0)
    parser.add_argument("--downtime", type=parse_duration, default=0.2)
    parser.add_argument("--bandwidth", type=parse_rate, default=50 * MIB)
    parser.add_argument("--tracking", type=Tracking.parse, default=Tracking.parse("ring:4096"))
    parser.add_argument(
        "--then", choices=get_args(GoalThen), nargs="+", default=["throttle", "postcopy", "cancel"]
    )
    parser.add_argument("--ratios", type=float, nargs="+", default=RATIOS)
    arguments = parser.parse_args()
    qemu = await probe_qemu(find_qemu(arguments.qemu))
    host, load = probe_host(), os.getloadavg()[0]
    print(
        f"QEMU {qemu.version}{', patched' if qemu.flush_policies else ''}, {arguments.tracking}; "
        f"{host.cpu_model}, {host.cpus} CPUs, Linux {host.kernel}; load at the start {load:.1f}. "
        f"{RAM // MIB} MiB guest, {arguments.bandwidth / MIB:g} MiB/s, to be over within "
        f"{arguments.within:g} s with {arguments.downtime * 1000:g} ms of downtime.\n"
    )
    print(f"| {' | '.join(HEADINGS)} |")
    print(f"|{'---|' * len(HEADINGS)}")
    for then in arguments.then:
        goal = Goal(arguments.within, arguments.downtime, cast("GoalThen", then))
        for ratio in arguments.ratios:
            row = await run(qemu, arguments.tracking, goal, arguments.bandwidth, ratio)
            print(f"| {' | '.join(row.cells())} |", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
