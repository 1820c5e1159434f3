"""Handing a guest to a new QEMU on the same host, its memory left where it is."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path

from qemu_ring.errors import DeadlineError, UsageError
from qemu_ring.machine import Leftovers, Machine, new_folder_name
from qemu_ring.machine.sockets import listens
from qemu_ring.migration.channels.channel import Unix
from qemu_ring.migration.engine.destination import Receiver
from qemu_ring.migration.engine.settings import destination_settings
from qemu_ring.migration.engine.side import Side
from qemu_ring.migration.migration import Migration
from qemu_ring.migration.plan import CprTransfer, MigrationPlan
from qemu_ring.qmp import MigrationStatus, QmpError, commands
from qemu_ring.tasks import to_the_end

__all__ = ["CprTransferMigration"]

_START_SECONDS = 30.0
_POLL_SECONDS = 0.002

StartDestination = Callable[[tuple[str, ...]], Awaitable[Machine]]


class CprTransferMigration(Migration):
    """A migration in mode cpr-transfer; used as `Migration`, which see.

    The new QEMU reads the old one's memory descriptors before it has a monitor, so that it can
    only be started in the middle of this. Both need `-machine aux-ram-share=on`, and memory
    backends with `share=on`::

        async def start(arguments: tuple[str, ...]) -> Machine:
            return await Machine.start(binary, replace(description, extra=arguments))

        async with CprTransferMigration(source, start) as migration:
            result = await migration.complete()
        async with migration.destination as machine:
            ...

    Args:
        source: the guest.
        start: starts its successor with these further arguments. It is closed here if the
            guest does not come to run there; otherwise it is the caller's.
        plan: of kind `CprTransfer`, with the channel `Unix()`.
    """

    def __init__(
        self, source: Machine, start: StartDestination, plan: MigrationPlan | None = None
    ) -> None:
        plan = plan or MigrationPlan(kind=CprTransfer(), channel=Unix())
        if plan.channel != Unix():
            raise UsageError("mode cpr-transfer uses unix sockets of its own")
        super().__init__(source, None, plan, successor=_Successor(start))


class _Successor:
    """The new QEMU, as `Migration` has it started."""

    def __init__(self, start: StartDestination) -> None:
        self._start = start
        self._folder = new_folder_name()

    async def start(
        self, stack: AsyncExitStack, source: Machine, begin: Callable[[], object]
    ) -> Machine:
        stack.callback(Leftovers(folder=self._folder).close)
        self._folder.mkdir(0o700)
        cpr, main = _channel("cpr", self._folder / "cpr"), _channel("main", self._main)
        starting = asyncio.ensure_future(
            self._start(("-incoming", "defer", "-incoming", json.dumps(cpr)))
        )
        destination: Machine | None = None
        try:
            await _wait_listening(self._folder / "cpr", starting)
            begin()
            await commands.migrate(source.monitor, channels=[main, cpr])
            destination = await starting
        finally:
            if destination is None:
                await to_the_end(_abandoned(starting))
        return destination

    async def receiver(
        self, stack: AsyncExitStack, destination: Machine, plan: MigrationPlan
    ) -> Receiver:
        side = Side("the destination", destination.monitor)
        stack.push_async_callback(side.restore)
        await side.set(destination_settings(plan))
        receiver = stack.enter_context(Receiver(destination))
        await receiver.expect(f"unix:{self._main}", paused=plan.leave_paused)
        return receiver

    async def closed_if_unused(self, source: Machine, destination: Machine) -> Machine | None:
        if await _has_moved(source, destination):
            return destination
        await destination.close()
        return None

    @property
    def _main(self) -> Path:
        return self._folder / "main"


async def _has_moved(source: Machine, destination: Machine) -> bool:
    """Whether the guest is at the destination: the source calls it so, or has ended."""
    with suppress(QmpError):
        status = (await commands.query_migrate(source.monitor)).status
        return status is MigrationStatus.COMPLETED
    if source.monitor.connected:
        return False
    with suppress(QmpError):
        status = (await commands.query_migrate(destination.monitor)).status
        return status is MigrationStatus.COMPLETED
    return False


def _channel(kind: str, path: Path) -> dict[str, object]:
    address = {"transport": "socket", "type": "unix", "path": str(path)}
    return {"channel-type": kind, "addr": address}


async def _wait_listening(path: Path, starting: asyncio.Future[Machine]) -> None:
    """Wait for the new QEMU's socket; it has no monitor to ask yet."""
    deadline = time.monotonic() + _START_SECONDS
    while not listens(str(path)):  # trying would use up the only connection that it takes
        if starting.done():
            await starting
            raise UsageError(
                "the new QEMU does not wait for a CPR channel",
                hint="start it with the arguments given",
            )
        if time.monotonic() > deadline:
            raise DeadlineError(f"the new QEMU did not listen within {_START_SECONDS:g} s")
        await asyncio.sleep(_POLL_SECONDS)


async def _abandoned(starting: asyncio.Future[Machine]) -> None:
    """See that a start that is not waited for any more leaves no QEMU behind."""
    starting.cancel()
    await asyncio.wait([starting])
    if not starting.cancelled() and starting.exception() is None:
        await starting.result().close()
