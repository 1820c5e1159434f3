"""Which QEMU can be asked about the dirty rate of vCPUs whose numbers have gaps.

QEMU keeps those rates in tables of as many entries as there are vCPUs, and indexes them by the
vCPUs' numbers: asked about a guest whose numbers have gaps, as CPU hotplug makes them, it writes
behind the tables' end, and aborts within seconds. One that does not has a feature that tells.
"""

from __future__ import annotations

from typing import Final

from qemu_ring.errors import QemuUnsuitableError
from qemu_ring.qmp import Monitor, commands

__all__ = ["require_safe_numbers", "unsafe_numbers", "vcpu_numbers"]

_FEATURE: Final = "sparse-cpu-index"
_COMMAND: Final = "calc-dirty-rate"
"""It bears the feature for all that uses the tables."""


async def vcpu_numbers(monitor: Monitor) -> tuple[int, ...]:
    """Number the vCPUs that are plugged, in ascending order.

    Raises:
        QmpError: as in `Monitor.call`.
    """
    return tuple(sorted(cpu.cpu_index for cpu in await commands.query_cpus_fast(monitor)))


async def unsafe_numbers(monitor: Monitor) -> tuple[int, ...]:
    """Number the guest's vCPUs if to ask for their dirty rates would end this QEMU; else ().

    To be called before the command is sent. A vCPU that is plugged later, so that there is a
    gap, is not seen.

    Raises:
        QmpError: as in `Monitor.call`.
    """
    numbers = await vcpu_numbers(monitor)
    if not numbers or numbers[-1] < len(numbers):
        return ()
    mended = _FEATURE in (await monitor.schema()).command_features(_COMMAND)
    return () if mended else numbers


async def require_safe_numbers(monitor: Monitor, what: str, hint: str) -> None:
    """Refuse what would end this QEMU because its guest's vCPU numbers have gaps.

    Args:
        monitor: QEMU's.
        what: what would be done, such as "a dirty limit".
        hint: what to do instead.

    Raises:
        QemuUnsuitableError: they have, and it would.
        QmpError: as in `Monitor.call`.
    """
    numbers = await unsafe_numbers(monitor)
    if numbers:
        listed = ", ".join(map(str, numbers))
        raise QemuUnsuitableError(
            f"{what} would end this QEMU: its guest's vCPUs have the numbers {listed}, and it "
            "takes numbers that count up from 0 without a gap",
            hint=hint,
        )
