"""Runs what has no record yet, in order, wherever its place is; keeps each record as it ends."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from qemu_ring.experiment.plan.cells import Cell, Run
from qemu_ring.experiment.results.reader import Results
from qemu_ring.experiment.results.record import RunRecord, Status
from qemu_ring.experiment.results.store import Store
from qemu_ring.experiment.run.draft import empty_record
from qemu_ring.experiment.schedule.process import run_labels
from qemu_ring.experiment.schedule.stop import StopRules

__all__ = ["Claim", "Place", "Watcher", "run_left"]


class Watcher:
    """Told what happens; does nothing by itself."""

    def started(self, cell: Cell, run: Run) -> None:
        """A run began."""

    def ended(self, cell: Cell, run: Run, record: RunRecord) -> None:
        """A run ended, and its record is kept."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a run takes of its place while it goes on.

    Args:
        cpus: numbers of those that it keeps to; empty for all.
        memory_bytes: of its guests.
        refusal: why it cannot be run at all; it takes nothing then.
    """

    cpus: tuple[int, ...] = field(default=())
    memory_bytes: int = 0
    refusal: str | None = None


class Place(ABC):
    """Where runs go on: this host, or a cluster."""

    poll_seconds: float | None = None
    """How often to look whether the place has changed; None if it does so only as runs end."""

    async def hopeless(self, going: Collection[Run]) -> Mapping[Run, str]:  # noqa: ARG002
        """See what the place has now.

        Args:
            going: the runs under way.

        Returns:
            those of them that will never end, and why.

        Raises:
            QemuRingError: the place is gone.
        """
        return {}

    @abstractmethod
    def claim(self, cell: Cell) -> Claim | None:
        """Take what a run needs; None if it has to wait."""

    @abstractmethod
    def release(self, claim: Claim) -> None:
        """Give it back."""

    @abstractmethod
    async def execute(
        self, cell: Cell, run: Run, claim: Claim, began: Callable[[], None]
    ) -> dict[str, Any]:
        """Make one run; its record, whatever becomes of it.

        Args:
            cell: what.
            run: which of its runs.
            claim: what it has for itself.
            began: to be called as it begins, and again if it has to begin anew.

        Raises:
            QemuRingError: the place is gone.
        """


async def run_left(
    store: Store, results: Results, place: Place, watcher: Watcher | None = None
) -> None:
    """Run everything that has no record, and keep the record of each run as it ends.

    A run that fails is kept as failed, and the rest goes on. When cancelled, or killed, the
    runs under way end with it and are begun anew next time.

    Args:
        store: where the records go.
        results: what is there already.
        place: where the runs go on.
        watcher: told of each run.

    Raises:
        StoreError: a record could not be kept.
        QemuRingError: the place is gone, or the experiment's own rules ended it; what was kept
            stays.
    """
    await _Loop(store, results, place, watcher or Watcher()).run()


class _Loop:
    def __init__(self, store: Store, results: Results, place: Place, watcher: Watcher) -> None:
        self._store = store
        self._results = results
        self._place = place
        self._watcher = watcher
        self._rules = StopRules(results)
        self._waiting = deque(results.left)
        self._going: dict[asyncio.Task[None], tuple[Run, Claim]] = {}
        self._over: set[Run] = set()

    async def run(self) -> None:
        stopped = None
        try:
            while self._waiting or self._going:
                await self._give_up()
                if self._waiting and (stopped := self._rules.error()) is not None:
                    self._waiting.clear()
                self._begin()
                await self._some_end()
        finally:
            for task in self._going:
                task.cancel()
            if self._going:
                await asyncio.wait(self._going)
        if stopped is not None:
            raise stopped

    def _begin(self) -> None:
        """Begin what there is room for, in the planned order: none overtakes one that waits."""
        while self._waiting:
            claim = self._place.claim(self._results.cells[self._waiting[0].cell])
            if claim is None:
                return
            run = self._waiting.popleft()
            self._going[asyncio.create_task(self._one(run, claim))] = run, claim

    async def _some_end(self) -> None:
        if not self._going:
            if self._waiting:
                await asyncio.sleep(self._place.poll_seconds or 0.0)
            return
        done, _ = await asyncio.wait(
            self._going, timeout=self._place.poll_seconds, return_when=asyncio.FIRST_COMPLETED
        )
        for task in done:
            self._place.release(self._going.pop(task)[1])
            task.result()

    async def _give_up(self) -> None:
        hopeless = await self._place.hopeless([run for run, _ in self._going.values()])
        for task, (run, claim) in list(self._going.items()):
            if run in hopeless and run not in self._over:
                task.cancel()
                await asyncio.wait({task})
                del self._going[task]
                self._place.release(claim)
                await self._keep(run, _refused(run, hopeless[run]))

    async def _one(self, run: Run, claim: Claim) -> None:
        cell = self._results.cells[run.cell]
        if claim.refusal is not None:
            self._watcher.started(cell, run)
            record = _refused(run, claim.refusal)
        else:
            began = lambda: self._watcher.started(cell, run)  # noqa: E731
            record = await self._place.execute(cell, run, claim, began)
        self._over.add(run)
        await self._keep(run, record)

    async def _keep(self, run: Run, record: dict[str, Any]) -> None:
        """Keep what has become of a run, then tell of it."""
        record["warm_up"] = run.repeat < self._results.experiment.warm_up
        kept = await asyncio.to_thread(self._store.append, record)
        self._watcher.ended(self._results.cells[run.cell], run, kept)
        self._rules.ended(kept)


def _refused(run: Run, why: str) -> dict[str, Any]:
    return empty_record(Status.REFUSED, why) | run_labels(run, time.time(), 0.0)
