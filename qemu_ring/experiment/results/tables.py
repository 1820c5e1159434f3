"""Results as flat tables: a row for each run, iteration, sample or removal.

The columns of a table and their types are the same whatever happened in an experiment; those of
the runs have its axes on top.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from qemu_ring.errors import UsageError
from qemu_ring.experiment.plan.columns import KEY, MEASURED, RESERVED, SOURCE, Columns
from qemu_ring.experiment.plan.parameters import PARAMETERS
from qemu_ring.experiment.results.record import (
    IterationRecord,
    RemovalRecord,
    RunRecord,
    SampleRecord,
)

if TYPE_CHECKING:
    from qemu_ring.experiment.results.reader import Results

__all__ = ["TABLES", "Table", "columns", "export", "frame", "rows"]

Table = Literal["runs", "iterations", "samples", "removals"]
Row = dict[str, Any]
_PARTS: Final[dict[str, type[Any]]] = {
    "iterations": IterationRecord,
    "samples": SampleRecord,
    "removals": RemovalRecord,
}
"""What a row of the other tables is; its fields are the columns."""
_COUNTED = (
    "number",
    "bytes",
    "remaining",
    "throttle",
    "iteration",
    "transferred",
    "ring_fill",
    "count",
)
_MIGRATION = (
    "seconds",
    "downtime_seconds",
    "qemu_downtime_seconds",
    "guest_downtime_seconds",
    "setup_seconds",
    "bytes",
    "pages_absorbed",
    "resent_per_write",
)
_PANDAS = {str: "string", int: "Int64", float: "float64", bool: "boolean"}


def columns(results: Results, table: Table = "runs") -> Columns:
    """The columns of a table, in order, and what they hold; any value can be missing."""
    if table != "runs":
        return {**KEY, **_part_columns(table)}
    parameters = dict(PARAMETERS)
    for cell in results.cells.values():
        for key in cell.parameters:
            if key not in RESERVED:
                parameters[key] = str  # an axis, by its labels
    return {**KEY, **MEASURED, **parameters, **SOURCE}


def rows(results: Results, table: Table = "runs") -> Iterator[Row]:
    """The rows of one table, in the order in which the runs ended.

    Every row has the run's `cell` and `repeat` to join by; those of "runs" have all the
    cell's parameters too. Sizes in bytes, times in seconds.
    """
    wanted = columns(results, table)
    for record in results.records:
        for row in TABLES[table](results, record):
            yield {key: _as(kind, row.get(key)) for key, kind in wanted.items()}


def _as(kind: type[Any], value: Any) -> Any:
    """A value of a column; None for one that cannot be."""
    if value is None or isinstance(value, kind):
        return value
    if kind is str:
        return str(value)
    if isinstance(value, bool | str) or kind is bool:
        return None
    return kind(value)


def frame(results: Results, table: Table, library: Literal["pandas", "polars"]) -> Any:
    """A table as a data frame, as `Results.frame` tells."""
    wanted, found = columns(results, table), rows(results, table)
    try:
        if library == "polars":
            import polars

            types = {str: polars.String, int: polars.Int64, float: polars.Float64}
            types[bool] = polars.Boolean
            schema = {key: types[kind] for key, kind in wanted.items()}
            return polars.DataFrame(list(found), schema=schema)
        import pandas as pd
    except ImportError as error:
        raise UsageError(
            f"{library} is not installed", hint=f"pip install {library}, or qemu-ring[experiment]"
        ) from error
    listed = list(found)
    return pd.DataFrame(
        {
            key: pd.Series([row[key] for row in listed], dtype=_PANDAS[kind])
            for key, kind in wanted.items()
        }
    )


def export(results: Results, output: Path, *, parquet: bool = False) -> list[Path]:
    """Write every table to a file of its own: runs.csv or runs.parquet, ...

    Args:
        results: of an experiment.
        output: where to; made where it is missing.
        parquet: Parquet in place of CSV.

    Returns:
        what was written.

    Raises:
        UsageError: a file cannot be written, or pandas is not installed.
    """
    written = []
    try:
        output.mkdir(parents=True, exist_ok=True)
        for table in TABLES:
            path = output / f"{table}.{'parquet' if parquet else 'csv'}"
            if parquet:
                frame(results, table, "pandas").to_parquet(path, index=False)
            else:
                _write_csv(path, columns(results, table), rows(results, table))
            written.append(path)
    except OSError as error:
        raise UsageError(f"{error.filename or output}: {error.strerror}") from error
    except ImportError as error:
        raise UsageError(
            "pyarrow is not installed", hint="pip install qemu-ring[experiment]"
        ) from error
    return written


def _write_csv(path: Path, wanted: Iterable[str], found: Iterable[Row]) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.DictWriter(file, list(wanted))
        writer.writeheader()
        writer.writerows(found)


def _part_columns(table: str) -> Columns:
    names = [field.name for field in fields(_PARTS[table])]
    return {name: str if name == "shape" else int if name in _COUNTED else float for name in names}


def _runs(results: Results, record: RunRecord) -> Iterator[Row]:
    cell = results.cells[record.cell]
    migration, provenance = record.migration, record.provenance
    qemu = provenance.get("qemu") or {}
    yield {
        **cell.parameters,  # first: nothing that was measured is lost to a name of the user's
        "cell": record.cell,
        "repeat": record.repeat,
        "name": cell.name,
        "warm_up": record.warm_up,
        "seed": record.seed,
        "status": record.status.value,
        "error": record.error,
        "started": record.started,
        "wall_seconds": record.wall_seconds,
        **{name: getattr(migration, name, None) for name in _MIGRATION},
        "iterations": 0 if migration is None else len(migration.iterations),
        "slots_removed": record.slots_removed,
        "pages_written": record.pages_written,
        "stale_pages": record.stale_pages,
        "qemu_version": qemu.get("version"),
        "qemu_sha256": qemu.get("sha256"),
        "kernel": (provenance.get("host") or {}).get("kernel"),
        "worker": (record.worker or {}).get("name"),
    }


def _iterations(_: Results, record: RunRecord) -> Iterator[Row]:
    if record.migration is not None:
        yield from _parts(record, record.migration.iterations)


def _samples(_: Results, record: RunRecord) -> Iterator[Row]:
    yield from _parts(record, record.details().samples)


def _removals(_: Results, record: RunRecord) -> Iterator[Row]:
    yield from _parts(record, record.details().removals)


def _parts(record: RunRecord, parts: Sequence[Any]) -> Iterator[Row]:
    for one in parts:
        yield {"cell": record.cell, "repeat": record.repeat, **asdict(one)}


TABLES: Final[dict[Table, Callable[[Results, RunRecord], Iterator[Row]]]] = {
    "runs": _runs,
    "iterations": _iterations,
    "samples": _samples,
    "removals": _removals,
}
