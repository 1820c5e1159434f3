"""Limits on how fast a guest's vCPUs may dirty memory; QEMU 7.1 or newer, and the dirty ring."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from qemu_ring.dirty.running import TrackingMode, query_tracking
from qemu_ring.dirty.vcpu_numbers import require_safe_numbers, vcpu_numbers
from qemu_ring.errors import QemuUnsuitableError, UsageError
from qemu_ring.qmp import Monitor
from qemu_ring.qmp.dirty import (
    cancel_vcpu_dirty_limit,
    query_vcpu_dirty_limit,
    set_vcpu_dirty_limit,
)

__all__ = [
    "VcpuLimit",
    "cancel_dirty_limit",
    "granted_limit",
    "least_limit",
    "query_dirty_limits",
    "set_dirty_limit",
]

_MIB: Final = 1 << 20
_PAGE_BYTES: Final = 4096
_MOST: Final = 1 << 60
"""Bytes a second."""
_NO_GAPS: Final = (
    "plug the vCPUs between them, or use the QEMU that `qemu-ring build` makes; a migration can "
    "throttle by auto-converge"
)


@dataclass(frozen=True, slots=True)
class VcpuLimit:
    """A vCPU with a dirty limit.

    Args:
        vcpu: its number.
        limit: bytes/s.
        rate: bytes/s that it dirtied in the second before, rounded down to whole MiB/s; 0
            in a limit's first second, when nothing is known yet.
    """

    vcpu: int
    limit: int
    rate: int

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "vcpu": self.vcpu,
            "limit_bytes_per_second": self.limit,
            "rate_bytes_per_second": self.rate,
        }


def granted_limit(bytes_per_second: int) -> int:
    """The limit that QEMU can be given: whole MiB/s, the nearest, but at least one.

    Raises:
        UsageError: it is not more than 0, or more than any host does.
    """
    if bytes_per_second <= 0:
        raise UsageError(
            f"{bytes_per_second} bytes/s is no dirty limit", hint="to end one, cancel it"
        )
    if bytes_per_second > _MOST:
        raise UsageError(
            f"{bytes_per_second} bytes/s is too much", hint="leave the vCPU without a limit then"
        )
    return max(1, (bytes_per_second + _MIB // 2) // _MIB) * _MIB


def least_limit(ring_entries: int) -> int:
    """The rate, in bytes/s, below which QEMU brings no vCPU that has a ring of that size.

    A vCPU is made to wait only when its ring is full, and each second all rings are
    harvested: it can always dirty about one ring a second.
    """
    return ring_entries * _PAGE_BYTES


async def query_dirty_limits(monitor: Monitor) -> tuple[VcpuLimit, ...]:
    """List the vCPUs that have a limit; those that are plugged.

    Raises:
        QemuUnsuitableError: this QEMU has no dirty limits.
        QmpError: as in `Monitor.call`.
    """
    await _require_limits(monitor)
    # QEMU has limits for vCPUs that may be plugged later, and lists them, too.
    plugged = await vcpu_numbers(monitor)
    return tuple(
        VcpuLimit(one.cpu_index, one.limit_rate * _MIB, one.current_rate * _MIB)
        for one in await query_vcpu_dirty_limit(monitor)
        if one.cpu_index in plugged
    )


async def set_dirty_limit(
    monitor: Monitor, bytes_per_second: int, *, vcpu: int | None = None
) -> tuple[VcpuLimit, ...]:
    """Limit how fast one vCPU, or each of them, may dirty memory.

    It takes hold within seconds, step by step, and only roughly: QEMU is content within
    25 MiB/s of it, and `least_limit` is the least it can reach.

    Args:
        monitor: the guest's.
        bytes_per_second: for each vCPU; `granted_limit` tells how it is rounded.
        vcpu: its number; None for all.

    Returns:
        all limits that are then in force.

    Raises:
        UsageError: the limit is not more than 0, or there is no such vCPU.
        QemuUnsuitableError: this QEMU has no dirty limits, or the guest no dirty ring, or
            vCPU numbers with a gap, which would end this QEMU.
        QmpError: as in `Monitor.call`; CommandError if a migration under way with the
            capability dirty-limit has set them.
    """
    rate = granted_limit(bytes_per_second) // _MIB
    await _require_limits(monitor)
    tracking = await query_tracking(monitor)
    if tracking.mode is not TrackingMode.RING:
        raise QemuUnsuitableError(
            f"dirty limits take the dirty ring, and this guest's tracking is {tracking}",
            hint="start the guest with -accel kvm,dirty-ring-size=4096",
        )
    await _require_vcpu(monitor, vcpu)
    await require_safe_numbers(monitor, "a dirty limit", _NO_GAPS)
    await set_vcpu_dirty_limit(monitor, rate, cpu_index=vcpu)
    return await query_dirty_limits(monitor)


async def cancel_dirty_limit(monitor: Monitor, *, vcpu: int | None = None) -> tuple[VcpuLimit, ...]:
    """Cancel the limit of one vCPU, or of all; that there is none is no error.

    Args:
        monitor: the guest's.
        vcpu: its number; None for all.

    Returns:
        all limits that are still in force.

    Raises:
        UsageError: there is no such vCPU.
        QemuUnsuitableError: this QEMU has no dirty limits.
        QmpError: as in `set_dirty_limit`.
    """
    await _require_limits(monitor)
    await _require_vcpu(monitor, vcpu)
    await cancel_vcpu_dirty_limit(monitor, cpu_index=vcpu)
    return await query_dirty_limits(monitor)


async def _require_limits(monitor: Monitor) -> None:
    if not (await monitor.schema()).has_command("set-vcpu-dirty-limit"):
        version = ".".join(map(str, monitor.version))
        raise QemuUnsuitableError(
            f"this QEMU {version} has no dirty limits", hint="use QEMU 7.1 or newer"
        )


async def _require_vcpu(monitor: Monitor, vcpu: int | None) -> None:
    """Check a number here: QEMU takes those of vCPUs that are not plugged, too."""
    if vcpu is None:
        return
    known = await vcpu_numbers(monitor)
    if vcpu not in known:
        numbers = ", ".join(map(str, known))
        raise UsageError(f"this guest has no vCPU {vcpu}", hint=f"it has vCPU {numbers}")
