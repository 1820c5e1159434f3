"""What has to be known, and to be so, before a guest with removable memslots is started."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qemu_ring.dirty import Tracking
from qemu_ring.machine import (
    Accelerator,
    Host,
    KvmCapabilities,
    QemuBinary,
    probe_host,
    probe_kvm,
    probe_qemu,
)
from qemu_ring.machine.properties import FLUSH_POLICY
from qemu_ring.memslot import FlushPolicy

__all__ = ["Probes"]

_FALLBACK_TSC_HZ: Final = 2_000_000_000
"""Where KVM does not tell; the writer's rate is then off by as much."""


@dataclass(frozen=True, slots=True)
class Probes:
    """This host, its KVM, a QEMU, and the accelerator's properties that were asked for."""

    host: Host
    kvm: KvmCapabilities
    qemu: QemuBinary
    accelerator: Accelerator

    @classmethod
    async def of(
        cls, binary: Path, tracking: Tracking, policy: FlushPolicy | None, machine: str
    ) -> Probes:
        """Ask them.

        Args:
            binary: the QEMU.
            tracking: how dirty pages are to be tracked.
            policy: how memslots are to be removed; None for what the QEMU does by itself.
            machine: machine type.

        Raises:
            HostError: this host cannot do it: no KVM, no ring.
            QemuUnsuitableError: this QEMU cannot do it.
        """
        host = probe_host()
        kvm = await asyncio.to_thread(probe_kvm)
        tracking.require(kvm)
        qemu = await probe_qemu(binary)
        accelerator = tracking.accelerator(qemu)
        if policy is not None:
            qemu.require_flush_policies()
            properties = {**accelerator.properties, FLUSH_POLICY: policy.value}
            accelerator = Accelerator(accelerator.name, properties)
        qemu.require_slot_removal(machine)
        return cls(host, kvm, qemu, accelerator)

    @property
    def tsc_hz(self) -> int:
        """Ticks per second of a guest's time stamp counter."""
        return self.kvm.tsc_khz * 1000 or _FALLBACK_TSC_HZ
