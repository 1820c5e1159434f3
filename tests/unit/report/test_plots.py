from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import pytest

from qemu_ring.experiment import Results
from qemu_ring.report.plots.plot import slug
from qemu_ring.report.plots.scaling import scaling_plots
from qemu_ring.report.plots.stalemap import stale_map
from qemu_ring.report.plots.strips import Row, strip_plot
from qemu_ring.report.plots.timeline import Subject, timeline_plot
from qemu_ring.report.summary import DOWNTIME, TIME, summarise

Read = Callable[..., Results]
MIB = 1 << 20


def test_strip_has_every_repeat(read: Read) -> None:
    def fail(run: dict[str, Any], place: int) -> dict[str, Any]:
        return {**run, "status": "timeout"} if place == 0 else run

    cells = summarise(read({"policy": ["best-effort", "quiesce"]}, repeats=5, change=fail))
    plot = strip_plot([Row(cell.name, (cell.runs,)) for cell in cells], TIME)
    assert plot is not None
    data = plot.choices[0].data
    assert len(data["points"]) == 9
    assert {point["outcome"] for point in data["points"]} == {"every page arrived", "stale pages"}
    assert sorted(one["repeats"] for one in data["medians"]) == [4, 5]
    for one in data["medians"]:
        values = [p["value"] for p in data["points"] if p["cell"] == one["cell"]]
        assert one["value"] == pytest.approx(statistics.median(values), rel=1e-4)
        assert min(values) <= one["low"] <= one["value"] <= one["high"] <= max(values)


def test_strip_of_what_nobody_measured(read: Read) -> None:
    cells = summarise(read(repeats=1, change=lambda run, _: {**run, "status": "refused"}))
    assert strip_plot([Row(cell.name, (cell.runs,)) for cell in cells], TIME) is None


def test_scaling_has_a_line_for_each_combination(read: Read) -> None:
    policies = ["quiesce", "tombstone"]
    axes = {"memory_bytes": [64 * MIB, 128 * MIB, 256 * MIB], "policy": policies}
    (plot,) = scaling_plots(summarise(read(axes)), [TIME, DOWNTIME])
    assert plot.name == "scaling-memory-bytes"
    points = [point for point in plot.choices[0].data["points"] if "median" in point]
    assert {(point["series"], point["measure"]) for point in points} == {
        (policy, measure) for policy in policies for measure in ("time", "downtime")
    }
    assert len(points) == 12
    assert {point["at"] for point in points} == {"64 MiB", "128 MiB", "256 MiB"}
    assert len({point["x"] for point in points}) == 6  # the lines' marks are not on each other


def test_scaling_joins_what_follows_from_the_parameter(read: Read) -> None:
    def named(run: dict[str, Any], place: int) -> dict[str, Any]:
        return run

    results = read({"ring_entries": [1024, 4096]}, change=named)
    for cell in results.cells.values():
        assert isinstance(cell.parameters, dict)
        cell.parameters["tracking"] = f"ring:{cell.parameters['ring_entries']}"
    (plot,) = scaling_plots(summarise(results), [TIME])
    assert {point["series"] for point in plot.choices[0].data["points"]} == {""}


def test_scaling_names_nothing_twice(read: Read) -> None:
    results = read({"multifd": [0, 2], "tracking": ["bitmap", "ring:4096"]})
    for cell in results.cells.values():
        assert isinstance(cell.parameters, dict)
        entries = 4096 if cell.parameters["tracking"] == "ring:4096" else None
        cell.parameters["ring_entries"] = entries
    (plot,) = scaling_plots(summarise(results), [TIME])
    series = {point["series"] for point in plot.choices[0].data["points"]}
    assert series == {"bitmap", "ring:4096"}


def test_no_scaling_without_numbers(read: Read) -> None:
    assert scaling_plots(summarise(read({"policy": ["quiesce", "tombstone"]})), [TIME]) == []


def test_stale_map_counts_each_listed_page_once(read: Read) -> None:
    results = read({"policy": ["best-effort", "quiesce"]})
    plot = stale_map(summarise(results))
    assert plot is not None
    heat = plot.choices[0].data["heat"]
    assert (
        sum(one["count"] for one in heat) == sum(len(run.stale) for run in results.records) == 120
    )
    assert {one["row"] for one in heat} == {0}  # quiesce lost nothing, and has no strip
    for run in results.records:
        for page in run.stale:
            assert any(one["from"] <= page.page < one["to"] for one in heat)


def test_stale_map_tells_of_pages_that_are_not_listed(read: Read) -> None:
    results = read({"policy": ["best-effort"]}, change=lambda run, _: {**run, "stale_pages": 5000})
    plot = stale_map(summarise(results))
    assert plot is not None
    assert "19,880 further pages" in plot.caption
    assert plot.choices[0].data["unknown"] == [
        {"block": "slot0", "row": 0, "middle": 0, "from": 0, "to": 4096}  # one run lists none
    ]


