"""Asking both sides of a migration what they can do, and setting them up."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial

from qemu_ring.dirty import require_safe_numbers
from qemu_ring.errors import QemuUnsuitableError, UsageError
from qemu_ring.migration.comparison import Difference, differences
from qemu_ring.migration.engine.ignore_shared import require_restorable
from qemu_ring.migration.engine.settings import destination_settings, source_settings
from qemu_ring.migration.engine.side import Side, require_support
from qemu_ring.migration.engine.throttling import Throttle
from qemu_ring.migration.plan import CprReboot, DirtyLimit, MigrationPlan, Tls
from qemu_ring.qmp import CommandError, CommandTimeoutError, Monitor, ProtocolError

__all__ = ["find_obstacles", "require_twins", "set_up"]


async def set_up(
    stack: AsyncExitStack,
    plan: MigrationPlan,
    source: Side,
    destination: Side | None,
    *,
    held: bool = False,
    throttle: Throttle | None = None,
) -> tuple[Difference, ...]:
    """Set up both sides as the plan wants it; nothing is set if one of them cannot.

    Args:
        stack: sets them back when it is closed.
        plan: what is wanted.
        source: the guest's, which the caller has found idle.
        destination: None if there is none, or it is yet to be started.
        held: whether the guest is held at the destination, to be verified.
        throttle: the means that the plan's goal takes.

    Returns:
        what differs between the sides, though it may be meant.

    Raises:
        QemuUnsuitableError: a QEMU cannot do it, or not this mix.
        UsageError: a value is out of range, a side is in the wrong state, or the two are no twins.
    """
    sides = [(source, source_settings(plan, throttle))]
    if destination is not None:
        sides.append((destination, destination_settings(plan, held=held)))
    await require_support(sides)
    if isinstance(plan.throttle, DirtyLimit):
        how = "throttling by dirty-limit"
        await require_safe_numbers(source.monitor, how, "throttle by auto-converge")
    if isinstance(plan.kind, CprReboot) and plan.kind.ignore_shared:
        await require_restorable(source.monitor)
    different: tuple[Difference, ...] = ()
    if destination is not None:
        await destination.require_waiting()
        different = await _compared(source.monitor, destination.monitor)
        require_twins(different)
    for side, settings in sides:
        stack.push_async_callback(side.restore)
        await side.set(settings)
    if plan.tls is not None:
        await _use_certificates(plan.tls, source, destination)
    return different


async def find_obstacles(
    source: Monitor, destination: Monitor | None, plan: MigrationPlan
) -> tuple[Difference, ...]:
    """Tell all that stands in a migration's way, and all that differs; nothing is set.

    Args:
        source: the guest's.
        destination: None for a guest that is to be saved.
        plan: what is wanted.

    Returns:
        what would make it fail is fatal.

    Raises:
        QmpError: a side did not answer.
    """
    sides = [(Side("the source", source), source_settings(plan))]
    if destination is not None:
        sides.append((Side("the destination", destination), destination_settings(plan)))
    found: list[Difference] = []
    requirements: list[Callable[[], Awaitable[None]]] = [
        partial(require_support, sides),
        sides[0][0].require_idle,
        *(side.require_waiting for side, _ in sides[1:]),
    ]
    if isinstance(plan.kind, CprReboot) and plan.kind.ignore_shared:
        requirements.append(partial(require_restorable, source))
    for require in requirements:
        try:
            await require()
        except (QemuUnsuitableError, UsageError) as error:
            found.append(Difference(error.message, fatal=True))
    if destination is not None:
        found += await _compared(source, destination)
    return tuple(found)


async def _compared(source: Monitor, destination: Monitor) -> tuple[Difference, ...]:
    """What differs; that it cannot be told hinders no migration."""
    try:
        return await differences(source, destination)
    except (CommandError, CommandTimeoutError, ProtocolError) as error:
        return (Difference(f"the two QEMUs were not compared: {error.message}", fatal=False),)


def require_twins(different: Sequence[Difference]) -> None:
    """Check that nothing differs that a migration cannot survive.

    Raises:
        UsageError: something does; names all that differ.
    """
    if any(one.fatal for one in different):
        raise UsageError(
            f"the destination is no twin of the source: {'; '.join(map(str, different))}",
            hint="start it with the source's options, and -incoming defer",
        )


async def _use_certificates(tls: Tls, source: Side, destination: Side | None) -> None:
    await source.use_tls(tls.source_directory, "client", tls.hostname)
    if destination is not None:
        directory = tls.destination_directory or tls.source_directory
        await destination.use_tls(directory, "server", tls.hostname)
