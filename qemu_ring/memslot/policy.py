"""How a patched QEMU removes memslots that log dirty pages, and what that cost."""

from __future__ import annotations

from enum import Enum

from pydantic import Field

from qemu_ring.errors import QemuUnsuitableError
from qemu_ring.qmp import Monitor, QmpModel

__all__ = [
    "FlushInfo",
    "FlushPolicy",
    "FlushStatistics",
    "query_flush",
    "require_patched",
    "set_flush_policy",
]


class FlushPolicy(Enum):
    """What happens when a memslot that logs dirty pages is removed."""

    AUTO = "auto"
    """The policy that leans least on what KVM does: QUIESCE."""
    BEST_EFFORT = "best-effort"
    """Upstream's order: harvest, then remove. What is dirtied in between is lost."""
    QUIESCE = "quiesce"
    """Hold the vCPUs while dirty pages are harvested and the memslot is removed."""
    READ_ONLY = "read-only"
    """Hold the vCPUs only to make the memslot read-only; harvest while they run; remove."""
    TOMBSTONE = "tombstone"
    """Ring only: remove, then harvest the ring's late entries into the memory they were for.

    The vCPUs are held for a moment when the memslot comes back, as with READ_ONLY.
    """


class FlushStatistics(QmpModel):
    """What one policy has done since QEMU's start; times in nanoseconds.

    `pages_late` of the pages harvested were found only after the point at which
    best-effort removes the memslot: it would have lost them. It is known for pages from
    a ring only, so by bitmap it is 0; it is 0 also where best-effort holds the vCPUs too,
    because what goes and what comes overlap in one transaction. `writes_trapped` counts
    writes to memslots that were read-only for their removal. `hold_ns_log2[i]` counts the
    holds that took 2**i ns or more, and less than twice that.
    """

    policy: FlushPolicy
    removals: int
    pages_harvested: int
    pages_late: int
    writes_trapped: int
    holds: int
    hold_ns: int
    hold_ns_max: int
    hold_ns_log2: tuple[int, ...] = Field(repr=False)


class FlushInfo(QmpModel):
    """The policy asked for, the one in force, and what each has done.

    `entries_dropped` counts dirty ring entries whose memslot was gone: lost pages.
    """

    policy: FlushPolicy
    effective: FlushPolicy
    entries_dropped: int
    stats: tuple[FlushStatistics, ...]

    def of(self, policy: FlushPolicy) -> FlushStatistics:
        """The statistics of one policy; AUTO has none of its own."""
        return next(one for one in self.stats if one.policy is policy)


async def require_patched(monitor: Monitor, command: str) -> None:
    """Check that a QEMU has one of the commands that the patches add.

    Raises:
        QemuUnsuitableError: it has not.
    """
    schema = await monitor.schema()
    if not schema.has_command(command):
        version = ".".join(map(str, monitor.version))
        raise QemuUnsuitableError(
            f"this QEMU {version} has no {command}: it is not patched",
            hint="build one that is, with qemu-ring build, and run the guest on it",
        )


async def query_flush(monitor: Monitor) -> FlushInfo:
    """Ask a patched QEMU for its flush policy and counters.

    Raises:
        QemuUnsuitableError: it is not patched.
        QmpError: as in `Monitor.call`; CommandError if the guest does not use KVM.
    """
    await require_patched(monitor, "x-query-memslot-flush")
    return await monitor.call("x-query-memslot-flush", FlushInfo)


async def set_flush_policy(monitor: Monitor, policy: FlushPolicy) -> FlushInfo:
    """Change the flush policy of a running guest; returns what is in force then.

    Raises:
        QemuUnsuitableError: it is not patched.
        QmpError: as in `Monitor.call`; CommandError if the guest does not use KVM.
    """
    await require_patched(monitor, "x-set-memslot-flush")
    await monitor.execute("x-set-memslot-flush", {"policy": policy.value})
    return await query_flush(monitor)
