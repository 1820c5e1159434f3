"""What a torture is for: something that a QEMU must not do."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import Enum

from qemu_ring.errors import DeadlineError, QemuRingError
from qemu_ring.migration import MigrationError
from qemu_ring.qmp import CommandTimeoutError
from qemu_ring.verify import Comparison, StalePage

__all__ = ["FindingKind", "FoundError", "TortureFinding", "kind_of"]

_LISTED = 100


class FindingKind(Enum):
    """What was found."""

    STALE = "stale"
    """Memory at the destination that is not the source's."""
    CRASH = "crash"
    """A QEMU ended, or its guest stopped, unasked."""
    HANG = "hang"
    """A guest writes nothing, or a QEMU does not do what it was asked for, for a minute or more."""
    FAILED = "failed"
    """A migration failed that should have completed."""


@dataclass(frozen=True, slots=True)
class TortureFinding:
    """What was found, and where.

    Args:
        kind: what.
        message: in words, one line.
        step: index of the step at which it showed.
        stale_pages: how many pages differ.
        stale: the first of them.
    """

    kind: FindingKind
    message: str
    step: int
    stale_pages: int = 0
    stale: tuple[StalePage, ...] = ()

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "kind": self.kind.value,
            "message": self.message,
            "step": self.step,
            "stale_pages": self.stale_pages,
            "stale": [asdict(page) for page in self.stale],
        }


class FoundError(QemuRingError):
    """Ends a program at the step that found something."""

    def __init__(
        self, kind: FindingKind, message: str, *, comparison: Comparison | None = None
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self._comparison = comparison

    @classmethod
    def stale(cls, comparison: Comparison) -> FoundError:
        """That memory differs."""
        pages = comparison.pages_stale_total
        blocks = ", ".join(comparison.places)
        message = f"{pages} page{'s' * (pages != 1)} of {blocks} differ at the destination"
        return cls(FindingKind.STALE, message, comparison=comparison)

    def at(self, step: int) -> TortureFinding:
        """As the finding of a step."""
        if self._comparison is None:
            return TortureFinding(self.kind, self.message, step)
        comparison = self._comparison
        return TortureFinding(
            self.kind,
            self.message,
            step,
            comparison.pages_stale_total,
            comparison.stale[:_LISTED],
        )


def kind_of(error: QemuRingError) -> FindingKind | None:
    """What an error says of a QEMU that runs; None if it is no fault of the QEMU's."""
    if isinstance(error, DeadlineError | CommandTimeoutError):
        return FindingKind.HANG
    if isinstance(error, MigrationError):
        return FindingKind.FAILED
    return None
