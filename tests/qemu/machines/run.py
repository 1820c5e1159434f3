"""One cell: start the machine, plug, migrate it from QEMU to QEMU, and look at it each time."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from qemu_ring.errors import ExitStatus, QemuRingError
from qemu_ring.machine import Machine
from qemu_ring.migration import File, Migration, restore
from qemu_ring.qmp import commands
from tests.command import COMMAND
from tests.qemu.machines.cells import Cell
from tests.qemu.machines.drivers import (
    BalloonDriver,
    Disk,
    MemDriver,
    NetDriver,
    Peer,
    tap_name,
)
from tests.qemu.machines.host import huge_pages
from tests.qemu.machines.parts import EXTRA, Site
from tests.qemu.machines.qemus import Qemu
from tests.qemu.machines.vhost_user import Logging
from tests.qemu.machines.ways import Controller, Kind
from tests.waiting import until

COMPLETED = "completed"
Binaries = Mapping[str, Path]
"""QEMUs by name."""
_DEADLINE = 240.0
_VGA_WINDOW = range(0xA0000, 0xC0000)


@dataclass(frozen=True)
class Outcome:
    """What became of a cell.

    Args:
        status: "completed", or the words with which the first move was refused or failed.
        exit_status: of the command, or what it would have been for the library's error.
        moves: how many were made.
        switched: how many of them by postcopy, that had something left to send.
        compared: bytes of guest memory that were compared, all moves together.
        seconds: for all of it.
    """

    status: str
    exit_status: int
    moves: int
    switched: int
    compared: int
    seconds: float


class Run:
    """A machine of a cell on its way.

    Args:
        cell: which.
        binaries: QEMUs by name.
        images: folder with an empty disk of each format.
        folder: for this run; its path is short enough for sockets.
        logging: what a vhost-user back end does.
        extra: further arguments for each QEMU.
    """

    def __init__(
        self,
        cell: Cell,
        binaries: Binaries,
        images: Path,
        folder: Path,
        *,
        logging: Logging = Logging.LOGS,
        extra: tuple[str, ...] = (),
    ) -> None:
        self._cell = cell
        self._binaries = binaries
        self._images = images
        self._folder = folder
        self._logging = logging
        self._extra = extra
        self._disk = Disk(cell.disk.path)
        self._net: NetDriver | None = None
        self._balloon: BalloonDriver | None = None
        self._compared = 0
        self._moves = self._switched = 0
        self._runs = True  # while it is migrated

    async def run(self) -> Outcome:
        """Go all the way, or as far as it goes; raises AssertionError for what is wrong."""
        status, exit_status = COMPLETED, 0
        shutil.copy(self._images / f"disk.{self._cell.image}", self._folder)
        self._firmware = self._cell.program.firmware(self._folder, flash=self._cell.board.flash)
        async with AsyncExitStack() as stack:
            if self._cell.memory.huge:
                await stack.enter_async_context(huge_pages())
            began = time.monotonic()
            here, peer = await self._start(stack, 0)
            await self._set_up(here, peer)
            for number in range(1, self._cell.trip.moves + 1):
                there, next_peer = await self._start(stack, number)
                try:
                    await self._move(here, there, peer, next_peer)
                except QemuRingError as error:
                    status, exit_status = str(error), error.exit_status
                    await self._goes_on(here)
                    break
                await self._end(here)
                self._moves += 1
                here, peer = there, next_peer
            await self._end(here)
        seconds = time.monotonic() - began
        return Outcome(status, exit_status, self._moves, self._switched, self._compared, seconds)

    async def _start(self, stack: AsyncExitStack, number: int) -> tuple[Qemu, Peer]:
        """The QEMU that comes next, waiting for the guest unless it is the first."""
        cell = self._cell
        folder = self._folder / str(number)
        folder.mkdir()
        site = Site(folder, self._folder, number, tap_name(folder))
        peers = stack.enter_context(ExitStack())
        peer = Peer(site, peers, cell.net.name, self._logging)
        words = ["-accel", cell.acceleration.argument, "-smp", cell.plug.smp]
        words += cell.board.arguments(site, self._firmware, cell.route.version)
        words += cell.memory.arguments(site, cell.program.ram)
        words += await cell.program.arguments(
            folder, cell.plug, paced=cell.kind is not Kind.POSTCOPY
        )
        words += cell.disk.arguments(site, cell.image)
        words += cell.net.arguments(site)
        words += [*cell.display.arguments(), *cell.other.arguments(), *self._extra]
        if number or cell.plug.by_guest:
            words += cell.plug.arguments(site, cell.memory)
        words += ["-incoming", "defer"] if number else ["-S"]
        binary = self._binaries[cell.route.qemus[number % len(cell.route.qemus)]]
        qemu = await Qemu.start(stack, binary, site, words)
        peer.connect()
        return qemu, peer

    async def _set_up(self, qemu: Qemu, peer: Peer) -> None:
        """Plug, play the drivers, and let the guest run."""
        cell = self._cell
        if cell.plug.device and not cell.plug.by_guest:
            if cell.plug.memory:
                backend = cell.memory.object(qemu.site, cell.plug.memory, EXTRA)
                answer = await commands.human(qemu.monitor, f"object_add {backend}", timeout=60)
                assert not answer.strip(), answer
            await qemu.monitor.execute("device_add", dict(cell.plug.device), timeout=60)
        if cell.program.driven:
            self._net = NetDriver(qemu)
            await self._net.set_up()
            if cell.plug.by_guest:
                await MemDriver(qemu).plug(cell.plug)
            if cell.other.balloon:
                self._balloon = BalloonDriver(qemu)
                await self._balloon.inflate(qemu)
        await qemu.run()
        await self._goes_on(qemu)
        if self._net is not None:
            await peer.reaches(self._net)

    async def _move(self, here: Qemu, there: Qemu, peer: Peer, next_peer: Peer) -> None:
        """Migrate it, and look at all that came with it."""
        cell = self._cell
        await self._disk.write(here)
        if self._net is not None:
            await self._net.refill()
        # Under TCG such a QEMU loses pages of a guest that runs: that is not the subject.
        self._runs = cell.acceleration.is_kvm or here.monitor.version >= (9, 0, 0)
        if not self._runs:
            await commands.stop(here.monitor, timeout=60)
        paused = cell.controller is not Controller.VERIFY
        count = await cell.program.count(here)
        if cell.controller is Controller.LIBRARY:
            await self._by_library(here, there)
        else:
            await self._by_command(here, there, verify=not paused)
        if paused:
            await self._compare(here, there)
        if peer.back_end is not None and self._runs and cell.kind is Kind.PRECOPY:
            assert peer.back_end.logged or self._logging is Logging.FORGETS
        await there.run()
        await self._goes_on(there, count)
        await self._disk.read(there)
        if self._balloon is not None:
            await self._balloon.check(there)
        if cell.plug.by_guest and cell.program.driven:
            size = await commands.qom_get(there.monitor, "/machine/peripheral/vmem", "size")
            assert size == EXTRA, size
        if self._net is not None:
            self._net.comes_to(there)
            await self._net.refill()
            await next_peer.reaches(self._net)

    async def _by_library(self, here: Qemu, there: Qemu) -> None:
        kind = self._cell.kind
        async with AsyncExitStack() as stack:
            source = await stack.enter_async_context(
                await Machine.attach(here.controller, name="source", timeout=60)
            )
            destination = await stack.enter_async_context(
                await Machine.attach(there.controller, name="destination", timeout=60)
            )
            if kind is not Kind.FILE:
                plan = kind.plan(leave_paused=True)
                async with Migration(source, destination, plan) as migration:
                    result = await migration.complete(timeout=_DEADLINE)
                self._count_switch(switched=result.switched_to_postcopy)
            else:
                plan = kind.plan(File(there.site.folder / "saved"), leave_paused=True)
                async with Migration(source, None, plan) as migration:
                    result = await migration.complete(timeout=_DEADLINE)
                await restore(destination, replace(plan, leave_paused=True), timeout=_DEADLINE)
            assert result.status == COMPLETED

    async def _by_command(self, here: Qemu, there: Qemu, *, verify: bool) -> None:
        cell = self._cell
        source, destination = str(here.controller), str(there.controller)
        last = ["--verify"] if verify else ["--leave-paused"]
        if cell.kind is Kind.FILE:
            saved = str(there.site.folder / "saved")
            await command(source, "--to-file", saved)
            await command(destination, "--from-file", saved, *last)
            return
        found = await command(source, destination, *cell.kind.options, *last)
        assert found["status"] == COMPLETED
        self._count_switch(switched=bool(found["switched_to_postcopy"]))
        if verify:
            assert found["stale_pages"] == 0, found
            self._compared += cell.program.ram + (EXTRA if cell.plug.memory else 0)

    def _count_switch(self, *, switched: bool) -> None:
        is_postcopy = self._cell.kind is Kind.POSTCOPY
        if is_postcopy and self._cell.program.writes and self._runs:
            assert switched, "precopy was done, though the guest wrote: postcopy never began"
        assert is_postcopy or not switched
        self._switched += switched

    async def _compare(self, here: Qemu, there: Qemu) -> None:
        """All of the guest's memory, as both QEMUs have it, while neither runs."""
        for qemu in (here, there):
            assert not (await commands.query_status(qemu.monitor, timeout=60)).running
        ranges = [(0, _VGA_WINDOW.start), (_VGA_WINDOW.stop, self._cell.program.ram)]
        if self._cell.plug.address is not None:
            ranges.append((self._cell.plug.address, self._cell.plug.address + EXTRA))
        for start, end in ranges:
            one, other = await asyncio.gather(
                here.memory(start, end - start), there.memory(start, end - start)
            )
            if one != other:
                pages = [
                    at
                    for at in range(0, len(one), 4096)
                    if one[at : at + 4096] != other[at : at + 4096]
                ]
                raise AssertionError(f"{len(pages)} pages differ, such as {start + pages[0]:#x}")
            self._compared += len(one)

    async def _goes_on(self, qemu: Qemu, count: int | None = None) -> None:
        """Wait until the guest has done more than `count`, or than it has now."""
        program = self._cell.program
        count = await program.count(qemu) if count is None else count

        async def counts() -> bool:
            return await program.count(qemu) > count

        await until(counts, lambda: f"the guest goes on: {qemu.output}", seconds=program.seconds)

    async def _end(self, qemu: Qemu) -> None:
        self._disk.check(qemu, await qemu.end())


class RefusedError(QemuRingError):
    """The command refused it, or failed: what it said, and its exit status."""

    def __init__(self, message: str, exit_status: int) -> None:
        super().__init__(message)
        self.exit_status = ExitStatus(exit_status)


async def command(*words: str) -> dict[str, object]:
    """`qemu-ring migrate`; its JSON document.

    Raises:
        RefusedError: it ended with an exit status other than 0.
    """
    arguments = [*COMMAND, "migrate", *words, "--json"]
    done = await asyncio.to_thread(
        subprocess.run, arguments, capture_output=True, text=True, timeout=_DEADLINE
    )
    if done.returncode:
        raise RefusedError(done.stderr.strip(), done.returncode)
    document = json.loads(done.stdout)
    assert isinstance(document, dict)
    return document
