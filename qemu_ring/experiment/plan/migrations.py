"""A cell's migration in the terms of the migration layer."""

from __future__ import annotations

from ipaddress import ip_address

from qemu_ring.errors import UsageError
from qemu_ring.experiment.plan.schema import CellPart, MigrationPart
from qemu_ring.migration import (
    AbortRules,
    AutoConverge,
    Channel,
    DirtyLimit,
    Fd,
    Goal,
    MigrationPlan,
    Multifd,
    PlanError,
    Postcopy,
    Precopy,
    Tcp,
    Xbzrle,
)
from qemu_ring.migration.needs import POSTCOPY, require_needed

__all__ = ["channel_of", "clear_chunk_arguments", "migration_plan", "plan_problem"]

_KEYS = {
    POSTCOPY: "kind: postcopy",
    "goal.postcopy_bandwidth": "postcopy_bandwidth",
    "kind.after_passes": "after_passes",
    "kind.max_bandwidth": "postcopy_bandwidth",
    "kind.preempt": "preempt",
    "multifd.compression": "compression",
    "multifd.channels": "multifd",
    "multifd.level": "compression_level",
    "multifd.zero_copy": "zero_copy",
    "xbzrle.cache_size": "xbzrle",
}
"""By the plan's fields; other keys have the field's name."""
_PERIOD = "period_seconds"


def migration_plan(part: CellPart) -> MigrationPlan:
    """What the cell asks for.

    Raises:
        UsageError: parts of it contradict each other.
    """
    wanted = part.migration
    require_needed(_given(wanted), lambda field: _KEYS[field].replace("_", "-"))
    if wanted.postcopy_bandwidth is not None and wanted.kind != "postcopy" and not wanted.goal:
        raise UsageError("postcopy-bandwidth needs the kind postcopy, or a goal's then: postcopy")
    goal = wanted.goal
    return MigrationPlan(
        kind=(
            Postcopy(wanted.after_passes, wanted.preempt, wanted.postcopy_bandwidth)
            if wanted.kind == "postcopy"
            else Precopy()
        ),
        channel=_channel(part),
        multifd=(
            Multifd(wanted.multifd, wanted.compression, wanted.compression_level, wanted.zero_copy)
            if wanted.multifd
            else None
        ),
        xbzrle=None if wanted.xbzrle is None else Xbzrle(wanted.xbzrle),
        throttle=_throttle(wanted),
        zero_page=wanted.zero_page,
        max_bandwidth=wanted.max_bandwidth,
        downtime_limit=wanted.downtime_limit,
        switchover_bandwidth=wanted.switchover_bandwidth,
        switchover_ack=wanted.switchover_ack,
        abort=AbortRules(
            seconds=wanted.abort.seconds,
            iterations=wanted.abort.iterations,
            no_progress_iterations=wanted.abort.no_progress_iterations,
        ),
        goal=(
            Goal(
                goal.within,
                goal.downtime,
                goal.then,
                None if wanted.kind == "postcopy" else wanted.postcopy_bandwidth,
            )
            if goal is not None
            else None
        ),
    )


def plan_problem(part: CellPart, error: PlanError) -> tuple[tuple[str, ...], str]:
    """The key that an error of `migration_plan` is about, and what is wrong with it."""
    said = f"{error.problem}; {error.hint}" if error.hint else error.problem
    first, _, rest = error.field.partition(".")
    if first == "throttle":
        key: tuple[str, ...] = (part.migration.throttle, _PERIOD if rest == "period" else rest)
    else:
        key = (_KEYS.get(error.field, error.field),)
    return ("migration", *(word.replace("_", "-") for word in key)), said


def channel_of(part: CellPart) -> str:
    """The cell's channel, or the one that what it asks for takes."""
    wanted = part.migration
    several = wanted.multifd > 0 or wanted.preempt or part.network is not None
    return wanted.channel or ("tcp" if several else "fd")


def clear_chunk_arguments(size: int) -> list[str]:
    """How a QEMU is started that clears its dirty bitmap in chunks of this size; bytes."""
    return ["-global", f"migration.x-clear-bitmap-shift={(size // 4096).bit_length() - 1}"]


def _channel(part: CellPart) -> Channel:
    listen = part.migration.listen
    if channel_of(part) != "tcp":
        if listen is not None:
            raise PlanError("listen", "needs the channel tcp")
        return Fd()
    if listen is None:
        return Tcp()
    address = ip_address(listen)
    if part.network is not None and not (address.is_unspecified or address.is_loopback):
        raise PlanError("listen", "network conditions are those of loopback addresses only")
    if address.is_unspecified:
        return Tcp("127.0.0.1" if address.version == 4 else "::1", listen=listen)
    return Tcp(listen)


def _given(wanted: MigrationPart) -> set[str]:
    """Fields of the plan that are asked for, of those that need others."""
    asked = {
        POSTCOPY: wanted.kind == "postcopy",
        "kind.after_passes": wanted.after_passes != 1,
        "kind.preempt": wanted.preempt,
        "multifd.channels": wanted.multifd > 0,
        "multifd.compression": wanted.compression != "none",
        "multifd.level": wanted.compression_level is not None,
        "multifd.zero_copy": wanted.zero_copy,
    }
    return {field for field, is_asked in asked.items() if is_asked}


def _throttle(wanted: MigrationPart) -> AutoConverge | DirtyLimit | None:
    if wanted.throttle == "auto-converge":
        one = wanted.auto_converge
        return AutoConverge(one.initial, one.increment, one.maximum, one.trigger_threshold)
    if wanted.throttle == "dirty-limit":
        other = wanted.dirty_limit
        return DirtyLimit(other.vcpu_limit, other.period_seconds, other.trigger_threshold)
    return None
