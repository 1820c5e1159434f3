"""An experiment on many machines: each run a task of Dask's, on a worker with what it takes.

Workers declare how many runs they take at a time and the memory of all guests together, as
Dask's resources KVM and MEMORY. A run whose worker dies is run again on another one, by
Dask; its record is kept once, here.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from qemu_ring import __version__
from qemu_ring.errors import ExitStatus, HostError, QemuRingError, UsageError
from qemu_ring.experiment.plan.cells import Cell, Run
from qemu_ring.experiment.results.reader import Results
from qemu_ring.experiment.results.record import Status
from qemu_ring.experiment.results.store import Store
from qemu_ring.experiment.run.draft import empty_record
from qemu_ring.experiment.schedule.local import Watcher, keep_record
from qemu_ring.experiment.schedule.process import run_labels
from qemu_ring.experiment.schedule.stop import StopRules

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["cluster_identity", "run_on_cluster"]

KVM: Final = "KVM"
MEMORY: Final = "MEMORY"
_CONNECT_SECONDS = 5.0
_LOOK_SECONDS = 0.5
"""Between two looks at the workers that there are."""

Workers = Mapping[str, Mapping[str, float]]
"""Each worker's resources, by its address."""


async def cluster_identity(
    scheduler: str, cells: list[Cell], qemu: str | None, *, patience: float = 60.0
) -> dict[str, Any] | None:
    """Path and sha256 of the workers' QEMU, for the cells that name none; None if all do.

    Args:
        scheduler: the Dask scheduler's address.
        cells: of the experiment.
        qemu: the QEMU's path on the workers; None for what the first worker asked has.
        patience: seconds to wait for a worker.

    Raises:
        UsageError: no scheduler answers, the workers are no match, or have no such QEMU.
        HostError: there is no worker that declares KVM.
    """
    from qemu_ring.experiment.schedule import worker as remote

    async with _connected(scheduler) as client:
        await _Runner(client, scheduler, patience).wait_for_worker()
        described = [cell.as_dict() for cell in cells]
        task = client.submit(
            remote.identify,
            described,
            qemu,
            key=f"qemu-ring-identify-{uuid.uuid4()}",
            resources={KVM: 1},
        )
        try:
            found = await task
        except ImportError as error:
            raise _no_match(scheduler, f"lacks a module: {error.name}") from error
    if found["version"] != __version__:
        raise _no_match(scheduler, f"has version {found['version']}, not {__version__}")
    if "error" in found:
        refused = QemuRingError(f"{found['host']}: {found['error']}", hint=found["hint"])
        refused.exit_status = ExitStatus(found["status"])
        raise refused
    identity: dict[str, Any] | None = found["qemu"]
    return identity


async def run_on_cluster(
    store: Store,
    results: Results,
    *,
    scheduler: str,
    qemu: Mapping[str, Any] | None,
    watcher: Watcher | None = None,
    patience: float = 60.0,
) -> None:
    """Run everything that has no record on a Dask cluster's workers; keep each record here.

    When cancelled, or killed, the runs under way end on their workers.

    Args:
        store: where the records go.
        results: what is there already.
        scheduler: the Dask scheduler's address.
        qemu: what `cluster_identity` told, for cells that name none.
        watcher: told of each run; of one that is run again, too.
        patience: seconds to go on without any worker, or to keep a run that no worker can take
            any more.

    Raises:
        StoreError: a record could not be kept.
        UsageError: no scheduler answers.
        QemuRingError: the scheduler, or all workers, are gone, or the experiment's own rules
            ended it; what was kept stays.
    """
    async with _connected(scheduler) as client:
        runner = _Runner(client, scheduler, patience)
        await runner.run(store, results, qemu, watcher or Watcher())


@asynccontextmanager
async def _connected(scheduler: str) -> AsyncIterator[Client]:
    try:
        from distributed import Client
    except ImportError as error:
        raise UsageError(
            "distributed is not installed", hint="pip install qemu-ring[cluster]"
        ) from error
    client = Client(  # type: ignore[no-untyped-call]
        scheduler,
        asynchronous=True,
        set_as_default=False,
        timeout=_CONNECT_SECONDS,
        name="qemu-ring-experiment",
    )
    try:
        try:
            await client
        except (OSError, ValueError, ImportError) as error:
            raise UsageError(
                f"no Dask scheduler answers at {scheduler}", hint="start one: dask scheduler"
            ) from error
        yield client
    finally:
        with suppress(OSError, asyncio.TimeoutError):  # of one that has gone
            await client.close()  # type: ignore[no-untyped-call]


def _no_match(scheduler: str, why: str) -> UsageError:
    return UsageError(
        f"a worker of {scheduler} {why}", hint=f"install qemu-ring {__version__} on all of them"
    )


