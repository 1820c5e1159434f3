"""How the guest can be slowed down on the way to a goal: what a QEMU has, and what it is set to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

from qemu_ring.dirty import RunningTracking, TrackingMode, least_limit, query_tracking
from qemu_ring.errors import QemuUnsuitableError
from qemu_ring.guest import PAGE_SIZE
from qemu_ring.migration.plan import MigrationPlan
from qemu_ring.qmp import Monitor, commands

__all__ = ["Throttle", "ThrottleStep", "find_throttle"]

_MIB: Final = 1 << 20
_UNLIMITED: Final = 1 << 20
"""MiB a second, of a dirty limit that holds nobody."""
_STEP_SECONDS: Final = 2.0
"""Auto-converge takes a step after two measurements of a second or more."""
_MOST_PERCENT: Final = 99


@dataclass(frozen=True, slots=True)
class ThrottleStep:
    """A step of slowing the guest down.

    Args:
        what: in words.
        parameters: of QEMU, by QMP name.
        level: for the next step.
    """

    what: str
    parameters: dict[str, object]
    level: int


@dataclass(frozen=True, slots=True)
class Throttle:
    """A means to slow the guest down, ready from the start and held until it is needed.

    QEMU takes the capability only before a migration begins. From then on it throttles by itself;
    it is held from that by parameters.

    Args:
        means: the capability.
        vcpus: how many the guest has.
        least: for dirty-limit, bytes a second below which QEMU brings no vCPU.
    """

    means: Literal["auto-converge", "dirty-limit"]
    vcpus: int = 1
    least: int = 0

    @property
    def held(self) -> dict[str, object]:
        """Parameters with which it does next to nothing: one percent, or no limit."""
        threshold: dict[str, object] = {"throttle-trigger-threshold": 100}
        if self.means == "dirty-limit":
            return threshold | {"vcpu-dirty-limit": _UNLIMITED}
        return threshold | {
            "cpu-throttle-initial": 1,
            "cpu-throttle-increment": 1,
            "max-cpu-throttle": 1,
        }

    def first(self, bandwidth: float, seconds_left: float) -> ThrottleStep:
        """Begin: to half of what can be sent, or in steps that get there in half of the time."""
        if self.means == "dirty-limit":
            return self._limited(max(int(bandwidth / 2 / self.vcpus), self._floor))
        steps = max(1, int(seconds_left / 2 / _STEP_SECONDS))
        increment = min(max(math.ceil(80 / steps), 10), 40)
        return self._converging(min(2 * increment, 60), increment, threshold=50)

    def more(self, level: int, percent: int | None) -> ThrottleStep | None:
        """Go further than at that level; None if it cannot be slowed down further.

        Args:
            level: of the step before.
            percent: that auto-converge takes now.
        """
        if self.means == "dirty-limit":
            if level <= self._floor:
                return None
            return self._limited(max(level // 2, self._floor))
        if level > 10:
            return self._converging(60, 40, threshold=10)
        if percent is not None and percent >= _MOST_PERCENT:
            return None
        return ThrottleStep("", {}, level)  # QEMU takes the next step by itself

    @property
    def _floor(self) -> int:
        return max(self.least, _MIB)

    def _limited(self, limit: int) -> ThrottleStep:
        mib = max(1, limit // _MIB)
        parameters: dict[str, object] = {
            "vcpu-dirty-limit": mib,
            "throttle-trigger-threshold": 10,
        }
        return ThrottleStep(
            f"throttle by dirty-limit, {mib} MiB/s for each vCPU", parameters, mib * _MIB
        )

    def _converging(self, initial: int, increment: int, *, threshold: int) -> ThrottleStep:
        parameters: dict[str, object] = {
            "throttle-trigger-threshold": threshold,
            "cpu-throttle-initial": initial,
            "cpu-throttle-increment": increment,
            "max-cpu-throttle": _MOST_PERCENT,
        }
        what = f"throttle by auto-converge, in steps of {increment}%"
        return ThrottleStep(what, parameters, threshold)


async def find_throttle(plan: MigrationPlan, monitor: Monitor) -> Throttle | None:
    """Find the means that a plan's goal takes; None if it does without.

    Raises:
        QemuUnsuitableError: the means that it names cannot be had for this guest.
    """
    goal = plan.goal
    if goal is None or not goal.throttles:
        return None
    vcpus = max(1, len(await commands.query_cpus_fast(monitor)))
    if goal.then == "auto-converge":
        return Throttle("auto-converge", vcpus)
    tracking = await query_tracking(monitor)
    capable = "dirty-limit" in await commands.query_capabilities(monitor)
    least = least_limit(tracking.ring_entries or 0)
    if goal.then == "dirty-limit":
        _require_ring(tracking)
        return Throttle("dirty-limit", vcpus, least)
    limit: object = plan.max_bandwidth
    if limit is None:
        limit = (await commands.query_parameters(monitor)).get("max-bandwidth")
    # A vCPU can always dirty one ring a second, which may be more than can be sent; and it comes
    # at once, which may be more than can be sent within the downtime.
    at_once = (tracking.ring_entries or 0) * PAGE_SIZE * vcpus
    suffices = not limit or (
        isinstance(limit, int)
        and least * vcpus <= limit / 2
        and at_once <= limit * goal.downtime / 2
    )
    if capable and tracking.mode is TrackingMode.RING and suffices:
        return Throttle("dirty-limit", vcpus, least)
    return Throttle("auto-converge", vcpus)


def _require_ring(tracking: RunningTracking) -> None:
    if tracking.mode is not TrackingMode.RING:
        raise QemuUnsuitableError(
            f"the source cannot throttle by dirty-limit: it takes the dirty ring, and the guest's "
            f"tracking is {tracking}",
            hint="use auto-converge, or start the guest with -accel kvm,dirty-ring-size=4096",
        )
