from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from qemu_ring.experiment import Results, compare_results
from qemu_ring.report.comparison import (
    ComparedResults,
    change_plot,
    compare_answer,
    compare_experiments,
)
from qemu_ring.report.page import build_page
from qemu_ring.report.summary import summarise
from qemu_ring.report.tables import apart_table, pair_table
from qemu_ring.report.verdict import Answer

Read = Callable[..., Results]
Change = Callable[[dict[str, Any], int], dict[str, Any]]
AXES = {"policy": ["quiesce", "tombstone"]}


def scaled(factor: float) -> Change:
    def change(run: dict[str, Any], place: int) -> dict[str, Any]:
        run["migration"]["seconds"] = factor * (1 + 0.01 * run["repeat"])
        run["migration"]["downtime_seconds"] = 0.1 + 0.01 * run["repeat"]
        run["migration"]["bytes"] = 1 << 30
        return run

    return change


def compared(first: Results, second: Results) -> ComparedResults:
    found = compare_experiments(first, second, (summarise(first), summarise(second)))
    assert found is not None
    return found


def answer(first: Results, second: Results) -> Answer:
    return compare_answer(compared(first, second))


def test_change_in_percent_with_interval(read: Read) -> None:
    # More than 4 repeats: 4 can show one difference, but not one of 2 cells.
    found = compared(
        read(AXES, repeats=6, change=scaled(1)), read(AXES, repeats=6, change=scaled(1.2))
    )
    assert sorted(pair.name for pair in found.pairs) == ["policy quiesce", "policy tombstone"]
    time = found.changes[0]
    assert (time.measure.key, time.kind) == ("time", "more")
    assert time.difference.change == pytest.approx(0.2)
    assert time.difference.interval is not None
    assert 0.15 < time.difference.interval[0] < 0.2
    said = compare_answer(found)
    assert said.kind == "bad"
    assert said.headline == (
        "B against A: time: more in 2 of 2 cells; no clear change of downtime and bytes sent"
    )
    plot = change_plot(found)
    assert plot is not None
    rows = plot.choices[0].data["changes"]
    assert [(row["measure"], row["row"], row["kind"]) for row in rows] == [
        ("time", 0, "takes more"),
        ("time", 1, "takes more"),
        ("downtime", 0, "no clear change"),
        ("downtime", 1, "no clear change"),
        ("sent", 0, "no clear change"),
        ("sent", 1, "no clear change"),
    ]


@pytest.mark.parametrize("seed", range(5))
def test_verdicts_are_those_of_the_command(read: Read, seed: int) -> None:
    axes = {"policy": ["quiesce", "best-effort"], "memory_bytes": [1 << 26, 1 << 27]}

    def worse(run: dict[str, Any], place: int) -> dict[str, Any]:
        if place % 3 == seed % 3:
            run["migration"]["seconds"] *= 1.1
        if place % 7 == seed:
            return {**run, "status": "crashed", "migration": None, "stale_pages": None}
        return run

    first = read(axes, repeats=6, seed=seed)
    second = read(axes, repeats=6, seed=seed + 10, change=worse)
    told = compare_results(first, second)
    found = compared(first, second)
    assert found.found == told
    assert (compare_answer(found).kind == "bad") == told.worse
    rows = change_plot(found).choices[0].data["changes"]  # type: ignore[union-attr]
    shown = {(row["cell"], row["measure"]): row["verdict"] for row in rows}
    assert len(shown) == sum(len(cell.differences) for cell in told.cells)
    words = {"seconds": "time", "downtime_seconds": "downtime", "bytes": "sent"}
    for cell in told.cells:
        for one in cell.differences:
            assert shown[cell.name, words[one.metric]] == one.verdict.replace("-", " ")


def test_another_qemu_sets_no_cells_apart(read: Read) -> None:
    first, second = (read(AXES, {"qemu": f"/opt/{name}"}, repeats=1) for name in "ab")
    found = compared(first, second)
    assert len(found.pairs) == 2
    assert [row[1] for row in apart_table(found).rows] == [("qemu", "/opt/a", "/opt/b")]


def test_an_axis_of_one_value_each_sets_no_cells_apart(read: Read) -> None:
    found = compared(read({"policy": ["quiesce"]}), read({"policy": ["tombstone"]}))
    assert [pair.name for pair in found.pairs] == ["policy quiesce -> policy tombstone"]


