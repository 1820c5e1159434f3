"""What can strike a migration, when, and where the guest may be found afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from qemu_ring.migration import GuestAt

__all__ = ["Fault", "Kind", "Phase", "all_faults", "some_faults"]


class Phase(str, Enum):
    """Where a fault strikes; in order."""

    SETUP = "setup"
    BEGUN = "begun"
    FIRST_PASS = "first pass"
    SECOND_PASS = "second pass"
    THIRD_PASS = "third pass"
    BEFORE_SWITCHOVER = "before switchover"
    SWITCHOVER = "switchover"
    POSTCOPY_BEGUN = "postcopy begun"
    POSTCOPY = "postcopy"
    PAUSED = "postcopy paused"
    RECOVERY = "recovery"
    RECOVERED = "recovered"

    @property
    def is_postcopy(self) -> bool:
        return list(Phase).index(self) >= list(Phase).index(Phase.POSTCOPY_BEGUN)

    @property
    def switches_over(self) -> bool:
        return self in (Phase.BEFORE_SWITCHOVER, Phase.SWITCHOVER)

    @property
    def is_paused_first(self) -> bool:
        return self in (Phase.PAUSED, Phase.RECOVERY, Phase.RECOVERED)


class Kind(str, Enum):
    """What strikes."""

    SOURCE = "kill -9 source"
    DESTINATION = "kill -9 destination"
    CONTROLLER = "kill -9 controller"
    CUT = "channel cut"
    DISK = "disk full"


KILLS = (Kind.SOURCE, Kind.DESTINATION, Kind.CONTROLLER)
STRIKES = {
    "fd": (*KILLS, Kind.CUT),
    "unix": KILLS,
    "file": (Kind.SOURCE, Kind.CONTROLLER, Kind.DISK),
}
"""What can strike each channel."""


@dataclass(frozen=True)
class Fault:
    """One fault: what, when, through which channel."""

    phase: Phase
    kind: Kind
    channel: str

    def __str__(self) -> str:
        return f"{self.phase.value}, {self.kind.value}, {self.channel}"

    @property
    def survivors(self) -> set[GuestAt]:
        """Where the guest may be found, by what QEMU can do."""
        if self.kind is Kind.CONTROLLER:
            return {GuestAt.NOWHERE}  # it started the QEMUs, and they end with it
        if self.phase.is_postcopy:
            if self.kind is not Kind.CUT:
                return {GuestAt.NOWHERE}
            # A destination that has not got the devices yet ends with its channel.
            begun = self.phase is Phase.POSTCOPY_BEGUN
            return {GuestAt.DESTINATION, GuestAt.NOWHERE} if begun else {GuestAt.DESTINATION}
        survivors = {GuestAt.NOWHERE} if self.kind is Kind.SOURCE else {GuestAt.SOURCE}
        if self.phase is not Phase.SWITCHOVER:
            return survivors
        # The fault may come after the last byte. A guest that is saved does not run.
        gone = self.channel == "file" or self.kind is Kind.DESTINATION
        return survivors | {GuestAt.NOWHERE if gone else GuestAt.DESTINATION}


def all_faults() -> list[Fault]:
    """Each phase with each fault that can strike in it."""
    precopy = [phase for phase in Phase if not phase.is_postcopy]
    found = [
        Fault(phase, kind, channel)
        for channel, kinds in STRIKES.items()
        for phase in precopy
        for kind in kinds
    ]
    postcopy = [phase for phase in Phase if phase.is_postcopy]
    found += [Fault(phase, kind, "fd") for phase in postcopy for kind in STRIKES["fd"]]
    found.remove(Fault(Phase.PAUSED, Kind.CUT, "fd"))  # it is cut already
    return found


def some_faults() -> list[Fault]:
    """Each phase and each kind of fault at least once."""
    return [
        Fault(Phase.SETUP, Kind.SOURCE, "fd"),
        Fault(Phase.BEGUN, Kind.DESTINATION, "unix"),
        Fault(Phase.FIRST_PASS, Kind.CUT, "fd"),
        Fault(Phase.FIRST_PASS, Kind.DISK, "file"),
        Fault(Phase.FIRST_PASS, Kind.CONTROLLER, "file"),
        Fault(Phase.SECOND_PASS, Kind.DESTINATION, "fd"),
        Fault(Phase.THIRD_PASS, Kind.SOURCE, "file"),
        Fault(Phase.BEFORE_SWITCHOVER, Kind.CUT, "fd"),
        Fault(Phase.BEFORE_SWITCHOVER, Kind.DISK, "file"),
        Fault(Phase.SWITCHOVER, Kind.SOURCE, "unix"),
        Fault(Phase.SWITCHOVER, Kind.DESTINATION, "unix"),
        Fault(Phase.POSTCOPY_BEGUN, Kind.CUT, "fd"),
        Fault(Phase.POSTCOPY, Kind.CUT, "fd"),
        Fault(Phase.POSTCOPY, Kind.CONTROLLER, "fd"),
        Fault(Phase.PAUSED, Kind.DESTINATION, "fd"),
        Fault(Phase.RECOVERY, Kind.SOURCE, "fd"),
        Fault(Phase.RECOVERED, Kind.CUT, "fd"),
    ]
