"""How a guest is migrated: between which QEMUs, how it runs there, and by whom."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from qemu_ring.migration import Channel, MigrationPlan, Postcopy, Unix

MIB = 1 << 20


@dataclass(frozen=True)
class Route:
    """The QEMUs that take turns, by name; a machine version if they are not the same."""

    name: str
    qemus: tuple[str, ...]
    version: str | None = None


ROUTES = (
    Route("7.2", ("distribution",)),
    Route("10.0", ("patched",)),
    Route("7.2 and 10.0", ("distribution", "patched"), "7.2"),
    Route("10.0 and 7.2", ("patched", "distribution"), "7.2"),
)


@dataclass(frozen=True)
class Acceleration:
    """`-accel`, and what it needs: a marker of the tests."""

    name: str
    argument: str
    marker: str

    @property
    def is_kvm(self) -> bool:
        return self.marker != "qemu"


ACCELERATIONS = (
    Acceleration("KVM, bitmap", "kvm", "kvm"),
    Acceleration("KVM, ring", "kvm,dirty-ring-size=4096", "ring"),
    Acceleration("TCG", "tcg", "qemu"),
)


class Kind(Enum):
    """Each is a way to another QEMU."""

    PRECOPY = "precopy"
    POSTCOPY = "postcopy"
    FILE = "file"

    def plan(self, channel: Channel | None = None, *, leave_paused: bool) -> MigrationPlan:
        channel = channel or Unix()
        if self is Kind.POSTCOPY:  # slow enough that there is something left to do
            return MigrationPlan(
                kind=Postcopy(),
                channel=channel,
                max_bandwidth=32 * MIB,
                downtime_limit=0.001,
                leave_paused=leave_paused,
            )
        return MigrationPlan(channel=channel, leave_paused=leave_paused)

    @property
    def options(self) -> list[str]:
        """The same for `qemu-ring migrate`."""
        if self is Kind.POSTCOPY:
            return ["--kind", "postcopy", "--max-bandwidth", "32M", "--downtime-limit", "0.001"]
        return []


class Controller(Enum):
    """Who drives it, and who looks whether the memory is equal."""

    LIBRARY = "library"
    COMMAND = "command"
    VERIFY = "command --verify"


@dataclass(frozen=True)
class Trip:
    """How often the guest moves: from each QEMU to the next, and after the last to the first."""

    name: str
    moves: int


TRIPS = (Trip("once", 1), Trip("to and fro, twice", 4))
