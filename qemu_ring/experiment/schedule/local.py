"""Runs an experiment: what has no record yet, in order, one process a run."""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qemu_ring.errors import UsageError
from qemu_ring.experiment.plan.cells import Cell, Run
from qemu_ring.experiment.plan.inputs import changed_file, qemu_changed
from qemu_ring.experiment.results.reader import Results
from qemu_ring.experiment.results.record import RunRecord, Status
from qemu_ring.experiment.results.store import Store
from qemu_ring.experiment.run.draft import empty_record
from qemu_ring.experiment.schedule.concurrency import SideBySide
from qemu_ring.experiment.schedule.process import run_in_process, run_labels
from qemu_ring.experiment.schedule.stop import StopRules
from qemu_ring.machine import find_qemu, probe_qemu

__all__ = ["Budget", "Watcher", "keep_record", "qemu_identity", "run_experiment"]


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


class Watcher:
    """Told what happens; does nothing by itself."""

    def started(self, cell: Cell, run: Run) -> None:
        """A run began."""

    def ended(self, cell: Cell, run: Run, record: RunRecord) -> None:
        """A run ended, and its record is kept."""


async def qemu_identity(cells: list[Cell], qemu: str | None) -> dict[str, Any] | None:
    """Path and sha256 of the QEMU for the cells that name none; None if all do.

    Raises:
        UsageError: there is no such file.
        QemuUnsuitableError: it is no QEMU.
    """
    if all(cell.specification["qemu"] is not None for cell in cells):
        return None
    binary = await probe_qemu(find_qemu(qemu).absolute())
    return {"path": str(binary.path), "sha256": binary.sha256, "version": binary.version}


async def run_experiment(
    store: Store,
    results: Results,
    *,
    qemu: Path | None,
    budget: Budget | None = None,
    watcher: Watcher | None = None,
) -> None:
    """Run everything that has no record, and keep the record of each run as it ends.

    A run that fails is kept as failed, and the rest goes on. When cancelled, or killed, the
    runs under way end with it and are begun anew next time.

    Args:
        store: where the records go.
        results: what is there already.
        qemu: for cells that name none.
        budget: for several runs at a time; None for one after the other.
        watcher: told of each run.

    Raises:
        StoreError: a record could not be kept.
        QemuRingError: the experiment's own rules ended it; what was kept stays.
    """
    await _Runner(store, results, qemu, budget, watcher or Watcher()).run()


@dataclass(slots=True)
class _Claim:
    cpus: list[int] = field(default_factory=list)
    memory_bytes: int = 0
    refusal: str | None = None


class _Runner:
    def __init__(
        self,
        store: Store,
        results: Results,
        qemu: Path | None,
        budget: Budget | None,
        watcher: Watcher,
    ) -> None:
        self._store = store
        self._results = results
        self._cells = results.cells
        self._waiting = deque(results.left)
        self._qemu = qemu
        self._budget = budget
        self._free_cpus = sorted(os.sched_getaffinity(0))[: budget.cpus] if budget else []
        self._free_bytes = budget.memory_bytes if budget else 0
        self._watcher = watcher
        self._stop = StopRules(results)
        self._side_by_side = SideBySide()
        self._going: dict[asyncio.Task[None], _Claim] = {}

    async def run(self) -> None:
        stopped = None
        try:
            while self._waiting or self._going:
                if self._waiting and (stopped := self._stop.error()) is not None:
                    self._waiting.clear()
                while self._waiting and (claim := self._claim()) is not None:
                    task = asyncio.create_task(self._one(self._waiting.popleft(), claim))
                    self._going[task] = claim
                if not self._going:
                    break
                done, _ = await asyncio.wait(self._going, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    claim = self._going.pop(task)
                    self._free_cpus = sorted([*self._free_cpus, *claim.cpus])
                    self._free_bytes += claim.memory_bytes
                    task.result()
        finally:
            for task in self._going:
                task.cancel()
            if self._going:
                await asyncio.wait(self._going)
        if stopped is not None:
            raise stopped

    def _claim(self) -> _Claim | None:
        """What the next run takes of the budget; None if it has to wait.

        The order stays as it was planned: none overtakes one that waits.
        """
        if self._budget is None:
            return None if self._going else _Claim()
        cell = self._cells[self._waiting[0].cell]
        refusal = self._budget.refusal(cell)
        if refusal is not None:
            return _Claim(refusal=refusal)
        if cell.cpus > len(self._free_cpus) or cell.guests_bytes > self._free_bytes:
            return None
        self._free_bytes -= cell.guests_bytes
        claimed = [self._free_cpus.pop(0) for _ in range(cell.cpus)]
        return _Claim(claimed, cell.guests_bytes)

    async def _one(self, run: Run, claim: _Claim) -> None:
        cell = self._cells[run.cell]
        self._watcher.started(cell, run)
        why = claim.refusal or await asyncio.to_thread(self._changed, cell)
        if why is not None:
            record = empty_record(Status.REFUSED, why) | run_labels(run, time.time(), 0.0)
        else:
            with self._side_by_side.one() as most:
                record = await run_in_process(cell, run, self._qemu, cpus=claim.cpus)
            record["side_by_side"] = most()
        kept = await keep_record(self._store, self._results, cell, run, record, self._watcher)
        self._stop.ended(kept)

    def _changed(self, cell: Cell) -> str | None:
        """What is not as it was when the experiment was begun: QEMU, or another file."""
        noted = self._results.experiment
        why = None
        if cell.specification.get("qemu") is None and self._qemu is not None and noted.qemu:
            why = qemu_changed(self._qemu, noted.qemu.sha256)
        return why or changed_file([cell], noted.inputs)


async def keep_record(
    store: Store,
    results: Results,
    cell: Cell,
    run: Run,
    record: dict[str, Any],
    watcher: Watcher,
) -> RunRecord:
    """Keep what has become of a run, then tell of it.

    Returns:
        the record as it is kept.

    Raises:
        StoreError: it could not be kept.
    """
    record["warm_up"] = run.repeat < results.experiment.warm_up
    kept = await asyncio.to_thread(store.append, record)
    watcher.ended(cell, run, kept)
    return kept
