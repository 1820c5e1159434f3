"""Migrations to a goal: dirty rates from a fifth to three times of what is sent, as a table.

usage: python benchmarks/goal.py --output DIR [--repeats N] [--qemu PATH ...] [--within TIME]
                                 [--downtime TIME] [--bandwidth RATE] [--then ...] [--ratios ...]

The guest writes each page of its memory once in turn, so that its dirty rate is the rate of its
writes; what it really wrote, until it was first slowed down, is beside what was asked for. If that
was much less, because the host did not let it, the migration does not count, and is made again. All
memory is compared after each migration that completed. QEMUs, rates and what is done then take
turns, so that all meet the same load of the machine. Each migration is noted in DIR/goal.jsonl, and
DIR/goal.md is made of all that are there: what was ended half-way goes on when it is run again.
With the defaults it takes an hour or so.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast, get_args

from qemu_ring.dirty import Tracking
from qemu_ring.errors import DeadlineError, QemuUnsuitableError
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
    GoalAction,
    GoalDecision,
    GoalOutcome,
    GoalThen,
    Migration,
    MigrationAbortedError,
    MigrationPlan,
    MigrationResult,
    Sample,
)
from qemu_ring.sizes import parse_duration, parse_rate
from qemu_ring.verify import Block

MIB = 1 << 20
RATIOS = (0.2, 0.5, 0.8, 0.95, 1.1, 1.5, 2.0, 3.0)
RAM, REGION = 28 * MIB, Region("memory", 16 * MIB, 12 * MIB)
NO_ZERO = b"\x5a" * PAGE_SIZE
WARM_UP_WRITES = 2000
LONGEST_SECONDS = 60.0
LEAST_WRITTEN = 0.8
"""Of the rate that was asked for, from which on a migration counts."""
TRIES = 3
LONGER_SECONDS = 5.0
"""After the goal's time, until a migration is ended that would go on for as long as it takes."""