def test_a_parameter_that_varies_sets_cells_apart(read: Read) -> None:
    found = compared(
        read(AXES, repeats=1), read({"policy": ["tombstone", "quiesce", "x"]}, repeats=1)
    )
    assert len(found.pairs) == 2
    said = compare_answer(found)
    assert said.kind == "open"
    assert any(
        one.startswith("Undecided: 1 cell is only in B; 1 and 1 runs are too few")
        for one in said.details
    )
    assert apart_table(found).rows[-1][1][0] == "cell only in B"


def test_a_small_change_does_not_matter(read: Read) -> None:
    found = compared(
        read(AXES, repeats=6, change=scaled(1)), read(AXES, repeats=6, change=scaled(1.049))
    )
    assert found.changes[0].difference.q < 0.05
    assert found.changes[0].kind == "unclear"
    assert compare_answer(found).kind == "good"


def test_no_run_completes_any_more(read: Read) -> None:
    def gave_up(run: dict[str, Any], place: int) -> dict[str, Any]:
        return {**run, "status": "not-converged", "migration": None, "stale_pages": None}

    first, second = read(AXES), read(AXES, change=gave_up)
    said = answer(first, second)
    assert said.kind == "bad"
    assert said.headline == "B against A: more runs fail in 2 of 2 cells"
    assert "policy quiesce: no run of B completed (4 not-converged)." in said.details
    (row, *_) = pair_table(compared(first, second)).rows
    assert row[1][1:3] == ("4", "0\n4 did not converge")


def test_runs_that_crash_are_told(read: Read) -> None:
    def once(run: dict[str, Any], place: int) -> dict[str, Any]:
        gone = {"status": "crashed", "migration": None, "stale_pages": None}
        return {**run, **gone} if place == 3 else run

    said = answer(read(AXES, repeats=8), read(AXES, repeats=8, change=once))
    assert said.kind == "bad"
    assert "more runs fail in 1 of 2 cells" in said.headline
    assert any("1 of 8 runs of B crashed, and none of A." in one for one in said.details)


def test_bytes_are_compared_too(read: Read) -> None:
    def bulky(run: dict[str, Any], place: int) -> dict[str, Any]:
        run["migration"]["bytes"] = 3 << 30
        return run

    found = compared(read(AXES), read(AXES, change=bulky))
    assert "bytes sent: more in 2 of 2 cells" in compare_answer(found).headline
    plot = change_plot(found)
    assert plot is not None
    sent = [row for row in plot.choices[0].data["changes"] if row["measure"] == "sent"]
    assert sent[0]["new"] == "3 GiB"


def test_stale_pages_new_in_b(read: Read) -> None:
    def clean(run: dict[str, Any], place: int) -> dict[str, Any]:
        return {**run, "status": "ok", "stale_pages": 0, "stale": []}

    axes = {"policy": ["best-effort"]}
    lossy, sound = read(axes, repeats=6), read(axes, repeats=6, change=clean)
    worse = answer(sound, lossy)
    assert worse.kind == "bad"
    assert worse.headline.startswith("B against A: stale pages new in 1 of 1 cell;")
    assert "more runs fail" not in worse.headline
    better = answer(lossy, sound)
    assert better.kind == "good"
    assert better.headline.startswith("B against A: stale pages gone from 1 of 1 cell;")
    assert answer(lossy, lossy).kind == "bad"


def test_nothing_in_common(read: Read) -> None:
    first = read({"policy": ["quiesce", "tombstone"]}, repeats=1)
    second = read({"memory_bytes": [1 << 26, 1 << 27]}, repeats=1)
    page = build_page([first, second])
    assert page.change is not None
    assert page.change.headline == "A and B have no cell in common"
    assert (page.pairs, page.apart) == (None, None)
    assert change_plot(None) is None


def test_nothing_to_divide_by(read: Read) -> None:
    def nothing(run: dict[str, Any], place: int) -> dict[str, Any]:
        run["migration"]["downtime_seconds"] = 0.0
        return run

    found = compared(read(AXES, change=nothing), read(AXES))
    plot = change_plot(found)
    assert plot is not None
    assert {row["measure"] for row in plot.choices[0].data["changes"]} == {"time", "sent"}
    assert pair_table(found).rows
