"""What is to be tried, checked before anything starts."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from qemu_ring.dirty import Tracking
from qemu_ring.errors import FieldError
from qemu_ring.guest import MAX_VCPUS
from qemu_ring.memslot import FlushPolicy
from qemu_ring.torture.model import MAX_PLUGGED

__all__ = ["MAX_TORTURED_VCPUS", "Only", "TortureOptions"]

MAX_TORTURED_VCPUS = MAX_VCPUS - MAX_PLUGGED
"""How many a guest can have, beside those that are plugged."""


class Only(Enum):
    """Which steps there are."""

    ALL = "all"
    """All that the QEMU can do."""
    CANCELS = "cancels"
    """Migrations that are cancelled or fail at a random moment, then one that completes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TortureOptions:
    """One torture.

    Args:
        seconds: when to begin no further program.
        seed: of the programs; the same makes the same ones.
        only: which steps there are.
        tracking: how dirty pages are tracked.
        policy: how memslots are removed, throughout; needs a patched QEMU. None for what the QEMU
            does by itself; one that is patched then changes between those that lose nothing.
        vcpus: how many write.
        cancels: when to stop: migrations that were ended before they completed; None for no limit.
        shrink_seconds: how long a program that failed may be shrunk, about.
        log_directory: where the QEMUs' logs are kept; None to keep none.

    Raises:
        FieldError: a value that cannot be right.
    """

    seconds: float = 60.0
    seed: int = 0
    only: Only = Only.ALL
    tracking: Tracking = field(default_factory=lambda: Tracking(4096))
    policy: FlushPolicy | None = None
    vcpus: int = 2
    cancels: int | None = None
    shrink_seconds: float = 120.0
    log_directory: Path | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.vcpus <= MAX_TORTURED_VCPUS:
            raise FieldError(
                "vcpus", f"{self.vcpus} is out of range", hint=f"use 1 to {MAX_TORTURED_VCPUS}"
            )
        for name in ("seconds", "shrink_seconds"):
            if not getattr(self, name) > 0:
                raise FieldError(name, "must be greater than 0")
        if self.cancels is not None and self.cancels < 1:
            raise FieldError("cancels", "must be at least 1", hint="leave it out for no limit")
