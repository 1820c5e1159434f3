"""What tracking a running guest uses, found out without disturbing it."""

from __future__ import annotations

import asyncio
import re
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Final

from qemu_ring.dirty._vcpu_maps import mapped_ring_entries
from qemu_ring.qmp import CommandError, Monitor, QmpModel, commands
from qemu_ring.qmp.dirty import cancel_vcpu_dirty_limit, query_accelerators

__all__ = ["RunningTracking", "TrackingMode", "query_tracking"]

_NO_VCPU: Final = -1


class TrackingMode(Enum):
    """By what means dirty pages are tracked."""

    RING = "ring"
    """KVM's dirty ring, one per vCPU."""
    BITMAP = "bitmap"
    """KVM's dirty bitmap, one per memslot."""
    SOFTWARE = "software"
    """By the accelerator itself, which is not KVM: TCG marks the pages that it writes."""
    UNKNOWN = "unknown"
    """It is KVM, and neither this QEMU nor this host tells."""


@dataclass(frozen=True, slots=True)
class RunningTracking:
    """The dirty tracking that a running guest uses; in words, what `Tracking.parse` reads.

    Whether manual dirty log protection was turned off, no QEMU tells.

    Args:
        accelerator: kvm, tcg, ...; None if it is not KVM and QEMU does not tell what.
        mode: by what means.
        ring_entries: entries of each vCPU's ring; None if there is none, or its size
            cannot be found out.
    """

    accelerator: str | None
    mode: TrackingMode
    ring_entries: int | None = None

    def __str__(self) -> str:
        if self.mode is TrackingMode.SOFTWARE:
            return self.accelerator or "an accelerator that is not KVM"
        if self.mode is TrackingMode.RING:
            return f"ring:{self.ring_entries}" if self.ring_entries else "ring of unknown size"
        return str(self.mode.value)

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {**asdict(self), "mode": self.mode.value}


async def query_tracking(monitor: Monitor) -> RunningTracking:
    """Find out which dirty tracking a running guest uses; changes nothing in it.

    A patched QEMU tells. Others keep the accelerator's properties to themselves. From
    7.1 on they tell whether there is a ring by the answer to a command that cannot do
    anything; the ring's size is then read from what the vCPUs' process has mapped, if it
    runs on this host and may be looked at.

    Raises:
        QmpError: as in `Monitor.call`.
    """
    if not (await commands.query_kvm(monitor)).enabled:
        return RunningTracking(await _other_accelerator(monitor), TrackingMode.SOFTWARE)
    schema = await monitor.schema()
    if schema.has_command("x-query-dirty-rings"):
        return _kvm((await monitor.call("x-query-dirty-rings", _Rings)).size)
    if schema.has_command("cancel-vcpu-dirty-limit"):
        if not await _has_ring(monitor):
            return _kvm(0)
        return RunningTracking("kvm", TrackingMode.RING, await _mapped(monitor) or None)
    entries = await _mapped(monitor)
    return RunningTracking("kvm", TrackingMode.UNKNOWN) if entries is None else _kvm(entries)


class _Rings(QmpModel):
    """Of x-query-dirty-rings, what is needed here."""

    size: int


def _kvm(entries: int) -> RunningTracking:
    if not entries:
        return RunningTracking("kvm", TrackingMode.BITMAP)
    return RunningTracking("kvm", TrackingMode.RING, entries)


async def _other_accelerator(monitor: Monitor) -> str | None:
    schema = await monitor.schema()
    if schema.has_command("query-accelerators"):
        return (await query_accelerators(monitor)).enabled
    if not schema.has_command("x-query-jit"):
        return None
    try:
        await monitor.execute("x-query-jit")
    except CommandError:  # "only available with accel=tcg"
        return None
    return "tcg"


async def _has_ring(monitor: Monitor) -> bool:
    """Whether the guest has rings: only then QEMU looks at the vCPU's number, and refuses it."""
    try:
        await cancel_vcpu_dirty_limit(monitor, cpu_index=_NO_VCPU)
    except CommandError as error:
        if "cpu index" not in error.description:
            raise
        return True
    return False


async def _mapped(monitor: Monitor) -> int | None:
    """Entries of a vCPU's ring as mapped by its process; 0 for none, None if not to be seen."""
    if not (await monitor.schema()).has_command("human-monitor-command"):
        return None
    vcpus = await commands.query_cpus_fast(monitor)
    # Where guest memory lies tells this process from one with the same number elsewhere.
    said = await commands.human(monitor, "gpa2hva 0")
    address = re.search(r" is 0x([0-9a-f]+)\s*$", said)
    if not vcpus or address is None:
        return None
    guest_memory = int(address[1], 16)
    return await asyncio.to_thread(mapped_ring_entries, vcpus[0].thread_id, guest_memory)
