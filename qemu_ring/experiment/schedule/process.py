"""One run in a process of its own: started, watched, killed at its limit, its record taken."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from qemu_ring._compat import timeout as deadline
from qemu_ring.experiment.plan.cells import Cell, Run
from qemu_ring.experiment.results.record import Status
from qemu_ring.experiment.run.draft import empty_record
from qemu_ring.machine import last_lines
from qemu_ring.machine.memory import UnnamedFile
from qemu_ring.machine.process import ChildProcess
from qemu_ring.qmp import answer_timeout

__all__ = ["run_in_process", "run_labels"]

_GRACE_SECONDS = 10.0
"""For a run that is stopped at its limit to stop its QEMUs and tell what it has."""
# ChildProcess joins what a program writes, and gives it nothing to read.
_REDIRECT = 'in=$1 out=$2; shift 2; exec "$@" <"$in" >"$out"'


async def run_in_process(
    cell: Cell, run: Run, qemu: Path | None, *, cpus: Collection[int] = ()
) -> dict[str, Any]:
    """Run a cell once; its record, whatever becomes of it.

    The process and its QEMUs end with this call, and with this process, kill -9 included.

    Args:
        cell: what.
        run: which of its runs.
        qemu: for a cell that names none.
        cpus: those that it is to keep to; empty for all.
    """
    asked = {
        "specification": dict(cell.specification),
        "qemu": None if qemu is None else str(qemu),
        "seed": run.seed,
        "cpus": sorted(cpus),
        "answer_timeout": answer_timeout(),
    }
    started, clock = time.time(), time.monotonic()
    with UnnamedFile("asked") as question, UnnamedFile("record") as answer:
        question.write(json.dumps(asked).encode())
        command = [sys.executable, "-m", "qemu_ring.experiment.run.child"]
        paths = [question.path, answer.path]
        process = ChildProcess.start(
            ["/bin/sh", "-c", _REDIRECT, "sh", *paths, *command],
            fds=(question.fd, answer.fd),
        )
        late = False
        try:
            try:
                async with deadline(cell.time_limit):
                    await process.wait()
            except TimeoutError:
                late = True
            finally:
                await process.stop(timeout=_GRACE_SECONDS)
            found = _record(answer.read()) or _without_record(cell, process, late=late)
        finally:
            process.close()
    if found["status"] == Status.TIMEOUT and not late:  # all that it knows is that it was ended
        found |= {"status": Status.CRASHED.value, "error": "ended by SIGTERM, and not by us"}
    found["cpus"] = sorted(cpus) or None
    return found | run_labels(run, started, time.monotonic() - clock)


def run_labels(run: Run, started: float, seconds: float) -> dict[str, Any]:
    """What tells a run's record from others.

    Args:
        run: which.
        started: when, seconds since the epoch.
        seconds: that it took in all.
    """
    return {
        "cell": run.cell,
        "repeat": run.repeat,
        "seed": run.seed,
        "started": started,
        "wall_seconds": seconds,
    }


def _record(text: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _without_record(cell: Cell, process: ChildProcess, *, late: bool) -> dict[str, Any]:
    """The record of a run that could not write its own."""
    if late:
        return empty_record(Status.TIMEOUT, f"not over within {cell.time_limit:g} s, and killed")
    code = process.returncode
    how = f"exit status {code}"
    if code is not None and code < 0:
        how = f"killed by {_signal_name(-code)}"
    said = last_lines(process.output(), nothing="it wrote nothing")
    return empty_record(Status.CRASHED, f"its process ended: {how}: {said}")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most of the real-time signals have none
        return f"signal {number}"
