"""This host as the place of an experiment: a process for each run, one or several at a time."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qemu_ring.errors import QemuRingError, UsageError
from qemu_ring.experiment.plan.cells import Cell, Run
from qemu_ring.experiment.plan.inputs import changed_file, qemu_changed
from qemu_ring.experiment.plan.suitability import unsuitable_cells
from qemu_ring.experiment.results.reader import Results
from qemu_ring.experiment.results.record import Status
from qemu_ring.experiment.run.draft import empty_record
from qemu_ring.experiment.schedule.concurrency import Concurrency
from qemu_ring.experiment.schedule.loop import Claim, Place
from qemu_ring.experiment.schedule.process import run_in_process, run_labels
from qemu_ring.machine import find_qemu, probe_qemu

__all__ = ["Budget", "ThisHost", "examine_qemu"]


@dataclass(frozen=True, slots=True)
class Budget:
    """What runs may use at a time, for several at once.

    Args:
        cpus: of those that this process may run on; each run keeps to CPUs of its own.
        memory_bytes: of all guests and their QEMUs.

    Raises:
        UsageError: there are not so many CPUs.
    """

    cpus: int
    memory_bytes: int

    def __post_init__(self) -> None:
        there = len(os.sched_getaffinity(0))
        if not 1 <= self.cpus <= there:
            raise UsageError(f"a budget of {self.cpus} CPUs cannot be", hint=f"there are {there}")

    def refusal(self, cell: Cell) -> str | None:
        """Why a cell can never fit; None if it can."""
        if cell.guests_bytes > self.memory_bytes:
            return (
                f"its guests need {cell.guests_bytes >> 20} MiB, and the budget is "
                f"{self.memory_bytes >> 20} MiB"
            )
        if cell.cpus > self.cpus:
            return (
                f"it needs {cell.cpus} CPUs, one more than its vCPUs, and the budget is {self.cpus}"
            )
        return None


async def examine_qemu(
    cells: Sequence[Cell], qemu: str | Path | None
) -> tuple[dict[str, Any] | None, dict[str, QemuRingError]]:
    """Find the QEMU for the cells that name none, and what this host can run.

    Args:
        cells: of the experiment.
        qemu: its path or name; None for the one that `find_qemu` finds.

    Returns:
        its path, sha256 and version, None if all cells name one; and why cells cannot be run
        here, by their ids.

    Raises:
        UsageError: there is no such file.
        QemuUnsuitableError: it is no QEMU.
    """
    identity = path = None
    if any(cell.specification["qemu"] is None for cell in cells):
        binary = await probe_qemu(find_qemu(qemu).absolute())
        path = binary.path
        identity = {"path": str(path), "sha256": binary.sha256, "version": binary.version}
    return identity, await unsuitable_cells(cells, path)


class ThisHost(Place):
    """Runs go on here, one process each.

    Args:
        results: of the experiment; files that it was begun with have to be what they were.
        qemu: for cells that name none.
        budget: for several runs at a time; None for one after the other.
    """

    def __init__(
        self, results: Results, qemu: Path | None = None, budget: Budget | None = None
    ) -> None:
        self._noted = results.experiment
        self._qemu = qemu
        self._budget = budget
        self._free_cpus = sorted(os.sched_getaffinity(0))[: budget.cpus] if budget else []
        self._free_bytes = budget.memory_bytes if budget else 0
        self._going = 0
        self._concurrency = Concurrency()

    def claim(self, cell: Cell) -> Claim | None:
        """As `Place` has it."""
        if self._budget is None:
            claim = None if self._going else Claim()
        elif (refusal := self._budget.refusal(cell)) is not None:
            claim = Claim(refusal=refusal)
        elif cell.cpus > len(self._free_cpus) or cell.guests_bytes > self._free_bytes:
            claim = None
        else:
            cpus, self._free_cpus = self._free_cpus[: cell.cpus], self._free_cpus[cell.cpus :]
            self._free_bytes -= cell.guests_bytes
            claim = Claim(tuple(cpus), cell.guests_bytes)
        self._going += claim is not None
        return claim

    def release(self, claim: Claim) -> None:
        """As `Place` has it."""
        self._going -= 1
        self._free_cpus = sorted([*self._free_cpus, *claim.cpus])
        self._free_bytes += claim.memory_bytes

    async def execute(
        self, cell: Cell, run: Run, claim: Claim, began: Callable[[], None]
    ) -> dict[str, Any]:
        """As `Place` has it."""
        began()
        why = await asyncio.to_thread(self._changed, cell)
        if why is not None:
            return empty_record(Status.REFUSED, why) | run_labels(run, time.time(), 0.0)
        with self._concurrency.one() as most:
            record = await run_in_process(cell, run, self._qemu, cpus=claim.cpus)
        record["side_by_side"] = most()
        return record

    def _changed(self, cell: Cell) -> str | None:
        """What is not as it was when the experiment was begun: QEMU, or another file."""
        noted, why = self._noted, None
        if cell.specification.get("qemu") is None and self._qemu is not None and noted.qemu:
            why = qemu_changed(self._qemu, noted.qemu.sha256)
        return why or changed_file([cell], noted.inputs)
