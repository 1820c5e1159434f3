"""What a migration came to."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from qemu_ring.migration.downtime import Downtime
from qemu_ring.migration.errors import MigrationOutcome
from qemu_ring.migration.goal import GoalOutcome
from qemu_ring.migration.timeline import Timeline
from qemu_ring.qmp import MigrationInfo, MigrationStatus
from qemu_ring.verify import Comparison

__all__ = ["MigrationResult", "Totals"]


@dataclass(frozen=True, slots=True)
class Totals:
    """QEMU's counts over all of a migration.

    Args:
        bytes_sent: on all channels.
        pages_normal: sent whole.
        pages_zero: found to be zero.
        bytes_multifd: on multifd's channels.
        pages_xbzrle: sent as a difference.
        postcopy_requests: pages that the destination asked for.
        iterations: harvests of the dirty log.
        pages_memory: all of the memory to be migrated.
        pages_absorbed: dirty again when they were sent, and so not sent once more for that; None
            of a QEMU that does not tell.
        zero_copy_missed: how often a harvest found that pages of a channel had been copied though
            zero copy was asked for, as on a loopback device; None of a QEMU that does not tell.
        setup_seconds: before the first pass.
        seconds: by QEMU's clock.
    """

    bytes_sent: int
    pages_normal: int
    pages_zero: int
    bytes_multifd: int
    pages_xbzrle: int
    postcopy_requests: int
    iterations: int
    pages_memory: int
    pages_absorbed: int | None
    zero_copy_missed: int | None
    setup_seconds: float | None
    seconds: float | None

    @property
    def pages_resent(self) -> int:
        """Sent more than once: what was sent less all of memory; 0 at least."""
        sent = self.pages_normal + self.pages_zero + self.pages_xbzrle
        return max(sent - self.pages_memory, 0)

    def resent_per_write(self, pages_written: int | None) -> float | None:
        """Pages resent for each page that the guest wrote meanwhile; repeats count.

        Other than a time, it does not change with how much of a CPU the guest got.

        Args:
            pages_written: None if the guest does not tell; so is the answer then, and of one that
                wrote nothing.
        """
        return self.pages_resent / pages_written if pages_written else None

    @classmethod
    def of(cls, info: MigrationInfo) -> Totals:
        """Read them off the source's last reply."""
        ram = info.ram
        return cls(
            bytes_sent=ram.transferred if ram else 0,
            pages_normal=ram.normal if ram else 0,
            pages_zero=ram.duplicate if ram else 0,
            bytes_multifd=ram.multifd_bytes if ram else 0,
            pages_xbzrle=info.xbzrle_cache.pages if info.xbzrle_cache else 0,
            postcopy_requests=ram.postcopy_requests if ram else 0,
            iterations=ram.dirty_sync_count if ram else 0,
            pages_memory=ram.total // ram.page_size if ram else 0,
            pages_absorbed=ram.x_absorbed_pages if ram else None,
            zero_copy_missed=ram.dirty_sync_missed_zero_copy if ram else None,
            setup_seconds=None if info.setup_time_ms is None else info.setup_time_ms / 1000,
            seconds=None if info.total_time_ms is None else info.total_time_ms / 1000,
        )


@dataclass(frozen=True, slots=True)
class MigrationResult:
    """A migration that completed.

    Args:
        status: QEMU's.
        kind: the plan's, such as "precopy".
        channel: in the command line's words.
        seconds: from its start until the destination had all, by the host's clock.
        switched_to_postcopy: whether the guest moved before its memory.
        downtime: how long the guest stood still.
        totals: QEMU's counts.
        timeline: each iteration, and what was sampled.
        comparison: of both memories, where it was asked for.
        outcome: how both sides were found.
        goal: whether the plan's goal was kept; None if it has none.
        problem: why a guest whose memory is stale could not go on at the source; empty as a rule.
        stalled: numbers of vCPUs that KVM did not let run at the source, because it had overrun
            their dirty rings: pages that they wrote before may be stale. Looked for twice a second.
    """

    status: MigrationStatus
    kind: str
    channel: str
    seconds: float
    switched_to_postcopy: bool
    downtime: Downtime
    totals: Totals
    timeline: Timeline
    comparison: Comparison | None
    outcome: MigrationOutcome
    goal: GoalOutcome | None = None
    problem: str = ""
    stalled: tuple[int, ...] = ()

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        outcome = asdict(self.outcome) | {"guest_at": self.outcome.guest_at.value}
        comparison = self.comparison
        return {
            "status": self.status.value,
            "kind": self.kind,
            "channel": self.channel,
            "seconds": self.seconds,
            "switched_to_postcopy": self.switched_to_postcopy,
            "downtime": asdict(self.downtime),
            "totals": asdict(self.totals),
            "timeline": self.timeline.as_dict(),
            "stale_pages": None if comparison is None else comparison.pages_stale_total,
            "stale": None if comparison is None else [asdict(page) for page in comparison.stale],
            "excused": [] if comparison is None else [asdict(page) for page in comparison.excused],
            "aftermath": outcome,
            "goal": None if self.goal is None else self.goal.as_dict(),
            "problem": self.problem,
            "stalled": self.stalled,
        }
