"""Results as tables: rows, files, data frames."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from qemu_ring.experiment import ExperimentPlan, export, read, read_results, rows
from qemu_ring.experiment.tables import TABLES, Table

from .conftest import Write, outcomes

TABLE_NAMES: list[Table] = list(TABLES)


@pytest.fixture
def directory(tmp_path: Path, plan: ExperimentPlan, write: Write) -> Path:
    write(
        tmp_path / "r",
        plan,
        {
            "tracking=bitmap": [("ok", 1.0), ("stale", 1.5), ("crashed", None)],
            "tracking=ring:4096": outcomes(2, 3),
        },
    )
    return tmp_path / "r"


def test_runs(directory: Path) -> None:
    found = list(rows(read_results(directory)))
    assert len(found) == 6
    assert [row["seconds"] for row in found if row["tracking"] == "bitmap"] == [1.0, 1.5, None]
    assert all(row["max_bandwidth"] == 500 << 20 for row in found)
    assert all(row.keys() == found[0].keys() for row in found)


def test_pandas(directory: Path) -> None:
    frame = read(directory)
    assert frame.groupby("tracking")["seconds"].count().to_dict() == {"bitmap": 2, "ring:4096": 3}
    samples = read(directory, "samples")
    assert len(samples.merge(frame, on=["cell", "repeat"])) == 5


def test_polars(directory: Path) -> None:
    polars = pytest.importorskip("polars")
    frame = read(directory, library="polars")
    assert isinstance(frame, polars.DataFrame)
    assert frame.filter(polars.col("status") == "ok").height == 4


def test_csv(directory: Path, tmp_path: Path) -> None:
    written = export(directory, tmp_path / "out")
    assert [path.name for path in written] == [f"{name}.csv" for name in TABLE_NAMES]
    with written[0].open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["seconds"] for row in found if row["tracking"] == "bitmap"] == ["1.0", "1.5", ""]


def test_parquet_holds_the_same(directory: Path, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    export(directory, tmp_path / "out", parquet=True)
    for name in TABLE_NAMES:
        frame = pandas.read_parquet(tmp_path / "out" / f"{name}.parquet")
        expected = read(directory, name)
        assert len(frame) == len(expected)
        if len(expected):
            pandas.testing.assert_frame_equal(frame, expected, check_dtype=False)
