"""What became of a migration that a fault struck, and what it left."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path

from qemu_ring.migration import GuestAt
from tests.kvm.migration.faults.fault import Fault

__all__ = ["Outcome", "is_alive", "names", "open_fds"]


@dataclass
class Outcome:
    """What became of it.

    Attributes:
        struck: whether the migration got to the fault before it was over.
        hangs: whether this QEMU neither goes on nor can be told to, and that was told.
        guest_at: where its counters rise, in the end.
        reported: the error, or its absence.
        seconds: from the fault to the report.
        wrong: what was told and is not so.
        left: what was left behind.
    """

    fault: Fault
    struck: bool = False
    hangs: bool = False
    guest_at: GuestAt = GuestAt.NOWHERE
    reported: str = "nothing"
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


def names(folder: Path) -> list[Path]:
    """What is in the folder of a fault, but for what the fault itself needs."""
    return sorted(path for path in folder.rglob("*") if path.name not in ("tmp", "qemu"))


def is_alive(pid: int | None) -> bool:
    return Path(f"/proc/{pid}").exists()


def open_fds() -> set[str]:
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.add(f"{link.name} {link.readlink()}")
    return found
