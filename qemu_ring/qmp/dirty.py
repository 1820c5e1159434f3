"""QMP's commands about the dirty rate and its limits, with types; as in `commands`.

Rates are in whole MiB/s here, as QEMU has them (rounded down), and `timeout` is in seconds
(None: the monitor's `answer_timeout`).
"""

from __future__ import annotations

from typing import Literal

from qemu_ring.qmp.models import QmpModel
from qemu_ring.qmp.monitor import Monitor

__all__ = [
    "AcceleratorInfo",
    "DirtyLimitInfo",
    "DirtyRateInfo",
    "DirtyRateVcpu",
    "TimeUnit",
    "calc_dirty_rate",
    "cancel_vcpu_dirty_limit",
    "query_accelerators",
    "query_dirty_rate",
    "query_vcpu_dirty_limit",
    "set_vcpu_dirty_limit",
]

TimeUnit = Literal["second", "millisecond"]


class DirtyRateVcpu(QmpModel):
    """One vCPU's dirty rate, in MiB/s."""

    id: int
    dirty_rate: int


class DirtyRateInfo(QmpModel):
    """query-dirty-rate; `dirty_rate` in MiB/s once status is ``measured``."""

    status: Literal["unstarted", "measuring", "measured"]
    dirty_rate: int | None = None
    """-1 if nothing could be sampled."""
    vcpu_dirty_rate: tuple[DirtyRateVcpu, ...] = ()
    calc_time: int
    """How long it measures, in `calc_time_unit`; once measured, how long it did (QEMU 8.2)."""
    calc_time_unit: TimeUnit = "second"
    sample_pages: int = 0
    """Pages sampled of each GiB; in other modes than page-sampling without a meaning."""
    mode: str = "page-sampling"
    """Not told before QEMU 6.2."""


class DirtyLimitInfo(QmpModel):
    """query-vcpu-dirty-limit: a vCPU that has a limit; rates in MiB/s."""

    cpu_index: int
    limit_rate: int
    current_rate: int
    """In the second before this one; 0 for the first second of a limit."""


class AcceleratorInfo(QmpModel):
    """query-accelerators: the accelerator in use, and those that this binary has."""

    enabled: str
    present: tuple[str, ...]


async def calc_dirty_rate(
    monitor: Monitor,
    calc_time: int,
    *,
    unit: TimeUnit | None = None,
    mode: str | None = None,
    sample_pages: int | None = None,
    timeout: float | None = None,
) -> None:
    """Begin to measure the dirty rate; `query_dirty_rate` has the result.

    Beware: QEMU 7.2 crashes if it is asked for dirty-ring or dirty-bitmap without KVM.

    Args:
        monitor: QEMU's.
        calc_time: for how long, 1 to 60 seconds or (QEMU 8.2) 50 to 60000 ms.
        unit: that of `calc_time`; only QEMU 8.2 and newer can be told, others take seconds.
        mode: page-sampling, dirty-ring or dirty-bitmap; None for QEMU's page-sampling.
        sample_pages: pages to sample of each GiB, 128 to 16384, in mode page-sampling.
        timeout: for the answer, not for the measurement; seconds.
    """
    arguments: dict[str, object] = {"calc-time": calc_time}
    optional = {"calc-time-unit": unit, "mode": mode, "sample-pages": sample_pages}
    arguments.update((name, value) for name, value in optional.items() if value is not None)
    await monitor.execute("calc-dirty-rate", arguments, timeout=timeout)


async def query_dirty_rate(
    monitor: Monitor, *, unit: TimeUnit | None = None, timeout: float | None = None
) -> DirtyRateInfo:
    """Tell the dirty rate last measured, or that it is being measured.

    Args:
        monitor: QEMU's.
        unit: what to tell `calc_time` in; only QEMU 8.2 and newer can be asked.
        timeout: seconds.
    """
    arguments = None if unit is None else {"calc-time-unit": unit}
    return await monitor.call("query-dirty-rate", DirtyRateInfo, arguments, timeout=timeout)


async def set_vcpu_dirty_limit(
    monitor: Monitor,
    dirty_rate: int,
    *,
    cpu_index: int | None = None,
    timeout: float | None = None,
) -> None:
    """Limit the dirty rate, in MiB/s, of one vCPU, or that of each; 0 cancels the limit."""
    arguments = {"dirty-rate": dirty_rate, **_index(cpu_index)}
    await monitor.execute("set-vcpu-dirty-limit", arguments, timeout=timeout)


async def cancel_vcpu_dirty_limit(
    monitor: Monitor, *, cpu_index: int | None = None, timeout: float | None = None
) -> None:
    """Cancel the limit of one vCPU, or of all; that there is none is no error.

    The last limit's end takes up to a second, while which QEMU answers nobody.
    """
    await monitor.execute("cancel-vcpu-dirty-limit", _index(cpu_index), timeout=timeout)


async def query_vcpu_dirty_limit(
    monitor: Monitor, *, timeout: float | None = None
) -> list[DirtyLimitInfo]:
    """List the vCPUs that have a limit."""
    return await monitor.call("query-vcpu-dirty-limit", list[DirtyLimitInfo], timeout=timeout)


async def query_accelerators(monitor: Monitor, *, timeout: float | None = None) -> AcceleratorInfo:
    """Tell which accelerator is in use (QEMU 10.2 or newer)."""
    return await monitor.call("query-accelerators", AcceleratorInfo, timeout=timeout)


def _index(cpu_index: int | None) -> dict[str, object]:
    return {} if cpu_index is None else {"cpu-index": cpu_index}
