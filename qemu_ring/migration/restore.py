"""Bringing back a guest that was saved to a file or a command."""

from __future__ import annotations

import time

from qemu_ring.errors import QemuRingError, QemuUnsuitableError, UsageError
from qemu_ring.machine import Machine
from qemu_ring.migration.engine.destination import Arrival
from qemu_ring.migration.engine.settings import destination_settings
from qemu_ring.migration.engine.side import Side, require_support
from qemu_ring.migration.errors import MigrationError
from qemu_ring.migration.plan import MigrationPlan
from qemu_ring.qmp import CommandError
from qemu_ring.tasks import UninterruptibleStack

__all__ = ["restore"]


async def restore(
    destination: Machine, plan: MigrationPlan, *, timeout: float | None = None
) -> float:
    """Load a guest, and let it run unless it was saved paused or the plan leaves it so.

    Args:
        destination: the same machine, started with `-incoming defer`.
        plan: what it was saved with; of its channel, the file or the destination's command.
        timeout: seconds; None to wait as long as it takes.

    Returns:
        seconds that it took.

    Raises:
        UsageError: the plan is for no file or command, or the destination does not wait.
        QemuUnsuitableError: this QEMU cannot do it, and has begun nothing.
        MigrationError: it failed. The destination is of no more use.
        DeadlineError: it was not done in time.
    """
    if plan.channel.bidirectional:
        raise UsageError(f"nothing can be restored from {plan.channel.words}")
    side = Side("destination", destination.monitor)
    settings = destination_settings(plan)
    await require_support([(side, settings)])
    await side.require_waiting()
    started = time.monotonic()
    async with UninterruptibleStack() as stack:
        stack.push_async_callback(side.restore)
        await side.set(settings)
        connection = plan.channel.connect(None, destination.monitor)
        stack.callback(connection.close, completed=False)
        stack.push_async_callback(connection.abandon)
        arrival = stack.enter_context(Arrival(destination))
        try:
            await arrival.expect(
                await connection.listen(), paused=plan.leave_paused, has_source=False
            )
        except CommandError as error:
            raise QemuUnsuitableError(
                f"the destination refuses it: {error.description}",
                hint="restore with the plan that it was saved with",
            ) from error
        try:
            await arrival.complete(timeout=timeout)
        except MigrationError as error:
            raise MigrationError(f"{plan.channel.words} was not restored: {error}") from error
        except QemuRingError as error:
            if destination.monitor.connected:  # a passed deadline stays what it is
                raise
            raise MigrationError(
                f"{plan.channel.words} was not restored: {await arrival.failure(error)}"
            ) from error
    return time.monotonic() - started
