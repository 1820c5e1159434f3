"""Does a guest go on that fills its dirty ring with code that KVM may emulate?

A KVM for hosts without nested virtualisation emulates what a guest does in ring 0, and may push
entries past the end of a full ring meanwhile. QEMU then never finds an entry again, and the guest
hangs for good. Tried, because nothing tells of it.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Final

from qemu_ring.errors import DeadlineError
from qemu_ring.guest import RING0_FIRST, RING0_PAGES, RING0_PASSES, image_bytes
from qemu_ring.machine.binary import QemuBinary
from qemu_ring.machine.description import Accelerator, MachineDescription, MemoryBackend
from qemu_ring.machine.machine import Machine
from qemu_ring.machine.memory import UnnamedFile
from qemu_ring.qmp import commands
from qemu_ring.qmp.dirty import calc_dirty_rate, query_dirty_rate

__all__ = ["goes_on_with_full_ring"]

_ENTRIES: Final = 1024
_PAGE: Final = 4096
_POLL_SECONDS: Final = 0.02
_DEADLINE_SECONDS: Final = 60.0
_STUCK_CPU_SECONDS: Final = 1.0
"""Of a vCPU's time, in which it writes thousands of times to all of its pages, if it runs."""


async def goes_on_with_full_ring(binary: QemuBinary) -> bool | None:
    """Have a guest fill its ring in ring 0, many times over.

    Args:
        binary: a QEMU that has the dirty ring.

    Returns:
        whether it goes on; None if this QEMU cannot be made to log dirty pages without a
        migration (before 6.2).

    Raises:
        MachineError: the guest did not start.
        DeadlineError: this host is too busy to tell.
        QmpError: as in `Monitor.call`.
    """
    with UnnamedFile("ram", RING0_FIRST + RING0_PAGES * _PAGE) as memory:
        description = MachineDescription(
            accelerator=Accelerator("kvm", {binary.require_ring(): _ENTRIES}),
            memory=MemoryBackend("ram", memory),
            firmware=image_bytes("ring0"),
        )
        async with await Machine.start(binary.path, description, name="probe") as machine:
            monitor = machine.monitor
            schema = await monitor.schema()
            if "dirty-ring" not in schema.enum_values("calc-dirty-rate", "mode"):
                return None
            vcpu = (await commands.query_cpus_fast(monitor))[0].thread_id
            await _more_passes(memory.fd, vcpu)  # until QEMU logs dirty pages, nothing is pushed
            await calc_dirty_rate(monitor, 1, mode="dirty-ring")
            deadline = time.monotonic() + _DEADLINE_SECONDS
            while (await query_dirty_rate(monitor)).status != "measured":
                if time.monotonic() > deadline:
                    raise DeadlineError(f"no dirty rate in {_DEADLINE_SECONDS:g} s")
                await asyncio.sleep(_POLL_SECONDS)
            return await _more_passes(memory.fd, vcpu)


async def _more_passes(memory: int, vcpu: int) -> bool:
    """Whether the guest goes over its memory twice more; it does not if it has had the time to."""
    enough = _passes(memory) + 2
    begun, deadline = _cpu_seconds(vcpu), time.monotonic() + _DEADLINE_SECONDS
    while _passes(memory) < enough:
        if _cpu_seconds(vcpu) - begun > _STUCK_CPU_SECONDS:
            return _passes(memory) >= enough
        if time.monotonic() > deadline:
            raise DeadlineError(
                f"a vCPU had less than {_STUCK_CPU_SECONDS:g} s of time in {_DEADLINE_SECONDS:g} s",
                hint="try again when this host is less busy",
            )
        await asyncio.sleep(_POLL_SECONDS)
    return True


def _passes(memory: int) -> int:
    return int.from_bytes(os.pread(memory, 4, RING0_PASSES), "little")


def _cpu_seconds(thread: int) -> float:
    """What a thread has had of a CPU's time."""
    fields = Path(f"/proc/{thread}/stat").read_text(errors="replace").rpartition(")")[2].split()
    user, system = int(fields[11]), int(fields[12])
    return (user + system) / os.sysconf("SC_CLK_TCK")
