"""How fast a running guest dirties its memory, as QEMU measures it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Final

from qemu_ring.dirty.running import TrackingMode, query_tracking
from qemu_ring.dirty.stall import StallWatch
from qemu_ring.dirty.vcpu_numbers import require_safe_numbers, unsafe_numbers
from qemu_ring.errors import DeadlineError, FieldError, QemuRingError, QemuUnsuitableError
from qemu_ring.qmp import CommandError, Monitor, commands
from qemu_ring.qmp.dirty import DirtyRateInfo, TimeUnit, calc_dirty_rate, query_dirty_rate

__all__ = [
    "MeasuredRate",
    "RateMode",
    "RateOptions",
    "VcpuRate",
    "dirty_rates",
    "measure_dirty_rate",
]

_MIB: Final = 1 << 20
_SECONDS: Final = (0.05, 60.0)
_SAMPLE_PAGES: Final = (128, 16384)
_POLL_SECONDS: Final = 0.01
_GRACE_SECONDS: Final = 30.0
"""How much longer than asked for a measurement may take: at its end QEMU harvests all memory."""


class RateMode(Enum):
    """How the dirty rate is measured."""

    PAGE_SAMPLING = "page-sampling"
    """Hash a random sample of pages before and after. An estimate; any guest can be asked."""
    DIRTY_BITMAP = "dirty-bitmap"
    """Count the pages that KVM's dirty bitmap shows; a page counts once."""
    DIRTY_RING = "dirty-ring"
    """Count the entries of the vCPUs' dirty rings; a page counts each time it is harvested."""


