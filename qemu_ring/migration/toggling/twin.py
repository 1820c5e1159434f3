"""What a guest's twin has of the original: the same machine, and what was set in it since."""

from __future__ import annotations

from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, replace

from qemu_ring.dirty import Tracking, require_safe_numbers
from qemu_ring.errors import QemuRingError, UsageError
from qemu_ring.machine import Accelerator, Machine, MachineDescription, QemuBinary
from qemu_ring.machine.properties import FLUSH_POLICY, TRACKING
from qemu_ring.memslot import FlushInfo, FlushPolicy
from qemu_ring.migration.engine.previous_settings import set_capabilities, set_parameters
from qemu_ring.migration.toggling.drives import Drive, query_drives, set_limits
from qemu_ring.qmp import CommandError, Monitor, commands
from qemu_ring.qmp.dirty import query_vcpu_dirty_limit, set_vcpu_dirty_limit

__all__ = [
    "Carried",
    "twin_accelerator",
    "twin_description",
]


def twin_description(original: Machine, accelerator: Accelerator) -> MachineDescription:
    """The twin's description.

    Raises:
        UsageError: the guest cannot be moved to a twin.
    """
    description = original.description
    if description is None:
        raise UsageError(
            f"{original.name} was not started here, so its twin cannot be",
            hint="start the guest with Machine.start or qemu-ring run",
        )
    for backend in (description.memory, *description.backends):
        if not backend.share:
            raise UsageError(
                f"memory {backend.id} of {original.name} is not shared: it would have to be copied",
                hint="give it a shared memory backend, or migrate the guest",
            )
    # Paused: the twin must not touch the memory before it is known that the original will not.
    return replace(description, accelerator=accelerator, incoming="defer", paused=True)


async def twin_accelerator(
    original: Machine, tracking: Tracking, qemu: QemuBinary, policy: FlushPolicy | None = None
) -> Accelerator:
    """The original's accelerator with another tracking; all else about it stays.

    Args:
        original: the guest; it uses KVM.
        tracking: what the twin's shall be.
        qemu: the twin's QEMU.
        policy: the twin's flush policy; None for the one that the original has now.

    Raises:
        UsageError: the guest does not use KVM, or was not started here.
        QemuUnsuitableError: the twin's QEMU cannot do it.
    """
    description = original.description
    if description is None or description.accelerator.name != "kvm":
        raise UsageError("the guest does not use KVM", hint="TCG tracks in one way only")
    properties = {
        name: value
        for name, value in description.accelerator.properties.items()
        if name not in TRACKING | {FLUSH_POLICY}
    }
    properties |= tracking.accelerator(qemu).properties
    if policy is not None:
        qemu.require_flush_policies()
    elif qemu.flush_policies:
        policy = await _live_policy(original.monitor)
    if policy is not None:
        properties[FLUSH_POLICY] = policy.value
    return Accelerator("kvm", properties)


async def _live_policy(monitor: Monitor) -> FlushPolicy | None:
    with suppress(CommandError):  # it is not patched
        return (await monitor.call("x-query-memslot-flush", FlushInfo)).policy
    return None


# Below, a command is tried rather than looked for in QEMU's schema: to read that takes so long that
# a toggle would take half as long again.


@dataclass(frozen=True, slots=True)
class Carried:
    """What is set in a QEMU through its monitor, and that no migration carries over.

    Args:
        capabilities: for migration, by name.
        parameters: for migration, by QMP name.
        limits: on how fast vCPUs may dirty memory, MiB/s by vCPU.
        drives: with the limits on their speed.
    """

    capabilities: dict[str, bool]
    parameters: dict[str, object]
    limits: dict[int, int]
    drives: dict[str, Drive]

    @classmethod
    async def of(cls, monitor: Monitor) -> Carried:
        """Ask a QEMU."""
        limits: dict[int, int] = {}
        with suppress(CommandError):  # before QEMU 7.1 there are none
            listed = await query_vcpu_dirty_limit(monitor)
            limits = {one.cpu_index: one.limit_rate for one in listed}
        return cls(
            await commands.query_capabilities(monitor),
            await commands.query_parameters(monitor),
            limits,
            await query_drives(monitor),
        )

    async def give_back(self, monitor: Monitor) -> tuple[str, ...]:
        """Set migration as it was in the very QEMU; returns what it did not take, in words."""
        return await _each(
            ("migration parameters", set_parameters(monitor, self.parameters)),
            ("migration capabilities", set_capabilities(monitor, self.capabilities)),
        )

    async def give(self, monitor: Monitor) -> tuple[str, ...]:
        """Set all of it in the twin; returns what it did not take, in words."""
        return await self.give_back(monitor) + await _each(
            ("dirty limits", self._give_limits(monitor)),
            ("limits of drives", self._give_drives_limits(monitor)),
        )

    async def _give_limits(self, monitor: Monitor) -> None:
        if self.limits:
            await require_safe_numbers(monitor, "a dirty limit", "")
        for vcpu, limit in self.limits.items():
            await set_vcpu_dirty_limit(monitor, limit, cpu_index=vcpu)

    async def _give_drives_limits(self, monitor: Monitor) -> None:
        for name, drive in (await query_drives(monitor)).items():
            if name in self.drives and self.drives[name].limits != drive.limits:
                await set_limits(monitor, drive, self.drives[name].limits)


async def _each(*settings: tuple[str, Coroutine[object, object, None]]) -> tuple[str, ...]:
    problems: tuple[str, ...] = ()
    for what, setting in settings:
        try:
            await setting
        except QemuRingError as error:
            problems += (f"{what} are not what they were: {error.message}",)
    return problems
