"""Asking both sides of a migration what they can do, and setting them up."""

from __future__ import annotations

from contextlib import AsyncExitStack

from qemu_ring.dirty import require_safe_numbers
from qemu_ring.migration.plan import DirtyLimit, MigrationPlan, Tls
from qemu_ring.migration.settings import destination_settings, source_settings
from qemu_ring.migration.side import Side, require_support
from qemu_ring.migration.throttling import Throttle

__all__ = ["set_up"]


async def set_up(
    stack: AsyncExitStack,
    plan: MigrationPlan,
    source: Side,
    destination: Side | None,
    *,
    held: bool = False,
    throttle: Throttle | None = None,
) -> None:
    """Set up both sides as the plan wants it; nothing is set if one of them cannot.

    Args:
        stack: sets them back when it is closed.
        plan: what is wanted.
        source: the guest's.
        destination: None if there is none, or it is yet to be started.
        held: whether the guest is held at the destination, to be verified.
        throttle: the means that the plan's goal takes.

    Raises:
        QemuUnsuitableError: a QEMU cannot do it, or not this mix.
        UsageError: a value is out of range, or a side is in the wrong state.
    """
    sides = [(source, source_settings(plan, throttle))]
    if destination is not None:
        sides.append((destination, destination_settings(plan, held=held)))
    await require_support(sides)
    if isinstance(plan.throttle, DirtyLimit):
        how = "throttling by dirty-limit"
        await require_safe_numbers(source.monitor, how, "throttle by auto-converge")
    await source.require_idle()
    for side, settings in sides:
        stack.push_async_callback(side.restore)
        if side is not source:
            await side.require_waiting()
        await side.set(settings)
    if plan.tls is not None:
        await _use_certificates(plan.tls, source, destination)


async def _use_certificates(tls: Tls, source: Side, destination: Side | None) -> None:
    await source.use_tls(tls.source_directory, "client", tls.hostname)
    if destination is not None:
        directory = tls.destination_directory or tls.source_directory
        await destination.use_tls(directory, "server", tls.hostname)
