"""What can stand in an experiment. Descriptions of fields reach editors by JSON Schema."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field

from qemu_ring.guestfile import GuestDescription
from qemu_ring.guestfile.fields import ExistingFile, Number, Part, Rate, Seconds, Size, wrong
from qemu_ring.migration import Compression, GoalThen, ZeroPage

__all__ = [
    "CLEAR_CHUNK",
    "AbortPart",
    "AutoConvergePart",
    "CellPart",
    "DirtyLimitPart",
    "GoalPart",
    "MigrationPart",
    "NetworkPart",
    "PlanPart",
    "RemovalsPart",
    "StopPart",
    "json_schema",
]

_CHUNKS = (256 << 10, 8 << 40)  # CLEAR_BITMAP_SHIFT_MIN and _MAX, in pages of 4 KiB
_MOST_BANDWIDTH = 1 << 50  # far above any link; QEMU and tc reckon in 64 bits


def _bandwidth(value: int) -> int:
    if value > _MOST_BANDWIDTH:
        raise wrong("is more than 1024 TiB a second")
    return value


def _address(value: str) -> str:
    try:
        ip_address(value)
    except ValueError:
        raise wrong(f"{value!r} is no IP address, such as 192.0.2.7") from None
    return value


def _latency(value: float) -> float:
    if 0 < value < 1e-6:
        raise wrong("is less than netem counts; use 1us or more, or 0")
    return value


def _loss(value: float) -> float:
    if 0 < value < 1e-6:
        raise wrong("is less than netem counts; use 0.000001 or more, or 0")
    return value


def _chunk(value: int) -> int:
    if value & (value - 1) or not _CHUNKS[0] <= value <= _CHUNKS[1]:
        raise wrong("must be a power of two from 256 KiB to 8 TiB")
    return value


Bandwidth = Annotated[Rate, AfterValidator(_bandwidth)]
"""Bytes a second."""


CLEAR_CHUNK: Final = 1 << 30
"""QEMU's own, bytes."""


class AutoConvergePart(Part):
    """Throttling all vCPUs alike. All in percent."""

    initial: int = Field(20, ge=1, le=99)
    increment: int = Field(10, ge=1, le=99)
    maximum: int = Field(99, ge=1, le=99)
    trigger_threshold: int = Field(50, ge=1, le=100)
    """Dirtied of sent bytes in a pass above which it throttles."""


class DirtyLimitPart(Part):
    """Throttling the vCPUs that dirty much; needs the dirty ring."""

    vcpu_limit: Bandwidth = 1 << 20
    """Bytes a second that each vCPU may dirty; whole MiB."""
    period_seconds: Seconds = Field(1.0, gt=0, le=1)
    trigger_threshold: int = Field(50, ge=1, le=100)


class AbortPart(Part):
    """When to give a migration up; it is then recorded as not converged."""

    seconds: Seconds | None = Field(None, gt=0)
    """Since its start."""
    iterations: int | None = Field(None, ge=1)
    """Passes over memory."""
    no_progress_iterations: int | None = Field(None, ge=1)
    """Passes in a row that began with no less to send than the best before them."""


class GoalPart(Part):
    """A time and a downtime to keep to. One that is given up is recorded as not converged."""

    within: Seconds = Field(gt=0)
    """Time from the migration's start until the destination has all."""
    downtime: Seconds = Field(0.3, ge=0.001, le=2000)
    """Time that the guest may stand still; allowed step by step."""
    then: GoalThen = "throttle"
    """What is done when that does not suffice."""


class MigrationPart(Part):
    """How the guest is migrated."""

    kind: Literal["precopy", "postcopy"] = "precopy"
    after_passes: int = Field(1, ge=1)
    """For postcopy: passes of precopy before the switchover."""
    preempt: bool = False
    """For postcopy: a channel of its own for pages that the guest waits for."""
    postcopy_bandwidth: Bandwidth | None = None
    """For postcopy, the goal's too: bytes a second after the switchover."""
    channel: Literal["fd", "tcp"] | None = None
    """A socket pair, or TCP on this host; by default tcp where several connections are needed."""
    listen: Annotated[str, AfterValidator(_address)] | None = None
    """For tcp: the address of this host that it goes by; 0.0.0.0 or "::" for all of them."""
    multifd: int = Field(0, ge=0, le=255)
    """Connections to send pages by; 0 does without multifd."""
    compression: Compression = "none"
    """Of multifd's pages."""
    compression_level: int | None = None
    zero_copy: bool = False
    """For multifd: let the kernel send pages uncopied, which takes locked memory."""
    xbzrle: Size | None = None
    """Send differences; the cache's size, a power of two."""
    zero_page: ZeroPage | None = None
    """Who looks for zero pages."""
    throttle: Literal["none", "auto-converge", "dirty-limit"] = "none"
    auto_converge: AutoConvergePart = AutoConvergePart()
    """For the throttle auto-converge."""
    dirty_limit: DirtyLimitPart = DirtyLimitPart()
    """For the throttle dirty-limit."""
    max_bandwidth: Bandwidth | None = None
    """Bytes a second; by default QEMU's own 128 MiB."""
    downtime_limit: Seconds | None = Field(None, ge=0)
    """Seconds that the guest may stand still; by default QEMU's own 0.3."""
    switchover_bandwidth: Bandwidth | None = None
    """Bytes a second that QEMU is to reckon with for the switchover."""
    switchover_ack: bool = False
    """Switch over only when the destination is ready."""
    clear_chunk: Annotated[Size, AfterValidator(_chunk)] | None = None
    """By bitmap: how much memory is protected again at a time; by default QEMU's own 1 GiB."""
    abort: AbortPart = AbortPart()
    goal: GoalPart | None = None
    """Converge within a time; takes the place of downtime-limit."""


