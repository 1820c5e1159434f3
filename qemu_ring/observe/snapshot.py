"""What is seen of a running guest at one moment, and how fast it has changed since the last."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from qemu_ring.dirty import RunningTracking
from qemu_ring.memslot import DirtyRings, FlushInfo, FlushPolicy, Memslot
from qemu_ring.qmp import MigrationInfo, MigrationStatus
from qemu_ring.qmp.dirty import DirtyRateInfo

__all__ = [
    "DirtyRateSnapshot",
    "FlushSnapshot",
    "GuestSnapshot",
    "GuestState",
    "MigrationSnapshot",
    "Presence",
    "RingSnapshot",
    "RingsSnapshot",
    "SlotsSnapshot",
]

_NS = 1e9
_MIB = 1 << 20


class Presence(Enum):
    """Whether a guest can be state."""

    SEEN = "seen"
    """Its QEMU answers."""
    SILENT = "silent"
    """Its QEMU is there, or may be, and does not answer what it is asked."""
    GONE = "gone"
    """Nobody is there."""


@dataclass(frozen=True, slots=True)
class RingSnapshot:
    """One vCPU's dirty ring.

    Args:
        vcpu: index.
        fill: entries that wait to be reaped.
        reaped: entries reaped since QEMU's start.
        full: exits because it was full, since QEMU's start.
        reaped_per_second: since the last poll; None at the first.
        full_per_second: likewise.
        overruns: how often KVM has pushed entries over ones that were not reaped.
    """

    vcpu: int
    fill: int
    reaped: int
    full: int
    reaped_per_second: float | None
    full_per_second: float | None
    overruns: int = 0


@dataclass(frozen=True, slots=True)
class RingsSnapshot:
    """All rings of a guest.

    Args:
        size: entries of each.
        with_bitmap: whether pages written without a vCPU go to a bitmap.
        vcpus: each vCPU's.
    """

    size: int
    with_bitmap: bool
    vcpus: tuple[RingSnapshot, ...]

    @classmethod
    def of(cls, now: DirtyRings, before: DirtyRings | None, seconds: float) -> RingsSnapshot:
        """Compare two answers, so many seconds apart."""
        old = {} if before is None else {ring.cpu_index: ring for ring in before.rings}
        vcpus = []
        for ring in now.rings:
            then = old.get(ring.cpu_index)
            vcpus.append(
                RingSnapshot(
                    ring.cpu_index,
                    ring.fill,
                    ring.reaped,
                    ring.full,
                    None if then is None else (ring.reaped - then.reaped) / seconds,
                    None if then is None else (ring.full - then.full) / seconds,
                    ring.overruns,
                )
            )
        return cls(now.size, now.with_bitmap, tuple(vcpus))


@dataclass(frozen=True, slots=True)
class FlushSnapshot:
    """The flush policy, and what the one in force has done since QEMU's start.

    Args:
        policy: that was asked for.
        effective: that is in force; the counters are its own.
        removals: of memslots that log dirty pages.
        pages_late: harvested after the point at which best-effort removes the memslot.
        entries_dropped: ring entries whose memslot was gone: lost pages, under any policy.
        writes_trapped: while a memslot was read-only.
        holds: how often the vCPUs were held.
        hold_seconds: how long in all.
        hold_seconds_max: the longest time.
        removals_per_second: since the last poll; None at the first.
        pages_late_per_second: likewise.
        held_share: of the time since the last poll, 0 to 1; likewise.
    """

    policy: FlushPolicy
    effective: FlushPolicy
    removals: int
    pages_late: int
    entries_dropped: int
    writes_trapped: int
    holds: int
    hold_seconds: float
    hold_seconds_max: float
    removals_per_second: float | None
    pages_late_per_second: float | None
    held_share: float | None

    @classmethod
    def of(cls, now: FlushInfo, before: FlushInfo | None, seconds: float) -> FlushSnapshot:
        """Compare two answers, so many seconds apart."""
        this = now.of(now.effective)
        then = None if before is None else before.of(now.effective)
        return cls(
            now.policy,
            now.effective,
            this.removals,
            this.pages_late,
            now.entries_dropped,
            this.writes_trapped,
            this.holds,
            this.hold_ns / _NS,
            this.hold_ns_max / _NS,
            None if then is None else (this.removals - then.removals) / seconds,
            None if then is None else (this.pages_late - then.pages_late) / seconds,
            None if then is None else (this.hold_ns - then.hold_ns) / _NS / seconds,
        )


@dataclass(frozen=True, slots=True)
class SlotsSnapshot:
    """The memslots of one address space.

    Args:
        address_space: 0; 1 is x86's SMM.
        count: how many.
        size: of all of them, in bytes.
        logging: how many of them log dirty pages now.
        logging_size: of those, in bytes.
    """

    address_space: int
    count: int
    size: int
    logging: int
    logging_size: int

    @classmethod
    def of(cls, slots: list[Memslot]) -> tuple[SlotsSnapshot, ...]:
        """Add up, by address space."""
        found = []
        for space in sorted({slot.as_id for slot in slots}):
            sizes = [slot.size for slot in slots if slot.as_id == space]
            logging = [slot.size for slot in slots if slot.as_id == space and slot.log_dirty]
            found.append(cls(space, len(sizes), sum(sizes), len(logging), sum(logging)))
        return tuple(found)


@dataclass(frozen=True, slots=True)
class DirtyRateSnapshot:
    """The dirty rate last measured, by whomever.

    Args:
        bytes_per_second: None if there is none yet, or if no memory could be sampled.
        mode: how it was measured.
        seconds: for how long.
        age_seconds: since the measurement's end, to the second; None if that cannot be told
            because QEMU may run on another host.
        measuring: whether one is under way now.
    """

    bytes_per_second: int | None
    mode: str
    seconds: float
    age_seconds: float | None
    measuring: bool

    @classmethod
    def of(
        cls, info: DirtyRateInfo, ended_ago: float | None, *, measuring: bool
    ) -> DirtyRateSnapshot:
        """Put an answer into bytes and seconds; one of a measurement that began has no rate."""
        rate = info.dirty_rate if info.status == "measured" else None
        return cls(
            bytes_per_second=None if rate is None or rate < 0 else rate * _MIB,
            mode=info.mode,
            seconds=info.calc_time / (1000 if info.calc_time_unit == "millisecond" else 1),
            age_seconds=None if ended_ago is None else max(ended_ago, 0.0),
            measuring=measuring,
        )


@dataclass(frozen=True, slots=True)
class MigrationSnapshot:
    """A migration, under way or over. None where QEMU does not tell.

    Args:
        status: QEMU's name for its state.
        iteration: passes over memory begun.
        transferred: bytes sent.
        remaining: bytes known to be left to send.
        total: bytes of guest memory.
        bandwidth: bytes/s, as QEMU measured it last.
        dirty_rate: bytes/s that the guest dirtied, as of the last pass's beginning.
        expected_downtime: seconds, QEMU's estimate.
        throttle: percent that auto-converge takes from the vCPUs.
        seconds: since its beginning; how long it took, if it is over.
        downtime: seconds, of one that has completed.
        error: of one that has failed.
        pages_absorbed: dirty again when they were sent, and not sent once more for that.
    """

    status: MigrationStatus
    iteration: int | None
    transferred: int | None
    remaining: int | None
    total: int | None
    bandwidth: float | None
    dirty_rate: int | None
    expected_downtime: float | None
    throttle: int | None
    seconds: float | None
    downtime: float | None
    error: str | None
    pages_absorbed: int | None = None

    @classmethod
    def of(cls, info: MigrationInfo) -> MigrationSnapshot | None:
        """Put an answer into bytes and seconds; None if there was no migration."""
        if info.status is None or info.status is MigrationStatus.NONE:
            return None
        ram = info.ram
        return cls(
            status=info.status,
            iteration=None if ram is None else ram.dirty_sync_count,
            transferred=None if ram is None else ram.transferred,
            remaining=None if ram is None else ram.remaining,
            total=None if ram is None else ram.total,
            bandwidth=None if ram is None else ram.mbps * 1e6 / 8,
            dirty_rate=None if ram is None else ram.dirty_pages_rate * ram.page_size,
            expected_downtime=_from_ms(info.expected_downtime_ms),
            throttle=info.cpu_throttle_percentage,
            seconds=_from_ms(info.total_time_ms),
            downtime=_from_ms(info.downtime_ms),
            error=info.error_desc,
            pages_absorbed=None if ram is None else ram.x_absorbed_pages,
        )


@dataclass(frozen=True, slots=True)
class GuestState:
    """What a QEMU answered at one poll.

    Args:
        name: that the guest was started with (`-name`); empty if none.
        version: QEMU's.
        package: the distribution's name for it.
        patched: whether this QEMU tells of its memslots and rings.
        run_state: such as running or paused.
        running: whether the vCPUs run.
        tracking: how dirty pages are tracked.
        flush: None if this QEMU does not tell, or the guest does not use KVM.
        rings: None likewise, and if there are none.
        slots: of each address space; empty likewise.
        dirty_rate: None if it was never measured.
        rate_refused: why QEMU did not measure the dirty rate when asked to; empty if it did.
        migration: None if there was none.
        stalled: numbers of vCPUs that KVM has not let run since the poll before, as
            `StallWatch` finds them.
    """

    name: str
    version: tuple[int, int, int]
    package: str
    patched: bool
    run_state: str
    running: bool
    tracking: RunningTracking
    flush: FlushSnapshot | None
    rings: RingsSnapshot | None
    slots: tuple[SlotsSnapshot, ...]
    dirty_rate: DirtyRateSnapshot | None
    rate_refused: str
    migration: MigrationSnapshot | None
    stalled: tuple[int, ...] = ()

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        plain: dict[str, Any] = asdict(self)
        version = ".".join(map(str, plain.pop("version")))
        qemu = {
            "version": version,
            "package": plain.pop("package"),
            "patched": plain.pop("patched"),
        }
        plain["tracking"] = self.tracking.as_dict()
        for key in ("policy", "effective"):
            if self.flush is not None:
                plain["flush"][key] = plain["flush"][key].value
        if self.migration is not None:
            plain["migration"]["status"] = self.migration.status.value
        return {"qemu": qemu, **plain}


@dataclass(frozen=True, slots=True)
class GuestSnapshot:
    """What is known of one guest.

    Args:
        socket: its monitor, as it was named.
        presence: whether it can be seen now.
        state: its QEMU's last answer; None if there never was one.
        seconds_since: that answer, or since the first poll if there was none.
        problem: why it cannot be seen now; empty if it can.
        peak_reaped_per_second: the highest rate of any of its rings so far.
    """

    socket: str
    presence: Presence
    state: GuestState | None
    seconds_since: float
    problem: str
    peak_reaped_per_second: float

    def as_dict(self) -> dict[str, object]:
        """For JSON; what is not known of it is left out."""
        head: dict[str, object] = {
            "socket": self.socket,
            "presence": self.presence.value,
            "seconds_since": self.seconds_since,
            "problem": self.problem,
        }
        return head if self.state is None else head | self.state.as_dict()


def _from_ms(value: int | None) -> float | None:
    return None if value is None else value / 1000
