"""Which tests `make test` leaves to `make test-full`, and which rows of a matrix suffice for it."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence

import pytest

__all__ = ["attempts", "cover", "mark_alternating", "mark_matrices", "without_full"]

Row = Mapping[str, Hashable]


def attempts(few: int, many: int) -> list[object]:
    """Parameters of a test that is tried at different moments: few times, and many by --full."""
    rest = (pytest.param(number, marks=pytest.mark.full) for number in range(few, many))
    return [*range(few), *rest]


def cover(rows: Sequence[Row]) -> list[int]:
    """Choose rows so that each pair of values that is in any row is in a chosen one.

    Greedy: the row that has most pairs which are in none yet; of several, the one whose other
    pairs are in the fewest. That is within one or two rows of the best for matrices as small as
    ours, and unlike the generators for covering arrays it takes what combinations there are from
    the rows, not from rules.
    """
    pairs = [frozenset(itertools.combinations(sorted(row.items()), 2)) for row in rows]
    missing = set().union(*pairs)
    times: Counter[object] = Counter()

    def worth(index: int) -> tuple[int, int]:
        return len(pairs[index] & missing), -sum(times[pair] for pair in pairs[index])

    chosen = []
    while missing:
        best = max(range(len(rows)), key=worth)
        chosen.append(best)
        missing -= pairs[best]
        times.update(pairs[best])
    return sorted(chosen)


def mark_matrices(items: Iterable[pytest.Item]) -> None:
    """Mark `full` what the rest of a test's matrix makes superfluous, pair by pair of parameters.

    Of a test with the marker `pairwise`; with `pairwise(each="qemu")` all pairs are had with each
    value of that parameter. Rows that this host skips stand for nothing.
    """
    matrices: dict[tuple[str, object], list[tuple[pytest.Item, Row]]] = defaultdict(list)
    for item in items:
        marker = item.get_closest_marker("pairwise")
        if marker is None or item.get_closest_marker("skip"):
            continue
        assert isinstance(item, pytest.Function)
        # By identity, because what a parameter stands for need not be hashable.
        row = {name: id(value) for name, value in item.callspec.params.items()}
        each = marker.kwargs.get("each")
        within = row.pop(each) if each else None
        matrices[item.nodeid.partition("[")[0], within].append((item, row))
    for matrix in matrices.values():
        rows = [row for _, row in matrix]
        sufficient = {*cover(rows)} if len(rows[0]) > 1 else {*range(len(rows))}
        for index, (item, _) in enumerate(matrix):
            if index not in sufficient:
                item.add_marker(pytest.mark.full)


def mark_alternating(items: Iterable[pytest.Item]) -> None:
    """Mark `full` all but one value of a parameter in each row of a test, each value in turn.

    Of a test with the marker `alternating("binary")`: where that parameter is another program, and
    what is tested is not what differs between them. Rows that this host skips stand for nothing.
    """
    rows: dict[object, list[pytest.Item]] = defaultdict(list)
    for item in items:
        marker = item.get_closest_marker("alternating")
        if marker is None or item.get_closest_marker("skip") or item.get_closest_marker("full"):
            continue
        assert isinstance(item, pytest.Function)
        (name,) = marker.args
        if not hasattr(item, "callspec") or name not in item.callspec.params:
            continue
        others = {(other, id(it)) for other, it in item.callspec.params.items() if other != name}
        rows[item.nodeid.partition("[")[0], frozenset(others)].append(item)
    for number, row in enumerate(rows.values()):
        for index, item in enumerate(row):
            if index != number % len(row):
                item.add_marker(pytest.mark.full)


def without_full(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out tests marked `full`, unless --full is given."""
    if config.getoption("--full"):
        return
    left = [item for item in items if item.get_closest_marker("full")]
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if not item.get_closest_marker("full")]
