"""The files of an experiment, typed: `experiment.json`, and a line of `results.jsonl` for each run.

Sizes are in bytes, times in seconds, rates a second. What a later minor version adds is ignored
here and stays in the files; what an earlier one did not tell yet has a default.

A record is read without its samples and removals, which are most of it: `RunRecord.details` reads
them when they are wanted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr
from pydantic.dataclasses import dataclass as typed

from qemu_ring.experiment.errors import StoreError
from qemu_ring.experiment.plan.cells import Cell

__all__ = [
    "EXPERIMENT_SCHEMA",
    "RESULT_SCHEMA",
    "ExperimentDocument",
    "IterationRecord",
    "MigrationRecord",
    "RemovalRecord",
    "RunDetails",
    "RunRecord",
    "SampleRecord",
    "StalePageRecord",
    "Status",
]

EXPERIMENT_SCHEMA: Final = {"name": "qemu-ring.experiment", "version": 1}
RESULT_SCHEMA: Final = {"name": "qemu-ring.result", "version": 1}


class Status(str, Enum):
    """What became of a run."""

    OK = "ok"
    STALE = "stale"
    """Completed, and the destination has pages of older content."""
    TIMEOUT = "timeout"
    """Killed at its time limit."""
    NOT_CONVERGED = "not-converged"
    """Given up by an abort rule."""
    REFUSED = "refused"
    """This host or this QEMU cannot do it."""
    CRASHED = "crashed"
    """Anything else; the error tells."""

    __str__ = str.__str__

    @property
    def is_completed(self) -> bool:
        """Whether the migration completed; one that lost memory did."""
        return self in (Status.OK, Status.STALE)


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


class _QemuIdentity(_Record):
    """The QEMU for cells that name none."""

    model_config = ConfigDict(extra="allow")

    path: str
    sha256: str
    version: str = ""


class ExperimentDocument(_Record):
    """What was asked for, as experiment.json has it. Keys that are not known here are kept.

    Args:
        name, description, source: of the experiment; the last is the YAML text.
        sha256: of all that decides what is run.
        cells: what is compared.
        order: cell, repeat and seed of each run, in order.
        repeats, warm_up: measured runs of each cell, and runs before those.
        seed, turns: what seeds are made from, and how runs follow each other; None in results of
            a version that did not note them.
        stop: when to begin no more.
        created: seconds since the epoch.
        qemu: for cells that name none; None if all name one.
        inputs: SHA-256 of the files that cells name, by path.
    """

    model_config = ConfigDict(extra="allow")

    schema_: dict[str, Any] = Field(alias="schema")
    name: str
    description: str | None = ""
    source: str = ""
    sha256: str = ""
    cells: tuple[Cell, ...]
    order: tuple[tuple[str, int, int], ...] = ()
    repeats: int
    warm_up: int = 0
    seed: int | None = None
    turns: Literal["interleaved", "random", "sequential"] | None = None
    stop: dict[str, Any] = Field(default_factory=dict)
    created: float
    qemu: _QemuIdentity | None = None
    inputs: dict[str, str] = Field(default_factory=dict)


# Slotted: there are hundreds of thousands of them in a large result.
@typed(frozen=True, slots=True)
class IterationRecord:
    """One pass over memory; a figure that QEMU did not tell in time is None."""

    number: int
    at_seconds: float
    seconds: float
    bytes: int | None = None
    dirty_rate: float | None = None
    bandwidth: float | None = None
    remaining: int | None = None
    expected_downtime_seconds: float | None = None
    ring_full_seconds: float | None = None
    throttle: int | None = None


@typed(frozen=True, slots=True)
class SampleRecord:
    """QEMU's figures at one moment; `ring_fill` counts the fullest ring's entries."""

    at_seconds: float
    iteration: int | None = None
    transferred: int | None = None
    remaining: int | None = None
    bandwidth: float | None = None
    dirty_rate: float | None = None
    throttle: int | None = None
    ring_fill: int | None = None


@typed(frozen=True, slots=True)
class RemovalRecord:
    """Slots removed at one moment of the migration."""

    at_seconds: float
    shape: str
    count: int = 1


@typed(frozen=True, slots=True)
class StalePageRecord:
    """A page of guest memory that differed at the destination."""

    block: str
    page: int


class MigrationRecord(_Record):
    """One migration that was begun; of one that did not complete what it had done until then.

    Args:
        seconds: from its setup to the end at both sides.
        downtime_seconds: from the source's stop until the destination runs; with `verify`,
            until it could run.
        qemu_downtime_seconds: QEMU's own figure.
        guest_downtime_seconds: what the guest itself saw; None where its memory was compared.
        setup_seconds, bytes: as QEMU tells them.
        pages_absorbed: dirty again when they were sent, and not sent once more for that; None of
            a QEMU that does not tell.
        resent_per_write: pages sent more than once, for each page that the guest wrote meanwhile;
            None where the guest does not tell.
        totals: QEMU's other figures, by name.
        iterations: each pass over memory.
    """

    seconds: float | None = None
    downtime_seconds: float | None = None
    qemu_downtime_seconds: float | None = None
    guest_downtime_seconds: float | None = None
    setup_seconds: float | None = None
    bytes: int | None = None
    pages_absorbed: int | None = None
    resent_per_write: float | None = None
    totals: dict[str, Any] | None = None
    iterations: tuple[IterationRecord, ...] = ()


class _Samples(_Record):
    samples: tuple[SampleRecord, ...] = ()


class RunDetails(_Record):
    """What most of a record is.

    Args:
        migration: its samples, QEMU's figures every 0.1 s.
        removals: each cycle of removals.
    """

    migration: _Samples | None = None
    removals: tuple[RemovalRecord, ...] = ()

    @property
    def samples(self) -> tuple[SampleRecord, ...]:
        """QEMU's figures while it was migrated."""
        return () if self.migration is None else self.migration.samples


