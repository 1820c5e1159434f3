"""Tracking of a guest's dirty memory: chosen, found out, measured, limited."""

from qemu_ring.dirty.limit import (
    VcpuLimit,
    cancel_dirty_limit,
    granted_limit,
    least_limit,
    query_dirty_limits,
    set_dirty_limit,
)
from qemu_ring.dirty.rate import (
    MeasuredRate,
    RateMode,
    RateOptions,
    VcpuRate,
    dirty_rates,
    measure_dirty_rate,
)
from qemu_ring.dirty.running import RunningTracking, TrackingMode, query_tracking
from qemu_ring.dirty.stall import STALL_ADVICE, StallWatch, stall_message
from qemu_ring.dirty.tracking import Tracking
from qemu_ring.dirty.vcpu_numbers import require_safe_numbers

__all__ = [
    "STALL_ADVICE",
    "MeasuredRate",
    "RateMode",
    "RateOptions",
    "RunningTracking",
    "StallWatch",
    "Tracking",
    "TrackingMode",
    "VcpuLimit",
    "VcpuRate",
    "cancel_dirty_limit",
    "dirty_rates",
    "granted_limit",
    "least_limit",
    "measure_dirty_rate",
    "query_dirty_limits",
    "query_tracking",
    "require_safe_numbers",
    "set_dirty_limit",
    "stall_message",
]
