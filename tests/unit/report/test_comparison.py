from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from qemu_ring.report import Results
from qemu_ring.report.comparison import change_plot, compare_answer, compare_pairs, pair_cells
from qemu_ring.report.summary import DOWNTIME, SENT, TIME, CellSummary, Measure, summarise
from qemu_ring.report.verdict import Answer

Read = Callable[..., Results]
AXES = {"policy": ["quiesce", "tombstone"]}


def scaled(factor: float) -> Callable[[dict[str, Any], int], dict[str, Any]]:
    def change(run: dict[str, Any], place: int) -> dict[str, Any]:
        run["migration"]["seconds"] = factor * (1 + 0.01 * run["repeat"])
        run["migration"]["downtime_seconds"] = 0.1 + 0.01 * run["repeat"]
        return run

    return change


def test_change_in_percent_with_interval(read: Read) -> None:
    # More than 4 repeats: 4 can show one difference, but not 2 of 4.
    first = read(AXES, repeats=6, change=scaled(1))
    second = read(AXES, repeats=6, change=scaled(1.2))
    pairs = pair_cells(summarise(first), summarise(second))
    assert [pair.name for pair in pairs] == ["policy quiesce", "policy tombstone"]
    changes = compare_pairs(pairs, (TIME, DOWNTIME))
    time = changes[0]
    assert (time.pair, time.measure, time.kind) == (pairs[0], TIME, "more")
    assert time.share.value == pytest.approx(0.2)
    assert time.share.low is not None
    assert 0.15 < time.share.low < 0.2
    answer = compare_answer(pairs, changes, 0)
    assert answer.kind == "bad"
    assert answer.headline == (
        "B against A: time: more in 2 of 2 cells; no clear change of downtime"
    )
    plot = change_plot(pairs, changes)
    assert plot is not None
    rows = plot.choices[0].data["changes"]
    assert [(row["row"], row["kind"]) for row in rows] == [
        (0, "takes more"),
        (1, "takes more"),
        (0, "no clear change"),
        (1, "no clear change"),
    ]


def test_another_qemu_sets_no_cells_apart(read: Read) -> None:
    first = summarise(read(AXES, {"qemu": "/opt/a"}, repeats=1))
    second = summarise(read(AXES, {"qemu": "/opt/b"}, repeats=1))
    assert len(pair_cells(first, second)) == 2


def test_a_parameter_that_varies_sets_cells_apart(read: Read) -> None:
    first = summarise(read(AXES, repeats=1))
    second = summarise(read({"policy": ["tombstone", "best-effort"]}, repeats=1))
    pairs = pair_cells(first, second)
    assert [(pair.first.name, pair.second.name) for pair in pairs] == [
        ("policy tombstone", "policy tombstone")
    ]
    answer = compare_answer(pairs, compare_pairs(pairs, (TIME,)), 2)
    assert answer.kind == "open"
    assert "There are too few repeats for any difference to be told." in answer.details
    assert "Left out because the other does not have them: 2 cells." in answer.details


def compared(first: list[CellSummary], second: list[CellSummary]) -> Answer:
    pairs = pair_cells(first, second)
    return compare_answer(pairs, compare_pairs(pairs, (TIME,)), 0)


def test_a_small_change_does_not_matter(read: Read) -> None:
    first, second = read(AXES, change=scaled(1)), read(AXES, change=scaled(1.049))
    (change, *_) = compare_pairs(pair_cells(summarise(first), summarise(second)), (TIME,))
    assert change.q < 0.05
    assert change.kind == "unclear"


def test_many_comparisons_are_corrected_for(read: Read) -> None:
    axes = {"policy": ["quiesce", "tombstone"], "memory_bytes": [1 << n for n in range(26, 32)]}
    fast, slow = summarise(read(axes, seed=1)), summarise(read(axes, seed=2))
    changes = compare_pairs(pair_cells(fast, slow), (TIME, DOWNTIME, SENT))
    assert len(changes) == 36
    assert all(change.q >= change.difference.p for change in changes)


def test_no_run_completes_any_more(read: Read) -> None:
    def gave_up(run: dict[str, Any], place: int) -> dict[str, Any]:
        return {**run, "status": "not-converged", "migration": None, "stale_pages": None}

    answer = compared(summarise(read(AXES)), summarise(read(AXES, change=gave_up)))
    assert answer.kind == "bad"
    assert answer.headline == "B against A: no run completes any more in 2 of 2 cells"


def test_bytes_are_compared_too(read: Read) -> None:
    def bulky(run: dict[str, Any], place: int) -> dict[str, Any]:
        run["migration"]["bytes"] = 3 << 30
        return run

    first, second = summarise(read(AXES)), summarise(read(AXES, change=bulky))
    pairs = pair_cells(first, second)
    answer = compare_answer(pairs, compare_pairs(pairs, (SENT,)), 0)
    assert answer.headline == "B against A: bytes sent: more in 2 of 2 cells"
    plot = change_plot(pairs, compare_pairs(pairs, (SENT,)))
    assert plot is not None
    assert plot.choices[0].data["changes"][0]["new"] == "3 GiB"


def test_stale_pages_new_in_b(read: Read) -> None:
    def clean(run: dict[str, Any], place: int) -> dict[str, Any]:
        return {**run, "status": "ok", "stale_pages": 0, "stale": []}

    axes = {"policy": ["best-effort"]}
    lossy, sound = summarise(read(axes)), summarise(read(axes, change=clean))
    worse = compared(sound, lossy)
    assert worse.kind == "bad"
    assert worse.headline.startswith("B against A: stale pages new in 1 of 1 cell;")
    better = compared(lossy, sound)
    assert better.kind == "good"
    assert better.headline.startswith("B against A: stale pages gone from 1 of 1 cell;")


def test_nothing_in_common(read: Read) -> None:
    assert compare_answer([], [], 4).headline == "A and B have no cell in common"
    assert change_plot([], []) is None


def test_nothing_to_divide_by(read: Read) -> None:
    nothing = Measure("nothing", "Nothing", "nothing", lambda _: 0.0)
    pairs = pair_cells(summarise(read(AXES)), summarise(read(AXES)))
    assert compare_pairs(pairs, (nothing,)) == []
