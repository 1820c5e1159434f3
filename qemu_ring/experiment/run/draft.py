"""The record of a run that is under way, as it will stand in the results."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final

from qemu_ring.experiment.results.record import RESULT_SCHEMA, Status
from qemu_ring.migration import Iteration, MigrationResult, Sample
from qemu_ring.verify import Comparison

__all__ = [
    "empty_record",
    "migration_record",
    "partial_record",
    "stale_record",
]

MAX_LISTED: Final = 1000


def empty_record(status: Status, error: str) -> dict[str, Any]:
    """A record of a run that told nothing."""
    return {
        "schema": RESULT_SCHEMA,
        "status": status.value,
        "error": error,
        "migration": None,
        "goal": None,
        "removals": [],
        "pages_written": None,
        "pages_written_by_vcpu": None,
        "pages_written_by_region": None,
        "stale_pages": None,
        "stale": [],
        "stale_places": {},
        "block_pages": {},
        "flush": None,
        "rings": None,
        "provenance": None,
        "cpus": None,
        "side_by_side": None,
    }


def migration_record(
    result: MigrationResult,
    samples: list[dict[str, Any]],
    *,
    verified: bool,
    pages_written: int | None = None,
) -> dict[str, Any]:
    """Of a migration that completed. Verification is not part of any of its times."""
    downtime = result.downtime
    return {
        "seconds": result.seconds,
        "downtime_seconds": downtime.switchover_seconds if verified else downtime.seconds,
        "qemu_downtime_seconds": downtime.qemu_seconds,
        # The guest stands still while its memory is compared, so it could not tell.
        "guest_downtime_seconds": None if verified else downtime.guest_seconds,
        "setup_seconds": result.totals.setup_seconds,
        "bytes": result.totals.bytes_sent,
        "pages_absorbed": result.totals.pages_absorbed,
        "resent_per_write": result.totals.resent_per_write(pages_written),
        "totals": asdict(result.totals),
        "iterations": [_iteration(one) for one in result.timeline.iterations],
        "samples": samples,
    }


def stale_record(comparison: Comparison) -> dict[str, Any]:
    """Of memory that was compared: how many pages are stale, the first of them, and where all are.

    `stale_places` is by block, in up to 128 equal parts; records of before have none.
    """
    return {
        "stale_pages": comparison.pages_stale_total,
        "stale": [
            {"block": page.block, "page": page.page} for page in comparison.stale[:MAX_LISTED]
        ],
        "stale_places": {name: list(found) for name, found in comparison.places.items()},
    }


def partial_record(
    iterations: list[Iteration], samples: list[dict[str, Any]]
) -> dict[str, Any] | None:
    """Of a migration that did not complete; None if it told nothing."""
    if not iterations and not samples:
        return None
    return {
        "seconds": None,
        "downtime_seconds": None,
        "qemu_downtime_seconds": None,
        "guest_downtime_seconds": None,
        "setup_seconds": None,
        "bytes": samples[-1]["transferred"] if samples else 0,
        "pages_absorbed": None,
        "resent_per_write": None,
        "totals": None,
        "iterations": [_iteration(one) for one in iterations],
        "samples": samples,
    }


def sample_record(sample: Sample, ring_fill: int | None) -> dict[str, Any]:
    """QEMU's figures at one moment, and the fullest ring's fill then."""
    return {
        "at_seconds": sample.seconds,
        "iteration": sample.iteration,
        "transferred": sample.transferred,
        "remaining": sample.remaining,
        "bandwidth": sample.bandwidth,
        "dirty_rate": sample.dirty_rate,
        "throttle": sample.throttle,
        "ring_fill": ring_fill,
    }


def _iteration(one: Iteration) -> dict[str, Any]:
    return {
        "number": one.number,
        "at_seconds": one.started,
        "seconds": one.seconds,
        "bytes": one.bytes_sent,
        "dirty_rate": one.dirty_rate,
        "bandwidth": one.bandwidth,
        "remaining": one.remaining,
        "expected_downtime_seconds": one.expected_downtime,
        "ring_full_seconds": one.ring_full_seconds,
        "throttle": one.throttle,
    }
