"""The files of an experiment, read: `experiment.json` and `results.jsonl` in one directory.

Sizes are in bytes, times in seconds, rates a second. What a later minor version adds is ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from qemu_ring.errors import UsageError

__all__ = ["Cell", "Iteration", "Migration", "Removal", "Results", "Run", "Sample", "read_results"]

PAGE_BYTES: Final = 4096
EXPERIMENT: Final = "experiment.json"
RESULTS: Final = "results.jsonl"

Scalar = str | int | float | bool | None
Status = Literal["ok", "stale", "timeout", "not-converged", "refused", "crashed"]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


_ModelT = TypeVar("_ModelT", bound=_Model)


class Cell(_Model):
    """One combination of parameters."""

    id: str
    name: str
    parameters: dict[str, Scalar]


class _ExperimentSchema(_Model):
    name: Literal["qemu-ring.experiment"]
    version: Literal[1]


class Experiment(_Model):
    """What was asked for."""

    schema_: _ExperimentSchema = Field(alias="schema")
    name: str
    description: str | None = ""
    source: str = ""
    sha256: str = ""
    cells: tuple[Cell, ...]
    order: tuple[tuple[str, int, int], ...] = ()
    repeats: int
    warm_up: int = 0
    created: float


class Iteration(_Model):
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


class Sample(_Model):
    """QEMU's figures at one moment; `ring_fill` counts the fullest ring's entries."""

    at_seconds: float
    remaining: int | None = None
    bandwidth: float | None = None
    ring_fill: int | None = None


class Migration(_Model):
    """One migration that was begun."""

    seconds: float | None = None
    downtime_seconds: float | None = None
    qemu_downtime_seconds: float | None = None
    guest_downtime_seconds: float | None = None
    setup_seconds: float | None = None
    bytes: int | None = None
    iterations: tuple[Iteration, ...] = ()
    samples: tuple[Sample, ...] = ()


class Removal(_Model):
    """Slots removed at one moment of the migration."""

    at_seconds: float
    shape: str
    count: int = 1


class StalePage(_Model):
    """A page of guest memory that differed at the destination."""

    block: str
    page: int


class _ResultSchema(_Model):
    name: Literal["qemu-ring.result"]
    version: Literal[1]


class Run(_Model):
    """One finished run of a cell."""

    schema_: _ResultSchema = Field(alias="schema")
    cell: str
    repeat: int
    warm_up: bool = False
    seed: int
    status: Status
    error: str | None = None
    started: float
    wall_seconds: float
    migration: Migration | None = None
    removals: tuple[Removal, ...] = ()
    pages_written: int | None = None
    stale_pages: int | None = None
    stale: tuple[StalePage, ...] = ()
    stale_places: dict[str, tuple[int, ...]] = {}
    block_pages: dict[str, int] = {}
    provenance: dict[str, Any] = {}

    @field_validator("provenance", mode="before")
    @classmethod
    def _none_told(cls, value: object) -> object:
        """A run that ended before it could tell has null."""
        return {} if value is None else value

    @property
    def is_measured(self) -> bool:
        """Tell if its times count: a completed migration that was not to warm up."""
        return self.is_completed and not self.warm_up and self.migration is not None

    @property
    def is_completed(self) -> bool:
        """Tell if the migration completed."""
        return self.status in ("ok", "stale")

    @property
    def failed(self) -> bool:
        """Tell if the migration did not complete."""
        return not self.is_completed

    @property
    def is_compared(self) -> bool:
        """Tell if all memory was compared, which an experiment may leave out."""
        return self.stale_pages is not None

    @property
    def slots_removed(self) -> int:
        """Slots removed while it was migrated."""
        return sum(one.count for one in self.removals)


@dataclass(frozen=True)
class Results:
    """An experiment and its runs so far."""

    directory: Path
    experiment: Experiment
    runs: tuple[Run, ...]

    @cached_property
    def cells(self) -> Mapping[str, Cell]:
        """The cells by id, in the experiment's order."""
        return {cell.id: cell for cell in self.experiment.cells}

    @cached_property
    def runs_by_cell(self) -> Mapping[str, tuple[Run, ...]]:
        """The runs of each cell, in the order in which they ended."""
        return {cell: tuple(run for run in self.runs if run.cell == cell) for cell in self.cells}

    @property
    def planned(self) -> int:
        """Runs asked for."""
        return len(self.experiment.order) or len(self.cells) * self.experiment.repeats

    def name_of(self, cell: str) -> str:
        """Name a cell in words; one whose experiment varies nothing has the experiment's name."""
        return self.cells[cell].name or self.experiment.name


def read_results(directory: Path) -> Results:
    """Read the results of one experiment, finished or not.

    A last line that a crash left torn is no result, and is left out.

    Raises:
        UsageError: there is no such experiment, or its files are not what they should be.
    """
    experiment = _parse(Experiment, _read(directory / EXPERIMENT), directory / EXPERIMENT)
    path = directory / RESULTS
    text = _read(path) if path.exists() else ""
    lines = text.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        del lines[-1]
    runs = tuple(
        _parse(Run, line, f"{path}:{number}")
        for number, line in enumerate(lines, 1)
        if line.strip()
    )
    runs = tuple({(run.cell, run.repeat): run for run in runs}.values())  # the last one counts
    known = {cell.id for cell in experiment.cells}
    for number, run in enumerate(runs, 1):
        if run.cell not in known:
            raise UsageError(
                f"{path}: result {number} is of cell {run.cell!r}, which {EXPERIMENT} does not have"
            )
    return Results(directory, experiment, runs)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"cannot read {path}: {error.strerror}",
            hint="name a directory that `qemu-ring experiment run` wrote",
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text") from error


def _parse(model: type[_ModelT], text: str, where: object) -> _ModelT:
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        said = f"{place}: {first['msg']}" if place else first["msg"]
        raise UsageError(f"{where} is not a result that this version reads: {said}") from error
