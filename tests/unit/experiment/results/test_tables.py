"""Results as tables: rows, files, data frames."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from qemu_ring.experiment import (
    ExperimentFileError,
    ExperimentPlan,
    export,
    parse_experiment,
    read_results,
    rows,
)
from qemu_ring.experiment.plan.columns import RESERVED
from qemu_ring.experiment.results.tables import TABLES, Table, columns
from qemu_ring.experiment.run.draft import _iteration, sample_record
from qemu_ring.migration import Iteration, Sample
from tests.unit.experiment.conftest import EXPERIMENT, Write, outcomes

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
    frame = read_results(directory).frame()
    assert frame.groupby("tracking")["seconds"].count().to_dict() == {"bitmap": 2, "ring:4096": 3}
    samples = read_results(directory).frame("samples")
    assert len(samples.merge(frame, on=["cell", "repeat"])) == 5


def test_polars(directory: Path) -> None:
    polars = pytest.importorskip("polars")
    frame = read_results(directory).frame(library="polars")
    assert isinstance(frame, polars.DataFrame)
    assert frame.filter(polars.col("status") == "ok").height == 4


def test_csv(directory: Path, tmp_path: Path) -> None:
    written = export(read_results(directory), tmp_path / "out")
    assert [path.name for path in written] == [f"{name}.csv" for name in TABLE_NAMES]
    with written[0].open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["seconds"] for row in found if row["tracking"] == "bitmap"] == ["1.0", "1.5", ""]


def test_parquet_holds_the_same(directory: Path, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    export(read_results(directory), tmp_path / "out", parquet=True)
    for name in TABLE_NAMES:
        frame = pandas.read_parquet(tmp_path / "out" / f"{name}.parquet")
        expected = read_results(directory).frame(name)
        assert len(frame) == len(expected)
        if len(expected):
            pandas.testing.assert_frame_equal(frame, expected, check_dtype=False)


@pytest.mark.parametrize("library", ["pandas", "polars"])
@pytest.mark.parametrize("name", TABLE_NAMES)
def test_columns_do_not_depend_on_what_happened(
    tmp_path: Path, plan: ExperimentPlan, write: Write, directory: Path, name: Table, library: Any
) -> None:
    write(tmp_path / "fresh", plan, {})
    write(tmp_path / "failed", plan, {cell.name: [("crashed", None)] * 3 for cell in plan.cells})
    whole, fresh, failed = (
        read_results(place).frame(name, library=library)
        for place in (directory, tmp_path / "fresh", tmp_path / "failed")
    )
    assert len(fresh) == 0
    assert len(failed) == (6 if name == "runs" else 0)
    assert (
        list(whole.columns) == list(fresh.columns) == list(columns(read_results(directory), name))
    )
    assert list(whole.dtypes) == list(fresh.dtypes) == list(failed.dtypes)


def test_an_empty_table_has_a_heading(directory: Path, tmp_path: Path) -> None:
    export(read_results(directory), tmp_path / "out")
    assert (tmp_path / "out/removals.csv").read_text() == "cell,repeat,at_seconds,shape,count\n"


def test_every_figure_of_a_record_has_a_column(directory: Path) -> None:
    results = read_results(directory)
    iteration = _iteration(Iteration(number=1, started=0.0, seconds=1.0))
    assert {"cell", "repeat", *iteration} == set(columns(results, "iterations"))
    sample = sample_record(Sample(**dict.fromkeys(Sample.__dataclass_fields__)), None)  # type: ignore[arg-type]
    assert {"cell", "repeat", *sample} == set(columns(results, "samples"))


def test_parameters_have_the_types_of_their_columns(directory: Path) -> None:
    results = read_results(directory)
    wanted = columns(results)
    for cell in results.cells.values():
        for key, value in cell.parameters.items():
            assert value is None or type(value) is wanted[key]


@pytest.mark.parametrize("word", sorted(RESERVED - {"qemu", "migration", "removals"}))
def test_an_axis_cannot_be_called_as_a_column(word: str) -> None:
    text = EXPERIMENT.replace(
        "  guest.tracking: [bitmap, ring:4096]",
        f"  {word}:\n    one: {{settle-seconds: 1}}\n    two: {{settle-seconds: 2}}",
    )
    with pytest.raises(ExperimentFileError) as caught:
        parse_experiment(text, name="e.yaml")
    said = "is a column of the results; choose another word"
    if word.split(".")[0] not in ("network", "removals"):  # parts of the file: no such key there
        assert caught.value.problems == (f"e.yaml:13: matrix.{word}: {said}",)


def test_an_axis_of_a_whole_part_hides_no_parameter(tmp_path: Path, write: Write) -> None:
    text = EXPERIMENT.replace(
        "  guest.tracking: [bitmap, ring:4096]",
        "  removals:\n    none: null\n    fast: {every-seconds: 0.01}\n"
        "  migration: {pre: {}, post: {kind: postcopy}}",
    ).replace("  workload:", "  slots: [{name: s, size: 1 MiB, address: 1 GiB}]\n  workload:")
    plan = parse_experiment(text)
    write(tmp_path / "r", plan, {cell.name: outcomes(1, 3) for cell in plan.cells})
    frame = read_results(tmp_path / "r").frame()
    assert set(frame["axis.removals"]) == {"none", "fast"}
    assert set(frame["removals"]) == {True, False}
    assert set(frame["axis.migration"]) == {"pre", "post"}
    assert set(frame["migration"]) == {"precopy", "postcopy"}
