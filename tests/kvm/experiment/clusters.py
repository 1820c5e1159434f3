"""A Dask cluster of real processes on this host."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.waiting import DEADLINE, wait_until


class LocalCluster(ExitStack):
    """A scheduler, and workers that declare what they have; all are gone when it is left.

    Args:
        folder: an empty one.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        file = folder / "scheduler.json"
        self.scheduler = self._start(
            "scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(file)
        )

        def is_up() -> bool:
            assert self.scheduler.poll() is None, (folder / "scheduler.log").read_text()
            return file.exists() and bool(file.read_text())

        wait_until(is_up, "the scheduler is up")
        self.address = str(json.loads(file.read_text())["address"])

    def worker(self, name: str, resources: str) -> subprocess.Popen[bytes]:
        """Start one more; it is there a little later."""
        self.workers[name] = self._start(
            "worker",
            self.address,
            *("--no-nanny", "--nthreads", "1", "--name", name, "--resources", resources),
            *("--local-directory", str(self._folder)),
            log=name,
        )
        return self.workers[name]

    def _start(self, kind: str, *arguments: str, log: str = "") -> subprocess.Popen[bytes]:
        with (self._folder / f"{log or kind}.log").open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "dask", kind, "--no-dashboard", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        self.callback(_end, process)
        return process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=DEADLINE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def descendants(pid: int) -> dict[int, str]:
    """Command lines of a process's children, theirs, and so on."""
    parents, lines = {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int(
                (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[1]
            )
            lines[int(entry.name)] = (
                (entry / "cmdline").read_text(errors="replace").replace("\0", " ")
            )
        except OSError:
            continue
    found: dict[int, str] = {}
    new = {pid}
    while new:
        new = {one for one, parent in parents.items() if parent in new}
        found |= {one: lines[one] for one in new}
    return found


def qemus_of(process: subprocess.Popen[Any]) -> list[int]:
    """The guests that a worker has started."""
    return [pid for pid, line in descendants(process.pid).items() if "memory-backend=ram" in line]


def is_running(pid: int) -> bool:
    """Tell if there is such a process, and no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def kill(process: subprocess.Popen[bytes]) -> None:
    """kill -9, and wait."""
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
