"""What can become of a migration, other than that it completes.

::

    QemuRingError
     +-- UsageError
     |    +-- PlanError             a plan cannot be carried out by any QEMU
     +-- MigrationError             it failed; the message tells which side runs the guest
          +-- EndedEarlyError       it completed when it was to be held open
          +-- MigrationCancelledError
          |    +-- MigrationAbortedError   by a rule of the plan
          +-- PostcopyPausedError   its channel broke after the switchover; it can be recovered
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from qemu_ring.errors import FieldError, QemuRingError

__all__ = [
    "EndedEarlyError",
    "GuestAt",
    "MigrationAbortedError",
    "MigrationCancelledError",
    "MigrationError",
    "MigrationOutcome",
    "PlanError",
    "PostcopyPausedError",
]


class GuestAt(str, Enum):
    """Where the guest's vCPUs run."""

    SOURCE = "source"
    DESTINATION = "destination"
    BOTH = "both"
    """Twice: one of the two has to be ended."""
    NOWHERE = "nowhere"
    """Stopped, or gone."""
    UNKNOWN = "unknown"
    """A side that may have it does not answer."""

    __str__ = str.__str__


@dataclass(frozen=True, slots=True)
class MigrationOutcome:
    """How both sides were found after a migration, however it ended.

    Args:
        source: its run state, such as "running" or "postmigrate"; "unknown" if it does not
            answer, or its monitor is lost; None if it is known to have ended.
        destination: the same; None if it has ended, or there is none.
        guest_at: where the guest runs.
        recoverable: whether the migration can go on (`Migration.recover`).
        lost: whether memory that the guest needs went with the source. QEMU calls the guest
            running until it comes to need it; then it stands still, for good.
        has_destination: whether there is one, and the guest was not only to be saved.
    """

    source: str | None
    destination: str | None
    guest_at: GuestAt
    recoverable: bool = False
    lost: bool = False
    has_destination: bool = True

    @property
    def is_stopped_at_source(self) -> bool:
        """Whether the guest is all there at the source, and nowhere else, and does not run."""
        return self.source == "postmigrate" and self.destination in (None, "inmigrate")

    @property
    def advice(self) -> str:
        """What to do, where anything else could end the guest; empty if its place is known."""
        if self.guest_at is not GuestAt.UNKNOWN:
            return ""
        return (
            "end neither QEMU, and let neither go on, before query-status and query-migrate at "
            "both monitors have told which of them has the guest"
        )

    def __str__(self) -> str:
        """Say it in one clause, for an error's message."""
        if self.lost:
            return "the guest is lost: memory that it needs went with the source"
        sides = f"source: {self.source or 'gone'}"
        if self.has_destination:
            sides += f", destination: {self.destination or 'gone'}"
        where = {
            GuestAt.SOURCE: f"the guest runs on at the source{_but(self.destination)}",
            GuestAt.DESTINATION: f"the guest runs at the destination{_but(self.source)}",
            GuestAt.BOTH: "the guest runs TWICE, at the source and at the destination",
            GuestAt.UNKNOWN: f"it is not known where the guest runs ({sides})",
            GuestAt.NOWHERE: f"the guest does not run ({sides})",
        }
        return where[self.guest_at]


def _but(other: str | None) -> str:
    """What there is to say of the other side."""
    return " (of the other side nothing is known)" if other == "unknown" else ""


class PlanError(FieldError):
    """A plan cannot be carried out, by any QEMU."""


class MigrationError(QemuRingError):
    """A migration failed, or ended when it was not meant to.

    Attributes:
        outcome: how both sides were found; None if it was not looked for.
    """

    def __init__(
        self, message: str, *, hint: str = "", outcome: MigrationOutcome | None = None
    ) -> None:
        if outcome is not None:
            message, hint = f"{message}; {outcome}", hint or outcome.advice
        super().__init__(message, hint=hint)
        self.outcome = outcome


class EndedEarlyError(MigrationError):
    """A migration completed that should have been held open: the guest dirtied too little."""


class MigrationCancelledError(MigrationError):
    """A migration was cancelled; the source has the guest."""


class MigrationAbortedError(MigrationCancelledError):
    """A rule of the plan had the migration cancelled; the source has the guest."""


class PostcopyPausedError(MigrationError):
    """A postcopy migration lost its channel: memory is on both sides until it is recovered."""
