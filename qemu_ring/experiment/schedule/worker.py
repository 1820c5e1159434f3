"""What a Dask worker does for an experiment: tell of its QEMU, and run one run."""

from __future__ import annotations

import asyncio
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distributed import Worker, get_worker

from qemu_ring import __version__
from qemu_ring.errors import QemuRingError
from qemu_ring.experiment.plan.cells import Cell, Run
from qemu_ring.experiment.plan.inputs import changed_file
from qemu_ring.experiment.plan.suitability import require_suitable
from qemu_ring.experiment.results.record import Status
from qemu_ring.experiment.run.draft import empty_record
from qemu_ring.experiment.schedule.concurrency import Concurrency
from qemu_ring.experiment.schedule.local import examine_qemu
from qemu_ring.experiment.schedule.process import run_in_process, run_labels
from qemu_ring.machine import probe_qemu

__all__ = ["identify", "run_here"]

_LOOK_SECONDS = 0.5
"""Between two looks whether a run is still wanted."""
_SIDE_BY_SIDE = Concurrency()
"""The runs of this worker."""


async def identify(cells: list[Mapping[str, Any]], qemu: str | None) -> dict[str, Any]:
    """This worker's version of the package, and of the QEMU for cells that name none.

    An error if none of the cells can be run with it.

    An error comes back as the words for it: exceptions with arguments of their own do not
    survive the way.
    """
    found: dict[str, Any] = {"version": __version__, "host": platform.node()}
    asked = [Cell.from_dict(one) for one in cells]
    try:
        found["qemu"], unsuitable = await examine_qemu(asked, qemu)
        require_suitable(asked, unsuitable)
    except QemuRingError as error:
        found |= {"error": error.message, "hint": error.hint, "status": int(error.exit_status)}
    return found


async def run_here(
    cell: Mapping[str, Any],
    run: tuple[str, int, int],
    qemu: Mapping[str, Any] | None,
    inputs: Mapping[str, str],
    version: str,
    key: str,
    topic: str,
) -> dict[str, Any]:
    """Run a cell once; its record. Ends early, its QEMUs too, when nobody waits for it any more.

    On the worker's event loop, whose thread lives as long as the worker: the run's process
    is killed with the thread that started it.

    Args:
        cell: what, as `Cell.as_dict` has it.
        run: which of its runs.
        qemu: identity of the QEMU for a cell that names none; it has to be the same here.
        inputs: digests of the files that cells name; they have to be the same, too.
        version: of the package that asks.
        key: of this task.
        topic: under which the beginning is told.
    """
    worker, asked = get_worker(), Run(*run)
    worker.log_event(topic, {"cell": asked.cell, "repeat": asked.repeat})
    task = asyncio.create_task(_run(Cell.from_dict(cell), asked, qemu, inputs, version))
    try:
        while not (await asyncio.wait({task}, timeout=_LOOK_SECONDS))[0]:
            if not _is_wanted(worker, key):
                task.cancel()
        record = task.result()
    finally:  # cancelled itself, when the worker is told to end
        task.cancel()
        await asyncio.wait({task})
    record["worker"] = {"host": platform.node(), "name": str(worker.name)}
    return record


def _is_wanted(worker: Worker, key: str) -> bool:
    """Dask does not interrupt a task whose client has gone; its state tells."""
    task = worker.state.tasks.get(key)
    return task is not None and task.state != "cancelled"


async def _run(
    cell: Cell,
    run: Run,
    qemu: Mapping[str, Any] | None,
    inputs: Mapping[str, str],
    version: str,
) -> dict[str, Any]:
    started, clock = time.time(), time.monotonic()
    try:
        why = await _why_not(qemu, version)
        if why is None:
            why = await asyncio.to_thread(changed_file, [cell], inputs)
            why = why and f"{platform.node()}: {why}"
    except QemuRingError as error:
        why = str(error)
    if why:
        record = empty_record(Status.REFUSED, why)
        return record | run_labels(run, started, time.monotonic() - clock)
    with _SIDE_BY_SIDE.one() as most:
        record = await run_in_process(cell, run, None if qemu is None else Path(qemu["path"]))
    return record | {"side_by_side": most()}


async def _why_not(qemu: Mapping[str, Any] | None, version: str) -> str | None:
    """Results of another QEMU, or of another version, would not compare."""
    if version != __version__:
        return f"{platform.node()} has qemu-ring {__version__}, not {version}"
    if qemu is None:
        return None
    here = await probe_qemu(Path(qemu["path"]))
    if here.sha256 != qemu["sha256"]:
        return f"{here.path} on {platform.node()} is not the QEMU of the results"
    return None
