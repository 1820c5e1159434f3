"""The order of runs, their seeds, and estimates."""

from __future__ import annotations

from collections import Counter

import pytest

from qemu_ring.experiment import ExperimentPlan, parse_experiment

from .conftest import EXPERIMENT


def planned(more: str) -> ExperimentPlan:
    return parse_experiment(EXPERIMENT + more)


def order(plan: ExperimentPlan) -> list[tuple[int, int]]:
    index = {cell.id: number for number, cell in enumerate(plan.cells)}
    return [(index[run.cell], run.repeat) for run in plan.runs]


def test_interleaved(plan: ExperimentPlan) -> None:
    assert order(plan) == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2)]


def test_sequential() -> None:
    plan = planned("order: sequential")
    assert order(plan) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]


def test_random_is_a_reproducible_shuffle(plan: ExperimentPlan) -> None:
    shuffled = order(planned("order: random\nseed: 7"))
    assert shuffled == order(planned("order: random\nseed: 7"))
    assert shuffled != order(plan)
    assert sorted(shuffled) == sorted(order(plan))
    assert [repeat for _, repeat in shuffled] == [0, 0, 1, 1, 2, 2], "whatever is cut off is alike"


@pytest.mark.parametrize("kind", ["interleaved", "random", "sequential"])
def test_warm_up_comes_first(kind: str) -> None:
    plan = planned(f"order: {kind}\nwarm-up: 2")
    seen: Counter[str] = Counter()
    for run in plan.runs:
        assert (run.repeat < 2) == (seen[run.cell] < 2)
        seen[run.cell] += 1
    assert set(seen.values()) == {5}


def test_seeds_are_the_same_for_all_cells_of_a_repeat(plan: ExperimentPlan) -> None:
    seeds: dict[int, set[int]] = {}
    for run in plan.runs:
        seeds.setdefault(run.repeat, set()).add(run.seed)
    assert all(len(found) == 1 for found in seeds.values())
    together = {seed for found in seeds.values() for seed in found}
    assert len(together) == 3
    assert together.isdisjoint({run.seed for run in planned("seed: 2").runs})


def test_no_run_twice(plan: ExperimentPlan) -> None:
    assert len({run.key for run in plan.runs}) == len(plan.runs)


def test_sha256_is_of_what_is_run(plan: ExperimentPlan) -> None:
    same = parse_experiment(EXPERIMENT + "\ndescription: words\n# and more\n")
    assert same.sha256 == plan.sha256
    for change in ("seed: 2", "warm-up: 1", "order: sequential", "settle-seconds: 2"):
        assert planned(change).sha256 != plan.sha256


def test_estimate_grows_with_what_there_is_to_do() -> None:
    def seconds(old: str = "", new: str = "") -> float:
        return sum(parse_experiment(EXPERIMENT.replace(old, new)).estimate_seconds())

    assert seconds("repeats: 3", "repeats: 6") == pytest.approx(2 * seconds())
    assert seconds("500 MiB", "10 MiB") > seconds()
    assert seconds("1000}", "100000}") > seconds()
    assert seconds("repeats: 3", "repeats: 3\nsettle-seconds: 9") > seconds()
    limited = parse_experiment(
        EXPERIMENT.replace("500 MiB", "10 KiB").replace("repeats: 3", "time-limit: 9")
    )
    assert [cell.estimate_seconds() for cell in limited.cells] == [9, 9]