@dataclass(frozen=True, slots=True)
class LinePlace:
    """Where a record stands in its file; bytes."""

    path: Path
    offset: int
    length: int

    def read(self) -> bytes:
        """The line.

        Raises:
            StoreError: the file is not as it was.
        """
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                return file.read(self.length)
        except OSError as error:
            raise StoreError(f"{self.path} cannot be read any more: {error.strerror}") from error


def _slots_removed(removals: Any) -> Any:
    """Of a record's list of removals, how many slots that were."""
    if not isinstance(removals, list):
        return removals
    return sum(one.get("count", 1) for one in removals if isinstance(one, Mapping))


class RunRecord(_Record):
    """One run that has ended.

    Args:
        cell, repeat, seed: which it was.
        warm_up: whether it was to warm up, so that its times do not count.
        status, error: what became of it, and why.
        started: seconds since the epoch.
        wall_seconds: that it took in all.
        migration: None for a run that did not come so far.
        slots_removed: while it was migrated.
        pages_written: by the guest, while it was migrated; None if it does not tell. By vCPU and
            region, too, where it tells that.
        stale_pages: that differ at the destination; None if memory was not compared.
        stale: the first 1000 of them.
        stale_places: all of them, counted in equal parts of each block.
        block_pages: pages of each block of memory.
        flush, rings: a patched QEMU's counters.
        provenance: host, KVM, QEMU, command lines and versions.
        cpus: those that it kept to, if it was to.
        side_by_side: how many runs there were at a time, with it.
        worker: of a cluster, that made it.
    """

    schema_: dict[str, Any] = Field(alias="schema")
    cell: str
    repeat: int
    warm_up: bool = False
    seed: int
    status: Status
    error: str | None = None
    started: float
    wall_seconds: float
    migration: MigrationRecord | None = None
    slots_removed: Annotated[int, BeforeValidator(_slots_removed)] = Field(0, alias="removals")
    pages_written: int | None = None
    pages_written_by_vcpu: tuple[int, ...] | None = None
    pages_written_by_region: dict[str, int] | None = None
    stale_pages: int | None = None
    stale: tuple[StalePageRecord, ...] = ()
    stale_places: dict[str, tuple[int, ...]] = Field(default_factory=dict)
    block_pages: dict[str, int] = Field(default_factory=dict)
    flush: dict[str, Any] | None = None
    rings: tuple[dict[str, Any], ...] | None = None
    provenance: Annotated[dict[str, Any], BeforeValidator(lambda value: value or {})] = Field(
        default_factory=dict
    )
    cpus: tuple[int, ...] | None = None
    side_by_side: int | None = None
    worker: dict[str, Any] | None = None
    _line: bytes | LinePlace | None = PrivateAttr(None)

    @classmethod
    def from_line(cls, line: bytes, place: LinePlace | None = None) -> RunRecord:
        """Read one line; it is read anew for its details, from its place if that is told.

        Raises:
            ValidationError: it is no record.
        """
        record = cls.model_validate_json(line)
        record._line = line if place is None else place  # noqa: SLF001 - its own
        return record

    @property
    def key(self) -> tuple[str, int]:
        """What no other run of the experiment has."""
        return self.cell, self.repeat

    @property
    def is_completed(self) -> bool:
        """Whether the migration completed."""
        return self.status.is_completed

    @property
    def is_measured(self) -> bool:
        """Whether its times count: a completed migration that was not to warm up."""
        return self.is_completed and not self.warm_up and self.migration is not None

    @property
    def is_compared(self) -> bool:
        """Whether all memory was compared, which an experiment may leave out."""
        return self.stale_pages is not None

    def details(self) -> RunDetails:
        """Its samples and removals.

        Raises:
            StoreError: its file is not as it was.
        """
        return RunDetails.model_validate_json(self._text())

    def as_dict(self) -> dict[str, Any]:
        """All of it as it stands in the file, what is not known here included."""
        found: dict[str, Any] = json.loads(self._text())
        return found

    def _text(self) -> bytes:
        if isinstance(self._line, LinePlace):
            return self._line.read()
        return self._line if self._line is not None else b"{}"
