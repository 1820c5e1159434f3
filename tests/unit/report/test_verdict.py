from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from qemu_ring.experiment import Results
from qemu_ring.report import verdict
from qemu_ring.report.summary import DOWNTIME, TIME, summarise

Read = Callable[..., Results]
AXES = {"policy": ["quiesce", "tombstone"]}


def stale(results: Results) -> verdict.Answer:
    return verdict.stale_pages(results, summarise(results))


def timed(seconds: dict[str, list[float]]) -> Callable[[dict[str, Any], int], dict[str, Any]]:
    """Give each policy's repeats these times."""

    def change(run: dict[str, Any], place: int) -> dict[str, Any]:
        values = list(seconds.values())[place % len(seconds)]
        run["migration"]["seconds"] = values[run["repeat"]]
        return run

    return change


def lossless(run: dict[str, Any]) -> dict[str, Any]:
    return {**run, "status": "ok", "stale_pages": 0, "stale": []}


def test_stale_pages_are_told_first(read: Read) -> None:
    answer = stale(read({"policy": ["best-effort", "quiesce"]}, repeats=3))
    assert answer.kind == "bad"
    assert answer.headline == "80 stale pages in 2 of 6 migrations: memory was lost"
    assert answer.details[0] == "In policy best-effort (80)."


def test_stale_page_of_a_warm_up_counts(read: Read) -> None:
    results = read(
        {"policy": ["best-effort"]}, repeats=1, change=lambda run, _: {**run, "warm_up": True}
    )
    assert stale(results).kind == "bad"
    assert summarise(results)[0].measured == []


def test_clean(read: Read) -> None:
    answer = stale(read(AXES))
    assert answer.kind == "good"
    assert answer.headline == "No stale page in 8 migrations: every byte arrived"
    assert "pages while they were migrated, and " in answer.details[0]


def test_a_guest_that_wrote_nothing_shows_nothing(read: Read) -> None:
    answer = stale(read(AXES, change=lambda run, _: {**run, "pages_written": 0}))
    assert answer.kind == "open"
    assert "wrote nothing" in answer.headline


def test_without_comparison_nothing_is_known(read: Read) -> None:
    answer = stale(read(AXES, repeats=1, change=lambda run, _: {**run, "stale_pages": None}))
    assert answer.kind == "open"
    assert answer.headline.startswith("No memory was compared")
    assert "2 runs completed without a comparison of memory." in answer.details


def test_runs_that_failed_or_are_missing(read: Read) -> None:
    def fail(run: dict[str, Any], place: int) -> dict[str, Any]:
        if place == 0:
            return {**run, "status": "not-converged", "migration": None, "stale_pages": None}
        return run

    ids = list(read(AXES).cells)
    order = [[cell, n, n] for n in range(10) for cell in ids]
    results = read(AXES, change=fail, order=order)
    answer = stale(results)
    assert "The experiment is not finished: 8 of 20 runs are done." in answer.details
    failures = verdict.failures(summarise(results))
    assert failures is not None
    assert failures.kind == "open"
    assert failures.headline == "1 of 8 runs did not complete: 1 did not converge"
    assert failures.details[0] == "In policy quiesce (1)."
    assert sum(len(cell.values(TIME)) for cell in summarise(results)) == 7


def test_a_crash_is_told_with_its_error(read: Read) -> None:
    gone: dict[str, Any] = {"status": "crashed", "migration": None, "stale_pages": None}
    results = read(AXES, change=lambda run, _: {**run, **gone, "error": "QEMU ended: " + "x" * 500})
    failures = verdict.failures(summarise(results))
    assert failures is not None
    assert failures.kind == "bad"
    assert failures.headline == "8 of 8 runs did not complete: 8 crashed"
    assert failures.details[-1].startswith("Most often, 8 times: QEMU ended: x")
    assert len(failures.details[-1]) < 240
    assert verdict.failures(summarise(read(AXES))) is None


def test_fastest_with_its_interval(read: Read) -> None:
    times = {"quiesce": [2.0, 2.1, 2.2, 2.3], "tombstone": [1.0, 1.1, 1.2, 1.3]}
    answer = verdict.fastest(summarise(read(AXES, change=timed(times))), TIME)
    assert answer.kind == "good"
    assert (
        answer.headline == "The fastest migration is policy tombstone: 1.15 s (range 1 to 1.30 s)"
    )
    assert answer.details[0] == (
        "The next is policy quiesce with 2.15 s (range 2 to 2.30 s): 1.00 s (87 %) more, "
        "range 0.70 to 1.30 s."
    )
    many = {key: [*values, *values] for key, values in times.items()}
    answer = verdict.fastest(summarise(read(AXES, repeats=8, change=timed(many))), TIME)
    assert answer.headline.endswith("1.15 s (1 to 1.30 s)")
    assert ", 95 % interval " in answer.details[0]


def test_few_repeats_of_many_cells_cannot_tell(read: Read) -> None:
    """4 can tell one difference, but not one of 3: each repeat of the fastest is far away."""
    axes = {"policy": ["quiesce", "tombstone", "best-effort", "none"]}
    near = [1.0, 1.5, 2.2, 2.4]
    times = dict.fromkeys(("quiesce", "tombstone", "best-effort"), near)
    quick = {"none": [0.99, 1.51, 2.0, 2.3]}
    answer = verdict.fastest(
        summarise(read(axes, change=lambda run, n: lossless(timed(times | quick)(run, n)))), TIME
    )
    assert answer.kind == "open"
    assert "so few repeats cannot tell" in answer.details[0]


def test_close_cells_are_not_told_apart(read: Read) -> None:
    times = {"quiesce": [1.0, 1.5, 2.2, 2.4], "tombstone": [1.0, 1.6, 1.9, 2.3]}
    answer = verdict.fastest(summarise(read(AXES, change=timed(times))), TIME)
    assert answer.kind == "open"
    assert answer.headline.startswith("No cell clearly has the fastest migration; least is ")
    assert "the repeats overlap too much" in answer.details[0]


def test_one_repeat_proves_nothing(read: Read) -> None:
    answer = verdict.fastest(summarise(read(AXES, repeats=1)), DOWNTIME)
    assert answer.kind == "open"
    assert "so few repeats cannot tell" in answer.details[0]


def test_a_cell_that_loses_memory_does_not_win(read: Read) -> None:
    axes = {"policy": ["best-effort", "quiesce"]}
    times = {"best-effort": [0.1, 0.11, 0.12], "quiesce": [1.0, 1.1, 1.2]}
    answer = verdict.fastest(summarise(read(axes, repeats=3, change=timed(times))), TIME)
    assert "policy quiesce" in answer.headline
    assert answer.details == ("Left out for stale pages: policy best-effort.",)


@pytest.mark.parametrize("repeats", [1, 2])
def test_nothing_measured(read: Read, repeats: int) -> None:
    results = read(
        AXES, repeats=repeats, change=lambda run, _: {**run, "status": "crashed", "migration": None}
    )
    assert verdict.fastest(summarise(results), TIME).headline == "No time was measured"