class _Runner:
    def __init__(self, client: Client, scheduler: str, patience: float) -> None:
        self._client = client
        self._patience = patience
        self._scheduler = scheduler
        self._last_seen: float | None = None
        self._started = time.monotonic()
        self._topic = f"qemu-ring-{uuid.uuid4()}"
        self._largest = 0.0
        self._going: dict[asyncio.Task[None], Run] = {}
        self._stuck: dict[asyncio.Task[None], float] = {}
        self._over: set[tuple[str, int]] = set()

    async def run(
        self, store: Store, results: Results, qemu: Mapping[str, Any] | None, watcher: Watcher
    ) -> None:
        self._store, self._results, self._watcher = store, results, watcher
        waiting, rules, stopped = deque(results.left), StopRules(results), None
        self._rules = rules
        self._client.subscribe_topic(self._topic, self._began)  # type: ignore[no-untyped-call]
        try:
            while waiting or self._going:
                workers = await self._workers()
                self._require_any(workers)
                await self._give_up_stuck(workers)
                if waiting and (stopped := rules.error()) is not None:
                    waiting.clear()
                slots = sum(int(resources[KVM]) for resources in workers.values())
                while waiting and workers and len(self._going) - len(self._stuck) < slots:
                    run = waiting.popleft()
                    task = asyncio.create_task(self._one(run, qemu))
                    self._going[task] = run
                await self._some_end()
        finally:
            for task in self._going:
                task.cancel()
            if self._going:
                await asyncio.wait(self._going)
        if stopped is not None:
            raise stopped

    async def _give_up_stuck(self, workers: Workers) -> None:
        """Refuse the runs under way that no worker has been able to take for long.

        Theirs has died: the scheduler keeps them until another like it comes, if ever.
        """
        if not workers:
            return  # another matter: all are gone
        now, most = time.monotonic(), _most_memory(workers)
        self._largest = max(self._largest, most)
        for task, run in list(self._going.items()):
            cell = self._results.cells[run.cell]
            if cell.guests_bytes <= most or run.key in self._over:
                self._stuck.pop(task, None)
            elif now - self._stuck.setdefault(task, now) >= self._patience:
                task.cancel()
                await asyncio.wait({task})
                del self._going[task], self._stuck[task]
                await self._keep(cell, run, _too_large(cell, run, most, " any more"))

    async def wait_for_worker(self) -> None:
        """Wait for a worker that can run something."""
        while not (workers := await self._workers()):
            self._require_any(workers)
            await asyncio.sleep(_LOOK_SECONDS)

    async def _workers(self) -> Workers:
        """Those that declare KVM."""
        if self._client.status not in ("running", "connecting") or self._client.scheduler is None:
            raise self._scheduler_gone()
        try:
            identity = await self._client.scheduler.identity()
        except OSError as error:
            raise self._scheduler_gone() from error
        found = {
            address: worker["resources"]
            for address, worker in identity["workers"].items()
            if worker["resources"].get(KVM, 0) >= 1
        }
        if found:
            self._last_seen = time.monotonic()
        return found

    def _require_any(self, workers: Workers) -> None:
        if workers or time.monotonic() - (self._last_seen or self._started) < self._patience:
            return
        hint = "start some: dask worker ADDRESS --resources 'KVM=1 MEMORY=8e9'"
        if self._last_seen is None:
            raise HostError("the cluster has no worker that declares KVM", hint=hint)
        raise QemuRingError("all workers that declare KVM are gone", hint=f"{hint}, and resume")

    async def _some_end(self) -> None:
        if not self._going:
            await asyncio.sleep(_LOOK_SECONDS)
            return
        done, _ = await asyncio.wait(
            self._going, timeout=_LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED
        )
        for task in done:
            del self._going[task]
            self._stuck.pop(task, None)
            task.result()

    async def _one(self, run: Run, qemu: Mapping[str, Any] | None) -> None:
        cell = self._results.cells[run.cell]
        if cell.guests_bytes > self._largest:
            self._watcher.started(cell, run)
            record = _too_large(cell, run, self._largest)
        else:
            record = await self._remote(cell, run, qemu)
        self._over.add(run.key)
        await self._keep(cell, run, record)

    async def _keep(self, cell: Cell, run: Run, record: dict[str, Any]) -> None:
        kept = await keep_record(self._store, self._results, cell, run, record, self._watcher)
        self._rules.ended(kept)

    async def _remote(self, cell: Cell, run: Run, qemu: Mapping[str, Any] | None) -> dict[str, Any]:
        from distributed import CancelledError

        from qemu_ring.experiment.schedule import worker as remote

        key = f"{self._topic}-{run.cell}-{run.repeat}"
        asked = (run.cell, run.repeat, run.seed)
        started, clock = time.time(), time.monotonic()
        task = self._client.submit(
            remote.run_here,
            cell.as_dict(),
            asked,
            None if qemu is None else dict(qemu),
            self._results.experiment.inputs,
            __version__,
            key,
            self._topic,
            key=key,
            resources={KVM: 1, MEMORY: cell.guests_bytes},
        )
        try:
            record: dict[str, Any] = await task
        except CancelledError as error:
            raise self._scheduler_gone() from error
        except Exception as error:  # noqa: BLE001 - whatever a worker died of, the rest goes on
            # Dask gives a task up when several workers in a row died of it.
            words = " ".join(f"{type(error).__name__}: {error}".split())
            record = empty_record(Status.CRASHED, words)
            record |= run_labels(run, started, time.monotonic() - clock)
        finally:
            # Of one that was given up: no worker is to begin it any more.
            task.release()  # type: ignore[no-untyped-call]
        return record

    def _scheduler_gone(self) -> QemuRingError:
        return QemuRingError(
            f"the Dask scheduler at {self._scheduler} is gone", hint="start it, then resume"
        )

    def _began(self, event: tuple[float, Mapping[str, Any]]) -> None:
        """A worker told that it begins a run; the second time, if it was another's before."""
        key = event[1]["cell"], event[1]["repeat"]
        run = next((one for one in self._going.values() if one.key == key), None)
        if run is not None:
            self._watcher.started(self._results.cells[run.cell], run)


def _most_memory(workers: Workers) -> float:
    return max(resources.get(MEMORY, 0) for resources in workers.values())


def _too_large(cell: Cell, run: Run, most: float, when: str = "") -> dict[str, Any]:
    """The record of a run that no worker can take."""
    why = (
        f"its guests need {cell.guests_bytes >> 20} MiB, and no worker declares more "
        f"MEMORY than {int(most) >> 20} MiB{when}"
    )
    return empty_record(Status.REFUSED, why) | run_labels(run, time.time(), 0.0)
