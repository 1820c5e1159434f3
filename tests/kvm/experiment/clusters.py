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

from tests.processes import descendants
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


def qemus_of(process: subprocess.Popen[Any]) -> list[int]:
    """The guests that a worker has started."""
    return [
        one.pid for one in descendants(process.pid, lambda one: "memory-backend=ram" in one.command)
    ]


def kill(process: subprocess.Popen[bytes]) -> None:
    """kill -9, and wait."""
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
