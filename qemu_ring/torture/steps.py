"""The steps that a guest is taken through, as data: made at random, kept in files, replayed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator

from qemu_ring.memslot import FlushPolicy, Shape
from qemu_ring.migration import (
    AutoConverge,
    Compression,
    Fd,
    GuestAt,
    MigrationPlan,
    Multifd,
    Postcopy,
    Precopy,
    Tcp,
    Unix,
    Xbzrle,
)
from qemu_ring.prove.stage import HELPER, SLOT

__all__ = [
    "ABORTS",
    "STEPS",
    "Abort",
    "Begin",
    "Block",
    "Cancel",
    "Complete",
    "Cycle",
    "GuestToggle",
    "Kill",
    "Limit",
    "MeasureRate",
    "Migrate",
    "MigrationForm",
    "Move",
    "Pause",
    "Plug",
    "Policy",
    "Program",
    "Put",
    "Reset",
    "Reshape",
    "Slot",
    "Step",
    "Take",
    "Write",
    "plainer",
]

_MIB: Final = 1 << 20
Slot = Literal["slot", "helper"]
"""A memslot of a PCI device."""
Block = Literal["ballast", "slot", "window"]
"""What the guest can write: memory that stays, a PCI device's, or the test device's."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class MigrationForm(_Part):
    """How a migration goes; bandwidths in MiB a second, None for no limit."""

    kind: Literal["precopy", "postcopy"] = "precopy"
    channel: Literal["fd", "unix", "tcp"] = "fd"
    multifd: int | None = Field(default=None, ge=1, le=16)
    compression: Compression = "none"
    xbzrle: bool = False
    auto_converge: bool = False
    preempt: bool = False
    max_bandwidth: int | None = Field(default=None, ge=1)
    downtime_ms: int = Field(default=300, ge=1)

    @model_validator(mode="after")
    def _can_be(self) -> MigrationForm:
        if self.channel == "fd" and (self.multifd is not None or self.preempt):
            raise ValueError("fd is a single connection")
        if self.preempt and self.kind != "postcopy":
            raise ValueError("preempt is postcopy's")
        if self.compression != "none" and self.multifd is None:
            raise ValueError("compression is multifd's")
        return self

    def plan(self, *, held: bool = False) -> MigrationPlan:
        """As the engine takes it.

        Args:
            held: whether it is to switch over only when it is told to; bandwidth and downtime are
                the caller's to change.
        """
        passes = 1_000_000 if held else 1
        postcopy = Postcopy(after_passes=passes, preempt=self.preempt)
        return MigrationPlan(
            kind=postcopy if self.kind == "postcopy" else Precopy(),
            channel={"fd": Fd(), "unix": Unix(), "tcp": Tcp()}[self.channel],
            multifd=None if self.multifd is None else Multifd(self.multifd, self.compression),
            xbzrle=Xbzrle() if self.xbzrle else None,
            throttle=AutoConverge() if self.auto_converge else None,
            max_bandwidth=(self.max_bandwidth or 0) * _MIB,
            downtime_limit=self.downtime_ms / 1000,
            pause_before_switchover=held,
            if_stale=GuestAt.NOWHERE,
        )


class Write(_Part):
    """All vCPUs write a block, each its own part; pages a second of all, None as fast as can be.

    `quarter`: only this one of the block's. A page that was written since it was sent last is sent
    again in any case: to lose one there has to be one that was not.
    """

    do: Literal["write"] = "write"
    block: Block = "slot"
    pattern: Literal["idle", "once", "loop", "random", "hot-cold"] = "once"
    pages_per_second: float | None = 100_000.0
    quarter: int | None = Field(default=None, ge=0, le=3)


class Take(_Part):
    """A PCI device's memory goes away, and stays away."""

    do: Literal["take"] = "take"
    slot: Slot = "slot"


class Put(_Part):
    """It comes back."""

    do: Literal["put"] = "put"
    slot: Slot = "slot"


class Cycle(_Part):
    """PCI devices' memory goes away, in this order, and comes back; again and again.

    It ends sooner when the vCPUs have written once all that they were to.
    """

    do: Literal["cycle"] = "cycle"
    slots: tuple[Slot, ...] = Field(default=("slot", "helper"), min_length=1, max_length=2)
    times: int = Field(default=1, ge=1, le=1000)
    pause_ms: float = Field(default=0, ge=0, le=1000)


class Move(_Part):
    """A PCI device's memory goes to another address, and back; again and again."""

    do: Literal["move"] = "move"
    slot: Slot = "slot"
    times: int = Field(default=1, ge=1, le=1000)


