"""What a migration is to keep to, each decision made for it, and whether it was kept: data only."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Literal, get_args

from qemu_ring.migration.errors import PlanError
from qemu_ring.migration.values import require_bandwidth, require_downtime

__all__ = ["Goal", "GoalAction", "GoalDecision", "GoalFigures", "GoalOutcome", "GoalThen"]

GoalThen = Literal["throttle", "auto-converge", "dirty-limit", "postcopy", "cancel", "wait"]

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Goal:
    """Converge within a time, at the cost of no more than a downtime.

    The allowed downtime begins at an eighth of the goal's, and is raised when that gets the
    migration no further. `then` is what is done when even all of it does not suffice:

    - ``throttle``: slow the guest down by the cheapest means that this QEMU has for this guest:
      dirty-limit, which slows only vCPUs that write much, or else auto-converge;
    - ``auto-converge``, ``dirty-limit``: slow it down by that;
    - ``postcopy``: switch over, and have memory follow;
    - ``cancel``: give up as soon as it is known that it will not be kept;
    - ``wait``: tell it, and go on for as long as it takes.

    A migration that throttles is cancelled when the time is over, or when the guest is as slow as
    it can be made and that does not help. The guest then goes on at the source.

    Args:
        within: seconds from the migration's start until the destination has all.
        downtime: seconds that the guest may stand still, 0.001 to 2000.
        then: see above.
        postcopy_bandwidth: bytes a second after a switchover to postcopy; None for QEMU's own.
    """

    within: float
    downtime: float = 0.3
    then: GoalThen = "throttle"
    postcopy_bandwidth: int | None = None

    def __post_init__(self) -> None:
        if not self.within > 0:
            raise PlanError("goal.within", f"{self.within:g} s is not greater than 0")
        require_downtime("goal.downtime", self.downtime)
        if self.then not in get_args(GoalThen):
            raise PlanError("goal.then", f"cannot be {self.then!r}")
        require_bandwidth("goal.postcopy_bandwidth", self.postcopy_bandwidth)
        if self.postcopy_bandwidth is not None and self.then != "postcopy":
            raise PlanError("goal.postcopy_bandwidth", "is for postcopy, and the goal takes none")

    @property
    def throttles(self) -> bool:
        """Whether the guest may be slowed down."""
        return self.then in ("throttle", "auto-converge", "dirty-limit")


class GoalAction(str, Enum):
    """What was decided."""

    LIMIT = "downtime-limit"
    """Allow more downtime."""
    THROTTLE = "throttle"
    """Slow the guest down, or more than before."""
    POSTCOPY = "postcopy"
    """Switch over now; memory follows."""
    CANCEL = "cancel"
    """Give up."""
    MISS = "miss"
    """Nothing; but it is known now that the goal is not kept, unless the guest changes."""

    __str__ = str.__str__


@dataclass(frozen=True, slots=True)
class GoalFigures:
    """What a decision was made by. Sizes in bytes, times in seconds.

    Args:
        iteration: passes over memory begun.
        remaining: known to be left to send.
        bandwidth: bytes a second, the median of the latest.
        dirty_rate: bytes a second, as QEMU measured it last; 0 if it has not yet.
        downtime_needed: to send what is left with the guest stopped; None if the bandwidth is
            not known.
        seconds_needed: until what is left can be sent in the goal's downtime, if it goes on as in
            the latest passes; None if it never can, or nothing can be said yet.
        passes_without_progress: in a row.
        throttle: percent that auto-converge takes from the vCPUs.
    """

    iteration: int
    remaining: int
    bandwidth: float
    dirty_rate: int
    downtime_needed: float | None
    seconds_needed: float | None
    passes_without_progress: int
    throttle: int | None

    def __str__(self) -> str:
        """Say it in one clause."""
        words = [f"pass {self.iteration}, {self.remaining / _MIB:,.1f} MiB left"]
        if self.downtime_needed is not None:
            needs = f"{self.downtime_needed * 1000:,.0f} ms"
            words.append(f"{needs} of downtime at {self.bandwidth / _MIB:,.1f} MiB/s")
        if self.dirty_rate:
            words.append(f"{self.dirty_rate / _MIB:,.1f} MiB/s dirtied")
        if self.throttle:
            words.append(f"throttled by {self.throttle}%")
        return ", ".join(words)


@dataclass(frozen=True, slots=True)
class GoalDecision:
    """Something that was decided on the way to a goal.

    Args:
        seconds: since the migration's start.
        action: what.
        what: the same in words, with its amount.
        reason: why.
        figures: that led to it.
        downtime_limit: seconds that are allowed from now on.
        parameters: of QEMU that are set for it; by QMP name, values as in QMP.
    """

    seconds: float
    action: GoalAction
    what: str
    reason: str
    figures: GoalFigures
    downtime_limit: float
    parameters: dict[str, object] = field(default_factory=dict)

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self) | {"action": self.action.value}

    def __str__(self) -> str:
        """Say it in a line."""
        return f"{self.seconds:.1f} s: {self.what}: {self.reason} ({self.figures})"


@dataclass(frozen=True, slots=True)
class GoalOutcome:
    """Whether a goal was kept.

    Args:
        goal: it.
        kept: whether it was.
        reason: why not; empty if it was.
        known_at: when that was known, seconds since the migration's start; None if it was kept.
        throttle: the means to slow the guest down that QEMU was set up for; empty if none.
        decisions: in their order.
    """

    goal: Goal
    kept: bool
    reason: str
    known_at: float | None
    throttle: str
    decisions: tuple[GoalDecision, ...]

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self) | {"decisions": [one.as_dict() for one in self.decisions]}