Record = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One cell of the table."""

    qemu: str
    then: str
    ratio: float


class GuestWrites:
    """What the guest writes, by its own count, until it is first slowed down."""

    def __init__(self, control: WorkloadControl) -> None:
        self._control = control
        self._first: tuple[float, int] | None = None
        self._last: tuple[float, int] | None = None
        self._slowed = False

    def sample(self, _: Sample) -> None:
        if not self._slowed:
            self._last = (time.monotonic(), self._control.statistics().writes)
            self._first = self._first or self._last

    def decided(self, decision: GoalDecision) -> None:
        self._slowed = self._slowed or decision.action is GoalAction.THROTTLE

    @property
    def bytes_per_second(self) -> float | None:
        if self._first is None or self._last is None or self._first[0] == self._last[0]:
            return None
        seconds, writes = (b - a for a, b in zip(self._first, self._last, strict=True))
        return writes * PAGE_SIZE / seconds


async def run(
    qemu: QemuBinary, tracking: Tracking, goal: Goal, bandwidth: int, ratio: float
) -> Record:
    """Migrate one guest."""
    span = Span(0, REGION.pages)
    rate = ratio * bandwidth / PAGE_SIZE
    load = Workload((REGION,), (Stream(Pattern.LOOP, span, pages_per_second=rate),))
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
        os.pwrite(ours.fd, NO_ZERO * REGION.pages, REGION.address)  # zero pages are not sent
        source = await stack.enter_async_context(await Machine.start(qemu.path, guest))
        destination = await stack.enter_async_context(await Machine.start(qemu.path, twin))
        control = stack.enter_context(WorkloadControl(ours.fd, load, tsc_hz))
        await control.wait(
            lambda now: now.writes > WARM_UP_WRITES, timeout=LONGEST_SECONDS, what="no writes"
        )
        writes = GuestWrites(control)
        migration = Migration(
            source,
            destination,
            MigrationPlan(goal=goal, max_bandwidth=bandwidth),
            verify=[Block("ram", ours.fd, theirs.fd, RAM)],
            on_sample=writes.sample,
            on_decision=writes.decided,
        )
        longer = LONGER_SECONDS if goal.then == "wait" else LONGEST_SECONDS
        begun = time.monotonic()
        try:
            async with migration:
                begun = time.monotonic()
                result = await migration.complete(timeout=goal.within + longer)
        except QemuUnsuitableError as error:
            return {"ended": "refused", "reason": error.message}
        except MigrationAbortedError:
            return record("given up", migration.goal_outcome, time.monotonic() - begun, writes)
        except DeadlineError:
            if goal.then != "wait":
                raise
            return record("goes on", migration.goal_outcome, time.monotonic() - begun, writes)
        ended = "kept" if result.goal is not None and result.goal.kept else "not kept"
        return record(ended, result.goal, result.seconds, writes, result)


def record(
    ended: str,
    outcome: GoalOutcome | None,
    seconds: float,
    writes: GuestWrites,
    result: MigrationResult | None = None,
) -> Record:
    """One migration, as it is noted."""
    assert outcome is not None
    comparison = None if result is None else result.comparison
    return {
        "ended": ended,
        "seconds": seconds,
        "bytes_written_per_second": writes.bytes_per_second,
        "downtime": None if result is None else result.downtime.switchover_seconds,
        "stale_pages": None if comparison is None else comparison.pages_stale_total,
        "outcome": outcome.as_dict(),
    }


# The tables

ENDINGS = {
    "kept": "kept",
    "not kept": "**not kept**",
    "given up": "**given up**",
    "goes on": "**goes on**",
    "refused": "refused",
}
HEADINGS = (
    "dirtied / sent",
    "written",
    "goal",
    "s",
    "downtime, ms",
    "limit at the end, ms",
    "known at, s",
    "done beside the limit",
    "why not",
    "stale pages",
)


def report(found: Sequence[Record], versions: dict[str, str]) -> Iterator[str]:
    """An overview by QEMU, and all figures by what is done then."""
    by_case: dict[Case, list[Record]] = defaultdict(list)
    for one in filter(counts, found):
        by_case[Case(one["qemu"], one["then"], one["ratio"])].append(one)
    ratios = sorted({case.ratio for case in by_case})
    thens = [then for then in get_args(GoalThen) if any(then == case.then for case in by_case)]
    for qemu, version in versions.items():
        yield f"\n## QEMU {version}\n"
        yield from _rows(("dirtied / sent", *thens))
        for ratio in ratios:
            cells = [_in_short(by_case[Case(qemu, then, ratio)]) for then in thens]
            yield f"| {ratio:g} | {' | '.join(cells)} |"
    for qemu, version in versions.items():
        for then in thens:
            yield f"\n## QEMU {version}, then {then}\n"
            yield from _rows(HEADINGS)
            for ratio in ratios:
                runs = by_case[Case(qemu, then, ratio)]
                if runs:
                    yield f"| {ratio:g} | {' | '.join(_cells(runs))} |"


def _rows(headings: Sequence[str]) -> Iterator[str]:
    yield f"| {' | '.join(headings)} |"
    yield f"|{'---|' * len(headings)}"


def _endings(runs: Sequence[Record]) -> str:
    count = Counter(one["ended"] for one in runs)
    return ", ".join(
        f"{words} {count[ended]}/{len(runs)}" for ended, words in ENDINGS.items() if count[ended]
    )


def _in_short(runs: Sequence[Record]) -> str:
    if not runs:
        return "the host did not let it write so much"
    if any(one["ended"] == "refused" for one in runs):
        return "refused"
    known = [one["outcome"]["known_at"] for one in runs]
    words = _range([at for at in known if at is not None], "{:.1f}")
    return _endings(runs) + (f"; known at {words} s" if words else "")


def _cells(runs: Sequence[Record]) -> Iterator[str]:
    refused = [one["reason"] for one in runs if one["ended"] == "refused"]
    if refused:
        yield from ("", "refused", *[""] * 5, _several(refused), "")
        return
    outcomes = [one["outcome"] for one in runs]
    yield _range([one["bytes_written_per_second"] / one["bandwidth"] for one in runs], "{:.2f}")
    yield _endings(runs)
    yield _range([one["seconds"] for one in runs], "{:.1f}")
    yield _range([1000 * one["downtime"] for one in runs if one["downtime"] is not None], "{:.0f}")
    yield _range([1000 * _limit(outcome) for outcome in outcomes], "{:.0f}")
    yield _range([one["known_at"] for one in outcomes if one["known_at"] is not None], "{:.1f}")
    yield _several([_done(outcome) for outcome in outcomes])
    yield _several([outcome["reason"] for outcome in outcomes])
    stale = [one["stale_pages"] for one in runs if one["stale_pages"] is not None]
    yield str(sum(stale)) if stale else ""


def _limit(outcome: Record) -> float:
    """What QEMU was allowed at the end."""
    decisions = outcome["decisions"]
    limit = decisions[-1]["downtime_limit"] if decisions else outcome["goal"]["downtime"] / 8
    return cast("float", limit)


def _done(outcome: Record) -> str:
    steps = [
        one["what"]
        for one in outcome["decisions"]
        if one["action"] not in (GoalAction.LIMIT, GoalAction.MISS)
    ]
    return "; ".join(dict.fromkeys(steps))


def _several(texts: Sequence[str]) -> str:
    """Each once: the runs' words differ in their figures."""
    return " // ".join(one.replace("|", "/") for one in dict.fromkeys(texts) if one)


