"""Bringing back a guest that was saved to a file or a command."""

from __future__ import annotations

import time

from qemu_ring._compat import timeout as deadline
from qemu_ring.errors import DeadlineError, QemuRingError, QemuUnsuitableError, UsageError
from qemu_ring.machine import Machine
from qemu_ring.migration.channels.channel import Connection
from qemu_ring.migration.engine.destination import Receiver
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
        plan: what it was saved with; its channel is the file, or the command that gives it.
        timeout: seconds; None to wait as long as it takes.

    Returns:
        seconds that it took.

    Raises:
        UsageError: the plan is for no file or command, or the destination does not wait.
        QemuUnsuitableError: this QEMU cannot do it, and has begun nothing.
        MigrationError: it failed. The destination is of no more use, unless the command of a
            `Command` gave no saved guest: then it waits on.
        DeadlineError: it was not done in time.
    """
    if plan.channel.bidirectional:
        raise UsageError(f"nothing can be restored from {plan.channel.words}")
    side = Side("the destination", destination.monitor)
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
        receiver = stack.enter_context(Receiver(destination))
        uri = await _listen(connection, plan.channel.words, timeout)
        try:
            await receiver.expect(uri, paused=plan.leave_paused, has_source=False)
        except CommandError as error:
            raise QemuUnsuitableError(
                f"the destination refuses it: {error.description}",
                hint="restore with the plan that it was saved with",
            ) from error
        try:
            await receiver.complete(timeout=timeout)
        except MigrationError as error:
            said = f"{error}{await connection.reason()}"
            raise MigrationError(f"{plan.channel.words} was not restored: {said}") from error
        except QemuRingError as error:
            if destination.monitor.connected:  # a passed deadline stays what it is
                raise
            said = f"{await receiver.failure(error)}{await connection.reason()}"
            raise MigrationError(f"{plan.channel.words} was not restored: {said}") from error
        await connection.finish()
    return time.monotonic() - started


async def _listen(connection: Connection, words: str, timeout: float | None) -> str:
    """Have it made ready, which a command may take its time for."""
    clock = deadline(timeout)
    try:
        async with clock:
            return await connection.listen()
    except TimeoutError:
        if not clock.expired():
            raise
    raise DeadlineError(f"{words} gave no saved guest within {timeout:g} s")