def test_stale_map_shows_all_that_was_counted(read: Read) -> None:
    """Also where blocks are of several sizes, and what the list of pages has no room for."""

    def counted(run: dict[str, Any], place: int) -> dict[str, Any]:
        pages = 16384 if place % 2 else 4096
        places = [0] * 128
        places[0], places[127] = 1000, 7
        listed = [{"block": "ram", "page": page} for page in range(32)]
        return {
            **run,
            "stale_pages": 1007,
            "stale": listed,
            "stale_places": {"ram": places},
            "block_pages": {"ram": pages},
        }

    axes = {"policy": ["best-effort"], "memory_bytes": [1 << 24, 1 << 26]}
    plot = stale_map(summarise(read(axes, repeats=2, change=counted)))
    assert plot is not None
    data = plot.choices[0].data
    assert data["unknown"] == []
    assert "further pages" not in plot.caption
    shown = [(one["row"], one["from"], one["count"]) for one in data["heat"]]
    assert sorted(count for _, _, count in shown) == [14, 14, 2000, 2000]
    assert {(start, count) for _, start, count in shown} == {
        (0, 2000),
        (127 * 128, 14),
        (4096 - 128, 14),
    }


def test_stale_map_marks_what_lies_above_the_last_listed_page(read: Read) -> None:
    def cut(run: dict[str, Any], place: int) -> dict[str, Any]:
        pages = [{"block": "ram", "page": 7}, {"block": "slot1", "page": 100}]
        sizes = {"ram": 1000, "slot1": 1000, "slot2": 1000}
        if place == 0:
            pages.append({"block": "slot2", "page": 5})
        return {**run, "stale": pages, "stale_pages": 2 if place else 9, "block_pages": sizes}

    plot = stale_map(summarise(read({"policy": ["best-effort"]}, repeats=2, change=cut)))
    assert plot is not None
    assert [(one["block"], one["from"]) for one in plot.choices[0].data["unknown"]] == [
        ("slot2", 6)
    ]


def test_no_stale_map_without_stale_pages(read: Read) -> None:
    assert stale_map(summarise(read({"policy": ["quiesce"]}))) is None


def timeline(results: Results) -> Any:
    plot = timeline_plot([Subject(results, "", run) for run in results.records])
    assert plot is not None
    return plot


def test_timeline_shows_a_stale_run_first(read: Read) -> None:
    plot = timeline(read({"policy": ["quiesce", "best-effort"]}))
    assert plot.choices[0].label.endswith("40 stale pages")
    assert len(plot.choices) == 8
    assert len(list(plot.drawings())) == 2  # one a cell


def test_timeline_of_one_run(read: Read) -> None:
    results = read({"policy": ["quiesce"]}, repeats=1)
    data = timeline(results).choices[0].data
    run = results.records[0]
    assert run.migration is not None
    assert [band["iteration"] for band in data["bands"]] == [
        one.number for one in run.migration.iterations
    ]
    assert len(data["rates"]) == 2 * len(data["bands"]) - 1  # the last one's dirty rate is unknown
    first, second = run.migration.iterations[:2]
    (dirtied,) = [
        one["value"]
        for one in data["rates"]
        if one["iteration"] == 1 and one["what"].startswith("dirtied")
    ]
    assert second.remaining is not None
    assert dirtied == pytest.approx(second.remaining / first.seconds / MIB, rel=1e-3)
    assert sum(mark["count"] for mark in data["removals"]) == run.slots_removed
    assert [sample["fill"] for sample in data["samples"]] == pytest.approx(
        [(one.ring_fill or 0) / 4096 for one in run.details().samples], abs=1e-4
    )
    (down,) = data["down"]
    assert down["to"] - down["from"] == pytest.approx(run.migration.downtime_seconds, rel=1e-3)
    assert data["whole"][0]["to"] >= down["to"]


def test_many_removals_and_samples_are_thinned_not_lost(read: Read) -> None:
    def many(run: dict[str, Any], place: int) -> dict[str, Any]:
        run["removals"] = [
            {"at_seconds": n / 9000, "shape": "pci", "count": 1} for n in range(9000)
        ]
        run["migration"]["samples"] *= 100
        run["migration"]["samples"][1001] = {"at_seconds": 0.1, "ring_fill": 4096}
        return run

    data = timeline(read({"policy": ["quiesce"]}, repeats=1, change=many)).choices[0].data
    assert len(data["removals"]) <= 401
    assert sum(mark["count"] for mark in data["removals"]) == 9000
    assert len(data["samples"]) <= 300
    assert max(sample["fill"] for sample in data["samples"]) == 1.0, "the peak of a moment"


def test_a_dozen_cells_have_their_timeline_as_a_file(read: Read) -> None:
    plot = timeline(read({"vcpus": list(range(1, 15))}, repeats=2))
    assert len(plot.choices) == 28
    drawn = [choice.label for choice in plot.choices if choice.name in plot.files]
    assert len({label.partition(" · ")[0] for label in drawn}) == len(drawn) == 12


def test_run_that_failed_has_a_timeline(read: Read) -> None:
    def gave_up(run: dict[str, Any], place: int) -> dict[str, Any]:
        nothing = {"seconds": None, "downtime_seconds": None, "bytes": None}
        return {**run, "status": "not-converged", "migration": {**run["migration"], **nothing}}

    data = timeline(read({"policy": ["quiesce"]}, repeats=1, change=gave_up)).choices[0].data
    assert data["down"] == []
    assert data["bands"]


def test_slug() -> None:
    assert slug("Tracking ring:4096, 2 vCPUs") == "tracking-ring-4096-2-vcpus"
    assert slug("../..//é", ["plot"]) == "plot-2"
