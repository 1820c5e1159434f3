"""Any QEMU as a user starts it: with a monitor, a log of its own, and no guest that runs."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from qemu_ring.machine.sockets import listens

__all__ = ["PLAIN", "started"]

PLAIN = ("-machine", "pc", "-m", "32")
_START_SECONDS = 60.0


@contextmanager
def started(
    binary: Path, folder: Path, name: str, arguments: Sequence[str]
) -> Iterator[subprocess.Popen[bytes]]:
    """Start one whose monitor is folder/name, and whose standard error is folder/name.log."""
    common = ("-accel", "tcg", "-nodefaults", "-display", "none", "-S")
    monitor = ("-qmp", f"unix:{folder / name},server=on,wait=off")
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            [str(binary), *common, *arguments, *monitor], stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not listens(str(folder / name)):
            assert process.poll() is None, (folder / f"{name}.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield process
    finally:
        process.kill()
        process.wait(timeout=60)
