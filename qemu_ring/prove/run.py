"""A whole proof: probes, a guest, rounds until a limit, a result."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from pathlib import Path

from qemu_ring.errors import QemuRingError, QemuUnsuitableError
from qemu_ring.machine import require_memory, require_space
from qemu_ring.memslot import Shape, query_flush
from qemu_ring.migration import EndedEarlyError
from qemu_ring.prove.options import Control, ProveOptions, Writer
from qemu_ring.prove.probes import Probes
from qemu_ring.prove.result import ProveProgress, ProveResult, ReAdd, Round
from qemu_ring.prove.rounds import Outcome, SourceGuest, start_source
from qemu_ring.prove.stage import Plan
from qemu_ring.verify import StalePage

__all__ = ["prove"]

_PAGE_SIZE = 4096
_MAX_LISTED = 1000
_MAX_VOID = 5
"""Migrations in a row that may complete before they are held, on a busy host."""


async def prove(
    binary: Path,
    options: ProveOptions,
    *,
    on_progress: Callable[[ProveProgress], None] | None = None,
) -> ProveResult:
    """Find out whether a QEMU on this host loses dirty bits when memslots are removed.

    Args:
        binary: the QEMU to test.
        options: how.
        on_progress: called often, on the event loop.

    Raises:
        UsageError: the options cannot be right for this QEMU.
        HostError: this host cannot do it: no KVM, no ring, too little memory.
        QemuUnsuitableError: this QEMU cannot do it.
        QemuRingError: the run failed: a QEMU ended, a wait passed its deadline, or the
            guest wrote nothing, so that a clean result would mean nothing.
    """
    probes = await Probes.of(binary, options.tracking, options.policy, options.machine)
    qemu = probes.qemu
    shapes = options.shapes or (tuple(Shape) if qemu.memslot_testdev else (Shape.PCI,))
    windows = any(shape is not Shape.PCI for shape in shapes)
    if windows:
        qemu.require_memslot_testdev()
    plan = Plan(
        vcpus=options.vcpus,
        machine=options.machine,
        accelerator=probes.accelerator,
        tsc_hz=probes.tsc_hz,
        pages_per_second=options.pages_per_second,
        windows=windows,
    )
    require_memory(plan.guests_bytes, probes.host, "a guest and the one it is migrated to")
    if options.memory_directory is not None:
        require_space(options.memory_directory, plan.memory_bytes)
    tally = _ResultSoFar(on_progress or (lambda _: None))
    async with start_source(
        binary,
        plan,
        device_writes=options.writer is not Writer.VCPU,
        memory_directory=options.memory_directory,
        log_directory=options.log_directory,
    ) as source:
        await _rounds(source, options, shapes, tally)
        re_add = None
        if options.control is None and not options.until_loss:
            re_add = await _measure_re_add(source, tally)
        first_write_seconds = source.first_write_seconds
        flush = None
        with suppress(QemuUnsuitableError):  # part "flush" of the series alone does not count
            flush = await query_flush(source.machine.monitor)
    result = ProveResult(
        options=options,
        host=probes.host,
        kvm=probes.kvm,
        qemu=qemu,
        rounds=tuple(tally.rounds),
        stale=tuple(tally.stale),
        re_add=re_add,
        seconds=tally.seconds,
        first_write_seconds=first_write_seconds,
        first_stale_seconds=tally.first_stale_seconds,
        void_rounds=tally.void_rounds,
        flush=flush,
    )
    if options.control is not Control.IDLE and not result.pages_written:
        raise QemuRingError(
            "the guest wrote nothing into its slots, so nothing could be lost",
            hint="see its serial output and QEMU's log, which a directory for logs keeps",
        )
    return result


@dataclass(slots=True)
class _ResultSoFar:
    """What was found so far."""

    on_progress: Callable[[ProveProgress], None]
    started: float = field(default_factory=time.monotonic)
    rounds: list[Round] = field(default_factory=list)
    stale: list[StalePage] = field(default_factory=list)
    stale_pages: int = 0
    removals: int = 0
    pages_written: int = 0
    first_stale_seconds: float | None = None
    void_rounds: int = 0
    _void_in_a_row: int = 0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def tick(self, removals: int = 0) -> None:
        """Report progress, `removals` of a round under way included."""
        self.on_progress(
            ProveProgress(
                seconds=self.seconds,
                removals=self.removals + removals,
                stale_pages=self.stale_pages,
                pages_written=self.pages_written,
                rounds=len(self.rounds),
            )
        )

    async def take(self, attempt: Callable[[], Awaitable[Outcome]]) -> Outcome:
        """Run a round until it counts, and add it up."""
        while True:
            try:
                outcome = await attempt()
            except EndedEarlyError:
                self.void_rounds += 1
                self._void_in_a_row += 1
                if self._void_in_a_row >= _MAX_VOID:
                    raise
                continue
            self._void_in_a_row = 0
            self._add(outcome)
            return outcome

    def _add(self, outcome: Outcome) -> None:
        comparison = outcome.comparison
        self.stale += comparison.stale[: _MAX_LISTED - len(self.stale)]
        self.stale_pages += comparison.pages_stale_total
        self.removals += outcome.removals
        self.pages_written += outcome.pages_written
        if comparison.pages_stale_total and self.first_stale_seconds is None:
            self.first_stale_seconds = self.seconds
        self.rounds.append(
            Round(
                number=len(self.rounds),
                kind=outcome.kind,
                shape=None if outcome.shape is None else outcome.shape.value,
                removals=outcome.removals,
                pages_written=outcome.pages_written,
                writes=outcome.writes,
                stale_pages=comparison.pages_stale_total,
                pages_sent_again=outcome.pages_sent_again,
                seconds=round(outcome.seconds, 3),
                ended_at_seconds=round(self.seconds, 3),
            )
        )
        self.tick()


async def _measure_re_add(source: SourceGuest, tally: _ResultSoFar) -> ReAdd:
    without = await tally.take(source.baseline)
    once = await tally.take(source.re_add)
    pages = max(0, once.pages_sent_again - without.pages_sent_again)
    return ReAdd(slot_bytes=source.plan.slot_bytes, resent_bytes=pages * _PAGE_SIZE)


async def _rounds(
    source: SourceGuest, options: ProveOptions, shapes: tuple[Shape, ...], tally: _ResultSoFar
) -> None:
    """Round after round until a limit is reached, one shape after the other."""
    limit = options.time_limit

    def left() -> int | None:
        if options.removals is None:
            return None
        return options.removals - tally.removals

    async def attempt(shape: Shape) -> Outcome:
        if options.control is Control.NO_REMOVALS:
            return await source.walk()
        if options.control is Control.IDLE:
            return await source.idle_removals(shape, left(), tally.tick)
        return await source.removals(shape, left(), tally.tick)

    deadline = None if limit is None else time.monotonic() + limit
    for shape in cycle(shapes):
        await tally.take(partial(attempt, shape))
        if options.until_loss and tally.stale_pages:
            return
        if options.removals is not None and tally.removals >= options.removals:
            return
        if options.rounds is not None and len(tally.rounds) >= options.rounds:
            return
        if deadline is not None and time.monotonic() >= deadline:
            return
