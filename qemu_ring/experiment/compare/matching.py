"""Which cell of B is to be compared with which of A."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qemu_ring.errors import UsageError
from qemu_ring.experiment.errors import NothingInCommonError
from qemu_ring.experiment.plan.cells import Cell
from qemu_ring.experiment.plan.matrix import label_of
from qemu_ring.experiment.plan.parameters import named_by_parameters
from qemu_ring.experiment.results.reader import Results

__all__ = ["Matched", "match_cells"]

_Key = frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Matched:
    """Cells of A and B.

    Args:
        pairs: that belong together.
        only_a, only_b: those that the other one has none for.
    """

    pairs: tuple[tuple[Cell, Cell], ...]
    only_a: tuple[Cell, ...]
    only_b: tuple[Cell, ...]


def match_cells(
    a: Results, b: Results, where_a: Mapping[str, str], where_b: Mapping[str, str]
) -> Matched:
    """Match cells by the labels of their axes, but for those that the choices are of.

    An axis with one value in all of A and another one in all of B is what they are compared for,
    and keeps no cells apart either.

    Raises:
        NothingInCommonError: there is no pair.
        UsageError: a choice that cannot be, or that leaves several cells for one.
    """
    chosen_a, chosen_b = _chosen(a, where_a), _chosen(b, where_b)
    aside = {*where_a, *where_b} | _settled_apart(chosen_a, chosen_b)
    cells_a, cells_b = _by_key(a, chosen_a, aside), _by_key(b, chosen_b, aside)
    pairs = tuple((cells_a[key], cells_b[key]) for key in cells_a if key in cells_b)
    if not pairs:
        raise NothingInCommonError(
            "they have no cell in common",
            hint="see `qemu-ring experiment show` for the axes, and choose by them, of a and of b",
        )
    return Matched(
        pairs,
        tuple(cell for key, cell in cells_a.items() if key not in cells_b),
        tuple(cell for key, cell in cells_b.items() if key not in cells_a),
    )


def _chosen(results: Results, where: Mapping[str, str]) -> list[Cell]:
    """The cells with these parameters."""
    found = []
    for cell in results.cells.values():
        known = {key: label_of(value) for key, value in cell.parameters.items()}
        known |= dict(cell.axes)
        unknown = [key for key in where if key not in known]
        if unknown:
            raise UsageError(
                f"{results.directory} has no parameter {unknown[0]}",
                hint=f"it has {', '.join(known)}",
            )
        if all(known[key] == value for key, value in where.items()):
            found.append(cell)
    return found


def _settled_apart(a: list[Cell], b: list[Cell]) -> set[str]:
    found = set()
    for key in {key for cell in (*a, *b) for key in cell.axes}:
        here, there = ({cell.axes.get(key) for cell in side} for side in (a, b))
        if len(here) == len(there) == 1 and here != there:
            found.add(key)
    return found


def _by_key(results: Results, cells: list[Cell], aside: set[str]) -> dict[_Key, Cell]:
    """The cells by their other axes."""
    found: dict[_Key, Cell] = {}
    for cell in cells:
        key = frozenset(
            (axis, label)
            for axis, label in cell.axes.items()
            if axis not in aside and named_by_parameters(axis) not in aside
        )
        if key in found:
            raise UsageError(
                f"{found[key].name} and {cell.name} of {results.directory} would be one cell",
                hint="choose one of them, of a or of b",
            )
        found[key] = cell
    return found
