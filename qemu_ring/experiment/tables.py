"""Results as flat tables: a row for each run, iteration, sample or removal."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal

from qemu_ring.errors import UsageError
from qemu_ring.experiment.store import Results, read_results

__all__ = ["TABLES", "Table", "export", "read", "rows"]

Table = Literal["runs", "iterations", "samples", "removals"]
Row = dict[str, Any]

_MIGRATION = (
    "seconds",
    "downtime_seconds",
    "qemu_downtime_seconds",
    "guest_downtime_seconds",
    "setup_seconds",
    "bytes",
)


def rows(results: Results, table: Table = "runs") -> Iterator[Row]:
    """The rows of one table, in the order in which the runs ended.

    Every row has the run's `cell` and `repeat` to join by; those of "runs" have all the
    cell's parameters too. Sizes in bytes, times in seconds.
    """
    for record in results.records:
        yield from TABLES[table](results, record)


def read(
    directory: str | Path,
    table: Table = "runs",
    *,
    library: Literal["pandas", "polars"] = "pandas",
) -> Any:
    """Read a directory of results into a data frame.

    Args:
        directory: of the results.
        table: what a row is.
        library: whose data frame.

    Raises:
        StoreError: it holds none.
        UsageError: the library is not installed.
    """
    found = list(rows(read_results(directory), table))
    try:
        if library == "polars":
            import polars

            return polars.DataFrame(found, infer_schema_length=None)
        import pandas as pd
    except ImportError as error:
        raise UsageError(
            f"{library} is not installed", hint=f"pip install {library}, or qemu-ring[experiment]"
        ) from error
    return pd.DataFrame(found)


def export(directory: str | Path, output: Path, *, parquet: bool = False) -> list[Path]:
    """Write every table to a file of its own: runs.csv or runs.parquet, ...

    Args:
        directory: of the results.
        output: where to; made where it is missing.
        parquet: Parquet in place of CSV.

    Returns:
        what was written.

    Raises:
        StoreError: the directory holds no results.
        UsageError: a file cannot be written, or pandas is not installed.
    """
    results = read_results(directory)
    written = []
    try:
        output.mkdir(parents=True, exist_ok=True)
        for table in TABLES:
            path = output / f"{table}.{'parquet' if parquet else 'csv'}"
            if parquet:
                read(directory, table).to_parquet(path, index=False)
            else:
                _write_csv(path, list(rows(results, table)))
            written.append(path)
    except OSError as error:
        raise UsageError(f"{error.filename or output}: {error.strerror}") from error
    except ImportError as error:
        raise UsageError(
            "pyarrow is not installed", hint="pip install qemu-ring[experiment]"
        ) from error
    return written


def _write_csv(path: Path, found: list[Row]) -> None:
    columns = list(dict.fromkeys(column for row in found for column in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(found)


def _key(record: Mapping[str, Any]) -> Row:
    return {"cell": record["cell"], "repeat": record["repeat"]}


def _runs(results: Results, record: Mapping[str, Any]) -> Iterator[Row]:
    cell = results.cells[record["cell"]]
    migration = record["migration"] or {}
    provenance = record["provenance"] or {}
    qemu = provenance.get("qemu") or {}
    yield {
        **_key(record),
        "name": cell.name,
        "warm_up": record["warm_up"],
        "seed": record["seed"],
        "status": record["status"],
        "error": record["error"],
        "started": record["started"],
        "wall_seconds": record["wall_seconds"],
        **{name: migration.get(name) for name in _MIGRATION},
        "iterations": len(migration.get("iterations", ())),
        "slots_removed": sum(one["count"] for one in record["removals"]),
        "pages_written": record["pages_written"],
        "stale_pages": record["stale_pages"],
        **cell.parameters,
        "qemu_version": qemu.get("version"),
        "qemu_sha256": qemu.get("sha256"),
        "kernel": (provenance.get("host") or {}).get("kernel"),
        "worker": (record.get("worker") or {}).get("name"),
    }


def _part(name: str) -> Callable[[Results, Mapping[str, Any]], Iterator[Row]]:
    def of(_: Results, record: Mapping[str, Any]) -> Iterator[Row]:
        for one in (record["migration"] or {}).get(name, ()):
            yield {**_key(record), **one}

    return of


def _removals(_: Results, record: Mapping[str, Any]) -> Iterator[Row]:
    for one in record["removals"]:
        yield {**_key(record), **one}


TABLES: Final[dict[Table, Callable[[Results, Mapping[str, Any]], Iterator[Row]]]] = {
    "runs": _runs,
    "iterations": _part("iterations"),
    "samples": _part("samples"),
    "removals": _removals,
}
