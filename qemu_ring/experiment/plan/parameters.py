"""A cell's parameters as a flat table row: what results are grouped, plotted and joined by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from qemu_ring.experiment.plan.migrations import channel_of
from qemu_ring.experiment.plan.schema import CLEAR_CHUNK, CellPart
from qemu_ring.guestfile import GuestDescription
from qemu_ring.guestfile.interpretation import memory_sizes

__all__ = [
    "PARAMETERS",
    "Scalar",
    "guest_parameters",
    "named_by_parameters",
    "part_parameters",
    "with_axes",
]

Scalar = str | int | float | bool | None

PARAMETERS: Final[dict[str, type[str] | type[int] | type[float] | type[bool]]] = {
    "tracking": str,
    "ring_entries": int,
    "policy": str,
    "memory_bytes": int,
    "vcpus": int,
    "machine": str,
    "accelerator": str,
    "workload": str,
    "workload.bytes": int,
    "workload.pages_per_second": float,
    "migration": str,
    "channel": str,
    "multifd": int,
    "compression": str,
    "xbzrle": int,
    "throttle": str,
    "max_bandwidth": int,
    "downtime_limit": float,
    "clear_chunk": int,
    "removals": bool,
    "qemu": str,
    "removals.every_seconds": float,
    "network.bandwidth": int,
    "network.latency_seconds": float,
    "network.loss_percent": float,
}
"""What a cell can have, and the type of what is known of it. Axes come on top, as words."""

_COVERED = {
    "guest.tracking": "tracking",
    "guest.flush-policy": "policy",
    "guest.memory": "memory_bytes",
    "guest.vcpus": "vcpus",
    "guest.machine": "machine",
    "guest.accelerator": "accelerator",
    "migration.kind": "migration",
    "migration.channel": "channel",
    "migration.multifd": "multifd",
    "migration.compression": "compression",
    "migration.throttle": "throttle",
    "migration.xbzrle": "xbzrle",
    "migration.max-bandwidth": "max_bandwidth",
    "migration.downtime-limit": "downtime_limit",
    "migration.clear-chunk": "clear_chunk",
    "network.bandwidth": "network.bandwidth",
    "network.latency-seconds": "network.latency_seconds",
    "network.loss-percent": "network.loss_percent",
    "removals.every-seconds": "removals.every_seconds",
    "qemu": "qemu",
}
"""Axes that have a column of their own."""


def named_by_parameters(axis: str) -> str:
    """The column that an axis varies."""
    return _COVERED.get(axis, axis)


def guest_parameters(guest: GuestDescription) -> dict[str, Scalar]:
    """What the guest has to do with what a cell is: bytes, pages a second."""
    tracking = guest.tracking
    return {
        "tracking": None if guest.accelerator != "kvm" else str(tracking or "bitmap"),
        "ring_entries": None if tracking is None else tracking.ring_entries,
        "policy": None if guest.flush_policy is None else guest.flush_policy.value,
        "memory_bytes": sum(memory_sizes(guest).values()),
        "vcpus": guest.vcpus,
        "machine": guest.machine,
        "accelerator": guest.accelerator,
        **_workload(guest),
    }


def part_parameters(part: CellPart) -> dict[str, Scalar]:
    """What all but the guest has to do with what a cell is: bytes, seconds, bytes a second."""
    migration = part.migration
    found: dict[str, Scalar] = {
        "migration": migration.kind,
        "channel": channel_of(part),
        "multifd": migration.multifd,
        "compression": migration.compression,
        "xbzrle": migration.xbzrle,
        "throttle": migration.throttle,
        "max_bandwidth": migration.max_bandwidth,
        "downtime_limit": migration.downtime_limit,
        "clear_chunk": migration.clear_chunk or CLEAR_CHUNK,
        "removals": part.removals is not None,
        "qemu": None if part.qemu is None else str(part.qemu),
    }
    if part.removals is not None:
        found["removals.every_seconds"] = part.removals.every_seconds
    if part.network is not None:
        found["network.bandwidth"] = part.network.bandwidth
        found["network.latency_seconds"] = part.network.latency_seconds
        found["network.loss_percent"] = part.network.loss_percent
    return found


def with_axes(found: dict[str, Scalar], axes: Mapping[str, str]) -> dict[str, Scalar]:
    """A cell's parameters: the guest's and the rest's, and the axes that have none of their own.

    An axis of a whole part, such as `removals`, is named axis.removals where the part's own
    name tells something else.
    """
    for key, label in axes.items():
        if _COVERED.get(key) not in found:
            found[f"axis.{key}" if key in PARAMETERS else key] = label
    return found


def _workload(guest: GuestDescription) -> dict[str, Scalar]:
    """Pattern, and pages a second in all; None for as fast as the vCPUs can."""
    if guest.workload is not None:
        streams = guest.workload.streams
        patterns = list(dict.fromkeys(one.pattern.word for one in streams))
        rates = [one.pages_per_second for one in streams if one.pattern.writes]
        known = [rate for rate in rates if rate is not None]
        return {
            "workload": "+".join(patterns),
            "workload.bytes": sum(
                next(s.size for s in guest.slots if s.name == region.slot)
                if region.slot is not None
                else region.size or 0
                for region in guest.workload.regions
            ),
            "workload.pages_per_second": sum(known) if len(known) == len(rates) else None,
        }
    linux = None if guest.linux is None else guest.linux.workload
    if linux is not None:
        return {
            "workload": f"linux:{linux.pattern.value}",
            "workload.bytes": linux.size,
            "workload.pages_per_second": linux.pages_per_second,
        }
    return {"workload": "linux" if guest.linux is not None else "none"}