class NetworkPart(Part):
    """Network conditions between the two QEMUs (netem); needs root."""

    bandwidth: Bandwidth | None = Field(None, gt=0)
    """Bytes a second."""
    latency_seconds: Annotated[Seconds, AfterValidator(_latency)] = Field(0.0, ge=0, le=10)
    """One way; netem counts microseconds."""
    loss_percent: Annotated[Number, AfterValidator(_loss)] = Field(0.0, ge=0, le=99.9999)


class RemovalsPart(Part):
    """Memslots removed and added again while the guest is migrated."""

    slots: list[str] | None = Field(None, min_length=1)
    """Those of the guest's slots to remove, in this order; by default all."""
    every_seconds: Seconds = Field(0.05, ge=0, le=3600)
    """Time between two cycles; 0 for as fast as the monitor takes it."""
    away_seconds: Seconds = Field(0.0, ge=0, le=3600)
    """Time for which they are away in each cycle."""
    after_passes: int = Field(1, ge=0)
    """Passes over memory before the first removal: pages not sent yet hide a loss."""


class CellPart(Part):
    """One kind of run: everything that can be varied, but the guest."""

    qemu: ExistingFile | None = None
    """The QEMU; by default the one that `qemu-ring build` made, else the first on PATH."""
    migration: MigrationPart = MigrationPart()
    network: NetworkPart | None = None
    removals: RemovalsPart | None = None
    settle_seconds: Seconds = Field(1.0, ge=0, le=3600)
    """How long the guest writes before it is migrated."""
    verify: bool = True
    """Compare all memory, byte for byte."""
    time_limit: Seconds = Field(120.0, gt=0)
    """Seconds that a run may take in all; then it is killed and recorded as a timeout."""


class StopPart(Part):
    """When to begin no further run; those under way come to their end."""

    failures_in_a_row: int | None = Field(None, ge=1)
    """Runs that were refused, crashed or timed out, one after the other."""
    seconds: Seconds | None = Field(None, gt=0)
    """Since `run` or `resume` began."""


class PlanPart(Part):
    """What is varied, how often, and in which order."""

    name: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """By default the file's."""
    description: str = ""
    matrix: dict[str, Any] = Field(default_factory=dict)
    """For each axis its values: a key such as guest.tracking and a list, or named variants."""
    include: list[dict[str, Any]] = Field(default_factory=list)
    """Further combinations: axes with their values, and other keys with theirs."""
    exclude: list[dict[str, Any]] = Field(default_factory=list)
    """Combinations to leave out: axes with a value, or a list of values."""
    repeats: int = Field(5, ge=1, le=10_000)
    """Measured runs of each combination."""
    warm_up: int = Field(0, ge=0, le=1000)
    """Runs of each combination before those, marked so that nothing counts them."""
    seed: int = Field(1, ge=0)
    """Of the workloads (the same in each repeat for all combinations), and of a random order."""
    order: Literal["interleaved", "random", "sequential"] = "interleaved"
    """Interleaved: every combination once, then every one again. Random: in an order of chance
    each time."""
    stop: StopPart = StopPart()
    """When to begin no further run."""


def json_schema() -> dict[str, Any]:
    """The JSON Schema of an experiment, for editors."""
    definitions: dict[str, Any] = {}
    properties: dict[str, Any] = {}
    for model in (PlanPart, CellPart, GuestDescription):
        schema = model.model_json_schema()
        definitions |= schema.pop("$defs", {})
        if model is GuestDescription:
            definitions[model.__name__] = schema
        else:
            properties |= schema["properties"]
    guest = {"$ref": f"#/$defs/{GuestDescription.__name__}"}
    properties["guest"] = {
        "anyOf": [guest, {"type": "string"}],
        "description": "The guest, as in a guest's YAML file; or the path of such a file.",
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "qemu-ring experiment",
        "type": "object",
        "properties": properties,
        "patternProperties": {"^x-": {"description": "Anything: a place for anchors."}},
        "required": ["guest"],
        "additionalProperties": False,
        "$defs": definitions,
    }
