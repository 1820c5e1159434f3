"""What a proof found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Final

from qemu_ring.errors import ExitStatus
from qemu_ring.machine import Host, KvmCapabilities, QemuBinary
from qemu_ring.memslot import FlushInfo, FlushPolicy, Shape
from qemu_ring.prove.options import Control, ProveOptions
from qemu_ring.statistics import rule_of_three
from qemu_ring.verify import StalePage

__all__ = ["SCHEMA", "ProveProgress", "ProveResult", "ReAdd", "Round", "RoundKind", "ShapeTotal"]

SCHEMA: Final = {"name": "qemu-ring.prove", "version": 1}

RoundKind = str
"""What a round was for: "removals"; "baseline" or "re-add"; "walk" or "idle-removals"."""


@dataclass(frozen=True, slots=True)
class ProveProgress:
    """How far a proof has come.

    Args:
        seconds: since its start.
        removals: slots removed.
        stale_pages: found so far.
        pages_written: into the slots so far.
        rounds: migrations completed and compared.
    """

    seconds: float
    removals: int
    stale_pages: int
    pages_written: int
    rounds: int


@dataclass(frozen=True, slots=True)
class Round:
    """One migration, held open while slots went away, completed and compared.

    Args:
        number: from 0.
        kind: what it was for.
        shape: how the slots were removed; None if none was.
        removals: slots removed in it.
        pages_written: pages of the slots whose content the guest changed in it.
        writes: what the guest counted, writes that met no slot included.
        stale_pages: pages that differ at the destination.
        pages_sent_again: pages sent because they were, or counted as, dirtied after the
            first pass and the harvest that ended it.
        seconds: from the migration's start to the end of the comparison.
        ended_at_seconds: the same end, counted from the start of the proof.
    """

    number: int
    kind: RoundKind
    shape: str | None
    removals: int
    pages_written: int
    writes: int
    stale_pages: int
    pages_sent_again: int
    seconds: float
    ended_at_seconds: float


@dataclass(frozen=True, slots=True)
class ShapeTotal:
    """All that was done and found in the rounds of one shape."""

    shape: str
    rounds: int
    removals: int
    pages_written: int
    stale_pages: int


@dataclass(frozen=True, slots=True)
class ReAdd:
    """What one removal and re-addition of an idle slot cost in pages sent again.

    Args:
        slot_bytes: size of the slot.
        resent_bytes: sent again because of it, against a migration without it.
    """

    slot_bytes: int
    resent_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProveResult:
    """All that a proof found; `stale` lists at most the first 1000 pages.

    Args:
        first_write_seconds: from the start of QEMU until every vCPU had written.
        first_stale_seconds: from the start of the proof until a comparison found one.
        void_rounds: migrations that completed before they were held; not counted.
        flush: a patched QEMU's own counters at the end of the run.
    """

    options: ProveOptions
    host: Host
    kvm: KvmCapabilities
    qemu: QemuBinary
    rounds: tuple[Round, ...]
    stale: tuple[StalePage, ...]
    re_add: ReAdd | None
    seconds: float
    first_write_seconds: float
    first_stale_seconds: float | None
    void_rounds: int
    flush: FlushInfo | None

    @property
    def policy(self) -> str:
        """The flush policy in force; an unpatched QEMU has but one."""
        if self.flush is None:
            return FlushPolicy.BEST_EFFORT.value
        return self.flush.effective.value

    @property
    def removals(self) -> int:
        """Slots removed, but for the one of the re-add measurement."""
        return sum(one.removals for one in self.rounds if one.kind != "re-add")

    @property
    def pages_written(self) -> int:
        """Pages of the slots that the guest changed."""
        return sum(one.pages_written for one in self.rounds)

    @property
    def stale_pages(self) -> int:
        """Pages that differed at the destination."""
        return sum(one.stale_pages for one in self.rounds)

    @property
    def loss_bound(self) -> float | None:
        """What a run that lost nothing says: less than so many removals in one lose a page.

        At a confidence of 95 %, if removals do not depend on each other: 3 by the number of
        removals. None where something was lost, nothing removed, or in a control run.
        """
        if self.stale_pages or not self.removals or self.options.control is not None:
            return None
        return rule_of_three(self.removals)

    @property
    def shapes(self) -> tuple[ShapeTotal, ...]:
        """By shape of removal, in the order of `Shape`."""
        totals = []
        for shape in Shape:
            rounds = [one for one in self.rounds if one.shape == shape.value]
            if rounds:
                totals.append(
                    ShapeTotal(
                        shape=shape.value,
                        rounds=len(rounds),
                        removals=sum(one.removals for one in rounds),
                        pages_written=sum(one.pages_written for one in rounds),
                        stale_pages=sum(one.stale_pages for one in rounds),
                    )
                )
        return tuple(totals)

    @property
    def exit_status(self) -> ExitStatus:
        """GOOD if no page was stale, else BAD."""
        return ExitStatus.BAD if self.stale_pages else ExitStatus.GOOD

    def as_dict(self) -> dict[str, object]:
        """The JSON document of `prove --json`."""
        options = self.options
        control: Control | None = options.control
        return {
            "schema": SCHEMA,
            "host": {**self.host.as_dict(), "kvm": self.kvm.as_dict()},
            "qemu": self.qemu.as_dict(),
            "policy": self.policy,
            "tracking": str(options.tracking),
            "machine": options.machine,
            "vcpus": options.vcpus,
            "writer": options.writer.value,
            "pages_per_second": options.pages_per_second,
            "control": None if control is None else control.value,
            "verdict": "stale" if self.stale_pages else "clean",
            "removals": self.removals,
            "pages_written": self.pages_written,
            "stale_pages": self.stale_pages,
            "loss_bound": self.loss_bound,
            "stale": [asdict(page) for page in self.stale],
            "seconds": round(self.seconds, 3),
            "first_write_seconds": round(self.first_write_seconds, 4),
            "first_stale_seconds": (
                None if self.first_stale_seconds is None else round(self.first_stale_seconds, 3)
            ),
            "re_add": None if self.re_add is None else asdict(self.re_add),
            "void_rounds": self.void_rounds,
            "shapes": [asdict(one) for one in self.shapes],
            "flush": None if self.flush is None else self.flush.model_dump(mode="json"),
            "rounds": [asdict(one) for one in self.rounds],
        }
