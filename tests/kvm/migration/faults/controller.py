"""Killing the controller: another process that migrates up to the phase, and is killed there."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from pathlib import Path

from tests.kvm.migration.faults.fault import Fault, Kind, Phase
from tests.kvm.migration.faults.outcome import Outcome, is_alive, names
from tests.kvm.migration.faults.run import TELL_SECONDS, Run, TooLateError
from tests.kvm.migration.faults.sides import start_sides

__all__ = ["be_controller", "kill_controller"]

GONE_SECONDS = 60.0  # until nothing is left


async def kill_controller(outcome: Outcome, binary: Path, folder: Path) -> None:
    """Have another process migrate to the phase, kill it there, and see what stays."""
    fault = outcome.fault
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.kvm.migration.faults",
        "--controller",
        *(fault.phase.name, fault.channel, str(binary), str(folder)),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(folder / "tmp")},
        cwd=Path(__file__).parents[3],
    )
    assert process.stdout is not None
    try:
        told = (await asyncio.wait_for(process.stdout.readline(), TELL_SECONDS * 2)).split()
    finally:
        with contextlib.suppress(ProcessLookupError):  # it came too late, and ended
            process.kill()
        killed = time.monotonic()
        await process.wait()
    outcome.struck = bool(told)
    outcome.reported = "(nobody to report)"
    left: list[str] = []
    while time.monotonic() < killed + GONE_SECONDS:
        left = [f"process {int(pid)}" for pid in told if is_alive(int(pid))]
        if not left and not names(folder):
            break
        await asyncio.sleep(0.01)
    outcome.seconds = time.monotonic() - killed
    outcome.left += left


async def be_controller(phase: str, channel: str, binary: str, folder: str) -> None:
    """Migrate, tell which QEMUs there are when the phase has come, and wait for the end."""
    fault = Fault(Phase[phase], Kind.CONTROLLER, channel)

    async def tell() -> None:
        pids = [side.pid for side in (sides.source, sides.destination) if side is not None]
        print(*pids, flush=True)
        await asyncio.Event().wait()

    async with start_sides(fault, Path(binary), Path(folder)) as sides:
        with contextlib.suppress(TooLateError):
            await Run(fault, sides, Path(folder), tell).migrate()
