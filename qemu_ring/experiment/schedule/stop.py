"""When an experiment is to begin no further run: too many failed one after the other, or time."""

from __future__ import annotations

import time

from qemu_ring.errors import QemuRingError
from qemu_ring.experiment.results.reader import Results
from qemu_ring.experiment.results.record import RunRecord, Status

__all__ = ["StopRules"]

_FAILED = (Status.REFUSED, Status.CRASHED, Status.TIMEOUT)


class StopRules:
    """The rules of an experiment, from now on.

    Args:
        results: of the experiment.
    """

    def __init__(self, results: Results) -> None:
        rules = results.experiment.stop
        self._directory = results.directory
        self._most_failures: int | None = rules.get("failures-in-a-row")
        self._most_seconds: float | None = rules.get("seconds")
        self._failures = 0
        self._started = time.monotonic()

    def ended(self, record: RunRecord) -> None:
        """Note a run that has ended."""
        failed = record.status in _FAILED
        self._failures = self._failures + 1 if failed else 0

    def error(self) -> QemuRingError | None:
        """Why to begin no more; None to go on."""
        if self._most_failures is not None and self._failures >= self._most_failures:
            return QemuRingError(
                f"stopped: {self._failures} runs failed one after the other",
                hint=f"see `qemu-ring experiment show {self._directory}`, then resume and retry",
            )
        if self._most_seconds is not None and time.monotonic() - self._started > self._most_seconds:
            return QemuRingError(
                f"stopped: it has run for {self._most_seconds:g} s",
                hint=f"`qemu-ring experiment resume {self._directory}` goes on",
            )
        return None
