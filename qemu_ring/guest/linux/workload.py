"""What the program in a Linux guest is told to write."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from qemu_ring.errors import UsageError
from qemu_ring.guest.layout import PAGE_SIZE

__all__ = ["LinuxPattern", "LinuxWorkload"]


class LinuxPattern(Enum):
    """The order in which each CPU writes the pages of its part."""

    LOOP = "loop"
    """Walk forward, again and again."""
    RANDOM = "random"
    """Any page, evenly."""


@dataclass(frozen=True, slots=True)
class LinuxWorkload:
    """The program's parameters.

    Args:
        size: bytes to write to; each CPU has an equal part.
        pattern: order of the writes.
        pages_per_second: rate of all CPUs together; None writes as fast as they can.
        report_seconds: time between two reports on the serial port.

    Raises:
        UsageError: a number that cannot be right.
    """

    size: int
    pattern: LinuxPattern = LinuxPattern.LOOP
    pages_per_second: float | None = None
    report_seconds: float = 1.0

    def __post_init__(self) -> None:
        if self.size <= 0 or self.size % PAGE_SIZE:
            raise UsageError("size must be whole pages")
        if self.pages_per_second is not None and self.pages_per_second < 1:
            raise UsageError("pages_per_second must be 1 or more")
        if self.report_seconds < 0.01:
            raise UsageError("report_seconds must be 0.01 or more")

    def append(self) -> str:
        """The parameters as words of the kernel's command line."""
        words = {
            "bytes": self.size,
            "pattern": self.pattern.value,
            "rate": round(self.pages_per_second or 0),
            "report_ms": round(self.report_seconds * 1000),
        }
        return " ".join(f"qemu_ring.{name}={value}" for name, value in words.items())
