"""What a QEMU that is not ours writes on its standard error, or where that goes."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from qemu_ring.machine.peer import serving_process
from qemu_ring.machine.process import last_lines
from qemu_ring.qmp import Monitor

__all__ = ["LastWords"]

_MOST_BYTES = 1 << 16


class LastWords:
    """Standard error of the QEMU behind a monitor, from now on; `close` it.

    Args:
        monitor: its; where that is no unix socket of this host, nothing is known.
    """

    def __init__(self, monitor: Monitor) -> None:
        self._fd, self._begin, self._where = -1, 0, ""
        with suppress(OSError):
            if monitor.transport is None or not monitor.takes_fds:
                return
            process = serving_process(monitor.transport)
            if process is None or process == os.getpid():
                return
            link = Path(f"/proc/{process}/fd/2")
            self._where = str(link.readlink())
            if link.is_file():
                self._fd = os.open(link, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
                self._begin = os.fstat(self._fd).st_size

    def close(self) -> None:
        """Close it; may be called again."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __str__(self) -> str:
        """The last lines since then, or where to look for them; "" if that is not known."""
        if self._fd >= 0:
            with suppress(OSError):
                end = os.fstat(self._fd).st_size
                start = max(self._begin, end - _MOST_BYTES) if end >= self._begin else 0
                return last_lines(os.pread(self._fd, _MOST_BYTES, start).decode(errors="replace"))
        if not self._where or self._where == os.devnull:
            return ""
        kind = self._where.partition(":[")[0]  # pipe:[123]: of no use to anybody
        where = self._where if kind == self._where else f"a {kind}"
        return f"its standard error, {where}, may tell more"
