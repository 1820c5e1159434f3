"""What the program in a Linux guest tells on its serial port."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["LinuxReport", "failure", "read_reports"]

_REPORT = re.compile(
    r"^qemu-ring-guest: writes=(\d+) passes=(\d+) stale=(\d+) ms=(\d+)\r?$", re.MULTILINE
)
_FAILURE = re.compile(r"^qemu-ring-guest: failed: (.*?)\r?$|(Kernel panic - .*?)\r?$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class LinuxReport:
    """Counters since the program's start; they never fall.

    Args:
        writes: pages written, repeats counted.
        passes: times that a CPU wrote as many pages as its part has.
        stale: pages that were found with other content than was last written: lost memory.
        milliseconds: of the guest's own clock.
    """

    writes: int
    passes: int
    stale: int
    milliseconds: int


def read_reports(serial: str) -> list[LinuxReport]:
    """All whole reports in a guest's serial output, in order."""
    return [LinuxReport(*map(int, numbers)) for numbers in _REPORT.findall(serial)]


def failure(serial: str) -> str | None:
    """Why the guest cannot go on, in its own words; None where it says nothing of the kind."""
    found = _FAILURE.search(serial)
    return None if found is None else found[1] or found[2]
