"""What is to be proved, checked before anything starts."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from qemu_ring.dirty import Tracking
from qemu_ring.errors import FieldError
from qemu_ring.guest import MAX_VCPUS
from qemu_ring.memslot import FlushPolicy, Shape

__all__ = ["Control", "ProveOptions", "Writer"]

DEFAULT_SECONDS = 10.0
UNTIL_LOSS_SECONDS = 300.0


class Control(Enum):
    """A run that must find nothing, to show that the method itself loses nothing."""

    IDLE = "idle"
    """Slots are removed, but the guest writes nothing into them."""
    NO_REMOVALS = "no-removals"
    """The guest writes, but no slot is removed."""


class Writer(Enum):
    """Who writes into the slots."""

    VCPU = "vcpu"
    """The guest: what it writes is logged by KVM."""
    VHOST_USER = "vhost-user"
    """A device, by a back end of ours: what it writes is logged in the vhost log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProveOptions:
    """One proof.

    Args:
        tracking: how dirty pages are tracked.
        machine: machine type, pc or q35.
        vcpus: how many vCPUs write.
        pages_per_second: how fast the vCPUs, or the device, write clean pages, all together.
        seconds: when to begin no further round; None for the default if there is no limit
            at all.
        removals: when to stop: slots removed; None for no such limit.
        rounds: when to stop: rounds that counted; None for no such limit.
        until_loss: stop after the first round that lost a page.
        control: run a control instead.
        writer: who writes; a device's writes are no flush policy's concern.
        policy: how memslots are removed; needs a patched QEMU. None for what the QEMU
            does by itself.
        shapes: in what ways they are removed and added, one a round in turn; empty for all
            that the QEMU can do.
        memory_directory: where guest memory lives; None for memory without a name.
        log_directory: where the QEMUs' logs are kept; None to keep none.

    Raises:
        FieldError: a value that cannot be right.
    """

    tracking: Tracking = field(default_factory=lambda: Tracking(4096))
    machine: str = "pc"
    vcpus: int = 1
    pages_per_second: float = 100_000.0
    seconds: float | None = None
    removals: int | None = None
    rounds: int | None = None
    until_loss: bool = False
    control: Control | None = None
    writer: Writer = Writer.VCPU
    policy: FlushPolicy | None = None
    shapes: tuple[Shape, ...] = ()
    memory_directory: Path | None = None
    log_directory: Path | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.vcpus <= MAX_VCPUS:
            raise FieldError("vcpus", f"{self.vcpus} is out of range", hint=f"use 1 to {MAX_VCPUS}")
        if not 1000 <= self.pages_per_second <= 1e9:
            raise FieldError(
                "pages_per_second",
                f"{self.pages_per_second:g} is out of range",
                hint="use 1000 to 1e9 pages a second",
            )
        if self.seconds is not None and not self.seconds > 0:
            raise FieldError("seconds", "must be greater than 0", hint="leave it out for 10")
        if self.removals is not None and self.removals < 1:
            raise FieldError(
                "removals",
                "must be at least 1",
                hint="control no-removals removes none",
            )
        if self.rounds is not None and self.rounds < 1:
            raise FieldError("rounds", "must be at least 1", hint="leave it out for no limit")
        if self.control is not None and self.until_loss:
            raise FieldError("until_loss", "cannot be: a control run has no loss to wait for")
        if self.control is Control.NO_REMOVALS:
            for name, value in (("shapes", self.shapes), ("removals", self.removals)):
                if value:
                    raise FieldError(name, "cannot be: control no-removals removes no slot")

    @property
    def time_limit(self) -> float | None:
        """Seconds after which no further round begins; None for no limit."""
        if self.seconds is not None:
            return self.seconds
        if self.until_loss:
            return UNTIL_LOSS_SECONDS
        unlimited = self.removals is None and self.rounds is None
        return DEFAULT_SECONDS if unlimited else None