class Reshape(_Part):
    """The test device goes through a shape again and again, then stays after some of its layouts.

    It ends sooner as a `Cycle` does. Without a pause the vCPUs have no time between two
    transactions, because QEMU keeps its big lock.
    """

    do: Literal["reshape"] = "reshape"
    shape: Shape = Shape.SEVERAL
    times: int = Field(default=1, ge=1, le=10_000)
    pause_us: int = Field(default=200, ge=0, le=100_000)
    stay: int = Field(default=0, ge=0, le=7)

    @model_validator(mode="after")
    def _can_be(self) -> Reshape:
        if self.shape is Shape.PCI:
            raise ValueError("the test device does not do pci")
        return self


class GuestToggle(_Part):
    """vCPU 0 turns the PCI devices' memory off and on by itself, until it is to write again."""

    do: Literal["guest-toggle"] = "guest-toggle"
    rest_us: int = Field(default=200, ge=0, le=100_000)


class Policy(_Part):
    """Another flush policy, for this QEMU and those that the guest comes to."""

    do: Literal["policy"] = "policy"
    policy: FlushPolicy = FlushPolicy.QUIESCE


class MeasureRate(_Part):
    """The dirty rate is measured, which starts, syncs and stops dirty logging for itself."""

    do: Literal["measure"] = "measure"


class Plug(_Part):
    """A vCPU is plugged; it runs after the next reset."""

    do: Literal["plug"] = "plug"


class Reset(_Part):
    """The machine is reset; the firmware starts anew, and the PCI devices are mapped again."""

    do: Literal["reset"] = "reset"


class Pause(_Part):
    """The vCPUs are stopped, and let run again."""

    do: Literal["pause"] = "pause"


class Begin(_Part):
    """A migration begins, and is held open when its first pass is over.

    `quiet`: during that pass the guest writes memory that stays, so that all else is clean then.
    """

    do: Literal["begin"] = "begin"
    plan: MigrationForm = MigrationForm()
    quiet: bool = True


class Limit(_Part):
    """The migration under way gets another bandwidth, MiB a second, and downtime."""

    do: Literal["limit"] = "limit"
    max_bandwidth: int = Field(default=8, ge=1)
    downtime_ms: int = Field(default=1, ge=1)


class Complete(_Part):
    """It completes; memory is compared; the guest goes on at the destination.

    `stopped`: the guest is stopped before that.
    """

    do: Literal["complete"] = "complete"
    stopped: bool = True


class Cancel(_Part):
    """It is cancelled; the guest goes on at the source."""

    do: Literal["cancel"] = "cancel"


class Kill(_Part):
    """Its destination is killed, and so it fails; the guest goes on at the source."""

    do: Literal["kill"] = "kill"


class Migrate(_Part):
    """A whole migration; memory is compared; the guest goes on at the destination."""

    do: Literal["migrate"] = "migrate"
    plan: MigrationForm = MigrationForm()


class Abort(_Part):
    """A migration begins, and at some moment it ends: the guest goes on at the source.

    `by`: it is cancelled, or its destination killed; or there is none but a program that reads, and
    it is cancelled (`cancel-sink`), or the program ends after so many KiB (`cut-sink`).
    """

    do: Literal["abort"] = "abort"
    by: Literal["cancel-sink", "cut-sink", "cancel", "kill"] = "cancel-sink"
    after_ms: float = Field(default=50, ge=0, le=10_000)
    after_kib: int = Field(default=1024, ge=0)
    max_bandwidth: int | None = Field(default=None, ge=1)


Step: TypeAlias = (
    Write
    | Take
    | Put
    | Cycle
    | Move
    | Reshape
    | GuestToggle
    | Policy
    | MeasureRate
    | Plug
    | Reset
    | Pause
    | Begin
    | Limit
    | Complete
    | Cancel
    | Kill
    | Migrate
    | Abort
)
Program: TypeAlias = tuple[Step, ...]
STEPS: Final = TypeAdapter(tuple[Annotated[Step, Field(discriminator="do")], ...])
"""A program as JSON has it."""
ABORTS: Final = (Abort, Cancel, Kill)
"""What ends a migration before it completes."""
SLOTS: Final[tuple[Slot, ...]] = ("slot", "helper")
assert SLOTS == (SLOT, HELPER)


def plainer(step: Step) -> Iterator[Step]:
    """The step with one of its values, or one of its plan's, as it is by default.

    How often something is done is kept: a rare loss takes many times.
    """
    for name, field in type(step).model_fields.items():
        value = getattr(step, name)
        if name in ("do", "times") or value == field.default:
            continue
        yield _with(step, name, field.default)
        if isinstance(value, MigrationForm):
            for inner, its in MigrationForm.model_fields.items():
                if getattr(value, inner) != its.default:
                    try:
                        part = MigrationForm(**{**value.model_dump(), inner: its.default})
                    except ValueError:
                        continue  # goes with another that is not plain
                    yield _with(step, name, part)


def _with(step: Step, name: str, value: Any) -> Step:
    return step.model_copy(update={name: value})