_OLDEST: Final = frozenset({RateMode.PAGE_SAMPLING.value})
_MODE_OF: Final = {
    TrackingMode.RING: RateMode.DIRTY_RING,
    TrackingMode.BITMAP: RateMode.DIRTY_BITMAP,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RateOptions:
    """How to measure.

    Args:
        mode: None for the most exact that the guest's tracking allows, and that QEMU survives.
        seconds: for how long, 0.05 to 60; whole seconds before QEMU 8.2.
        sample_pages: pages to sample of each GiB of memory, 128 to 16384; None for QEMU's
            512. Only for page sampling.

    Raises:
        FieldError: no QEMU could do that.
    """

    mode: RateMode | None = None
    seconds: float = 1.0
    sample_pages: int | None = None

    def __post_init__(self) -> None:
        low, high = _SECONDS
        if not low <= self.seconds <= high:
            raise FieldError(
                "seconds", f"{self.seconds:g} is out of range", hint=f"use {low:g} to {high:g}"
            )
        if self.sample_pages is None:
            return
        least, most = _SAMPLE_PAGES
        if not least <= self.sample_pages <= most:
            raise FieldError(
                "sample_pages",
                f"{self.sample_pages} is out of range",
                hint=f"use {least} to {most} (of each GiB)",
            )
        if self.mode is not RateMode.PAGE_SAMPLING:
            raise FieldError("sample_pages", "cannot be: only mode page-sampling samples pages")


@dataclass(frozen=True, slots=True)
class VcpuRate:
    """What one vCPU dirtied, in bytes/s, rounded down to whole MiB/s by QEMU."""

    vcpu: int
    bytes_per_second: int


@dataclass(frozen=True, slots=True)
class MeasuredRate:
    """A dirty rate.

    Args:
        mode: how it was measured.
        seconds: for how long; before QEMU 8.2 in whole seconds.
        bytes_per_second: of the whole guest, rounded down to whole MiB/s by QEMU; by ring,
            the sum of `vcpus`.
        vcpus: of each vCPU; empty unless measured by ring.
        run_state: QEMU's name for the state of the guest: running where its vCPUs ran as the
            measurement began and as it ended, else such as paused. A guest that does not run
            dirties nothing, whatever it would write.
        stalled: numbers of vCPUs that KVM did not let run meanwhile, as `StallWatch` finds
            them: what is told of them is no rate, and the guest needs a reset.
    """

    mode: RateMode
    seconds: float
    bytes_per_second: int
    vcpus: tuple[VcpuRate, ...] = ()
    run_state: str = "running"
    stalled: tuple[int, ...] = ()

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {**asdict(self), "mode": self.mode.value}


async def measure_dirty_rate(
    monitor: Monitor,
    options: RateOptions = RateOptions(),
    *,
    grace: float = _GRACE_SECONDS,
) -> MeasuredRate:
    """Measure the dirty rate once.

    QEMU measures on to the end even if this is cancelled, and until then refuses to measure
    again; nothing else is left of it.

    Args:
        monitor: the guest's.
        options: how.
        grace: how much longer than `options.seconds` it may take, in seconds.

    Raises:
        QemuUnsuitableError: this QEMU, or this guest's tracking, cannot do it; nothing has
            begun.
        QemuRingError: the dirty rate is being measured already.
        DeadlineError: it did not end in time.
        QmpError: as in `Monitor.call`.
    """
    measurement = await _Measurement.prepare(monitor, options, grace)
    return await measurement.run()


async def dirty_rates(
    monitor: Monitor,
    options: RateOptions = RateOptions(),
    *,
    grace: float = _GRACE_SECONDS,
) -> AsyncIterator[MeasuredRate]:
    """Measure again and again, for as long as the caller iterates.

    Arguments and errors are those of `measure_dirty_rate`.
    """
    measurement = await _Measurement.prepare(monitor, options, grace)
    while True:
        yield await measurement.run()


@dataclass(frozen=True, slots=True)
class _Measurement:
    """A measurement that this QEMU and this guest can do, as far as can be told beforehand."""

    monitor: Monitor
    mode: RateMode
    options: RateOptions
    unit: TimeUnit | None
    """None if this QEMU knows only seconds."""
    knows_mode: bool
    grace: float

    @classmethod
    async def prepare(cls, monitor: Monitor, options: RateOptions, grace: float) -> _Measurement:
        """Find out how to ask, and refuse what cannot be."""
        schema = await monitor.schema()
        arguments = schema.command_arguments("calc-dirty-rate")
        modes = schema.enum_values("calc-dirty-rate", "mode") or _OLDEST
        if not arguments:
            raise _unsuitable(monitor, "cannot measure a dirty rate", "use QEMU 5.2 or newer")
        mode = options.mode or await _best_mode(monitor, modes)
        if mode.value not in modes:
            raise _unsuitable(monitor, f"cannot measure a dirty rate by {mode.value}", _OTHER_MODE)
        if mode is not RateMode.PAGE_SAMPLING and not (await commands.query_kvm(monitor)).enabled:
            # Not asked of QEMU: 7.2 crashes, and 10.0 measures 0 whatever the guest writes.
            raise QemuUnsuitableError(
                f"a dirty rate by {mode.value} takes KVM, which this guest does not use",
                hint=_OTHER_MODE,
            )
        in_ms = "calc-time-unit" in arguments
        if not in_ms and options.seconds != int(options.seconds):
            raise _unsuitable(
                monitor,
                "measures dirty rates for whole seconds only",
                f"use {max(1, round(options.seconds))} s, or QEMU 8.2 or newer",
            )
        if mode is RateMode.DIRTY_RING:
            what = "measuring a dirty rate by dirty-ring"
            await require_safe_numbers(monitor, what, _OTHER_MODE)
        unit: TimeUnit | None = "millisecond" if in_ms else None
        return cls(monitor, mode, options, unit, "mode" in arguments, grace)

    async def run(self) -> MeasuredRate:
        """Measure once."""
        before = await commands.query_status(self.monitor)
        stalls = StallWatch()
        await stalls.poll(self.monitor)
        await self._begin()
        deadline = time.monotonic() + self.options.seconds + self.grace
        with suppress(asyncio.TimeoutError):  # a monitor that is lost ends it early
            await asyncio.wait_for(self.monitor.wait_disconnected(), self.options.seconds)
        while (info := await self._state()).status != "measured":
            if time.monotonic() > deadline:
                raise DeadlineError(
                    f"QEMU has not measured the dirty rate within {self.grace:g} s more than "
                    f"the {self.options.seconds:g} s asked for",
                    hint="it may be stopped, or very busy",
                )
            await asyncio.sleep(_POLL_SECONDS)
        after = await commands.query_status(self.monitor)
        run_state = (after if before.running else before).status
        return self._result(info, run_state, await stalls.poll(self.monitor))

    async def _begin(self) -> None:
        state = await self._state()
        if state.status == "measuring":
            raise self._busy(state)
        options = self.options
        try:
            await calc_dirty_rate(
                self.monitor,
                round(options.seconds * (1000 if self.unit else 1)),
                unit=self.unit,
                mode=self.mode.value if self.knows_mode else None,
                sample_pages=options.sample_pages,
            )
        except CommandError as error:
            state = await self._state()
            if state.status == "measuring":  # someone else was quicker
                raise self._busy(state) from error
            tracking = await query_tracking(self.monitor)
            suitable = _MODE_OF.get(tracking.mode, RateMode.PAGE_SAMPLING)
            if self.mode in (RateMode.PAGE_SAMPLING, suitable):
                raise
            raise QemuUnsuitableError(
                f"QEMU refuses to measure a dirty rate by {self.mode.value}: this guest's "
                f"tracking is {tracking}",
                hint=f"measure by {suitable.value}",
            ) from error

    async def _state(self) -> DirtyRateInfo:
        return await query_dirty_rate(self.monitor, unit=self.unit)

    def _busy(self, state: DirtyRateInfo) -> QemuRingError:
        return QemuRingError(
            f"this guest's dirty rate is being measured already, by {state.mode} for "
            f"{_seconds(state):g} s",
            hint="by another client, or a run that was cut off; try again when that has ended",
        )

    def _result(
        self, info: DirtyRateInfo, run_state: str, stalled: tuple[int, ...]
    ) -> MeasuredRate:
        if info.mode != self.mode.value:  # QEMU lets two in that ask at the same time
            raise QemuRingError(
                f"another client measured the dirty rate at the same time, by {info.mode}",
                hint="one at a time: try again",
            )
        if info.dirty_rate is None or info.dirty_rate < 0:
            raise QemuRingError(
                "QEMU found no memory to sample",
                hint=f"sample more of it: {_SAMPLE_PAGES[1]} pages of each GiB",
            )
        vcpus = tuple(VcpuRate(one.id, one.dirty_rate * _MIB) for one in info.vcpu_dirty_rate)
        rate = info.dirty_rate * _MIB
        return MeasuredRate(self.mode, _seconds(info), rate, vcpus, run_state, stalled)


_OTHER_MODE: Final = f"measure by {RateMode.PAGE_SAMPLING.value}"


async def _best_mode(monitor: Monitor, modes: frozenset[str]) -> RateMode:
    tracking = await query_tracking(monitor)
    mode = _MODE_OF.get(tracking.mode, RateMode.PAGE_SAMPLING)
    if mode is RateMode.DIRTY_RING and await unsafe_numbers(monitor):
        return RateMode.PAGE_SAMPLING
    return mode if mode.value in modes else RateMode.PAGE_SAMPLING


def _seconds(info: DirtyRateInfo) -> float:
    return info.calc_time / (1000 if info.calc_time_unit == "millisecond" else 1)


def _unsuitable(monitor: Monitor, what: str, hint: str) -> QemuUnsuitableError:
    version = ".".join(map(str, monitor.version))
    return QemuUnsuitableError(f"this QEMU {version} {what}", hint=hint)
