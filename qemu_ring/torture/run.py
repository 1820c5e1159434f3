"""A whole torture: probes, programs until one fails or the time is over, a file that replays."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from qemu_ring.errors import HostError, QemuUnsuitableError
from qemu_ring.machine import require_memory
from qemu_ring.memslot import FlushPolicy
from qemu_ring.migration import Compression, find_obstacles
from qemu_ring.prove.probes import Probes
from qemu_ring.prove.stage import Plan
from qemu_ring.torture.finding import FindingKind, TortureFinding
from qemu_ring.torture.guest import Setup
from qemu_ring.torture.model import Features, program_of
from qemu_ring.torture.options import TortureOptions
from qemu_ring.torture.player import Player, TortureTotals
from qemu_ring.torture.reproducer import Reproducer
from qemu_ring.torture.result import ReplayResult, TortureProgress, TortureResult
from qemu_ring.torture.shrink import shrink
from qemu_ring.torture.steps import MigrationForm, Program

__all__ = ["prepare", "replay", "torture"]

_MACHINE: Final = "pc"
_LOSSLESS: Final = (
    FlushPolicy.QUIESCE,
    FlushPolicy.READ_ONLY,
    FlushPolicy.TOMBSTONE,
    FlushPolicy.AUTO,
)
_COMPRESSIONS: Final[tuple[Compression, ...]] = ("zlib", "zstd")
_PLAYS: Final = 4
"""Of a candidate while a program is shrunk: one that loses a page in half of them is kept nearly
always, and one that is not is only shrunk less."""
_FIRST_PLAYS: Final = 10
"""Of a program that has failed once."""
_TRACE: Final = (
    "kvm_set_user_memory*",
    "kvm_dirty_ring_flush*",
    "kvm_dirty_ring_reap_vcpu*",
    "kvm_dirty_ring_orphan*",
    "kvm_memslot*",
    "migration_bitmap_sync*",
)
"""What is traced, of what this QEMU has: not each page, which would take longer than the race."""

Report = Callable[[TortureProgress], None]


async def torture(
    binary: Path,
    options: TortureOptions,
    *,
    output: Path | None = None,
    on_progress: Report = lambda _: None,
) -> TortureResult:
    """Play random programs until one finds something, or the time is over.

    Args:
        binary: the QEMU.
        options: what and how long.
        output: where a program that failed is written to, once it is shrunk; None for nowhere.
        on_progress: called after each step, on the event loop.

    Raises:
        UsageError: the file cannot be written.
        HostError: this host cannot do it; or Hypothesis, which makes programs, is not installed.
        QemuUnsuitableError: this QEMU cannot do it.
        QemuRingError: the run failed, and it is no fault of the QEMU's.
    """
    make = _generator()
    probes, setup = await prepare(binary, options)
    features = await _find_features(setup, options, probes)
    totals, started, played = TortureTotals(), time.monotonic(), 0

    def tick(shrinking: int | None = None) -> None:
        on_progress(TortureProgress.of(totals, time.monotonic() - started, played, shrinking))

    def wanted() -> bool:
        enough = options.cancels is not None and totals.cancels >= options.cancels
        return not enough and time.monotonic() - started < options.seconds

    finding = None
    program: Program = ()
    programs = make(features, options)
    while finding is None and wanted():
        program = await asyncio.to_thread(next, programs)
        finding = await Player(setup, totals, tick).play(program)
        played += 1
        tick()
    seconds = time.monotonic() - started
    shrunk, reproduced, trace = None, None, None
    if finding is not None:
        failed = program[: finding.step + 1]
        shrunk, finding, reproduced = await _shrunk(setup, features, options, failed, finding, tick)
        if output is not None:
            Reproducer.of(options, probes.qemu.version, finding, shrunk).save(output)
            if reproduced:
                trace = await _traced(setup, shrunk, finding.kind, output)
    return TortureResult(
        options=options,
        probes=probes,
        programs=played,
        totals=totals,
        finding=finding,
        finding_seconds=None if finding is None else seconds,
        program=shrunk,
        reproduced=reproduced,
        reproducer=None if finding is None else output,
        trace=trace,
        seconds=seconds,
    )


async def replay(
    binary: Path,
    reproducer: Reproducer,
    *,
    times: int = 20,
    policy: FlushPolicy | None = None,
    log_directory: Path | None = None,
    on_progress: Report = lambda _: None,
) -> ReplayResult:
    """Play a program of a file until it finds something.

    Args:
        binary: the QEMU.
        reproducer: the file.
        times: how often at most.
        policy: how memslots are removed; None for what the file says.
        log_directory: where the QEMUs' logs are kept, with traces of memslots and rings; None to
            keep none.
        on_progress: called after each step, on the event loop.

    Raises:
        HostError, QemuUnsuitableError, QemuRingError: as in `torture`.
    """
    options = reproducer.options(policy, log_directory)
    probes, setup = await prepare(binary, options, trace=log_directory is not None)
    features = await _find_features(setup, options, probes)
    if program_of(reproducer.steps, features) != reproducer.steps:
        lacking = next((step.do for step in reproducer.steps if not features.allow(step)), None)
        what = f"has no {lacking}" if lacking else "cannot do these steps in this order"
        raise QemuUnsuitableError(
            f"{probes.qemu.path} ({probes.qemu.version}) {what}", hint="use another QEMU"
        )
    totals, started = TortureTotals(), time.monotonic()
    finding, plays = None, 0
    while finding is None and plays < times:
        player = Player(setup, totals)
        finding = await player.play(reproducer.steps)
        plays += 1
        on_progress(TortureProgress.of(totals, time.monotonic() - started, plays))
    return ReplayResult(
        probes=probes,
        reproducer=reproducer,
        plays=plays,
        totals=totals,
        finding=finding,
        seconds=time.monotonic() - started,
    )


async def _traced(setup: Setup, program: Program, kind: FindingKind, output: Path) -> Path | None:
    """Have it fail once more, with traces, and keep them beside its file; None if it did not."""
    path = output.with_suffix(".trace")
    for _ in range(_PLAYS):
        with TemporaryDirectory() as folder:
            traced = replace(setup, log_directory=Path(folder), trace=_TRACE)
            found = await Player(traced, TortureTotals()).play(program)
            if found is None or found.kind is not kind:
                continue
            _join_logs(Path(folder), path)
        return path
    return None


def _join_logs(folder: Path, path: Path) -> None:
    logs = sorted(folder.glob("*.log"))
    text = "".join(f"== {log.stem}\n{log.read_text(encoding='utf-8')}" for log in logs)
    path.write_text(text, encoding="utf-8")


def _generator() -> Callable[[Features, TortureOptions], Iterator[Program]]:
    try:
        from qemu_ring.torture.generate import programs
    except ModuleNotFoundError as error:
        raise HostError(
            f"programs are made by {error.name}, which is not installed",
            hint="pip install 'qemu-ring[torture]'",
        ) from error
    return lambda features, options: programs(features, options.only, options.seed)


async def prepare(
    binary: Path, options: TortureOptions, *, trace: bool = False
) -> tuple[Probes, Setup]:
    """Probe host and QEMU, and tell what guests to start.

    Raises:
        HostError: this host cannot do it.
        QemuUnsuitableError: this QEMU cannot do it.
    """
    probes = await Probes.of(binary, options.tracking, options.policy, _MACHINE)
    windows = probes.qemu.memslot_testdev
    plan = Plan(
        vcpus=options.vcpus,
        machine=_MACHINE,
        accelerator=probes.accelerator,
        tsc_hz=probes.tsc_hz,
        windows=windows,
    )
    require_memory(plan.guests_bytes, probes.host, "a guest and the one it is migrated to")
    return probes, Setup(binary, plan, windows, options.log_directory, _TRACE if trace else ())


async def _find_features(setup: Setup, options: TortureOptions, probes: Probes) -> Features:
    """What this QEMU can do, asked of one that runs the guest."""
    place = await setup.start()
    try:
        await place.boot()
        monitor = place.machine.monitor

        async def can(plan: MigrationForm) -> bool:
            found = await find_obstacles(monitor, None, plan.plan())
            return not any(one.fatal for one in found)

        wide = MigrationForm(channel="unix", multifd=2)
        return Features(
            vcpus=options.vcpus,
            policies=_LOSSLESS if probes.qemu.flush_policies and not options.policy else (),
            windows=setup.windows,
            postcopy=await can(MigrationForm(kind="postcopy")),
            preempt=await can(MigrationForm(kind="postcopy", channel="unix", preempt=True)),
            multifd=await can(wide),
            compressions=tuple(
                [
                    one
                    for one in _COMPRESSIONS
                    if await can(MigrationForm(**{**wide.model_dump(), "compression": one}))
                ]
            ),
            xbzrle=await can(MigrationForm(xbzrle=True)),
            auto_converge=await can(MigrationForm(auto_converge=True)),
        )
    finally:
        await place.close()


async def _shrunk(
    setup: Setup,
    features: Features,
    options: TortureOptions,
    program: Program,
    finding: TortureFinding,
    tick: Callable[[int | None], None],
) -> tuple[Program, TortureFinding, bool]:
    """The steps that matter, what they found last, and whether they found it more than once."""
    latest = finding

    async def fails(candidate: Program, plays: int = _PLAYS) -> Program | None:
        nonlocal latest
        for _ in range(plays):
            found = await Player(setup, TortureTotals(), lambda: tick(len(candidate))).play(
                candidate
            )
            if found is not None and found.kind is finding.kind:
                latest = found
                return candidate[: found.step + 1]
        return None

    again = await fails(program, _FIRST_PLAYS)
    if again is None:
        return program, finding, False
    return await shrink(again, fails, features, seconds=options.shrink_seconds), latest, True
