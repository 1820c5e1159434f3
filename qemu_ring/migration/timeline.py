"""What happened in each iteration of a migration, from QEMU's events and figures."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace

from qemu_ring.qmp import MigrationInfo, MigrationStatus

__all__ = ["Iteration", "Sample", "Timeline", "TimelineRecorder"]


@dataclass(frozen=True, slots=True)
class Sample:
    """QEMU's figures at one moment. Sizes in bytes, times in seconds, rates a second.

    Args:
        seconds: since the migration's start.
        status: the migration's.
        iteration: passes over memory begun (QEMU's dirty-sync-count).
        transferred: sent so far.
        remaining: known to be left to send.
        dirty_rate: dirtied by the guest, as QEMU measured it last; once a second at most.
        bandwidth: as QEMU measured it last.
        expected_downtime: QEMU's estimate.
        throttle: percent that auto-converge takes from the vCPUs.
        ring_full_seconds: of the last vCPU's dirty ring, an estimate that dirty-limit makes.
        throttle_seconds: that dirty-limit held a vCPU in each round of its ring.
    """

    seconds: float
    status: MigrationStatus
    iteration: int
    transferred: int
    remaining: int
    dirty_rate: int
    bandwidth: float
    expected_downtime: float | None
    throttle: int | None
    ring_full_seconds: float | None
    throttle_seconds: float | None


@dataclass(frozen=True, slots=True)
class Iteration:
    """One pass over memory, from the sync that begins it. Units as in `Sample`.

    QEMU is asked as soon as it tells that a pass began, some 0.1 ms later. Fields but the
    first three are None where it had gone on before it could answer.

    Args:
        number: QEMU's dirty-sync-count, from 1.
        started: since the migration's start.
        seconds: that it took, until the next sync or the switchover.
        remaining: to send, as it began.
        bytes_sent: in it.
        bandwidth: bytes sent by its seconds. None of the last of several passes: QEMU counts as
            sent what sockets have taken in, and the little that is left then fits into them.
        dirty_rate: as QEMU had measured it last when it began. QEMU measures no more than once a
            second, at a sync: shorter passes repeat the figure of an earlier one.
        expected_downtime: as it began.
        throttle: as it began.
        ring_full_seconds: as it began.
    """

    number: int
    started: float
    seconds: float
    remaining: int | None = None
    bytes_sent: int | None = None
    bandwidth: float | None = None
    dirty_rate: int | None = None
    expected_downtime: float | None = None
    throttle: int | None = None
    ring_full_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Timeline:
    """All iterations, none missed, and what was sampled."""

    iterations: tuple[Iteration, ...]
    samples: tuple[Sample, ...]

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        samples = [asdict(one) | {"status": one.status.value} for one in self.samples]
        return {"iterations": [asdict(one) for one in self.iterations], "samples": samples}


@dataclass(slots=True)
class _Begun:
    """An iteration that is not over."""

    number: int
    arrived: float
    sample: Sample | None = None


class TimelineRecorder:
    """Turns a source's MIGRATION_PASS events and query-migrate replies into a timeline.

    Args:
        started: when the migration began, host monotonic clock.
        keep_samples: most samples to keep; then every other one is dropped.
    """

    def __init__(self, started: float, keep_samples: int = 2000) -> None:
        self._started = started
        self._keep = keep_samples
        self._begun: list[_Begun] = []
        self._iterations: list[Iteration] = []
        self._samples: list[Sample] = []

    @property
    def timeline(self) -> Timeline:
        """What was recorded so far."""
        return Timeline(tuple(self._iterations), tuple(self._samples))

    @property
    def latest(self) -> Sample | None:
        """The last sample."""
        return self._samples[-1] if self._samples else None

    def begin(self, number: int, arrived: float) -> None:
        """Note that a pass began, as its event said."""
        self._begun.append(_Begun(number, arrived))

    def add(self, info: MigrationInfo) -> Sample | None:
        """Take a reply; None if it has no figures."""
        if info.ram is None or info.status is None:
            return None
        sample = _sample(info, time.monotonic() - self._started)
        if len(self._samples) >= self._keep:
            del self._samples[1::2]
        self._samples.append(sample)
        if not info.is_final:  # by then nothing tells how the last pass began
            for begun in self._begun:
                if begun.number == sample.iteration and begun.sample is None:
                    begun.sample = sample
        return sample

    def end_passes(self, *, over: float | None = None) -> list[Iteration]:
        """Give the iterations that have ended since the last call.

        Args:
            over: when the last of them ended, host monotonic clock; None while it goes on.
        """
        ended = []
        while len(self._begun) > 1:
            this, following = self._begun[0], self._begun[1]
            if following.sample is None and over is None and self._may_be_sampled(following):
                break
            ended.append(self._end(this, following.arrived, following.sample))
            del self._begun[0]
        if over is not None and self._begun:
            last = self._samples[-1] if self._samples else None
            end = self._end(self._begun.pop(), over, last)
            ended.append(end if end.number <= 1 else replace(end, bandwidth=None))
        self._iterations += ended
        return ended

    def _may_be_sampled(self, begun: _Begun) -> bool:
        latest = self.latest
        return latest is None or latest.iteration <= begun.number

    def _end(self, begun: _Begun, ended: float, at_end: Sample | None) -> Iteration:
        seconds = max(ended - begun.arrived, 0.0)
        started = max(begun.arrived - self._started, 0.0)
        first = begun.sample
        if first is None:
            return Iteration(begun.number, started, seconds)
        sent = None if at_end is None else max(at_end.transferred - first.transferred, 0)
        return Iteration(
            number=begun.number,
            started=started,
            seconds=seconds,
            remaining=first.remaining,
            bytes_sent=sent,
            bandwidth=None if sent is None or not seconds else sent / seconds,
            dirty_rate=first.dirty_rate,
            expected_downtime=first.expected_downtime,
            throttle=first.throttle,
            ring_full_seconds=first.ring_full_seconds,
        )


def _sample(info: MigrationInfo, seconds: float) -> Sample:
    assert info.ram is not None
    assert info.status is not None
    ram = info.ram
    return Sample(
        seconds=seconds,
        status=info.status,
        iteration=ram.dirty_sync_count,
        transferred=ram.transferred,
        remaining=ram.remaining,
        dirty_rate=ram.dirty_pages_rate * ram.page_size,
        bandwidth=ram.mbps * 1e6 / 8,
        expected_downtime=_scaled(info.expected_downtime_ms, 1e3),
        throttle=info.cpu_throttle_percentage,
        ring_full_seconds=_scaled(info.dirty_limit_ring_full_time_us, 1e6),
        throttle_seconds=_scaled(info.dirty_limit_throttle_time_per_round_us, 1e6),
    )


def _scaled(value: int | None, divisor: float) -> float | None:
    return None if value is None else value / divisor
