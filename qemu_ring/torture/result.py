"""What a torture found, and what it did."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qemu_ring.errors import ExitStatus
from qemu_ring.prove.probes import Probes
from qemu_ring.statistics import rule_of_three
from qemu_ring.torture.finding import TortureFinding
from qemu_ring.torture.options import TortureOptions
from qemu_ring.torture.player import TortureTotals
from qemu_ring.torture.reproducer import Reproducer
from qemu_ring.torture.steps import STEPS, Program

__all__ = ["ReplayResult", "TortureProgress", "TortureResult"]

_SCHEMA: Final = {"name": "qemu-ring.torture", "version": 1}
_REPLAY_SCHEMA: Final = {"name": "qemu-ring.torture-replay", "version": 1}


@dataclass(frozen=True, slots=True)
class TortureProgress:
    """How far a torture has come.

    Args:
        seconds: since its start.
        programs: played.
        removals: memslots removed.
        migrations: that completed and were compared.
        cancels: migrations that were ended before, and after which one completed.
        shrinking: steps that are left of a program that failed; None as long as none has.
    """

    seconds: float
    programs: int
    removals: int
    migrations: int
    cancels: int
    shrinking: int | None = None

    @classmethod
    def of(
        cls, totals: TortureTotals, seconds: float, programs: int, shrinking: int | None = None
    ) -> TortureProgress:
        """What these totals tell."""
        return cls(
            seconds=seconds,
            programs=programs,
            removals=totals.removals,
            migrations=totals.migrations.total(),
            cancels=totals.cancels,
            shrinking=shrinking,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TortureResult:
    """All that was done and found.

    Args:
        programs: how many were played.
        totals: what they did.
        finding: what the first one that failed found; None if none did.
        finding_seconds: from the start of the torture until then.
        program: the steps that matter of that one.
        reproduced: whether it failed again.
        reproducer: the file that it is in.
        trace: QEMU's traces of a play in which it failed.
        seconds: of the torture, without shrinking.
    """

    options: TortureOptions
    probes: Probes
    programs: int
    totals: TortureTotals
    finding: TortureFinding | None
    finding_seconds: float | None
    program: Program | None
    reproduced: bool | None
    reproducer: Path | None
    trace: Path | None
    seconds: float

    @property
    def migrations(self) -> int:
        """Migrations that completed, and after which all memory was equal."""
        return self.totals.migrations.total()

    @property
    def removal_bound(self) -> float | None:
        """What a torture that found nothing says: less than so many removals in one go wrong.

        At a confidence of 95 %, if they do not depend on each other: 3 by their number.
        """
        return self._bound(self.totals.removals)

    @property
    def cancel_bound(self) -> float | None:
        """The same of migrations that are ended before they complete."""
        return self._bound(self.totals.cancels)

    def _bound(self, count: int) -> float | None:
        return None if self.finding is not None or not count else rule_of_three(count)

    @property
    def exit_status(self) -> ExitStatus:
        """GOOD if nothing was found, else BAD."""
        return ExitStatus.GOOD if self.finding is None else ExitStatus.BAD

    def as_dict(self) -> dict[str, object]:
        """The JSON document of `torture --json`."""
        options, totals, finding = self.options, self.totals, self.finding
        program = None if self.program is None else STEPS.dump_python(self.program, mode="json")
        return {
            "schema": _SCHEMA,
            "host": {**self.probes.host.as_dict(), "kvm": self.probes.kvm.as_dict()},
            "qemu": self.probes.qemu.as_dict(),
            "verdict": "clean" if finding is None else finding.kind.value,
            "seed": options.seed,
            "only": options.only.value,
            "tracking": str(options.tracking),
            "policy": None if options.policy is None else options.policy.value,
            "vcpus": options.vcpus,
            "seconds": round(self.seconds, 3),
            "programs": self.programs,
            "removals": totals.removals,
            "migrations": dict(totals.migrations),
            "cancels": totals.cancels,
            "removal_bound": self.removal_bound,
            "cancel_bound": self.cancel_bound,
            "steps": dict(totals.steps),
            "refused": dict(totals.refused),
            "pages_late": totals.pages_late,
            "entries_dropped": totals.entries_dropped,
            "finding": None if finding is None else finding.as_dict(),
            "finding_seconds": (
                None if self.finding_seconds is None else round(self.finding_seconds, 3)
            ),
            "program": program,
            "reproduced": self.reproduced,
            "reproducer": None if self.reproducer is None else str(self.reproducer),
            "trace": None if self.trace is None else str(self.trace),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayResult:
    """What came of a program that was played again.

    Args:
        probes: with what.
        reproducer: what was played.
        plays: how often.
        totals: what was done.
        finding: what the last of them found; None if none did.
        seconds: of all of them.
    """

    probes: Probes
    reproducer: Reproducer
    plays: int
    totals: TortureTotals
    finding: TortureFinding | None
    seconds: float

    @property
    def exit_status(self) -> ExitStatus:
        """GOOD if nothing was found, else BAD."""
        return ExitStatus.GOOD if self.finding is None else ExitStatus.BAD

    def as_dict(self) -> dict[str, object]:
        """The JSON document of `torture replay --json`."""
        return {
            "schema": _REPLAY_SCHEMA,
            "host": {**self.probes.host.as_dict(), "kvm": self.probes.kvm.as_dict()},
            "qemu": self.probes.qemu.as_dict(),
            "verdict": "clean" if self.finding is None else self.finding.kind.value,
            "plays": self.plays,
            "seconds": round(self.seconds, 3),
            "removals": self.totals.removals,
            "migrations": dict(self.totals.migrations),
            "cancels": self.totals.cancels,
            "finding": None if self.finding is None else self.finding.as_dict(),
        }
