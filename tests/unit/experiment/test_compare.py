"""Comparing results: what is found, what is not, and what cannot be known."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from qemu_ring.errors import UsageError
from qemu_ring.experiment import (
    Criteria,
    Results,
    ResultsComparison,
    TooFewRunsError,
    compare_results,
    parse_experiment,
    read_results,
)
from qemu_ring.experiment.compare import Verdict

from .conftest import EXPERIMENT, Outcome, Write, outcomes

BITMAP, RING = "tracking=bitmap", "tracking=ring:4096"
PLAN = parse_experiment(EXPERIMENT.replace("repeats: 3", "repeats: 10"))
ONE = Criteria(metrics=("seconds",))


class Maker:
    def __init__(self, folder: Path, write: Write) -> None:
        self._folder, self._write, self._count = folder, write, 0

    def __call__(self, **found: Iterable[Outcome]) -> Results:
        self._count += 1
        path = self._folder / str(self._count)
        self._write(path, PLAN, {BITMAP: found.get("bitmap", ()), RING: found.get("ring", ())})
        return read_results(path)


@pytest.fixture
def make(tmp_path: Path, write: Write) -> Maker:
    return Maker(tmp_path, write)


def verdicts(found: ResultsComparison) -> dict[str, list[Verdict]]:
    return {cell.name: [one.verdict for one in cell.differences] for cell in found.cells}


def test_worse_better_and_same(make: Maker) -> None:
    a = make(bitmap=outcomes(1, 10), ring=outcomes(1, 10, seed=2))
    b = make(bitmap=outcomes(1.3, 10, seed=3), ring=outcomes(1, 10, seed=4))
    found = compare_results(a, b, ONE)
    assert verdicts(found) == {BITMAP: [Verdict.WORSE], RING: [Verdict.SAME]}
    assert found.worse
    back = compare_results(b, a, ONE)
    assert verdicts(back) == {BITMAP: [Verdict.BETTER], RING: [Verdict.SAME]}
    assert not back.worse
    worse = found.cells[0].differences[0]
    assert worse.change == pytest.approx(0.3, abs=0.05)
    assert worse.interval is not None
    assert worse.change is not None
    assert worse.interval[0] < worse.change < worse.interval[1]
    assert worse.interval[0] > 0.2
    assert worse.runs == (10, 10)
    assert 0 < worse.p <= worse.q < 0.01


def test_a_small_change_does_not_matter(make: Maker) -> None:
    a = make(bitmap=[("ok", 1 + i / 1000) for i in range(10)])
    b = make(bitmap=[("ok", 1.02 + i / 1000) for i in range(10)])
    assert verdicts(compare_results(a, b, ONE))[BITMAP] == [Verdict.SAME]
    strict = Criteria(metrics=("seconds",), threshold=0.01)
    assert verdicts(compare_results(a, b, strict))[BITMAP] == [Verdict.WORSE]


def test_the_same_results_are_never_worse(make: Maker) -> None:
    a = make(bitmap=outcomes(1, 10), ring=[("ok", 1.0)] * 10)
    found = compare_results(a, a)
    assert not found.worse
    found.require_decided()


def test_many_comparisons_are_corrected_for(make: Maker) -> None:
    a = make(bitmap=outcomes(1, 10), ring=outcomes(1, 10, seed=2))
    b = make(bitmap=outcomes(1.3, 10, seed=3), ring=outcomes(1, 10, seed=4))
    found = compare_results(a, b, ONE)
    p = sorted(one.p for cell in found.cells for one in cell.differences)
    q = sorted(one.q for cell in found.cells for one in cell.differences)
    assert q[0] == pytest.approx(min(2 * p[0], p[1]))


def test_warm_up_does_not_count(tmp_path: Path, write: Write) -> None:
    plan = parse_experiment(EXPERIMENT + "warm-up: 1\n")
    write(tmp_path, plan, {BITMAP: [("ok", 99.0), ("ok", 1.0), ("ok", 1.0), ("ok", 1.0)]})
    results = read_results(tmp_path)
    found = compare_results(results, results, ONE)
    assert found.cells[0].differences[0].medians == (1.0, 1.0)
    assert found.cells[0].differences[0].runs == (3, 3)


def test_lost_memory_is_a_regression(make: Maker) -> None:
    a = make(bitmap=outcomes(1, 10))
    b = make(bitmap=[*outcomes(1, 9), *outcomes(1, 1, status="stale")])
    found = compare_results(a, b, ONE)
    assert found.worse
    assert found.cells[0].regressions == ("1 of 10 runs of B lost memory, and none of A",)
    assert not compare_results(b, a, ONE).worse


@pytest.mark.parametrize("status", ["timeout", "not-converged", "refused", "crashed"])
def test_a_cell_that_no_longer_completes_is_a_regression(make: Maker, status: str) -> None:
    a = make(bitmap=outcomes(1, 3))
    b = make(bitmap=[(status, None)] * 3)
    found = compare_results(a, b, ONE)
    assert found.cells[0].regressions == (f"no run of B completed (3 {status})",)
    assert not compare_results(b, a, ONE).worse


def test_too_few_runs_are_no_all_clear(make: Maker) -> None:
    a, b = make(bitmap=outcomes(1, 3)), make(bitmap=outcomes(9, 3))
    found = compare_results(a, b, ONE)
    assert verdicts(found)[BITMAP] == [Verdict.TOO_FEW]
    assert not found.worse
    with pytest.raises(TooFewRunsError, match="3 and 3 runs are too few"):
        found.require_decided()
    enough = compare_results(make(bitmap=outcomes(1, 4)), make(bitmap=outcomes(9, 4)), ONE)
    assert verdicts(enough)[BITMAP] == [Verdict.WORSE]


def test_nothing_completed(make: Maker) -> None:
    a = make(bitmap=[("refused", None)] * 5)
    with pytest.raises(TooFewRunsError, match="no cell has completed runs in both"):
        compare_results(a, a, ONE).require_decided()


def test_cells_of_one_experiment(make: Maker) -> None:
    a = make(bitmap=outcomes(1, 10), ring=outcomes(1.3, 10))
    found = compare_results(
        a, a, ONE, where_a={"tracking": "bitmap"}, where_b={"tracking": "ring:4096"}
    )
    assert verdicts(found) == {f"{BITMAP} -> {RING}": [Verdict.WORSE]}
    assert found.unlike == {"tracking": ("bitmap", "ring:4096"), "ring_entries": (None, 4096)}
    by_axis = compare_results(
        a, a, ONE, where_a={"guest.tracking": "bitmap"}, where_b={"guest.tracking": "ring:4096"}
    )
    assert by_axis.cells == found.cells


def test_wrong_choice(make: Maker) -> None:
    a = make(bitmap=outcomes(1, 3))
    with pytest.raises(UsageError, match="has no parameter trackin"):
        compare_results(a, a, where_a={"trackin": "bitmap"})
    with pytest.raises(UsageError, match="no cell in common"):
        compare_results(a, a, where_a={"tracking": "bitmap"}, where_b={"tracking": "ring:1"})
    with pytest.raises(UsageError, match="would be one cell"):
        compare_results(a, a, where_a={"tracking": "bitmap"}, where_b={"vcpus": "1"})


@pytest.mark.parametrize(
    "criteria",
    [{"metrics": ("speed",)}, {"alpha": 0.0}, {"confidence": 1.0}, {"threshold": -0.1}],
)
def test_criteria_that_cannot_be(criteria: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Criteria(**criteria)  # type: ignore[arg-type]
