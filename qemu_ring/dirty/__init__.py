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
from qemu_ring.dirty.tracking import Tracking

__all__ = [
    "MeasuredRate",
    "RateMode",
    "RateOptions",
    "RunningTracking",
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
    "set_dirty_limit",
]
