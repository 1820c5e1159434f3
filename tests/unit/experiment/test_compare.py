"""Comparing results: what is found, what is not, and what cannot be known."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from qemu_ring.errors import UsageError
from qemu_ring.experiment import (
    Criteria,
    Results,
    ResultsComparison,
    UndecidedError,
    compare_results,
    parse_experiment,
    read_results,
)
from qemu_ring.experiment.compare.verdicts import Verdict

from .conftest import EXPERIMENT, Maker, Outcome, Write, outcomes

BITMAP, RING = "tracking=bitmap", "tracking=ring:4096"
ONE = Criteria(metrics=("seconds",))


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
    a = make(bitmap=outcomes(1, 10), ring=[("ok", 1.0)] * 10)  # the latter shows nothing ever
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


@pytest.mark.parametrize("before", [0, 1, 2, 5])
def test_any_lost_memory_is_a_regression(make: Maker, before: int) -> None:
    a = make(bitmap=[*outcomes(1, 10 - before), *outcomes(1, before, status="stale")])
    b = make(bitmap=[*outcomes(1, 9), *outcomes(1, 1, status="stale")])
    found = compare_results(a, b, ONE, only_common=True)
    assert found.worse
    (said,) = found.cells[0].regressions
    was = f"{before} of 10 of A (0 pages)" if before else "none of A"
    assert said == f"1 of 10 runs of B lost memory (0 pages), and {was}"


def test_memory_lost_in_a_warm_up_is_a_regression(tmp_path: Path, write: Write) -> None:
    plan = parse_experiment(EXPERIMENT + "warm-up: 1\n")
    good: dict[str, Iterable[Outcome]] = {BITMAP: outcomes(1, 4), RING: outcomes(1, 4)}
    write(tmp_path / "a", plan, good)
    write(tmp_path / "b", plan, good | {RING: [("stale", 1.0), *outcomes(1, 3)]})
    a, b = read_results(tmp_path / "a"), read_results(tmp_path / "b")
    found = compare_results(a, b, ONE)
    assert found.worse
    assert found.cells[1].regressions
    assert found.cells[1].warm_up_statuses == ({"ok": 1}, {"stale": 1})
    assert found.cells[1].statuses == ({"ok": 3}, {"ok": 3})


@pytest.mark.parametrize("status", ["timeout", "not-converged", "refused", "crashed"])
def test_a_cell_that_no_longer_completes_is_a_regression(make: Maker, status: str) -> None:
    a = make(bitmap=outcomes(1, 3))
    b = make(bitmap=[(status, None)] * 3)
    found = compare_results(a, b, ONE)
    assert found.cells[0].regressions[-1] == f"no run of B completed (3 {status})"
    assert not compare_results(b, a, ONE).worse


@pytest.mark.parametrize(("status", "did"), [("crashed", "crashed"), ("timeout", "timed out")])
def test_the_first_crash_is_a_regression(make: Maker, status: str, did: str) -> None:
    a = make(bitmap=outcomes(1, 10), ring=outcomes(1, 10))
    b = make(bitmap=[*outcomes(1, 9), (status, None)], ring=outcomes(1, 10))
    found = compare_results(a, b, ONE)
    assert found.cells[0].regressions == (f"1 of 10 runs of B {did}, and none of A",)
    assert found.worse
    assert not compare_results(b, b, ONE).worse


@pytest.mark.parametrize(
    ("failed", "verdict"),
    [
        (0, Verdict.SAME),
        (1, Verdict.TOO_FEW),
        (3, Verdict.TOO_FEW),
        (4, Verdict.WORSE),
    ],
)
def test_fewer_that_complete(make: Maker, failed: int, verdict: Verdict) -> None:
    a = make(bitmap=outcomes(1, 10), ring=outcomes(1, 10))
    b = make(
        bitmap=[*outcomes(1, 10 - failed), *[("not-converged", None)] * failed],
        ring=outcomes(1, 10),
    )
    found = compare_results(a, b, ONE)
    completion = found.cells[0].completion
    assert completion.completed == (10, 10 - failed)
    assert completion.verdict is verdict
    assert found.worse == (verdict is Verdict.WORSE)
    if verdict is Verdict.TOO_FEW:
        with pytest.raises(UndecidedError, match="fewer runs of B completed in 1 cell, which"):
            found.require_decided()
        assert completion.runs_needed is not None
        assert completion.runs_needed > 10


def test_a_fall_among_failures_of_both_is_no_news(make: Maker) -> None:
    def failing(count: int) -> Results:
        runs = [*outcomes(1, 10 - count), *[("not-converged", None)] * count]
        return make(bitmap=runs, ring=outcomes(1, 10))

    found = compare_results(failing(4), failing(5), ONE)
    assert found.cells[0].completion.verdict is Verdict.SAME
    assert not found.worse


def test_survivors_are_never_better(make: Maker) -> None:
    slow, quick = outcomes(10, 5), outcomes(5, 5)
    a = make(bitmap=[*slow, *quick])
    b = make(bitmap=[*outcomes(4, 5), *[("not-converged", None)] * 5])
    found = compare_results(a, b, ONE)
    assert verdicts(found)[BITMAP] == [Verdict.INCOMPARABLE]
    assert found.worse
    slower = make(bitmap=[*outcomes(20, 6), *[("not-converged", None)] * 4])
    assert verdicts(compare_results(a, slower, ONE))[BITMAP] == [Verdict.WORSE]


def test_too_few_runs_are_no_all_clear(make: Maker) -> None:
    a, b = make(bitmap=outcomes(1, 3)), make(bitmap=outcomes(9, 3))
    found = compare_results(a, b, ONE)
    assert verdicts(found)[BITMAP] == [Verdict.TOO_FEW]
    assert not found.worse
    with pytest.raises(UndecidedError, match=r"3 and 3 runs are too few .*: 4 completed"):
        found.require_decided()
    enough = compare_results(make(bitmap=outcomes(1, 4)), make(bitmap=outcomes(9, 4)), ONE)
    assert verdicts(enough)[BITMAP] == [Verdict.WORSE]


@pytest.mark.parametrize(("repeats", "verdict"), [(4, Verdict.TOO_FEW), (5, Verdict.WORSE)])
def test_too_few_is_decided_on_the_corrected_level(
    make: Maker, repeats: int, verdict: Verdict
) -> None:
    """4 repeats would do for one cell; of two, each has to pass half the level."""
    same = outcomes(1, repeats)
    a = make(bitmap=same, ring=same)
    b = make(bitmap=outcomes(3, repeats), ring=outcomes(1, repeats, seed=2))
    found = compare_results(a, b, ONE)
    assert verdicts(found)[BITMAP] == [verdict]
    assert found.worse == (verdict is Verdict.WORSE)
    (reason, *_) = [one for one in found.undecided if "too few" in one] or [""]
    assert ("in 1 cell of 2: 5 completed repeats" in reason) == (repeats == 4)


def test_one_undecided_cell_is_no_all_clear(make: Maker) -> None:
    a = make(bitmap=outcomes(1, 10), ring=outcomes(1, 3))
    b = make(bitmap=outcomes(1, 10, seed=2), ring=outcomes(3, 3))
    found = compare_results(a, b, ONE, only_common=True)
    assert verdicts(found) == {BITMAP: [Verdict.SAME], RING: [Verdict.TOO_FEW]}
    with pytest.raises(UndecidedError, match="3 and 3 runs are too few"):
        found.require_decided()
    worse = compare_results(a, make(bitmap=outcomes(2, 10), ring=outcomes(3, 3)), ONE)
    assert worse.worse, "what is undecided does not hide what is proven"


def test_what_cannot_show_anything_costs_nothing(make: Maker) -> None:
    """Neither a cell of constant values nor one of too few runs is in the family."""
    first, second = outcomes(1, 4), outcomes(3, 4)
    for idle in ([("ok", 1.0)] * 10, outcomes(1, 2)):
        found = compare_results(make(bitmap=first, ring=idle), make(bitmap=second, ring=idle), ONE)
        assert verdicts(found)[BITMAP] == [Verdict.WORSE]
        assert found.cells[0].differences[0].q == found.cells[0].differences[0].p


def test_a_metric_costs_the_others_nothing(make: Maker) -> None:
    a, b = make(bitmap=outcomes(1, 4)), make(bitmap=outcomes(3, 4))
    found = compare_results(a, b)
    assert verdicts(found)[BITMAP] == [Verdict.WORSE] * 3


def test_ties_are_tested_exactly(make: Maker) -> None:
    """The normal approximation would say 0.011."""
    a, b = make(bitmap=[("ok", 1.0)] * 4), make(bitmap=[("ok", 3.0)] * 4)
    (one,) = compare_results(a, b, ONE).cells[0].differences
    assert one.p == pytest.approx(2 / 70)


@pytest.mark.parametrize("runs", [2, 5, 6, 10])
def test_few_repeats_have_a_range_instead_of_an_interval(make: Maker, runs: int) -> None:
    a = make(bitmap=[("ok", 1 + i / 100) for i in range(runs)])
    b = make(bitmap=[("ok", 2 + i / 100) for i in range(runs)])
    (one,) = compare_results(a, b, ONE).cells[0].differences
    last = (runs - 1) / 100
    range_ = (2 / (1 + last) - 1, 2 + last - 1)
    assert one.interval_kind == ("range" if runs < 6 else "bootstrap")
    assert (one.interval == pytest.approx(range_)) == (runs < 6)


def test_no_interval_of_a_change_from_nothing(make: Maker) -> None:
    a = make(bitmap=[("ok", i / 10) for i in range(10)])
    b = make(bitmap=[("ok", 1 + i / 10) for i in range(10)])
    found = compare_results(a, b)
    for one in found.cells[0].differences:
        assert (one.interval, one.interval_kind) == (None, None)
    json.dumps(found.as_dict(), allow_nan=False)


def test_nothing_completed(make: Maker) -> None:
    a = make(bitmap=[("refused", None)] * 5)
    with pytest.raises(UndecidedError, match="no cell has completed runs in both"):
        compare_results(a, a, ONE).require_decided()


@pytest.mark.parametrize(
    ("status", "said"),
    [("refused", ("1 cell completed in neither",)), ("not-converged", ())],
)
def test_a_cell_that_completes_in_neither(make: Maker, status: str, said: tuple[str, ...]) -> None:
    a = make(bitmap=outcomes(1, 10), ring=[(status, None)] * 10)
    found = compare_results(a, a, ONE)
    assert not found.worse
    assert found.undecided == said


def test_what_was_not_measured_is_not_cleared(make: Maker) -> None:
    a = make(bitmap=outcomes(1, 10), ring=outcomes(1, 10))
    found = compare_results(a, a, Criteria(metrics=("seconds", "guest_downtime_seconds")))
    assert found.undecided == ("downtime, by the guest was not measured in 2 cells",)


def test_unfinished_results_are_not_cleared(make: Maker) -> None:
    whole = make(bitmap=outcomes(1, 10), ring=outcomes(1, 10))
    half = make(bitmap=outcomes(1, 10), ring=outcomes(1, 8))
    found = compare_results(whole, half, ONE)
    assert found.undecided == ("B is not finished: 2 of 20 runs are to be made yet",)
    found = compare_results(half, whole, ONE)
    assert found.undecided == ("A is not finished: 2 of 20 runs are to be made yet",)
    chosen = compare_results(
        half, half, ONE, where_a={"tracking": "bitmap"}, where_b={"tracking": "bitmap"}
    )
    assert chosen.undecided == ()


@pytest.mark.parametrize(
    "criteria",
    [{"metrics": ("speed",)}, {"alpha": 0.0}, {"confidence": 1.0}, {"threshold": -0.1}],
)
def test_criteria_that_cannot_be(criteria: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Criteria(**criteria)  # type: ignore[arg-type]
