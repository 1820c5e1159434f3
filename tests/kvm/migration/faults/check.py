"""Running one fault, and checking what was told against the QEMUs and the guest."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from unittest.mock import patch

from qemu_ring.errors import DeadlineError, QemuRingError
from qemu_ring.machine import Machine
from qemu_ring.migration import GuestAt, MigrationError
from qemu_ring.qmp import QmpError, commands
from tests.kvm.migration.faults.controller import kill_controller
from tests.kvm.migration.faults.fault import Fault, Kind, Phase
from tests.kvm.migration.faults.outcome import Outcome, is_alive, names, open_fds
from tests.kvm.migration.faults.run import Run, TooLateError
from tests.kvm.migration.faults.sides import STILL_SECONDS, Sides, start_sides

__all__ = ["run_fault"]

STOP_SECONDS = 10.0  # in which one that has lost its monitor has come to a stop
RISE_SECONDS = 60.0  # in which a guest that runs has written
ATTEMPTS = 10


async def run_fault(fault: Fault, binary: Path) -> Outcome:
    """Run one, and check what it told against the QEMUs and the guest.

    On a busy host a migration may be over before a fault can strike: then it is run again.
    """
    for _ in range(ATTEMPTS):
        outcome = await run_once(fault, binary)
        if outcome.struck:
            return outcome
    outcome.wrong.append("it did not strike")
    return outcome


async def run_once(fault: Fault, binary: Path) -> Outcome:
    outcome = Outcome(fault)
    fds = open_fds()
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        folder = Path(name)
        temporary = folder / "tmp"
        temporary.mkdir()
        if fault.kind is Kind.CONTROLLER:
            await kill_controller(outcome, binary, folder)
        else:
            with patch.object(tempfile, "tempdir", str(temporary)):
                await strike_here(outcome, binary, folder)
        if outcome.reported == "completed":  # too late to break what was saved
            (folder / "saved").unlink(missing_ok=True)
        outcome.left += [f"file {path.name}" for path in names(folder)]
    outcome.left += [f"descriptor {fd}" for fd in open_fds() - fds]
    survivors = fault.survivors | ({GuestAt.NOWHERE} if outcome.hangs else set())
    if outcome.struck and outcome.guest_at not in survivors:
        outcome.wrong.append(f"the guest is {outcome.guest_at}")
    return outcome


async def strike_here(outcome: Outcome, binary: Path, folder: Path) -> None:
    fault = outcome.fault
    async with start_sides(fault, binary, folder) as sides:
        before = await commands.query_capabilities(sides.source.monitor)
        run = Run(fault, sides, folder, None)
        try:
            error = await migrate_to_the_end(run, outcome)
        finally:
            run.close()
        if outcome.struck:
            await check(outcome, sides, error, was_late=run.was_late)
        early = [path.name for path in names(folder) if error is not None or path.name != "saved"]
        outcome.left += [f"file {name} before the QEMUs ended" for name in early]
        if outcome.guest_at is GuestAt.SOURCE:
            monitor = sides.source.monitor
            if await commands.query_capabilities(monitor) != before:
                outcome.left.append("capabilities")
            if (await commands.query_migrate(monitor)).is_active:
                outcome.left.append("a migration")
        pids = [side.pid for side in (sides.source, sides.destination) if side is not None]
    outcome.left += [f"process {pid}" for pid in pids if is_alive(pid)]


async def migrate_to_the_end(run: Run, outcome: Outcome) -> QemuRingError | None:
    """Give the error, if there is one."""
    try:
        await run.migrate()
    except QemuRingError as error:
        outcome.reported = type(error).__name__
        return error
    except TooLateError:
        return None
    finally:
        if run.struck_at is not None:
            outcome.struck = True
            outcome.seconds = time.monotonic() - run.struck_at
    outcome.reported = "paused, recovered" if run.was_paused else "completed"
    return None


async def check(
    outcome: Outcome, sides: Sides, error: QemuRingError | None, *, was_late: bool
) -> None:
    """Compare what was told with what the QEMUs say, and with what the guest does.

    A guest that had arrived before its QEMU was killed has truly completed, and is gone.
    """
    states = {
        GuestAt.SOURCE: await run_state(sides.source),
        GuestAt.DESTINATION: await run_state(sides.destination),
    }
    for side, state in states.items():
        running = state == "running"
        if is_lost(error) and await sides.stands_still(side, STOP_SECONDS):
            continue
        if await sides.rises(side, RISE_SECONDS if running else STILL_SECONDS):
            if outcome.guest_at is not GuestAt.NOWHERE:
                outcome.wrong.append("the guest runs twice")
            outcome.guest_at = side
    if error is None:
        wanted = GuestAt.NOWHERE if was_late else GuestAt.DESTINATION
        if sides.destination is not None and outcome.guest_at is not wanted:
            outcome.wrong.append(f"told completed, writes at {outcome.guest_at}")
        return
    if hangs_in_recovery(outcome.fault, sides.source) and isinstance(error, DeadlineError):
        outcome.hangs = True
        return
    if not isinstance(error, MigrationError):
        outcome.wrong.append(f"not a MigrationError: {error!r}")
        return
    told = error.outcome
    if told is None:
        outcome.wrong.append(f"no outcome: {error}")
        return
    if told.source != states[GuestAt.SOURCE]:
        outcome.wrong.append(f"source told {told.source}, is {states[GuestAt.SOURCE]}")
    # One that has lost its source may have been about to end.
    ended = told.lost and states[GuestAt.DESTINATION] is None
    if told.destination != states[GuestAt.DESTINATION] and not ended:
        outcome.wrong.append(f"dest. told {told.destination}, is {states[GuestAt.DESTINATION]}")
    if told.guest_at is not outcome.guest_at and not told.recoverable:
        outcome.wrong.append(f"told guest at {told.guest_at}, writes at {outcome.guest_at}")


def is_lost(error: QemuRingError | None) -> bool:
    """Whether it was told that the guest is lost, though it may run on for a moment."""
    told = error.outcome if isinstance(error, MigrationError) else None
    return told is not None and told.lost


def hangs_in_recovery(fault: Fault, source: Machine) -> bool:
    """Whether QEMU does not notice that this channel is gone, and takes no command to say so."""
    broken = fault.kind in (Kind.CUT, Kind.DESTINATION)
    return fault.phase is Phase.RECOVERY and broken and source.monitor.version < (8, 2, 0)


async def run_state(machine: Machine | None) -> str | None:
    if machine is None:
        return None
    try:
        return (await commands.query_status(machine.monitor)).status
    except QmpError:
        return None
