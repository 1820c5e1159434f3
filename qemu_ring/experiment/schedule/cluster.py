"""An experiment on many machines: each run a task of Dask's, on a worker with what it takes.

Workers declare how many runs they take at a time and the memory of all guests together, as
Dask's resources KVM and MEMORY. A run whose worker dies is run again on another one, by
Dask; its record is kept once, here.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from qemu_ring import __version__
from qemu_ring.errors import HostError, QemuRingError, UsageError
from qemu_ring.experiment.plan.cells import Cell, Run
from qemu_ring.experiment.results.reader import Results
from qemu_ring.experiment.results.record import Status
from qemu_ring.experiment.results.store import Store
from qemu_ring.experiment.run.draft import empty_record
from qemu_ring.experiment.schedule.loop import Claim, Place, Watcher, run_left
from qemu_ring.experiment.schedule.process import run_labels

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["cluster_identity", "run_on_cluster"]

KVM: Final = "KVM"
MEMORY: Final = "MEMORY"
_CONNECT_SECONDS = 15.0
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
        await _Cluster(client, scheduler, patience).wait_for_worker()
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
        message = f"{found['host']}: {found['error']}"
        raise QemuRingError.of_another_process(message, found["hint"], found["status"])
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
        cluster = _Cluster(client, scheduler, patience)
        cluster.prepare(results, qemu)
        await run_left(store, results, cluster, watcher)


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


class _Cluster(Place):
    """Runs go on wherever Dask finds a worker for them."""

    poll_seconds = _LOOK_SECONDS

    def __init__(self, client: Client, scheduler: str, patience: float) -> None:
        self._client = client
        self._patience = patience
        self._scheduler = scheduler
        self._last_seen: float | None = None
        self._started = time.monotonic()
        self._topic = f"qemu-ring-{uuid.uuid4()}"
        self._largest = 0.0
        self._free = 0
        self._stuck: dict[Run, float] = {}
        self._began: dict[tuple[str, int], Callable[[], None]] = {}

    def prepare(self, results: Results, qemu: Mapping[str, Any] | None) -> None:
        """Be the place of an experiment; `qemu` is for the cells that name none."""
        self._results, self._qemu = results, qemu
        self._client.subscribe_topic(self._topic, self._told)  # type: ignore[no-untyped-call]

    async def hopeless(self, going: Collection[Run]) -> Mapping[Run, str]:
        """The runs that no worker has been able to take for long.

        Theirs has died: the scheduler keeps them until another like it comes, if ever.
        """
        workers = await self._workers()
        self._require_any(workers)
        self._stuck = {run: since for run, since in self._stuck.items() if run in going}
        if not workers:
            self._free = 0
            return {}  # another matter: all are gone
        now, most = time.monotonic(), _most_memory(workers)
        self._largest = max(self._largest, most)
        for run in going:
            if self._results.cells[run.cell].guests_bytes <= most:
                self._stuck.pop(run, None)
            else:
                self._stuck.setdefault(run, now)
        slots = sum(int(resources[KVM]) for resources in workers.values())
        self._free = slots - len(going) + len(self._stuck)
        return {
            run: _too_large(self._results.cells[run.cell], most, " any more")
            for run, since in self._stuck.items()
            if now - since >= self._patience
        }

    def claim(self, cell: Cell) -> Claim | None:
        """As `Place` has it; which worker it is, is for Dask to say."""
        if self._free < 1:
            return None
        self._free -= 1
        if cell.guests_bytes > self._largest:
            return Claim(refusal=_too_large(cell, self._largest))
        return Claim()

    def release(self, claim: Claim) -> None:
        """Nothing: what is free is seen anew with each look at the workers."""

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

    async def execute(
        self,
        cell: Cell,
        run: Run,
        claim: Claim,  # noqa: ARG002
        began: Callable[[], None],
    ) -> dict[str, Any]:
        """As `Place` has it: a task of Dask's, which another worker has if the first one dies."""
        from distributed import CancelledError

        from qemu_ring.experiment.schedule import worker

        key = f"{self._topic}-{run.cell}-{run.repeat}"
        asked = (run.cell, run.repeat, run.seed)
        started, clock = time.time(), time.monotonic()
        self._began[run.key] = began
        task = self._client.submit(
            worker.run_here,
            cell.as_dict(),
            asked,
            None if self._qemu is None else dict(self._qemu),
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
            del self._began[run.key]
            # Of one that was given up: no worker is to begin it any more.
            task.release()  # type: ignore[no-untyped-call]
        return record

    def _scheduler_gone(self) -> QemuRingError:
        return QemuRingError(
            f"the Dask scheduler at {self._scheduler} is gone", hint="start it, then resume"
        )

    def _told(self, event: tuple[float, Mapping[str, Any]]) -> None:
        """A worker told that it begins a run; the second time, if it was another's before."""
        began = self._began.get((event[1]["cell"], event[1]["repeat"]))
        if began is not None:
            began()


def _most_memory(workers: Workers) -> float:
    return max(resources.get(MEMORY, 0) for resources in workers.values())


def _too_large(cell: Cell, most: float, when: str = "") -> str:
    """Why no worker can take it."""
    return (
        f"its guests need {cell.guests_bytes >> 20} MiB, and no worker declares more "
        f"MEMORY than {int(most) >> 20} MiB{when}"
    )
