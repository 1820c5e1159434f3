"""A whole experiment in one call: from its file to its results."""

from __future__ import annotations

import asyncio
from pathlib import Path

from qemu_ring.experiment.plan.load import load_experiment
from qemu_ring.experiment.plan.suitability import require_suitable
from qemu_ring.experiment.results.reader import Results, read_results
from qemu_ring.experiment.results.store import Store
from qemu_ring.experiment.schedule.local import Budget, ThisHost, examine_qemu
from qemu_ring.experiment.schedule.loop import Watcher, run_left

__all__ = ["run_experiment"]


async def run_experiment(
    file: str | Path,
    directory: str | Path,
    qemu: str | Path | None = None,
    *,
    budget: Budget | None = None,
    watcher: Watcher | None = None,
) -> Results:
    """Run an experiment on this host; what has finished already is not run again.

    A run that fails is kept as failed, and the rest goes on. When cancelled, or killed, the
    runs under way end with it, and the next call begins them anew.

    Args:
        file: YAML, as `qemu-ring experiment run` takes it.
        directory: of the results; made where it is missing.
        qemu: for cells that name none; None for the one that `qemu-ring build` made, else the
            first on PATH.
        budget: for several runs at a time; None for one after the other.
        watcher: told of each run.

    Returns:
        all results, of earlier calls, too; `frame()` has them as a data frame.

    Raises:
        ExperimentFileError: the file has mistakes.
        QemuRingError: no cell can be run here, the directory has results of something else,
            or the experiment's own rules ended it; what was kept stays.
    """
    plan = await asyncio.to_thread(load_experiment, file)
    identity, unsuitable = await examine_qemu(plan.cells, qemu)
    require_suitable(plan.cells, unsuitable)
    with Store(Path(directory)) as store:
        results = await asyncio.to_thread(store.begin, plan, identity)
        path = None if identity is None else Path(identity["path"])
        await run_left(store, results, ThisHost(results, path, budget), watcher)
    return await asyncio.to_thread(read_results, directory)
