"""Which steps can follow which: the same rules for making, shrinking and replaying programs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from qemu_ring.memslot import FlushPolicy
from qemu_ring.migration import Compression
from qemu_ring.torture.steps import (
    ABORTS,
    Abort,
    Begin,
    Cancel,
    Complete,
    Cycle,
    GuestToggle,
    Kill,
    Limit,
    Migrate,
    MigrationForm,
    Move,
    Plug,
    Policy,
    Program,
    Put,
    Reset,
    Reshape,
    Step,
    Take,
    Write,
)

__all__ = ["MAX_PLUGGED", "Features", "Situation", "program_of"]

MAX_PLUGGED: Final = 2
"""vCPUs that can be plugged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """What can be done with a guest of this QEMU.

    Args:
        vcpus: how many it has from the start.
        policies: flush policies to switch between; empty if the QEMU has none, or one is to stay.
        windows: whether it has the test device.
        postcopy, preempt, multifd, xbzrle, auto_converge: whether migrations can be so.
        compressions: of multifd.
    """

    vcpus: int = 2
    policies: tuple[FlushPolicy, ...] = ()
    windows: bool = False
    postcopy: bool = False
    preempt: bool = False
    multifd: bool = False
    compressions: tuple[Compression, ...] = ()
    xbzrle: bool = False
    auto_converge: bool = False

    def allow(self, step: Step) -> bool:
        """Whether it can be done at all."""
        if isinstance(step, Policy):
            return step.policy in self.policies
        if isinstance(step, Reshape):
            return self.windows
        if isinstance(step, Write):
            return self.windows or step.block != "window"
        if isinstance(step, GuestToggle):
            return self.vcpus > 1
        if isinstance(step, Begin | Migrate):
            return self._allow_plan(step.plan)
        return True

    def _allow_plan(self, plan: MigrationForm) -> bool:
        wanted = (
            (plan.kind == "postcopy", self.postcopy),
            (plan.preempt, self.preempt),
            (plan.multifd is not None, self.multifd),
            (plan.compression != "none", plan.compression in self.compressions),
            (plan.xbzrle, self.xbzrle),
            (plan.auto_converge, self.auto_converge),
        )
        return all(there for asked, there in wanted if asked)


@dataclass(slots=True)
class Situation:
    """Where a guest is after the steps so far.

    Args:
        features: what can be done at all.
        migrating: whether a migration is under way, held open.
        away: PCI devices' memory that is away.
        plugged: vCPUs that were plugged.
        guest_toggles: whether a vCPU turns PCI devices' memory off and on; the host must not then.
        aborted: whether a migration was ended since the last one that completed.
    """

    features: Features
    migrating: bool = False
    away: frozenset[str] = frozenset()
    plugged: int = 0
    guest_toggles: bool = False
    aborted: bool = False

    def allows(self, step: Step) -> bool:
        """Whether this step can be the next."""
        if not self.features.allow(step):
            return False
        if isinstance(step, Limit | Complete | Cancel | Kill):
            return self.migrating
        if isinstance(step, Begin | Migrate | Abort):
            return not self.migrating
        if isinstance(step, Plug):
            return not self.migrating and self.plugged < MAX_PLUGGED
        if isinstance(step, GuestToggle):
            return not self.away
        if isinstance(step, Take | Put | Cycle | Move):
            slots = set(step.slots if isinstance(step, Cycle) else (step.slot,))
            there = slots <= self.away if isinstance(step, Put) else not slots & self.away
            return there and not self.guest_toggles
        return True

    def take(self, step: Step) -> None:
        """Go through a step that is allowed."""
        if isinstance(step, Begin):
            self.migrating = True
        elif isinstance(step, Complete | Migrate):
            self.migrating = self.aborted = False
        elif isinstance(step, ABORTS):
            self.migrating, self.aborted = False, True
        elif isinstance(step, Take):
            self.away |= {step.slot}
        elif isinstance(step, Put):
            self.away -= {step.slot}
        elif isinstance(step, Plug):
            self.plugged += 1
        elif isinstance(step, Reset):
            self.away = frozenset()
        if isinstance(step, GuestToggle):
            self.guest_toggles = True
        elif isinstance(step, Write | Reset) or (isinstance(step, Begin) and step.quiet):
            self.guest_toggles = False


def program_of(steps: Iterable[Step], features: Features) -> Program:
    """The steps without those that cannot be where they are, and with an end that shows a loss.

    What is under way is completed; after one that was aborted another one follows.
    """
    situation, kept = Situation(features), list[Step]()
    for step in steps:
        if situation.allows(step):
            situation.take(step)
            kept.append(step)
    if situation.migrating:
        kept.append(Complete())
    elif situation.aborted:
        kept.append(Migrate())
    return tuple(kept)