def _range(values: Sequence[float], shape: str) -> str:
    """The median, and the least and the greatest where they differ from it."""
    if not values:
        return ""
    middle, least, most = (
        shape.format(one) for one in (statistics.median(values), min(values), max(values))
    )
    return middle if least == most else f"{middle} ({least} to {most})"


def counts(one: Record) -> bool:
    """Whether the guest wrote about as much as it was to."""
    if one["ended"] == "refused":
        return True
    written = one["bytes_written_per_second"] or 0.0
    return bool(written >= LEAST_WRITTEN * one["ratio"] * one["bandwidth"])


def noted(log: Path) -> list[Record]:
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def default_qemus() -> list[Path]:
    """The distribution's, and the patched one if it was built."""
    found = shutil.which("qemu-system-x86_64")
    return list(dict.fromkeys([*([Path(found)] if found else []), find_qemu()]))


async def main() -> None:
    """Run what is not noted yet, and write it down."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--qemu", type=find_qemu, nargs="+", default=None)
    parser.add_argument("--within", type=parse_duration, default=15.0)
    parser.add_argument("--downtime", type=parse_duration, default=0.2)
    parser.add_argument("--bandwidth", type=parse_rate, default=10 * MIB)
    parser.add_argument("--tracking", type=Tracking.parse, default=Tracking.parse("ring:1024"))
    parser.add_argument("--then", choices=get_args(GoalThen), nargs="+", default=get_args(GoalThen))
    parser.add_argument("--ratios", type=float, nargs="+", default=RATIOS)
    arguments = parser.parse_args()
    qemus = [await probe_qemu(path) for path in arguments.qemu or default_qemus()]
    arguments.output.mkdir(parents=True, exist_ok=True)
    log = arguments.output / "goal.jsonl"
    setting = {
        "within": arguments.within,
        "allowed": arguments.downtime,
        "bandwidth": arguments.bandwidth,
        "tracking": str(arguments.tracking),
    }
    host = probe_host()

    def ours() -> list[Record]:
        shas = {qemu.sha256 for qemu in qemus}
        return [
            one
            for one in noted(log)
            if one["qemu"] in shas and {key: one[key] for key in setting} == setting
        ]

    done = Counter(Case(one["qemu"], one["then"], one["ratio"]) for one in filter(counts, ours()))
    for repeat in range(arguments.repeats):
        for ratio in arguments.ratios:
            for then in arguments.then:
                goal = Goal(arguments.within, arguments.downtime, cast("GoalThen", then))
                for qemu in qemus:
                    case = Case(qemu.sha256, then, ratio)
                    for _ in range(TRIES):
                        if done[case] > repeat:
                            break
                        load = os.getloadavg()[0]
                        one = await run(qemu, arguments.tracking, goal, arguments.bandwidth, ratio)
                        one = asdict(case) | setting | {"load": load} | one
                        with log.open("a") as file:
                            file.write(json.dumps(one) + "\n")
                        done[case] += counts(one)
                        words = one["ended"] if counts(one) else f"{one['ended']}, does not count"
                        print(f"{qemu.version}, {ratio:g}, {then}: {words}", flush=True)
    found = ours()
    left_out = sum(not counts(one) for one in found)
    loads = [one["load"] for one in found]
    versions = {
        qemu.sha256: f"{qemu.version.partition(' ')[0]}{', patched' if qemu.flush_policies else ''}"
        for qemu in qemus
    }
    (arguments.output / "goal.md").write_text(
        "# Migrations to a goal\n\n"
        f"`python benchmarks/goal.py`: a guest of {RAM // MIB} MiB that writes "
        f"{REGION.size // MIB} MiB in turn, page by page, at so many times the bandwidth of "
        f"{arguments.bandwidth / MIB:g} MiB/s; to be over within {arguments.within:g} s with "
        f"{arguments.downtime * 1000:g} ms of downtime; {arguments.tracking}.\n"
        f"{'; '.join(f'QEMU {qemu.version}' for qemu in qemus)}; {host.cpu_model}, {host.cpus} "
        f"CPUs, Linux {host.kernel}, KVM's vendor module {host.kvm_in_words}; load "
        f"{min(loads):.1f} to {max(loads):.1f}.\n\n"
        "Medians, with the least and the greatest. Written: of what can be sent, by the guest's "
        "own count, until it was first slowed down. Known at: when it was clear that the goal "
        "would not be kept, since the start. With `wait` a migration was ended by this program "
        f"{LONGER_SECONDS:g} s after the goal's time. {left_out} migrations do not count, for the "
        f"host let the guest write less than {LEAST_WRITTEN:.0%} of what was asked for. Stale "
        "pages: of all memory, compared after "
        "each migration that completed; their sum.\n" + "\n".join(report(found, versions)) + "\n"
    )


if __name__ == "__main__":
    asyncio.run(main())
