"""What a plan means in QEMU's migration capabilities and parameters, for each side."""

from __future__ import annotations

from dataclasses import dataclass, field

from qemu_ring.migration.engine.convergence import Convergence
from qemu_ring.migration.engine.throttling import Throttle
from qemu_ring.migration.plan import (
    AutoConverge,
    BackgroundSnapshot,
    CprReboot,
    CprTransfer,
    DirtyLimit,
    MigrationPlan,
)
from qemu_ring.migration.values import milliseconds

__all__ = ["MANAGED_CAPABILITIES", "Settings", "destination_settings", "source_settings"]

MANAGED_CAPABILITIES = frozenset(
    {
        "auto-converge",
        "background-snapshot",
        "dirty-limit",
        "events",
        "late-block-activate",
        "mapped-ram",
        "multifd",
        "pause-before-switchover",
        "postcopy-preempt",
        "postcopy-ram",
        "return-path",
        "switchover-ack",
        "x-ignore-shared",
        "xbzrle",
        "zero-copy-send",
    }
)
"""Turned off where a plan does not ask for them; others stay as they are set in QEMU."""


@dataclass(slots=True)
class Settings:
    """What one side is set to.

    Args:
        capabilities: those to turn on.
        parameters: by QMP name; the values are QMP's.
    """

    capabilities: set[str] = field(default_factory=set)
    parameters: dict[str, object] = field(default_factory=dict)


def _shared(plan: MigrationPlan) -> Settings:
    """What both sides have to agree on."""
    wanted = {
        "events": True,
        "return-path": plan.uses_return_path,
        "multifd": plan.multifd is not None,
        "xbzrle": plan.xbzrle is not None,
        "mapped-ram": plan.mapped_ram is not None,
        "switchover-ack": plan.switchover_ack,
        "postcopy-ram": plan.postcopy is not None,
        "postcopy-preempt": plan.postcopy is not None and plan.postcopy.preempt,
        "x-ignore-shared": isinstance(plan.kind, CprReboot) and plan.kind.ignore_shared,
    }
    settings = Settings({name for name, on in wanted.items() if on})
    parameters = settings.parameters
    if plan.multifd is not None:
        parameters["multifd-channels"] = plan.multifd.channels
        parameters["multifd-compression"] = plan.multifd.compression
        if plan.multifd.level is not None:
            parameters[f"multifd-{plan.multifd.compression}-level"] = plan.multifd.level
    if plan.mapped_ram is not None and plan.mapped_ram.direct_io:
        parameters["direct-io"] = True
    if isinstance(plan.kind, CprReboot):
        parameters["mode"] = "cpr-reboot"
    return settings


def destination_settings(plan: MigrationPlan, *, held: bool = False) -> Settings:
    """What the destination, or a QEMU that restores from a file, is set to.

    Args:
        plan: what is wanted.
        held: whether the guest is held when it has arrived, and may go back: the source can
            have its disks as long as the destination has not taken them.
    """
    settings = _shared(plan)
    if held:
        settings.capabilities.add("late-block-activate")
    return settings


def source_settings(plan: MigrationPlan, throttle: Throttle | None = None) -> Settings:
    """What the source is set to.

    Args:
        plan: what is wanted.
        throttle: the means that the plan's goal takes, held until it decides so.
    """
    settings = _shared(plan)
    wanted = {
        "auto-converge": isinstance(plan.throttle, AutoConverge),
        "dirty-limit": isinstance(plan.throttle, DirtyLimit),
        "background-snapshot": isinstance(plan.kind, BackgroundSnapshot),
        "pause-before-switchover": plan.pause_before_switchover,
        "zero-copy-send": plan.multifd is not None and plan.multifd.zero_copy,
    }
    settings.capabilities |= {name for name, on in wanted.items() if on}
    if isinstance(plan.kind, CprTransfer):
        settings.parameters["mode"] = "cpr-transfer"
    settings.parameters |= _rates(plan) | _throttle(plan)
    if throttle is not None:
        settings.capabilities.add(throttle.means)
        settings.parameters |= throttle.held
    if plan.xbzrle is not None:
        settings.parameters["xbzrle-cache-size"] = plan.xbzrle.cache_size
    if plan.zero_page is not None:
        settings.parameters["zero-page-detection"] = plan.zero_page
    return settings


def _rates(plan: MigrationPlan) -> dict[str, object]:
    parameters: dict[str, object] = {}
    if plan.max_bandwidth is not None:
        parameters["max-bandwidth"] = plan.max_bandwidth
    if plan.downtime_limit is not None:
        parameters["downtime-limit"] = milliseconds(plan.downtime_limit)
    if plan.switchover_bandwidth is not None:
        parameters["avail-switchover-bandwidth"] = plan.switchover_bandwidth
    if plan.goal is not None:
        parameters["downtime-limit"] = milliseconds(Convergence(plan.goal).downtime_limit)
    if plan.postcopy is not None and plan.postcopy.max_bandwidth is not None:
        parameters["max-postcopy-bandwidth"] = plan.postcopy.max_bandwidth
    return parameters


def _throttle(plan: MigrationPlan) -> dict[str, object]:
    throttle = plan.throttle
    if throttle is None:
        return {}
    parameters: dict[str, object] = {"throttle-trigger-threshold": throttle.trigger_threshold}
    if isinstance(throttle, AutoConverge):
        return parameters | {
            "cpu-throttle-initial": throttle.initial,
            "cpu-throttle-increment": throttle.increment,
            "max-cpu-throttle": throttle.maximum,
        }
    return parameters | {
        "vcpu-dirty-limit": throttle.vcpu_limit >> 20,
        "x-vcpu-dirty-limit-period": milliseconds(throttle.period),
    }
